//! The durable mark under which this node issues hybrid timestamps.
//!
//! A node that starts again after its wall clock was set back must not issue a timestamp twice.
//! So it only issues what lies below a mark that is already on disk, and the next life starts from
//! the mark. The mark runs ahead, so that the disk is asked every few seconds and not per write.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use purlin_core::{Clock, Hlc, NodeId, WallTime};

use crate::{DataDir, DataDirError};

/// How far the mark runs ahead of the clock: what a restart may set the timestamps ahead by. Well
/// below [`purlin_core::hlc::DRIFT_MAX_DEFAULT`], so that nobody refuses them.
const AHEAD: Duration = Duration::from_secs(6);
/// How often the mark is raised; a few misses in a row are harmless.
const EVERY: Duration = Duration::from_secs(2);
/// How far above the timestamps the mark stays at least. Those of a node that has just restarted
/// are ahead of everybody's clock, and so of everybody's mark; less than [`AHEAD`], so that nodes
/// that restart one after the other do not push each other further and further ahead.
const ABOVE: Duration = Duration::from_millis(500);
/// How soon the mark follows when somebody else's timestamp comes close to it: for so long writes
/// are refused here.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The clock of the node `id`: durable when there is a data dir.
///
/// # Errors
/// [`DataDirError`] when the mark cannot be read or written.
pub(crate) fn clock(
    id: &NodeId,
    data: Option<&Arc<DataDir>>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<Hlc>, DataDirError> {
    let Some(data) = data else { return Ok(Arc::new(Hlc::new(id))) };
    let hlc = Arc::new(Hlc::resume(id, data.high_water()?.unwrap_or_default()));
    raise(&hlc, data, clock.wall())?;
    let keeper = keep(Arc::downgrade(&hlc), Arc::downgrade(data), Arc::clone(clock));
    tokio::spawn(keeper);
    Ok(hlc)
}

fn after(time: WallTime, by: Duration) -> WallTime {
    let by = u64::try_from(by.as_millis()).expect("seconds fit");
    WallTime::from_millis(time.as_millis().saturating_add(by))
}

fn raise(hlc: &Hlc, data: &DataDir, wall: WallTime) -> Result<(), DataDirError> {
    let mark = after(wall, AHEAD).max(after(hlc.high_water(), 2 * ABOVE));
    data.record_high_water(mark)?;
    hlc.raise_ceiling(mark);
    Ok(())
}

/// Keeps the mark ahead. Ends with the node: it holds neither the clock nor the data dir's lock.
async fn keep(hlc: Weak<Hlc>, data: Weak<DataDir>, clock: Arc<dyn Clock>) {
    let mut due = clock.now() + EVERY;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (Some(hlc), Some(data)) = (hlc.upgrade(), data.upgrade()) else { return };
        let is_close = after(hlc.high_water(), ABOVE) > hlc.ceiling();
        if clock.now() < due && !is_close {
            continue;
        }
        due = clock.now() + EVERY;
        let wall = clock.wall();
        // A flush may take a while on a busy disk, and this is no thread to wait on.
        let raised = data.without_blocking(move |data| raise(&hlc, data, wall)).await;
        if let Some(Err(error)) = raised {
            // Writes are refused once the mark is reached; nothing is issued that is not covered.
            tracing::error!(%error, "cannot record the clock's high-water mark");
        }
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{Incarnation, NodeName, SystemClock};
    use purlin_store::{FaultyDisk, RealDisk};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(NodeName::parse(name).unwrap(), Incarnation(1))
    }

    #[tokio::test]
    async fn a_mark_that_others_have_overtaken_follows_soon() {
        let disk = FaultyDisk::new(1);
        let system: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let data = Arc::new(DataDir::open(disk.mount(), "/data".as_ref()).unwrap());
        let here = clock(&node("n1"), Some(&data), &system).unwrap();
        let there = Hlc::new(&node("n2"));
        let remote = there.now(after(system.wall(), Duration::from_secs(8))).unwrap();
        assert!(here.observe(remote, system.wall()).is_err(), "the mark is not there yet");
        let deadline = system.now() + Duration::from_secs(60);
        let issued = loop {
            match here.now(system.wall()) {
                Ok(issued) => break issued,
                Err(error) => assert!(system.now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(issued > remote);
    }

    #[tokio::test]
    async fn restarts_one_after_the_other_do_not_push_the_timestamps_further_and_further_ahead() {
        let disk = FaultyDisk::new(1);
        let system: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let started = system.wall();
        for _life in 0..4 {
            let data = Arc::new(DataDir::open(disk.mount(), "/data".as_ref()).unwrap());
            let issued = clock(&node("n1"), Some(&data), &system).unwrap().now(system.wall());
            let ahead = issued.unwrap().millis().as_millis() - started.as_millis();
            let passed = system.wall().as_millis() - started.as_millis();
            let drift_max = purlin_core::hlc::DRIFT_MAX_DEFAULT.as_millis();
            assert!(u128::from(ahead) < drift_max + u128::from(passed), "{ahead} ms ahead");
        }
    }

    #[tokio::test]
    async fn a_restart_never_issues_a_timestamp_twice_whatever_the_wall_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let id = NodeId::new(NodeName::parse("n1").unwrap(), Incarnation(1));
        let system: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let data = || Arc::new(DataDir::open(RealDisk::shared(), dir.path()).unwrap());
        let held = data();
        let first = clock(&id, Some(&held), &system).unwrap();
        let issued = first.now(system.wall()).unwrap();
        drop((first, held));
        let second = clock(&id, Some(&data()), &system).unwrap();
        let long_ago = WallTime::from_millis(5);
        assert!(second.now(long_ago).unwrap() > issued);
    }
}
