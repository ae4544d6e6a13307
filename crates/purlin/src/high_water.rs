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
/// How often the mark is looked after; a few misses in a row are harmless.
const EVERY: Duration = Duration::from_secs(2);

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

fn raise(hlc: &Hlc, data: &DataDir, wall: WallTime) -> Result<(), DataDirError> {
    let from = wall.max(hlc.high_water()).as_millis();
    let ahead = u64::try_from(AHEAD.as_millis()).expect("seconds fit");
    let mark = WallTime::from_millis(from.saturating_add(ahead));
    data.record_high_water(mark)?;
    hlc.raise_ceiling(mark);
    Ok(())
}

/// Keeps the mark ahead. Ends with the node: it holds neither the clock nor the data dir's lock.
async fn keep(hlc: Weak<Hlc>, data: Weak<DataDir>, clock: Arc<dyn Clock>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let (Some(hlc), Some(data)) = (hlc.upgrade(), data.upgrade()) else { return };
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
    use purlin_store::RealDisk;

    use super::*;

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
