//! The one stable hash of keys.

/// A position on the ring: 64 uniformly spread bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

/// Hashes `key`, the same on every node and release.
///
/// FNV-1a over the bytes, then the finalizer of MurmurHash3 so that near keys land far apart. Fast
/// for short keys; not for secrets, nor against somebody who chooses keys to collide: a tenant who
/// can choose keys can load one node.
#[must_use]
pub fn key_hash(key: &[u8]) -> KeyHash {
    let fnv = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    KeyHash(mix(fnv))
}

/// The 64-bit finalizer of MurmurHash3 (Appleby, public domain): every input bit moves every
/// output bit.
#[must_use]
pub fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_same_on_every_release() {
        assert_eq!(key_hash(b""), KeyHash(0xefd0_1f60_ba99_2926));
        assert_eq!(key_hash(b"a"), KeyHash(0x82a2_a958_a9be_ce5b));
        assert_eq!(key_hash(b"user:42"), KeyHash(0x9988_17be_e671_8248));
    }

    #[test]
    fn neighbouring_keys_spread_over_all_top_bytes() {
        let tops: std::collections::BTreeSet<u64> =
            (0..10_000).map(|n: u32| key_hash(&n.to_le_bytes()).0 >> 56).collect();
        assert_eq!(tops.len(), 256);
    }
}
