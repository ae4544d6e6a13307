//! Rendezvous hashing: every key ranks all nodes; the first is its owner, the next its replicas.
//!
//! Costs a hash per node, so it is for tens of nodes; in exchange it is balanced without virtual
//! nodes, respects weights exactly and spreads replicas over zones.
//!
//! # Source
//! Thaler and Ravishankar 1998; weights after Schindelhauer and Schomaker 2005.

use crate::{
    KeyHash,
    hash::{key_hash, mix},
    ring::Bucket,
};

/// The `replicas` best nodes for `key`, best first, on as many different zones as there are.
///
/// Among the rest a node whose zone is not yet used goes first; within that the key's own order
/// decides. Fewer are returned when there are fewer nodes. A weight of 0 never owns anything.
#[must_use]
pub fn rank<N: AsRef<str>>(key: KeyHash, nodes: &[Bucket<N>], replicas: usize) -> Vec<&Bucket<N>> {
    let mut scored: Vec<_> =
        nodes.iter().filter(|node| node.weight > 0).map(|node| (score(key, node), node)).collect();
    // Names break ties, so that all nodes agree even then.
    scored.sort_by(|(a, one), (b, two)| {
        b.total_cmp(a).then_with(|| one.node.as_ref().cmp(two.node.as_ref()))
    });
    spread(scored.into_iter().map(|(_, node)| node), replicas)
}

/// Takes `replicas` of `ordered`, those of unused zones first, otherwise in order.
pub(crate) fn spread<'a, N>(
    ordered: impl Iterator<Item = &'a Bucket<N>>,
    replicas: usize,
) -> Vec<&'a Bucket<N>> {
    let mut chosen: Vec<&Bucket<N>> = Vec::with_capacity(replicas);
    let mut same_zone = Vec::new();
    for node in ordered {
        if chosen.len() == replicas {
            break;
        }
        // A node without a zone shares its fate with nobody we know of.
        let used = node.zone.is_some() && chosen.iter().any(|other| other.zone == node.zone);
        if used { same_zone.push(node) } else { chosen.push(node) }
    }
    let missing = replicas - chosen.len();
    chosen.extend(same_zone.into_iter().take(missing));
    chosen
}

#[expect(clippy::cast_precision_loss, reason = "53 bits of a hash are enough to rank nodes")]
fn score<N: AsRef<str>>(key: KeyHash, node: &Bucket<N>) -> f64 {
    let bits = mix(key.0 ^ key_hash(node.node.as_ref().as_bytes()).0.rotate_left(32)) >> 11;
    // In (0, 1): neither 0, whose logarithm is infinite, nor 1, whose logarithm is 0.
    let uniform = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(node.weight) / ln(uniform)
}

/// The natural logarithm of a positive, normal `x`, to about the last bit.
///
/// Not `f64::ln`, which is whatever the machine's C library computes: two libraries may differ in
/// the last bit and then two nodes in who owns a key. Here are additions, multiplications and
/// divisions only, which IEEE 754 rounds in one way.
fn ln(x: f64) -> f64 {
    const EXPONENT_OF_ONE: u64 = 1_023;
    let bits = x.to_bits();
    let mut exponent = f64::from(u32::try_from(bits >> 52).expect("11 bits, as x is positive"))
        - f64::from(u32::try_from(EXPONENT_OF_ONE).expect("a small constant"));
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | EXPONENT_OF_ONE << 52);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)), a series in the square of at most 0.0295.
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let square = ratio * ratio;
    let series = (0..=10_u32).rev().fold(0.0, |sum, n| sum * square + 1.0 / f64::from(2 * n + 1));
    exponent * std::f64::consts::LN_2 + 2.0 * ratio * series
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_logarithm_is_one(bits in 0..1_u64 << 53) {
            let x = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
            let (ours, exact) = (ln(x), x.ln());
            prop_assert!((ours - exact).abs() <= 4e-16 * (1.0 + exact.abs()), "{ours} {exact}");
            prop_assert!(ours < 0.0);
        }
    }

    #[test]
    fn the_logarithm_is_the_same_to_the_bit_on_every_machine() {
        let bits = [0.5, 0.1, 0.999_999_999, 1e-9, 0.75].map(|x| ln(x).to_bits());
        assert_eq!(
            bits,
            [
                0xbfe6_2e42_fefa_39ef,
                0xc002_6bb1_bbb5_5515,
                0xbe11_2e0b_e024_e4bc,
                0xc034_b927_f32b_ffb8,
                0xbfd2_6962_1134_db92
            ]
        );
    }

    #[test]
    fn a_node_of_double_weight_takes_double() {
        let mut nodes = ["a", "b", "c"].map(Bucket::new);
        nodes[0].weight = 2;
        let keys = (0..40_000_u32).map(|n| key_hash(&n.to_le_bytes()));
        let taken = keys.filter(|key| rank(*key, &nodes, 1)[0].node == "a").count();
        assert!((19_600..20_400).contains(&taken), "{taken}");
    }
}
