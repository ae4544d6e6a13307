//! What a cache did and holds.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::{
    config::Kind,
    events::Events,
    heat::{Heat, HotKey},
};

/// Counts of one cache on this node since it was opened, and what it holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// Its name.
    pub name: String,
    /// Where its values are.
    pub kind: Kind,
    /// Entries held on this node, memories of removals included.
    pub entries: u64,
    /// Bytes held on this node, keys and overhead included.
    pub bytes: u64,
    /// The budget.
    pub bytes_max: u64,
    /// Partitioned: bytes of copies held here in front of other nodes.
    pub near_bytes: u64,
    /// Partitioned: hits that such a copy served.
    pub near_hits: u64,
    /// Reads that found a value.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Values given out after their TTL while they were loaded anew.
    pub stale_hits: u64,
    /// Values and conditional changes written from here.
    pub writes: u64,
    /// Removals from here.
    pub removes: u64,
    /// Entries pushed out for lack of room.
    pub evictions: u64,
    /// Entries whose time was over.
    pub expirations: u64,
    /// Values refused for their size.
    pub refused_too_large: u64,
    /// Loads run.
    pub loads: u64,
    /// Loads that failed, panicked or took too long.
    pub load_failures: u64,
    /// Readers who waited for somebody else's load.
    pub loads_shared: u64,
    /// Values that are not what the reader's type expects; they count as misses.
    pub undecodable: u64,
    /// Near, and copies in front of a partitioned cache: entries not given out because a writer had not been heard in time.
    pub distrusted: u64,
    /// Partitioned: second replicas asked because the first was slow.
    pub hedges: u64,
    /// Partitioned: entries sent to other nodes because the members changed.
    pub moved: u64,
    /// Partitioned: reads that found a value only where it was before.
    pub found_elsewhere: u64,
    /// Writes that did not reach every node they should have.
    pub writes_incomplete: u64,
    /// The keys most read from here lately, the hottest first; at most
    /// [`KEYS_MAX`](crate::heat::KEYS_MAX).
    pub hottest: Vec<HotKey>,
}

impl CacheStats {
    /// The share of reads that found a value, stale ones included; `None` before the first.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        let found = self.hits + self.stale_hits;
        let reads = found + self.misses;
        (reads > 0).then(|| as_f64(found) / as_f64(reads))
    }
}

macro_rules! counts {
    ($($name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counts {
            $(pub(crate) $name: AtomicU64,)*
            pub(crate) events: Events,
            pub(crate) heat: Heat,
        }

        impl Counts {
            pub(crate) fn stats(&self, name: &str, kind: Kind) -> CacheStats {
                CacheStats {
                    name: name.to_owned(),
                    kind,
                    entries: 0,
                    bytes: 0,
                    bytes_max: 0,
                    near_bytes: 0,
                    hottest: self.heat.hottest(),
                    $($name: self.$name.load(Ordering::Relaxed)),*
                }
            }
        }

        impl CacheStats {
            pub(crate) fn publish(&self) {
                let name = self.name.clone();
                metrics::gauge!("purlin_cache_bytes", "cache" => name.clone()).set(as_f64(self.bytes));
                metrics::gauge!("purlin_cache_near_bytes", "cache" => name.clone()).set(as_f64(self.near_bytes));
                metrics::gauge!("purlin_cache_entries", "cache" => name.clone()).set(as_f64(self.entries));
                $(metrics::counter!(
                    concat!("purlin_cache_", stringify!($name), "_total"),
                    "cache" => name.clone()
                ).absolute(self.$name);)*
            }
        }
    };
}

counts!(
    near_hits,
    hits,
    misses,
    stale_hits,
    writes,
    removes,
    evictions,
    expirations,
    refused_too_large,
    loads,
    load_failures,
    loads_shared,
    undecodable,
    distrusted,
    hedges,
    moved,
    found_elsewhere,
    writes_incomplete,
);

#[expect(clippy::cast_precision_loss, reason = "a gauge; exact to 9 PB")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// Counts one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
