//! The present ring, for many readers and whoever replaces it.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::Ring;

/// A ring and how many were before it.
#[derive(Debug)]
pub struct Snapshot<N> {
    /// 1 for the first ring; one more with each replacement.
    pub epoch: u64,
    /// The ring.
    pub ring: Arc<Ring<N>>,
}

/// The ring of a membership that changes: readers take no lock and wait for nobody.
///
/// A reader that must not see a change in the middle of its work keeps the snapshot it loaded.
/// Replacing is for one owner, who follows the members.
///
/// ```
/// use purlin_ring::{Bucket, Ring, SharedRing, key_hash};
/// let shared = SharedRing::new(Ring::new(vec![Bucket::new("n1")])?);
/// let before = shared.replace(Ring::new(["n1", "n2"].map(Bucket::new).to_vec())?);
/// let now = shared.load();
/// assert_eq!((before.epoch, now.epoch), (1, 2));
/// assert!(now.ring.owner(key_hash(b"cart:42")).is_some());
/// # Ok::<(), purlin_ring::RingError>(())
/// ```
#[derive(Debug)]
pub struct SharedRing<N> {
    present: ArcSwap<Snapshot<N>>,
}

impl<N> SharedRing<N> {
    /// Begins with `ring`.
    #[must_use]
    pub fn new(ring: Ring<N>) -> Self {
        Self { present: ArcSwap::from_pointee(Snapshot { epoch: 1, ring: Arc::new(ring) }) }
    }

    /// The present ring. Lock-free.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Snapshot<N>>> {
        self.present.load()
    }

    /// Puts `ring` in the place of the present one, which is returned: the two of them are what
    /// [`MovePlan::between`](crate::MovePlan::between) compares.
    pub fn replace(&self, ring: Ring<N>) -> Arc<Snapshot<N>> {
        let ring = Arc::new(ring);
        let next = |now: &Arc<Snapshot<N>>| {
            Arc::new(Snapshot { epoch: now.epoch + 1, ring: Arc::clone(&ring) })
        };
        self.present.rcu(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bucket, key_hash};

    #[test]
    fn readers_see_whole_rings_and_epochs_that_only_grow() {
        let ring = |count: u64| {
            let nodes = (0..count).map(|n| Bucket::new(format!("n{n}"))).collect();
            Ring::with_virtual_nodes(nodes, 8).unwrap()
        };
        let shared = SharedRing::new(ring(1));
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut last = 0;
                        while last < 200 {
                            let now = shared.load();
                            assert!(now.epoch >= last);
                            assert_eq!(now.ring.nodes().len() as u64, now.epoch);
                            assert!(now.ring.owner(key_hash(b"k")).is_some());
                            last = now.epoch;
                        }
                    })
                })
                .collect();
            for count in 2..=200 {
                assert_eq!(shared.replace(ring(count)).epoch, count - 1);
            }
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }
}
