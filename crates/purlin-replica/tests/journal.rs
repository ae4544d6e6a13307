//! What a replica reads back from a log that lacks what the disk refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot build its input should fail loudly")]

use std::time::Duration;

use purlin_core::{Hlc, Incarnation, Instant, NodeId, NodeName, Rng, WallTime};
use purlin_replica::{
    cell::Written,
    digest::Leaf,
    interest::Interest,
    journal::Record,
    slot::Slot,
    store::Store,
    sync::{Output, Sync, SyncConfig},
};

struct Replica {
    sync: Sync,
    hlc: Hlc,
}

impl Replica {
    fn new(life: u64) -> Self {
        let id = NodeId::new(NodeName::parse("n1").unwrap(), Incarnation(life));
        let config = SyncConfig { durable: true, ..SyncConfig::default() };
        let sync = Sync::new(config, &id, Instant::ZERO, Rng::from_seed(life));
        Self { sync, hlc: Hlc::new(&id) }
    }

    /// Writes `key`; the record of it.
    fn write(&mut self, key: &'static str) -> Record {
        let at = self.hlc.now(WallTime::from_millis(1_000)).unwrap();
        let slot = Slot::new(key).unwrap();
        let written = Written { at, expires: None, value: key.into() };
        let mut out = Vec::new();
        let now = Instant::from_start(Duration::from_secs(1));
        let put = |store: &mut Store| store.put(slot.clone(), written).map(Some);
        self.sync.write(now, &slot, put, &mut out).unwrap();
        let record = out.into_iter().find_map(|output| match output {
            Output::Persist(record) => Some(record),
            _ => None,
        });
        record.unwrap()
    }

    fn read_back(log: &[Record]) -> Self {
        let mut replica = Self::new(2);
        log.iter().for_each(|record| replica.sync.recover(record));
        replica.sync.begin(&Interest::all(), &mut Vec::new());
        replica
    }

    fn keys(&self) -> Vec<String> {
        let key = |slot: &Slot| String::from_utf8(slot.key().to_vec()).unwrap();
        self.sync.store().iter().map(|(slot, _)| key(slot)).collect()
    }
}

#[test]
fn a_rewriting_that_was_not_finished_claims_nothing_that_the_disk_had_refused() {
    let mut before = Replica::new(1);
    let kept = before.write("kept");
    // The disk refuses this one; the whole state is to be written again, and the power goes.
    before.write("refused");
    let [seen, lives] = before.sync.rewriting();
    let after = Replica::read_back(&[kept, seen, lives]);
    assert_eq!(after.keys(), ["kept"]);
    let claims = after.sync.store().context();
    assert!(!claims.covers(before.sync.store().context()), "seen and not kept passes for removed");
}

#[test]
fn a_finished_rewriting_is_the_whole_state() {
    let mut before = Replica::new(1);
    before.write("refused");
    let [seen, lives] = before.sync.rewriting();
    let mut log = vec![seen, lives];
    log.push(Record::Part(before.sync.store().part(Leaf(0), usize::MAX)));
    log.push(before.write("later"));
    let after = Replica::read_back(&log);
    assert_eq!(after.keys(), ["later", "refused"]);
    assert!(after.sync.store().context().covers(before.sync.store().context()));
}
