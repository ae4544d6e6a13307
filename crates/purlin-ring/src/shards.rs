//! Shards: a counted number of pieces, each on a node, in a table with an epoch.
//!
//! "Hash modulo the number of workers" gives every node an answer of its own while some count four
//! workers and others five. Here the table is data: whoever changes it makes the next epoch, and
//! who is asked under an older one can say so. Nodes come and go with the fewest moves that keep
//! the table even; the number of shards changes while it is in use, and a key then moves only to a
//! shard that is new, or from one that ends.
//!
//! # Source
//! The key's shard: Lamping and Veach 2014. The table: Orleans and Cassandra among others keep one.

use std::{collections::BTreeMap, num::NonZeroU32};

use crate::{KeyHash, MovePlan, RingError, jump};

/// The most shards of a table: a million, 4 MB.
pub const SHARDS_MAX: u32 = 1 << 20;

/// Which node has which shard, as of an epoch. Immutable: a change makes the next one.
///
/// ```
/// use std::num::NonZeroU32;
/// use purlin_ring::{ShardMap, key_hash};
/// let shards = NonZeroU32::new(64).expect("64 is not 0");
/// let map = ShardMap::new(shards, vec!["n1", "n2"])?;
/// let grown = map.with_nodes(vec!["n1", "n2", "n3"])?;
/// let plan = map.moves_to(&grown);
/// assert_eq!((map.epoch(), grown.epoch(), plan.moves.len()), (1, 2, 21), "a third of 64");
/// assert!(map.owner(map.shard_of(key_hash(b"cart:42"))).is_some());
/// # Ok::<(), purlin_ring::RingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardMap<N> {
    epoch: u64,
    /// By name.
    nodes: Vec<N>,
    /// For each shard the place of its node; all `None` without nodes.
    owners: Vec<Option<u32>>,
}

impl<N: AsRef<str> + Clone + PartialEq> ShardMap<N> {
    /// The first table: `shards` shards, evenly on `nodes`.
    ///
    /// # Errors
    /// [`RingError::Twice`], and [`RingError::TooManyPoints`] beyond [`SHARDS_MAX`].
    pub fn new(shards: NonZeroU32, nodes: Vec<N>) -> Result<Self, RingError> {
        let nobody = Self { epoch: 0, nodes: Vec::new(), owners: Vec::new() };
        nobody.next(shards, nodes)
    }

    /// The next table, on `nodes`: nobody has more than one shard above another, and no table like
    /// that has fewer moves.
    ///
    /// # Errors
    /// [`RingError::Twice`].
    pub fn with_nodes(&self, nodes: Vec<N>) -> Result<Self, RingError> {
        self.next(self.shards(), nodes)
    }

    /// The next table, of `shards` shards: those that stay stay where they are, as far as the
    /// table remains even. Of the keys a share of (larger - smaller) / larger changes its shard.
    ///
    /// # Errors
    /// [`RingError::TooManyPoints`] beyond [`SHARDS_MAX`].
    pub fn with_shards(&self, shards: NonZeroU32) -> Result<Self, RingError> {
        self.next(shards, self.nodes.clone())
    }

    fn next(&self, shards: NonZeroU32, mut nodes: Vec<N>) -> Result<Self, RingError> {
        let count = usize::try_from(shards.get()).expect("32 bits fit a usize");
        if shards.get() > SHARDS_MAX {
            return Err(RingError::TooManyPoints { points: count });
        }
        nodes.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        if let Some(twin) = nodes.windows(2).find(|two| two[0].as_ref() == two[1].as_ref()) {
            return Err(RingError::Twice(twin[0].as_ref().to_owned()));
        }
        let epoch = self.epoch + 1;
        if nodes.is_empty() {
            return Ok(Self { epoch, nodes, owners: vec![None; count] });
        }
        let place: BTreeMap<&str, u32> = nodes.iter().map(AsRef::as_ref).zip(0..).collect();
        let stays = |shard: u32| place.get(self.owner(shard)?.as_ref()).copied();
        let mut owners: Vec<Option<u32>> = (0..shards.get()).map(stays).collect();
        let quotas = quotas(&owners, nodes.len());
        let mut room = quotas.clone();
        for owner in &mut owners {
            let left = owner.and_then(|owner| room.get_mut(index(owner)));
            match left {
                Some(left) if *left > 0 => *left -= 1,
                Some(_) | None => *owner = None,
            }
        }
        let mut free = (0_u32..).zip(room).flat_map(|(n, left)| std::iter::repeat_n(n, left));
        for owner in owners.iter_mut().filter(|owner| owner.is_none()) {
            *owner = free.next();
        }
        Ok(Self { epoch, nodes, owners })
    }

    /// Counts the tables; a later one is right.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> NonZeroU32 {
        u32::try_from(self.owners.len())
            .ok()
            .and_then(NonZeroU32::new)
            .expect("1 to SHARDS_MAX, as `next` checks")
    }

    /// The shard of `key`.
    #[must_use]
    pub fn shard_of(&self, key: KeyHash) -> u32 {
        jump(key, self.shards())
    }

    /// Who has `shard`; `None` beyond the last and on a table without nodes.
    #[must_use]
    pub fn owner(&self, shard: u32) -> Option<&N> {
        let owner = (*self.owners.get(index(shard))?)?;
        self.nodes.get(index(owner))
    }

    /// Which shards change hands from here to `later`; those that begin come from nobody, those
    /// that end go to nobody.
    #[must_use]
    pub fn moves_to(&self, later: &Self) -> MovePlan<u32, N> {
        let holder = |map: &Self, shard| map.owner(shard).cloned().into_iter().collect::<Vec<N>>();
        let most = self.shards().max(later.shards()).get();
        MovePlan::of((0..most).map(|shard| (shard, holder(self, shard), holder(later, shard))))
    }
}

fn index(n: u32) -> usize {
    usize::try_from(n).expect("32 bits fit a usize")
}

/// How many shards each of `nodes` should have: as even as can be, the odd ones where most are
/// already.
fn quotas(owners: &[Option<u32>], nodes: usize) -> Vec<usize> {
    let mut held = vec![0_usize; nodes];
    for owner in owners.iter().flatten() {
        held[index(*owner)] += 1;
    }
    let (each, odd) = (owners.len() / nodes, owners.len() % nodes);
    let mut by_held: Vec<usize> = (0..nodes).collect();
    by_held.sort_by_key(|node| (std::cmp::Reverse(held[*node]), *node));
    let mut quotas = vec![each; nodes];
    for node in &by_held[..odd] {
        quotas[*node] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::key_hash;

    fn many(shards: u32) -> NonZeroU32 {
        NonZeroU32::new(shards).unwrap()
    }

    fn names(members: &BTreeSet<u8>) -> Vec<String> {
        members.iter().map(|n| format!("n{n:03}")).collect()
    }

    fn held(map: &ShardMap<String>) -> BTreeMap<String, usize> {
        let mut held: BTreeMap<String, usize> =
            map.nodes.iter().map(|node| (node.clone(), 0)).collect();
        for shard in 0..map.shards().get() {
            *held.get_mut(map.owner(shard).unwrap()).unwrap() += 1;
        }
        held
    }

    fn is_even(map: &ShardMap<String>) -> bool {
        let held = held(map);
        let (least, most) = (held.values().min().unwrap(), held.values().max().unwrap());
        most - least <= 1
    }

    /// The fewest moves any even table has: each node keeps what it has up to its quota.
    fn fewest(map: &ShardMap<String>, later: &ShardMap<String>) -> usize {
        let (had, has) = (held(map), held(later));
        let kept = |(node, has): (&String, &usize)| (*has).min(had.get(node).copied().unwrap_or(0));
        had.values().sum::<usize>() - has.iter().map(kept).sum::<usize>()
    }

    proptest! {
        #[test]
        fn a_change_of_nodes_keeps_the_table_even_with_the_fewest_moves(
            shards in 1..200_u32,
            steps in prop::collection::vec(prop::collection::btree_set(0..20_u8, 1..9), 2..6),
        ) {
            let mut map = ShardMap::new(many(shards), names(&steps[0])).unwrap();
            for members in &steps[1..] {
                let later = map.with_nodes(names(members)).unwrap();
                prop_assert!(is_even(&later), "{:?}", later);
                prop_assert_eq!(later.epoch(), map.epoch() + 1);
                prop_assert_eq!(map.moves_to(&later).moves.len(), fewest(&map, &later));
                map = later;
            }
        }

        #[test]
        fn a_change_of_shards_moves_keys_to_new_shards_and_from_ended_ones_only(
            before in 1..300_u32, after in 1..300_u32, keys in prop::collection::vec(any::<u64>(), 50),
        ) {
            let nodes = names(&(0..5).collect());
            let map = ShardMap::new(many(before), nodes).unwrap();
            let later = map.with_shards(many(after)).unwrap();
            prop_assert!(is_even(&later));
            for key in keys.into_iter().map(|key| key_hash(&key.to_le_bytes())) {
                let (old, new) = (map.shard_of(key), later.shard_of(key));
                prop_assert!(old == new || new >= before || old >= after, "{old} to {new}");
            }
        }
    }

    #[test]
    fn the_table_is_the_same_on_every_release() {
        let map = ShardMap::new(many(8), vec!["c", "a", "b"]).unwrap();
        let owners = |map: &ShardMap<&'static str>| {
            (0..8).map(|shard| *map.owner(shard).unwrap()).collect::<String>()
        };
        assert_eq!(owners(&map), "aaabbbcc");
        assert_eq!(owners(&map.with_nodes(vec!["a", "c"]).unwrap()), "aaaacccc");
    }

    #[test]
    fn a_table_without_nodes_says_so_and_bad_ones_are_refused() {
        let map = ShardMap::new(many(4), vec!["a"]).unwrap();
        let empty = map.with_nodes(vec![]).unwrap();
        assert_eq!((empty.owner(0), empty.epoch()), (None, 2));
        assert_eq!(map.moves_to(&empty).moves.len(), 4);
        assert_eq!(empty.with_nodes(vec!["b"]).unwrap().owner(3), Some(&"b"));
        assert_eq!(map.owner(4), None);
        assert_eq!(map.with_nodes(vec!["a", "a"]), Err(RingError::Twice("a".into())));
        let points = usize::try_from(SHARDS_MAX).unwrap() + 1;
        assert_eq!(map.with_shards(many(SHARDS_MAX + 1)), Err(RingError::TooManyPoints { points }));
    }
}
