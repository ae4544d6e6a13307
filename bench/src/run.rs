//! Running cases: calibrate, warm up, interleave, take medians.

use std::time::Duration;

use crate::case::{Bar, Case, Contender, Contest, Gauge, RowSpec, Unit};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::report::Row;
use crate::rig::Rig;
use crate::stats::Median;
use crate::workshop::Workshop;

/// How much time to spend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Rounds per contender.
    pub(crate) rounds: usize,
    /// How long one round should take.
    pub(crate) round: Duration,
    /// A quick look instead of figures to be quoted.
    pub(crate) brief: bool,
}

/// Measures the rows of one case that `wanted` names; the others' peers are not even started.
pub(crate) fn run(
    case: &Case,
    wanted: &[&str],
    workshop: &Workshop,
    effort: Effort,
    progress: &Progress,
) -> Result<Vec<Row>, Failure> {
    match case {
        Case::Contest(contest) => run_contest(contest, wanted, workshop, effort, progress),
        Case::Gauge(gauge) => run_gauge(gauge, wanted, workshop, effort, progress),
    }
}

fn run_contest(
    contest: &Contest,
    wanted: &[&str],
    workshop: &Workshop,
    effort: Effort,
    progress: &Progress,
) -> Result<Vec<Row>, Failure> {
    let specs: Vec<&RowSpec> =
        contest.rows.iter().filter(|spec| wanted.contains(&spec.name)).collect();
    let (ours, peers) = contest.contenders.split_first().expect("a contest has ours first");
    let peers =
        peers.iter().filter(|peer| specs.iter().any(|spec| spec.peers.contains(&peer.name)));
    let contenders: Vec<&Contender> = std::iter::once(ours).chain(peers).collect();
    for software in contenders.iter().flat_map(|contender| contender.needs) {
        software.find()?;
    }
    let mut entries = Vec::new();
    for contender in contenders {
        progress.say(&format!("{}: starting {}", contest.name, contender.name));
        let mut rig = (contender.start)(workshop)?;
        let operations = calibrate(&mut rig, effort.round)?;
        progress.say(&format!("{}: {} does {operations} in a round", contest.name, contender.name));
        let warmed_up = rig.processor_seconds()?;
        entries.push(Entry { contender, rig, operations, warmed_up, times: Vec::new() });
    }
    // Ours is first in the list; the peers of a round come before it.
    entries.rotate_left(1);
    for round in 1..=effort.rounds {
        for entry in &mut entries {
            progress.say(&format!(
                "{}: round {round} of {}, {}",
                contest.name, effort.rounds, entry.contender.name
            ));
            let elapsed = entry.rig.round(entry.operations)?;
            entry.times.push(elapsed);
        }
    }
    entries.rotate_right(1);
    for entry in &entries {
        progress.note(&format!("{}: {}", contest.name, entry.account()?));
    }
    Ok(rows_of(&specs, &entries))
}

/// A contender in the middle of its contest.
struct Entry<'a> {
    contender: &'a Contender,
    rig: Rig,
    operations: u64,
    /// Processor time of its processes before the first round.
    warmed_up: f64,
    times: Vec<Duration>,
}

impl Entry<'_> {
    /// One line for people who look for the reason of a ratio: waiting or working?
    fn account(&self) -> Result<String, Failure> {
        let operations = (self.operations * self.times.len() as u64) as f64;
        let wall: Duration = self.times.iter().sum();
        let worked = self.rig.processor_seconds()? - self.warmed_up;
        Ok(format!(
            "{}: {:.3} us an operation, {:.3} us of processor time in all its processes",
            self.contender.name,
            wall.as_secs_f64() / operations * 1e6,
            worked / operations * 1e6,
        ))
    }
}

fn rows_of(specs: &[&RowSpec], entries: &[Entry<'_>]) -> Vec<Row> {
    let read = |entry: &Entry<'_>, unit: Unit| {
        let readings: Vec<f64> =
            entry.times.iter().map(|&time| unit.express(entry.operations, time)).collect();
        Median::of(&readings)
    };
    let (ours, peers) = entries.split_first().expect("a contest has ours first");
    specs
        .iter()
        .map(|spec| {
            let ours_median = read(ours, spec.unit);
            let (peer, peer_median) =
                peers
                    .iter()
                    .filter(|entry| spec.peers.contains(&entry.contender.name))
                    .map(|entry| (entry.contender.name.to_owned(), read(entry, spec.unit)))
                    .reduce(|best, next| {
                        if spec.unit.is_better(next.1.value, best.1.value) { next } else { best }
                    })
                    .expect("a row names a peer of its contest: checked by a test over all cases");
            let row = Row::new(spec.name, spec.unit.to_string(), ours_median, (peer, peer_median));
            Row {
                bar: spec.bar.to_string(),
                holds: spec.bar.holds(row.ratio),
                rounds: ours.times.len(),
                ..row
            }
        })
        .collect()
}

/// Finds how many operations fill one round, warming up on the way.
fn calibrate(rig: &mut Rig, target: Duration) -> Result<u64, Failure> {
    let mut operations: u64 = 64;
    loop {
        let elapsed = rig.round(operations)?;
        let missing = target.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        if missing < 2.0 {
            // Multiples of 64: the rounds with 64 callers share the work evenly.
            return Ok(scale(operations, missing).div_ceil(64) * 64);
        }
        operations = scale(operations, missing.min(8.0)).div_ceil(64) * 64;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "operations of a round are far below 2^52")]
#[expect(clippy::cast_sign_loss, reason = "both factors are positive")]
fn scale(operations: u64, factor: f64) -> u64 {
    (operations as f64 * factor) as u64
}

fn run_gauge(
    gauge: &Gauge,
    wanted: &[&str],
    workshop: &Workshop,
    effort: Effort,
    progress: &Progress,
) -> Result<Vec<Row>, Failure> {
    progress.say(&format!("{}: {}", gauge.name, gauge.about));
    let readings = (gauge.read)(workshop, effort.brief)?;
    Ok(gauge
        .rows
        .iter()
        .zip(readings)
        .filter(|(spec, _)| wanted.contains(&spec.name))
        .map(|(spec, readings)| {
            let median = Median::of(&readings);
            // A limit binds each node, so the worst reading counts, not the middle one.
            let worst = Median { value: median.most, ..median };
            let (peer, limit) = match spec.limit.is_finite() {
                true => ("limit".to_owned(), spec.limit),
                false => ("no limit".to_owned(), worst.value),
            };
            let peer = (peer, Median::of(&[limit]));
            let row = Row::new(spec.name, spec.unit.to_owned(), worst, peer);
            let (ratio, bar) = (spec.share(worst.value), Bar::AtMost(1.0));
            let text = if spec.limit.is_finite() { bar.to_string() } else { "none".to_owned() };
            Row { ratio, bar: text, holds: bar.holds(ratio), rounds: readings.len(), ..row }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::calibrate;
    use crate::rig::{Process, Rig};
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn calibration_ends_near_the_wanted_time() {
        let mut command = Command::new("sh");
        // About a millisecond for each 64 operations.
        command.args(["-c", "echo ready; while read w n; do sleep $(printf '0.%03d' $((n / 64))); echo done $n; done"]);
        let mut rig = Rig::alone(Process::start("sleeper", command).unwrap());
        let operations = calibrate(&mut rig, Duration::from_millis(100)).unwrap();
        assert!((64 * 20..64 * 200).contains(&operations), "{operations}");
    }
}
