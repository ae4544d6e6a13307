//! Certificates and keys for a cluster on one machine: tests, examples, development.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use purlin_core::{Clock as _, ClusterName, NodeName, SystemClock};
use purlin_net::{
    Authority, CertError, CertificateSummary, GossipKeys, TlsIdentity,
    certs::{self, NODE_VALID_FOR, TIMELESS},
};

/// A certificate that would expire within this is renewed.
const RENEW_BEFORE_MS: u64 = 30 * 24 * 3600 * 1000;

/// An authority and a gossip key of one's own, so that nodes of one program or one machine can
/// form a cluster without anybody handling files.
///
/// The traffic is as encrypted and the nodes as authenticated as in production; the difference is
/// that whoever holds this value can add nodes. Not for clusters of several machines: there the
/// authority's key belongs on one machine only.
#[derive(Debug, Clone)]
pub struct DevAuthority {
    authority: Arc<Authority>,
    gossip_text: Arc<str>,
    is_timeless: bool,
}

impl DevAuthority {
    /// Makes one in memory; it is gone with its last clone.
    ///
    /// # Errors
    /// [`CertError::Issue`] when the system gives no randomness.
    pub fn new() -> Result<Self, CertError> {
        Ok(Self::of(Authority::generate(&dev(), SystemClock::new().wall())?))
    }

    /// Makes one in memory for simulations: its certificates are valid in any year that a simulated
    /// clock may show, and handshakes with them take the same number of bytes every time.
    ///
    /// # Errors
    /// [`CertError::Issue`] when the system gives no randomness.
    pub fn timeless() -> Result<Self, CertError> {
        Ok(Self { is_timeless: true, ..Self::of(Authority::timeless(&dev())?) })
    }

    fn of(authority: Authority) -> Self {
        let gossip_text = GossipKeys::generate().into();
        Self { authority: Arc::new(authority), gossip_text, is_timeless: false }
    }

    /// Takes the one kept in `dir` (`ca.pem`, `ca.key`, `gossip.key`), making it first if need be:
    /// several processes that name the same directory can form a cluster.
    ///
    /// # Errors
    /// [`CertError`], naming the file.
    pub fn in_dir(dir: impl AsRef<Path>) -> Result<Self, CertError> {
        let dir = dir.as_ref();
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |error| CertError::Io { path, error }
        };
        fs::create_dir_all(dir).map_err(refused(dir))?;
        // Two processes that start together must not make two authorities.
        let lock_path = dir.join("ca.lock");
        let lock = File::create(&lock_path).map_err(refused(&lock_path))?;
        lock.lock().map_err(refused(&lock_path))?;
        let authority = if dir.join("ca.key").exists() {
            Authority::load(dir)?
        } else {
            let made = Self::new()?;
            made.authority.store(dir)?;
            Authority::load(dir)?
        };
        let gossip_path = dir.join("gossip.key");
        if !gossip_path.exists() {
            certs::write_key(&gossip_path, &GossipKeys::generate())?;
        }
        GossipKeys::from_file(&gossip_path)?;
        let gossip_text = fs::read_to_string(&gossip_path).map_err(refused(&gossip_path))?;
        let gossip_text = gossip_text.into();
        Ok(Self { authority: Arc::new(authority), gossip_text, is_timeless: false })
    }

    /// Issues a certificate for `name` into `dir` (`node.pem`, `node.key`), unless the one there
    /// is still good for a month.
    ///
    /// # Errors
    /// [`CertError`], naming the file; [`CertError::Issue`] for a name that is none.
    pub fn store_for(&self, name: &str, dir: impl AsRef<Path>) -> Result<(), CertError> {
        let dir = dir.as_ref();
        let now = SystemClock::new().wall();
        let name = NodeName::parse(name).map_err(|error| CertError::Issue(error.to_string()))?;
        let (certificate, key) = (dir.join("node.pem"), dir.join("node.key"));
        let summary = fs::read_to_string(&certificate)
            .ok()
            .and_then(|pem| CertificateSummary::of_pem(&pem).ok());
        let is_good = |summary: CertificateSummary| {
            summary.valid_for_millis(now) > RENEW_BEFORE_MS
                && summary.names.iter().any(|known| known == name.as_str())
        };
        if summary.is_some_and(is_good) && key.exists() {
            return Ok(());
        }
        for old in [&certificate, &key] {
            match fs::remove_file(old) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(CertError::Io { path: old.clone(), error }),
            }
        }
        fs::create_dir_all(dir).map_err(|error| CertError::Io { path: dir.to_owned(), error })?;
        self.authority.issue(&name, now, NODE_VALID_FOR)?.store(&certificate, &key)
    }

    /// A fresh identity for the node `name`, and the gossip keys.
    pub(crate) fn identity(&self, name: &NodeName) -> Result<(TlsIdentity, GossipKeys), CertError> {
        let (from, valid_for) = match self.is_timeless {
            true => TIMELESS,
            false => (SystemClock::new().wall(), NODE_VALID_FOR),
        };
        let issued = self.authority.issue(name, from, valid_for)?;
        let tls = TlsIdentity::from_issued(self.authority.certificate_pem(), &issued)?;
        let keys = GossipKeys::parse(&self.gossip_text).expect("checked when it was read or made");
        Ok((tls, keys))
    }
}

fn dev() -> ClusterName {
    ClusterName::parse("dev").expect("dev is a valid name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_one_authority_for_all_who_name_it() {
        let dir = tempfile::tempdir().unwrap();
        let one = DevAuthority::in_dir(dir.path()).unwrap();
        let other = DevAuthority::in_dir(dir.path()).unwrap();
        assert_eq!(one.authority.certificate_pem(), other.authority.certificate_pem());
        assert_eq!(one.gossip_text, other.gossip_text);
    }

    #[test]
    fn a_good_certificate_is_kept_and_a_bad_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let authority = DevAuthority::in_dir(dir.path()).unwrap();
        let pem = || fs::read_to_string(dir.path().join("node.pem")).unwrap();
        authority.store_for("n1", dir.path()).unwrap();
        let first = pem();
        authority.store_for("n1", dir.path()).unwrap();
        assert_eq!(pem(), first);
        fs::write(dir.path().join("node.pem"), "half").unwrap();
        authority.store_for("n1", dir.path()).unwrap();
        assert_ne!(pem(), first);
        authority.store_for("n2", dir.path()).unwrap();
        assert_eq!(CertificateSummary::of_pem(&pem()).unwrap().names, ["n2"]);
    }
}
