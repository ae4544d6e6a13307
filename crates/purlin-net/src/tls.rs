//! TLS 1.3 with certificates on both sides, driven without IO of its own.
//!
//! The usual stream adapters own socket and session, so only the task that holds the stream can
//! send. Here the session is a value: whoever holds its lock turns plaintext into records and
//! writes them, which lets a caller send from its own task.

use std::{
    io::{self, BufRead as _, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use purlin_core::{NodeName, WallTime};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ParsedCertificate, WebPkiClientVerifier},
};

use crate::certs::{self, CertError, CertificateSummary, IssuedCertificate};

/// A node's certificate, key and authority, ready for connections.
///
/// Can be exchanged while the node runs ([`TlsIdentity::reload`]): connections made afterwards use
/// the new certificate, existing ones keep theirs.
#[derive(Debug, Clone)]
pub struct TlsIdentity {
    current: Arc<ArcSwap<Loaded>>,
    files: Option<Arc<Files>>,
}

#[derive(Debug)]
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug)]
struct Loaded {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    summary: CertificateSummary,
}

impl TlsIdentity {
    /// Reads an authority's certificate, and a node's certificate and key, all PEM.
    ///
    /// # Errors
    /// [`CertError`], naming the file. A key that others can read is refused.
    pub fn from_pem_files(
        authority: &Path,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, CertError> {
        let files = Files {
            authority: authority.to_owned(),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let loaded = files.load()?;
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(loaded)), files: Some(Arc::new(files)) })
    }

    /// Takes an identity from memory, for tests and embedded use.
    ///
    /// # Errors
    /// [`CertError::Malformed`].
    pub fn from_issued(authority_pem: &str, issued: &IssuedCertificate) -> Result<Self, CertError> {
        let memory = Path::new("memory");
        let loaded = load(
            (memory, authority_pem),
            (memory, &issued.certificate_pem),
            (memory, &issued.key_pem),
        )?;
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(loaded)), files: None })
    }

    /// Reads the files again, for a certificate that was renewed. On an error the old one stays.
    ///
    /// # Errors
    /// [`CertError`]; also when the identity did not come from files.
    pub fn reload(&self) -> Result<(), CertError> {
        let Some(files) = &self.files else {
            let why = "the identity was not read from files".to_owned();
            return Err(CertError::Malformed { path: PathBuf::from("memory"), why });
        };
        self.current.store(Arc::new(files.load()?));
        Ok(())
    }

    /// Whom the certificate is for and how long it is valid.
    #[must_use]
    pub fn summary(&self) -> CertificateSummary {
        self.current.load().summary.clone()
    }

    /// Whether the certificate is for `node`.
    #[must_use]
    pub fn is_for(&self, node: &NodeName) -> bool {
        self.current.load().summary.names.iter().any(|name| name == node.as_str())
    }

    /// Whether the certificate has expired at `now`.
    #[must_use]
    pub fn is_expired(&self, now: WallTime) -> bool {
        self.summary().valid_for_millis(now) == 0
    }

    pub(crate) fn dial(&self) -> Result<Session, rustls::Error> {
        // The name is checked after the handshake, when the other side has said who it is; the
        // name given here only fills the protocol field and must not leak whom we look for.
        let name = ServerName::try_from("purlin").expect("a DNS name");
        let config = Arc::clone(&self.current.load().client);
        Ok(Session::new(ClientConnection::new(config, name)?.into()))
    }

    pub(crate) fn accept(&self) -> Result<Session, rustls::Error> {
        let config = Arc::clone(&self.current.load().server);
        Ok(Session::new(ServerConnection::new(config)?.into()))
    }
}

impl Files {
    fn load(&self) -> Result<Loaded, CertError> {
        load(
            (&self.authority, &certs::read(&self.authority)?),
            (&self.certificate, &certs::read(&self.certificate)?),
            (&self.key, &certs::read_key(&self.key)?),
        )
    }
}

fn load(
    authority: (&Path, &str),
    certificate: (&Path, &str),
    key: (&Path, &str),
) -> Result<Loaded, CertError> {
    fn malformed<'a, E: std::fmt::Display>(path: &'a Path) -> impl Fn(E) -> CertError + 'a {
        |error| CertError::Malformed { path: path.to_owned(), why: error.to_string() }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(authority.1.as_bytes()) {
        let root = root.map_err(malformed(authority.0))?;
        roots.add(root).map_err(malformed(authority.0))?;
    }
    if roots.is_empty() {
        return Err(malformed(authority.0)("no certificate in PEM form"));
    }
    let roots = Arc::new(roots);
    let chain = CertificateDer::pem_slice_iter(certificate.1.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(malformed(certificate.0))?;
    let summary = match chain.first() {
        Some(leaf) => CertificateSummary::of_der(leaf).map_err(malformed(certificate.0))?,
        None => return Err(malformed(certificate.0)("no certificate in PEM form")),
    };
    let key_der = PrivateKeyDer::from_pem_slice(key.1.as_bytes()).map_err(malformed(key.0))?;

    let checker =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(malformed(authority.0))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(malformed(certificate.0))?
        .with_client_cert_verifier(checker)
        .with_single_cert(chain.clone(), key_der.clone_key())
        .map_err(malformed(key.0))?;
    // Connections are long-lived: resumption would only add messages and state.
    server.send_tls13_tickets = 0;

    let verifier = AuthorityOnly { roots, algorithms: provider.signature_verification_algorithms };
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(malformed(certificate.0))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key_der)
        .map_err(malformed(key.0))?;
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    Ok(Loaded { client: Arc::new(client), server: Arc::new(server), summary })
}

/// Verifies that the authority issued the certificate. The name is checked afterwards against the
/// handshake's claim ([`Session::is_for`]), because a node that knows only an address cannot know
/// the name before.
#[derive(Debug)]
struct AuthorityOnly {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AuthorityOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// How much plaintext is turned into records before they go to the socket.
const ENCRYPT_BYTES: usize = 128 << 10;

/// How far a write came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Everything is on the socket.
    All,
    /// The socket takes no more now.
    Blocked,
}

/// One TLS session and the plaintext it has taken over.
#[derive(Debug)]
pub(crate) struct Session {
    tls: Connection,
    pub(crate) batch: Vec<u8>,
    /// How much of `batch` is encrypted.
    at: usize,
}

impl Session {
    fn new(mut tls: Connection) -> Self {
        // Bounded by the outbox instead, which counts plaintext.
        tls.set_buffer_limit(None);
        Self { tls, batch: Vec::new(), at: 0 }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether the other side's certificate is for `node` and no other name matches by accident:
    /// DNS names ignore case, node names do not.
    pub(crate) fn is_for(&self, node: &NodeName) -> bool {
        let leaf = self.tls.peer_certificates().and_then(<[_]>::first);
        let Some(Ok(leaf)) = leaf.map(webpki::EndEntityCert::try_from) else {
            return false;
        };
        let Ok(name) = ServerName::try_from(node.as_str()) else {
            return false;
        };
        leaf.verify_is_valid_for_subject_name(&name).is_ok()
            && leaf.valid_dns_names().any(|found| found == node.as_str())
    }

    /// Turns received records into plaintext, appended to `plain`. `true` when the other side
    /// said that nothing follows.
    pub(crate) fn receive(
        &mut self,
        mut records: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<bool, rustls::Error> {
        while !records.is_empty() {
            match self.tls.read_tls(&mut records) {
                // It said before that nothing follows; whatever does is not ours to read.
                Ok(0) => return Ok(true),
                Ok(_) => {}
                // Only when plaintext is not drained, and it is, below.
                Err(_) => return Err(rustls::Error::General("record buffer full".to_owned())),
            }
            let state = self.tls.process_new_packets()?;
            let closed = state.peer_has_closed();
            if state.plaintext_bytes_to_read() > 0 {
                self.drain_plaintext(plain);
            }
            if closed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn drain_plaintext(&mut self, plain: &mut Vec<u8>) {
        let mut reader = self.tls.reader();
        // An error means "nothing now" or "nothing more"; both end the loop.
        while let Ok(chunk) = reader.fill_buf() {
            let bytes = chunk.len();
            if bytes == 0 {
                return;
            }
            plain.extend_from_slice(chunk);
            reader.consume(bytes);
        }
    }

    /// Takes over `bytes` to send; nothing is written yet.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.batch.extend_from_slice(bytes);
    }

    /// Says that nothing follows.
    pub(crate) fn push_close_notify(&mut self) {
        self.tls.send_close_notify();
    }

    pub(crate) fn batch_left(&self) -> usize {
        self.batch.len() - self.at
    }

    /// Whether the session has bytes of its own to write, such as a key update.
    pub(crate) fn wants_control_write(&self) -> bool {
        self.tls.wants_write()
    }

    pub(crate) fn wants_write(&self) -> bool {
        self.tls.wants_write() || self.at < self.batch.len()
    }

    /// Encrypts what was pushed and writes it to `socket` until that is full.
    pub(crate) fn write_to(&mut self, socket: &mut dyn Write) -> io::Result<Written> {
        loop {
            while self.tls.wants_write() {
                match self.tls.write_tls(socket) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Written::Blocked);
                    }
                    Err(error) => return Err(error),
                }
            }
            if self.at == self.batch.len() {
                self.batch.clear();
                self.at = 0;
                return Ok(Written::All);
            }
            let end = self.batch.len().min(self.at + ENCRYPT_BYTES);
            self.at += self.tls.writer().write(&self.batch[self.at..end])?;
        }
    }
}
