//! Who gets the messages of a topic, kept so that publishing takes no lock others wait for.
//!
//! Each topic in use has a [`Slot`] with its own subscribers and a cached [`Route`]: the patterns
//! that match it and the peers that want it. Slots live in shards by hash of the topic; a publisher
//! takes one shard's read lock to find its slot, or none when it holds a handle on the slot. The
//! route is computed once and again only after a change of patterns or of a peer's interest.
//!
//! A hot topic is thus worked on by all of its publishers at once, each on its own thread; there is
//! no task per topic to queue up behind.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;

use crate::{peer::PeerLink, roster::Roster, topic::Topic};

/// A power of two, well above the number of cores that publish at once.
const SHARDS: usize = 64;

/// Where messages of one topic go, beside the topic's own subscribers.
#[derive(Debug)]
pub(crate) struct Route {
    /// Valid while the hub's generation is this one.
    pub(crate) generation: u64,
    pub(crate) patterns: Vec<Arc<Roster>>,
    pub(crate) peers: Vec<Arc<PeerLink>>,
}

/// What has happened on one topic since its slot was made.
#[derive(Debug, Default)]
pub(crate) struct TopicCounts {
    pub(crate) published: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Messages per second, published and received, of the last full second.
    pub(crate) rate: AtomicU64,
    sampled: AtomicU64,
}

impl TopicCounts {
    /// Turns what was counted since the last call into a rate. True if the topic is not quiet.
    fn sample(&self, elapsed_millis: u64) -> bool {
        let total = self.published.load(Ordering::Relaxed) + self.received.load(Ordering::Relaxed);
        let fresh = total - self.sampled.swap(total, Ordering::Relaxed);
        let rate = (fresh * 1000).div_ceil(elapsed_millis.max(1));
        self.rate.swap(rate, Ordering::Relaxed) > 0 || rate > 0
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) topic: Topic,
    pub(crate) roster: Roster,
    pub(crate) route: ArcSwapOption<Route>,
    pub(crate) counts: TopicCounts,
}

impl Slot {
    fn new(topic: Topic) -> Self {
        Self {
            topic,
            roster: Roster::default(),
            route: ArcSwapOption::empty(),
            counts: TopicCounts::default(),
        }
    }
}

#[derive(Debug)]
struct Shard {
    slots: HashMap<Topic, Arc<Slot>>,
    /// How many slots there may be before idle ones are looked for.
    evict_at: usize,
}

/// All slots. At most `idle_max` of them (rounded up to the shards) belong to topics nobody here
/// holds on to; above that, idle slots and their counts are forgotten.
#[derive(Debug)]
pub(crate) struct Registry {
    hasher: RandomState,
    shards: Box<[RwLock<Shard>]>,
    idle_max_per_shard: usize,
}

impl Registry {
    pub(crate) fn new(idle_max: usize) -> Self {
        let idle_max_per_shard = idle_max.div_ceil(SHARDS);
        let shard = || RwLock::new(Shard { slots: HashMap::new(), evict_at: idle_max_per_shard });
        Self {
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            idle_max_per_shard,
        }
    }

    fn shard(&self, topic: &str) -> &RwLock<Shard> {
        let shards = SHARDS as u64;
        let at = usize::try_from(self.hasher.hash_one(topic) % shards)
            .expect("below the number of shards");
        &self.shards[at]
    }

    pub(crate) fn get(&self, topic: &str) -> Option<Arc<Slot>> {
        self.shard(topic).read().slots.get(topic).cloned()
    }

    pub(crate) fn get_or_insert(&self, topic: &Topic) -> Arc<Slot> {
        if let Some(slot) = self.get(topic.as_str()) {
            return slot;
        }
        let mut shard = self.shard(topic.as_str()).write();
        if shard.slots.len() >= shard.evict_at {
            shard.evict_idle(self.idle_max_per_shard);
        }
        Arc::clone(
            shard.slots.entry(topic.clone()).or_insert_with(|| Arc::new(Slot::new(topic.clone()))),
        )
    }

    /// Measures rates. True while any topic is not quiet: a quiet registry need not be asked again
    /// before something is published.
    pub(crate) fn sample(&self, elapsed_millis: u64) -> bool {
        let mut busy = false;
        self.for_each(|slot| busy |= slot.counts.sample(elapsed_millis));
        busy
    }

    /// In any order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Arc<Slot>)) {
        for shard in &self.shards {
            shard.read().slots.values().for_each(&mut visit);
        }
    }

    /// All slots, by topic: for what must happen in one order, whatever the hashes are.
    pub(crate) fn sorted(&self) -> Vec<Arc<Slot>> {
        let mut slots = Vec::new();
        self.for_each(|slot| slots.push(Arc::clone(slot)));
        slots.sort_by(|a, b| a.topic.cmp(&b.topic));
        slots
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().slots.len()).sum()
    }
}

impl Shard {
    /// Forgets slots that only this map knows: no subscriber, no handle, no publish under way.
    /// New clones are made only under this shard's lock, so a count of one stays one.
    fn evict_idle(&mut self, idle_max: usize) {
        self.slots.retain(|_, slot| Arc::strong_count(slot) > 1 || !slot.roster.is_empty());
        // Looking again at each new topic would cost more than the memory: wait for as many again.
        self.evict_at = self.slots.len() + idle_max.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(number: usize) -> Topic {
        Topic::parse(&format!("t/{number}")).unwrap()
    }

    #[test]
    fn topics_nobody_holds_are_forgotten_at_the_bound() {
        let registry = Registry::new(SHARDS * 4);
        let held: Vec<_> = (0..100).map(|n| registry.get_or_insert(&topic(n))).collect();
        for number in 0..10_000 {
            registry.get_or_insert(&topic(number));
        }
        assert!(registry.len() < 100 + SHARDS * 4 * 2, "{} slots", registry.len());
        for slot in held {
            assert!(
                Arc::ptr_eq(&slot, &registry.get(slot.topic.as_str()).unwrap()),
                "a held slot stays the only one"
            );
        }
    }

    #[test]
    fn a_rate_is_what_came_since_the_last_sample() {
        let registry = Registry::new(10);
        let slot = registry.get_or_insert(&topic(1));
        slot.counts.published.store(500, Ordering::Relaxed);
        slot.counts.received.store(100, Ordering::Relaxed);
        assert!(registry.sample(2_000));
        assert_eq!(slot.counts.rate.load(Ordering::Relaxed), 300);
        assert!(registry.sample(1_000), "the rate just fell to zero");
        assert_eq!(slot.counts.rate.load(Ordering::Relaxed), 0);
        assert!(!registry.sample(1_000));
    }
}
