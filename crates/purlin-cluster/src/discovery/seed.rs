//! One address as people write it: `10.0.0.2:7400`, `[fd00::2]:7400`, `n2.example.org:7400`.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use super::DiscoveryError;

/// The most bytes of a host name (RFC 1035 §2.3.4, without the final dot).
const HOST_BYTES_MAX: usize = 253;

/// A host and a port; the host is an IP address or a name to resolve.
///
/// ```
/// use purlin_cluster::discovery::SeedAddr;
/// let seed: SeedAddr = "n2.example.org:7400".parse()?;
/// assert_eq!((seed.host(), seed.port()), ("n2.example.org", 7400));
/// assert!("n2.example.org".parse::<SeedAddr>().is_err(), "the port is part of it");
/// # Ok::<(), purlin_cluster::discovery::DiscoveryError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeedAddr {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

impl SeedAddr {
    /// The host: a name, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, if the host is one and not a name.
    #[must_use]
    pub fn literal(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse::<IpAddr>().ok()?, self.port))
    }

    /// Splits seeds into addresses and names to resolve.
    pub(crate) fn split(
        seeds: impl IntoIterator<Item = Self>,
    ) -> (BTreeSet<SocketAddr>, BTreeSet<Self>) {
        let (mut literals, mut names) = (BTreeSet::new(), BTreeSet::new());
        for seed in seeds {
            match seed.literal() {
                Some(addr) => drop(literals.insert(addr)),
                None => drop(names.insert(seed)),
            }
        }
        (literals, names)
    }

    /// What is wrong with `text`, without the text itself: callers know where it stands.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (host, port) = text.rsplit_once(':').ok_or("there is no port")?;
        let port = port.parse().map_err(|_not_a_port| "the port is no number from 1 to 65535")?;
        if port == 0 {
            return Err("the port is no number from 1 to 65535");
        }
        let host = match host.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
            Some(Some(inner)) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err("what stands in brackets is no IPv6 address"),
            None if host.contains(':') => return Err("an IPv6 address needs brackets"),
            None => host,
        };
        check_host(host)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

/// Whether `host` may be an IP address or a host name.
pub(crate) fn check_host(host: &str) -> Result<(), &'static str> {
    if host.is_empty() {
        return Err("there is no host");
    }
    if host.len() > HOST_BYTES_MAX {
        return Err("the host is longer than 253 bytes");
    }
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if !host.chars().all(known) {
        return Err("the host holds a character that no host name has");
    }
    Ok(())
}

impl FromStr for SeedAddr {
    type Err = DiscoveryError;

    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        Self::parse(text).map_err(|reason| DiscoveryError::Seed { text: text.to_owned(), reason })
    }
}

impl fmt::Display for SeedAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_may_be_names_or_addresses_of_both_families() {
        for (text, literal) in [
            ("10.0.0.2:7400", true),
            ("[fd00::2]:7400", true),
            ("n2.example.org:1", false),
            ("n_2:65535", false),
        ] {
            let seed: SeedAddr = text.parse().unwrap();
            assert_eq!(seed.to_string(), text);
            assert_eq!(
                seed.literal().map(|addr| addr.to_string()),
                literal.then(|| text.to_owned())
            );
        }
    }

    #[test]
    fn what_is_no_seed_is_named_with_the_reason() {
        let cases = [
            ("n2", "there is no port"),
            ("n2:", "the port is no number from 1 to 65535"),
            ("n2:0", "the port is no number from 1 to 65535"),
            ("n2:65536", "the port is no number from 1 to 65535"),
            (":7400", "there is no host"),
            ("fd00::2:7400", "an IPv6 address needs brackets"),
            ("[n2]:7400", "what stands in brackets is no IPv6 address"),
            ("n 2:7400", "the host holds a character that no host name has"),
        ];
        for (text, reason) in cases {
            assert_eq!(
                text.parse::<SeedAddr>().unwrap_err().to_string(),
                format!("seed {text:?} is no `host:port`: {reason}")
            );
        }
    }
}
