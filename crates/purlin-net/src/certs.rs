//! Certificates: an authority per cluster, and one certificate per node, issued by it.
//!
//! A shared password makes every node able to speak for every other. Here each node has its own
//! key; its certificate carries the node's name as its only DNS name, and a connection is refused
//! when that name is not the one claimed. Whoever holds the authority's key can add nodes, so it
//! belongs on the machine that issues certificates and nowhere else.
//!
//! Files: `ca.pem` and `ca.key` in the authority's folder, `<node>.pem` and `<node>.key` for a
//! node. Keys are written with mode 0600, and a key that others can read is refused, for by then
//! it may have been copied.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use purlin_core::{ClusterName, NodeName, WallTime};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SerialNumber,
};

mod der;

pub use der::CertificateSummary;

/// Why a certificate or key cannot be made, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertError {
    /// A file cannot be read or written.
    #[error("cannot access {}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A key can be read by others than its owner. Make a new one, or `chmod 600` it if you are
    /// sure nobody did.
    #[error("key {} has mode {mode:o}; others can read it, expected 600", path.display())]
    KeyReadable {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds no certificate or key of the expected form.
    #[error("{} is not usable: {why}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The certificate cannot be made.
    #[error("cannot issue a certificate: {0}")]
    Issue(String),
}

/// How long the authority's certificate is valid: ten years. Clusters outlive their operators'
/// memory of how they were set up.
pub const AUTHORITY_VALID_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a node's certificate is valid unless told otherwise: one year.
pub const NODE_VALID_FOR: Duration = Duration::from_secs(365 * 24 * 3600);

/// From when on and how long certificates are valid that must be so in any simulated year.
pub const TIMELESS: (WallTime, Duration) =
    (WallTime::from_millis(3_600_000), Duration::from_secs(400 * 365 * 24 * 3600));

/// Certificates are valid from an hour before they are made, for nodes whose clocks lag.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A cluster's certificate authority, with its private key.
#[derive(Debug)]
pub struct Authority {
    cluster: String,
    certificate_pem: String,
    key: KeyPair,
}

/// A certificate and its private key, as PEM.
#[derive(Clone)]
pub struct IssuedCertificate {
    /// The node's certificate.
    pub certificate_pem: String,
    /// Its private key (PKCS #8).
    pub key_pem: String,
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedCertificate").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority for `cluster`, valid from `now` for [`AUTHORITY_VALID_FOR`].
    ///
    /// # Errors
    /// [`CertError::Issue`] when the system gives no randomness.
    pub fn generate(cluster: &ClusterName, now: WallTime) -> Result<Self, CertError> {
        Self::with_key(cluster, now, AUTHORITY_VALID_FOR, KeyPair::generate().map_err(issue)?)
    }

    /// Makes an authority for simulations: [`TIMELESS`], as the certificates it issues should be.
    /// Their signatures have one length, so that a handshake takes the same bytes whatever its keys
    /// are and a simulated network carries it the same way every time.
    ///
    /// # Errors
    /// [`CertError::Issue`] when the system gives no randomness.
    pub fn timeless(cluster: &ClusterName) -> Result<Self, CertError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(issue)?;
        Self::with_key(cluster, TIMELESS.0, TIMELESS.1, key)
    }

    fn with_key(
        cluster: &ClusterName,
        now: WallTime,
        valid_for: Duration,
        key: KeyPair,
    ) -> Result<Self, CertError> {
        let mut params = authority_params(cluster.as_str());
        set_validity(&mut params, now, valid_for);
        params.serial_number = Some(serial(&key));
        let certificate = params.self_signed(&key).map_err(issue)?;
        Ok(Self { cluster: cluster.as_str().to_owned(), certificate_pem: certificate.pem(), key })
    }

    /// Reads `ca.pem` and `ca.key` from `dir`.
    ///
    /// # Errors
    /// [`CertError`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, CertError> {
        let (certificate_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let certificate_pem = read(&certificate_path)?;
        let summary = CertificateSummary::of_pem(&certificate_pem)
            .map_err(|why| CertError::Malformed { path: certificate_path, why })?;
        let key = KeyPair::from_pem(&read_key(&key_path)?)
            .map_err(|error| CertError::Malformed { path: key_path, why: error.to_string() })?;
        Ok(Self { cluster: summary.subject, certificate_pem, key })
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) into `dir`, which is made if need be.
    ///
    /// # Errors
    /// [`CertError::Io`]; an existing key is never overwritten.
    pub fn store(&self, dir: &Path) -> Result<(), CertError> {
        fs::create_dir_all(dir).map_err(|error| CertError::Io { path: dir.to_owned(), error })?;
        write_key(&dir.join("ca.key"), &self.key.serialize_pem())?;
        write(&dir.join("ca.pem"), &self.certificate_pem)
    }

    /// The authority's certificate, which every node needs.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate for the node called `node`, valid from `now` for `valid_for`.
    ///
    /// # Errors
    /// [`CertError::Issue`].
    pub fn issue(
        &self,
        node: &NodeName,
        now: WallTime,
        valid_for: Duration,
    ) -> Result<IssuedCertificate, CertError> {
        let key = KeyPair::generate_for(self.key.algorithm()).map_err(issue)?;
        let mut params = CertificateParams::new(vec![node.as_str().to_owned()]).map_err(issue)?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut params, now, valid_for);
        params.serial_number = Some(serial(&key));
        let issuer = Issuer::new(authority_params(&self.cluster), &self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(issue)?;
        Ok(IssuedCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

impl IssuedCertificate {
    /// Writes the certificate and the key (mode 0600).
    ///
    /// # Errors
    /// [`CertError::Io`]; an existing key is never overwritten.
    pub fn store(&self, certificate: &Path, key: &Path) -> Result<(), CertError> {
        write_key(key, &self.key_pem)?;
        write(certificate, &self.certificate_pem)
    }
}

fn authority_params(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, cluster);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn set_validity(params: &mut CertificateParams, now: WallTime, valid_for: Duration) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now.as_millis());
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + valid_for).into();
}

/// As random as the key, and of one length: DER drops leading zeros.
fn serial(key: &KeyPair) -> SerialNumber {
    let mut serial = [0; 16];
    let key = key.der_bytes();
    serial.copy_from_slice(&key[key.len() - 16..]);
    serial[0] = serial[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&serial)
}

fn issue(error: rcgen::Error) -> CertError {
    CertError::Issue(error.to_string())
}

pub(crate) fn read(path: &Path) -> Result<String, CertError> {
    fs::read_to_string(path).map_err(|error| CertError::Io { path: path.to_owned(), error })
}

/// Reads a private file, refusing one that others can read.
pub(crate) fn read_key(path: &Path) -> Result<String, CertError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let metadata =
            fs::metadata(path).map_err(|error| CertError::Io { path: path.to_owned(), error })?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(CertError::KeyReadable { path: path.to_owned(), mode });
        }
    }
    read(path)
}

fn write(path: &Path, text: &str) -> Result<(), CertError> {
    fs::write(path, text).map_err(|error| CertError::Io { path: path.to_owned(), error })
}

/// Writes a private file that did not exist, readable by its owner only.
///
/// # Errors
/// [`CertError::Io`] when it exists or cannot be written.
pub fn write_key(path: &Path, text: &str) -> Result<(), CertError> {
    use std::io::Write as _;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|error| CertError::Io { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> WallTime {
        WallTime::from_millis(1_763_617_920_000)
    }

    fn shop() -> Authority {
        Authority::generate(&ClusterName::parse("shop").unwrap(), now()).unwrap()
    }

    #[test]
    fn a_stored_authority_issues_certificates_like_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = shop();
        first.store(dir.path()).unwrap();
        let again = Authority::load(dir.path()).unwrap();
        assert_eq!(again.certificate_pem(), first.certificate_pem());
        let issued = again.issue(&NodeName::parse("n1").unwrap(), now(), NODE_VALID_FOR).unwrap();
        let summary = CertificateSummary::of_pem(&issued.certificate_pem).unwrap();
        assert_eq!((summary.subject.as_str(), summary.issuer.as_str()), ("n1", "shop"));
        assert_eq!(summary.names, ["n1"]);
        assert_eq!(summary.not_before.as_millis(), now().as_millis() - 3_600_000);
        assert_eq!(
            summary.not_after.as_millis(),
            now().as_millis() + u64::try_from(NODE_VALID_FOR.as_millis()).unwrap()
        );
    }

    #[test]
    fn timeless_certificates_are_valid_in_any_year_and_of_one_length() {
        let authority = Authority::timeless(&ClusterName::parse("sim").unwrap()).unwrap();
        let issue = || {
            let name = NodeName::parse("n1").unwrap();
            authority.issue(&name, TIMELESS.0, TIMELESS.1).unwrap().certificate_pem
        };
        for _ in 0..300 {
            let pem = issue();
            assert_eq!(pem.len(), issue().len());
            let summary = CertificateSummary::of_pem(&pem).unwrap();
            assert_eq!(summary.not_before, WallTime::from_millis(0));
            assert!(summary.valid_for_millis(WallTime::from_millis(4_102_444_800_000 * 2)) > 0);
        }
    }

    #[test]
    fn a_second_authority_never_overwrites_the_first() {
        let dir = tempfile::tempdir().unwrap();
        shop().store(dir.path()).unwrap();
        let before = fs::read_to_string(dir.path().join("ca.key")).unwrap();
        assert!(matches!(shop().store(dir.path()), Err(CertError::Io { .. })));
        assert_eq!(fs::read_to_string(dir.path().join("ca.key")).unwrap(), before);
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_private_and_a_readable_one_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        shop().store(dir.path()).unwrap();
        let key = dir.path().join("ca.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Authority::load(dir.path()).unwrap_err();
        assert!(matches!(refused, CertError::KeyReadable { mode: 0o644, .. }), "{refused}");
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        shop().store(dir.path()).unwrap();
        fs::write(dir.path().join("ca.pem"), "not a certificate").unwrap();
        let refused = Authority::load(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("ca.pem"), "{refused}");
    }
}
