//! The ring of libketama, for sharing keys with memcached clients in other languages.
//!
//! The others use [`Ring::new`]: MD5 buys nothing here but the same answer as theirs.
//!
//! # What is reproduced
//! - libketama's own test: the digest it publishes over the hashes, points and servers of a
//!   million keys on its weighted example servers.
//! - libmemcached's table for the same servers under its `KETAMA_WEIGHTED` behaviour.
//! - spymemcached's `KetamaNodeLocator` tests for four and five servers.
//!
//! The clients differ in the text they hash for a server, so name the nodes as the client does:
//! `10.0.1.1:11211` for libketama and spymemcached, without the port for libmemcached on port
//! 11211. libketama computes a server's share in single precision and may give it one digest less
//! where the share is a whole number; here as in libmemcached and spymemcached it is exact.
//!
//! # Source
//! Jones 2007, libketama.

use md5::{Digest as _, Md5};

use crate::{
    KeyHash, Ring, RingError,
    ring::{Bucket, bounded, sort},
};

/// Digests of a server of average weight; each gives four points.
const DIGESTS: u64 = 40;

/// The hash of `key` for a ring of [`ring`]: to be used with no other.
#[must_use]
pub fn hash(key: &[u8]) -> KeyHash {
    let [first, ..] = points(key);
    KeyHash(first)
}

/// The ring that libketama makes of these servers: 160 points each, by weight.
///
/// # Errors
/// As [`Ring::new`].
///
/// ```
/// use purlin_ring::{Bucket, ketama};
/// let servers = ["10.0.1.1:11211", "10.0.1.2:11211"].map(Bucket::new).to_vec();
/// let ring = ketama::ring(servers)?;
/// let owner = ring.owner(ketama::hash(b"cart:42")).expect("the ring has servers");
/// assert_eq!(owner.node, "10.0.1.1:11211");
/// # Ok::<(), purlin_ring::RingError>(())
/// ```
pub fn ring<N: AsRef<str>>(mut nodes: Vec<Bucket<N>>) -> Result<Ring<N>, RingError> {
    sort(&mut nodes)?;
    let count = nodes.len() as u128;
    let weights: u128 = nodes.iter().map(|node| u128::from(node.weight)).sum();
    let digests = |node: &Bucket<N>| {
        let share = u128::from(node.weight) * u128::from(DIGESTS) * count / weights.max(1);
        u64::try_from(share).unwrap_or(u64::MAX)
    };
    let total = bounded(nodes.iter().map(|node| digests(node).saturating_mul(4)))?;
    let mut places = Vec::with_capacity(total);
    for (owner, node) in (0_u32..).zip(&nodes) {
        for n in 0..digests(node) {
            let text = format!("{}-{n}", node.node.as_ref());
            places.extend(points(text.as_bytes()).map(|point| (point, owner)));
        }
    }
    Ok(Ring::of_places(nodes, places))
}

/// Four 32-bit points, in the upper halves: the order is the same and the ring's index works.
fn points(text: &[u8]) -> [u64; 4] {
    let digest: [u8; 16] = Md5::digest(text).into();
    [0, 4, 8, 12].map(|at| {
        let point = digest[at..at + 4].try_into().expect("4 bytes of a 16-byte array");
        u64::from(u32::from_le_bytes(point)) << 32
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// The servers of libketama's example, which libmemcached tests with, too.
    fn servers(port: &str) -> Vec<Bucket<String>> {
        let server = |(n, weight)| Bucket { weight, ..Bucket::new(format!("10.0.1.{n}{port}")) };
        (1..).zip([600, 300, 200, 350, 1_000, 800, 950, 100]).map(server).collect()
    }

    fn local(count: u16) -> Ring<String> {
        ring((0..count).map(|n| Bucket::new(format!("127.0.0.1:{}", 10_000 + n))).collect())
            .unwrap()
    }

    #[test]
    fn the_digest_that_libketama_publishes_over_a_million_keys_comes_out() {
        let ring = ring(servers(":11211")).unwrap();
        let mut md5 = Md5::new_with_prefix("\n");
        let mut line = String::new();
        for key in 0..1_000_000 {
            let hash = hash(key.to_string().as_bytes());
            let (point, owner) = ring.owning_point(hash).unwrap();
            line.clear();
            writeln!(line, "{} {} {}", hash.0 >> 32, point >> 32, owner.node).unwrap();
            md5.update(&line);
        }
        let digest = md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(digest, "5672b131391f5aa2b280936aec1eea74");
    }

    #[test]
    fn the_table_of_libmemcached_holds() {
        let ring = ring(servers("")).unwrap();
        for (key, hashed, point, server) in [
            ("SVa_]_V41)", 443_691_461, 445_379_617, 7),
            ("*/Z;?V(.\\8", 1_422_915_503, 1_428_303_028, 1),
            ("30C1*Z*S/_", 1_473_165_754, 1_480_075_959, 2),
            ("ERR:EC58G>", 2_148_406_511, 2_168_579_133, 7),
            ("1I=cTMNTKF", 2_882_686_667, 2_885_206_587, 5),
            ("P1[Ma3=K1/", 1_989_324_036, 1_994_028_240, 8),
            ("D[HE+cFXDK", 2_117_036_136, 2_117_124_014, 3),
            ("EM75N0+[X1", 1_558_531_507, 1_559_308_507, 4),
            ("6,cEI`F_P>", 3_972_869_246, 3_974_773_167, 6),
        ] {
            let (found, owner) = ring.owning_point(hash(key.as_bytes())).unwrap();
            let told = (hash(key.as_bytes()).0 >> 32, found >> 32, owner.node.clone());
            assert_eq!(told, (hashed, point, format!("10.0.1.{server}")), "{key}");
        }
        let (least, _) = ring.owning_point(KeyHash(0)).unwrap();
        let around = ring.owning_point(hash(b"VDEAAAAA")).unwrap();
        assert_eq!((hash(b"VDEAAAAA").0 >> 32, around.0), (0xfffc_d1b5, least), "past the end");
    }

    #[test]
    fn the_lookups_of_spymemcached_hold() {
        for (count, key, expected) in [
            (4, "dustin", 0),
            (4, "noelani", 2),
            (4, "some other key", 0),
            (4, "7QHNPFVC", 1),
            (4, "N6H4245M", 1),
            (4, "V5XS8C8N", 3),
            (4, "8KR2DKR2", 3),
            (4, "L9KH6X4X", 3),
            (5, "dustin", 0),
            (5, "noelani", 2),
            (5, "some other key", 4),
            (5, "36", 2),
            (5, "10037", 3),
            (5, "22051", 1),
            (5, "49044", 4),
        ] {
            let ring = local(count);
            let owner = ring.owner(hash(key.as_bytes())).unwrap();
            let expected = format!("127.0.0.1:{}", 10_000 + expected);
            assert_eq!(owner.node, expected, "{key} among {count}");
        }
    }

    #[test]
    fn a_ring_without_weight_owns_nothing_and_absurd_weights_are_no_more_points() {
        let idle = Bucket { weight: 0, ..Bucket::new("a") };
        assert_eq!(ring(vec![idle.clone()]).unwrap().owner(KeyHash(7)), None);
        assert_eq!(ring(Vec::<Bucket<&str>>::new()).unwrap().owner(KeyHash(7)), None);
        let heavy = vec![Bucket { weight: u32::MAX, ..Bucket::new("a") }, idle];
        assert!(matches!(ring(heavy.clone()), Err(RingError::Twice(_))));
        let heavy = vec![heavy[0].clone(), Bucket { weight: u32::MAX, ..Bucket::new("b") }];
        assert!(ring(heavy).unwrap().owner(KeyHash(7)).is_some());
    }
}
