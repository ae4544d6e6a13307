//! The consistent-hash ring: virtual nodes, weights, zones, bounded loads.

use std::num::NonZeroUsize;

use crate::{
    KeyHash,
    hash::{key_hash, mix},
    rendezvous::spread,
};

/// Virtual nodes per unit of weight, unless chosen otherwise: the load of the fullest of 10 nodes
/// stays within about 20 % of the mean (measured by the tests).
pub const VIRTUAL_NODES_DEFAULT: u32 = 128;

/// The most points a ring may have: 4 Mi points are 48 MiB, 256 nodes of weight 128.
pub const POINTS_MAX: usize = 4 << 20;

/// A node on a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket<N> {
    /// Who it is; its text decides its places on the ring.
    pub node: N,
    /// How much it takes, relative to the others. 0 takes nothing: a node that drains.
    pub weight: u32,
    /// Where it fails together with others; replicas avoid sharing one.
    pub zone: Option<String>,
}

impl<N> Bucket<N> {
    /// `node` with weight 1 and no zone.
    pub fn new(node: N) -> Self {
        Self { node, weight: 1, zone: None }
    }
}

/// Why a ring was not built. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// Two buckets have the same name: they would take turns owning the same keys.
    #[error("node {0:?} is listed twice")]
    Twice(String),
    /// The weights ask for more points than [`POINTS_MAX`].
    #[error("{points} points exceed limit {POINTS_MAX}: lower the weights or the virtual nodes")]
    TooManyPoints {
        /// How many they ask for.
        points: usize,
    },
}

/// A consistent-hash ring over nodes named by `N`: immutable, cheap to share, lock-free to read.
///
/// Not for finding *live* nodes: build it from the members you want to own keys, and build a new
/// one when they change.
///
/// ```
/// use purlin_ring::{Bucket, Ring, key_hash};
/// let ring = Ring::new(["n1", "n2", "n3"].map(Bucket::new).to_vec())?;
/// let owner = ring.owner(key_hash(b"cart:42")).expect("the ring has nodes");
/// assert!(["n1", "n2", "n3"].contains(&owner.node));
/// # Ok::<(), purlin_ring::RingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Ring<N> {
    nodes: Vec<Bucket<N>>,
    /// Positions in order, apart from their owners so that a search stays within few cache lines.
    points: Vec<u64>,
    owners: Vec<u32>,
    /// For each value of the top bits of a hash, the first point not below it: a search starts
    /// where it nearly ends.
    index: Vec<u32>,
    index_shift: u32,
}

impl<N: AsRef<str>> Ring<N> {
    /// A ring with [`VIRTUAL_NODES_DEFAULT`] points per unit of weight.
    ///
    /// # Errors
    /// [`RingError`] when a node is listed twice or the weights ask for too many points.
    pub fn new(nodes: Vec<Bucket<N>>) -> Result<Self, RingError> {
        Self::with_virtual_nodes(nodes, VIRTUAL_NODES_DEFAULT)
    }

    /// A ring with `per_weight` points per unit of weight: more spread the load better and cost 12
    /// bytes each.
    ///
    /// # Errors
    /// As for [`Ring::new`].
    pub fn with_virtual_nodes(
        mut nodes: Vec<Bucket<N>>,
        per_weight: u32,
    ) -> Result<Self, RingError> {
        let count = |node: &Bucket<N>| u64::from(node.weight) * u64::from(per_weight);
        sort(&mut nodes)?;
        let total = bounded(nodes.iter().map(count))?;
        let mut places: Vec<(u64, u32)> = Vec::with_capacity(total);
        for (owner, node) in (0_u32..).zip(&nodes) {
            let seed = key_hash(node.node.as_ref().as_bytes()).0;
            places.extend((1..=count(node)).map(|n| (mix(seed ^ mix(n)), owner)));
        }
        Ok(Self::of_places(nodes, places))
    }

    /// The ring of `nodes`, sorted by name, with these places, each with the index of its owner.
    pub(crate) fn of_places(nodes: Vec<Bucket<N>>, mut places: Vec<(u64, u32)>) -> Self {
        // Two nodes on one place: the sort lets the lesser name have it, on every node alike.
        places.sort_unstable();
        places.dedup_by_key(|&mut (point, _)| point);
        let (points, owners): (Vec<u64>, Vec<u32>) = places.into_iter().unzip();
        let (index, index_shift) = index(&points);
        Self { nodes, points, owners, index, index_shift }
    }

    /// The nodes, by name.
    #[must_use]
    pub fn nodes(&self) -> &[Bucket<N>] {
        &self.nodes
    }

    /// Who owns `key`; `None` on a ring without weight.
    #[must_use]
    pub fn owner(&self, key: KeyHash) -> Option<&Bucket<N>> {
        let owner = *self.owners.get(self.place(key))?;
        Some(&self.nodes[usize::try_from(owner).expect("fewer nodes than points")])
    }

    /// The point that `key` falls to, and who owns it.
    #[cfg(test)]
    pub(crate) fn owning_point(&self, key: KeyHash) -> Option<(u64, &Bucket<N>)> {
        Some((*self.points.get(self.place(key))?, self.owner(key)?))
    }

    /// The first `replicas` different nodes from `key` on, the owner first, on as many different
    /// zones as there are. Fewer when there are fewer nodes.
    #[must_use]
    pub fn owners(&self, key: KeyHash, replicas: NonZeroUsize) -> Vec<&Bucket<N>> {
        spread(self.walk(key), replicas.get())
    }

    /// Who owns `key` when no node may hold more than its share times `1 + epsilon_percent / 100`.
    ///
    /// `load` tells how many keys a node holds now and `total` how many there are, this one not
    /// counted. The first node from `key` on with room takes it, so an overloaded node spills to
    /// its successors only.
    #[must_use]
    pub fn owner_bounded(
        &self,
        key: KeyHash,
        total: u64,
        epsilon_percent: u32,
        load: impl Fn(&N) -> u64,
    ) -> Option<&Bucket<N>> {
        let weights: u64 = self.nodes.iter().map(|node| u64::from(node.weight)).sum();
        self.walk(key).find(|node| {
            let allowed =
                u128::from(total + 1) * u128::from(node.weight) * u128::from(100 + epsilon_percent);
            let bound = allowed.div_ceil(u128::from(weights.max(1)) * 100);
            u128::from(load(&node.node)) < bound
        })
    }

    /// Every node with weight once, in the order in which `key` meets them: the owner, then who
    /// takes the key in its place. For callers that skip nodes for reasons of their own.
    pub fn walk(&self, key: KeyHash) -> impl Iterator<Item = &Bucket<N>> {
        let mut met = vec![false; self.nodes.len()];
        let start = self.place(key);
        self.owners[start.min(self.owners.len())..]
            .iter()
            .chain(&self.owners[..start.min(self.owners.len())])
            .filter_map(move |&owner| {
                let owner = usize::try_from(owner).expect("fewer nodes than points");
                (!std::mem::replace(&mut met[owner], true)).then(|| &self.nodes[owner])
            })
    }

    /// The position of the first point not below `key`, around the end to the first.
    fn place(&self, key: KeyHash) -> usize {
        if self.points.is_empty() {
            return 0;
        }
        let slot = usize::try_from(key.0.checked_shr(self.index_shift).unwrap_or(0))
            .expect("as many bits as the index has");
        let mut at = usize::try_from(self.index[slot]).expect("fewer points than 2^32");
        // Half a point per slot on average: the next one or two are in the same cache line.
        while self.points.get(at).is_some_and(|&point| point < key.0) {
            at += 1;
        }
        if at == self.points.len() { 0 } else { at }
    }
}

/// Sorts by name, so that the order in which members were learned changes nothing.
pub(crate) fn sort<N: AsRef<str>>(nodes: &mut [Bucket<N>]) -> Result<(), RingError> {
    nodes.sort_by(|a, b| a.node.as_ref().cmp(b.node.as_ref()));
    match nodes.windows(2).find(|two| two[0].node.as_ref() == two[1].node.as_ref()) {
        Some(twin) => Err(RingError::Twice(twin[0].node.as_ref().to_owned())),
        None => Ok(()),
    }
}

/// The sum of `points`, unless a ring may not have so many.
pub(crate) fn bounded(points: impl Iterator<Item = u64>) -> Result<usize, RingError> {
    let points = usize::try_from(points.fold(0, u64::saturating_add)).unwrap_or(usize::MAX);
    if points > POINTS_MAX { Err(RingError::TooManyPoints { points }) } else { Ok(points) }
}

/// For about two slots per point, the first point not below each slot's start.
fn index(points: &[u64]) -> (Vec<u32>, u32) {
    let slots = (points.len().max(1) * 2).next_power_of_two();
    let shift = 64 - slots.trailing_zeros();
    let mut at = 0;
    let index = (0..slots as u64)
        .map(|slot| {
            let start = slot.checked_shl(shift).unwrap_or(0);
            while points.get(at).is_some_and(|&point| point < start) {
                at += 1;
            }
            u32::try_from(at).expect("at most POINTS_MAX points")
        })
        .collect();
    (index, shift)
}
