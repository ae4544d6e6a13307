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
    -f64::from(node.weight) / uniform.ln()
}
