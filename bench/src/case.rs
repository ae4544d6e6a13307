//! What can be measured: the words every topic file uses to add a row.
//!
//! A row compares two medians of the same run. A [`Contest`] holds the contenders for one piece of
//! work (ours first) and the rows that are read off their medians, so that one measurement of ours
//! serves every peer it is compared with. A [`Gauge`] is for what has no peer, only a limit.
//! To add a row: write (or reuse) the contenders' `start` functions and add a [`RowSpec`].

use std::fmt;
use std::time::Duration;

use crate::failure::Failure;
use crate::machine::Software;
use crate::rig::Rig;
use crate::workshop::Workshop;

/// One entry of the table of cases.
#[derive(Debug)]
pub(crate) enum Case {
    /// Several contenders doing the same work in turns.
    Contest(Contest),
    /// Ours alone against a fixed limit.
    Gauge(Gauge),
}

impl Case {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Contest(contest) => contest.name,
            Self::Gauge(gauge) => gauge.name,
        }
    }

    pub(crate) fn about(&self) -> &'static str {
        match self {
            Self::Contest(contest) => contest.about,
            Self::Gauge(gauge) => gauge.about,
        }
    }

    /// The rows this case prints, each with the peers it is compared with.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Contest(contest) => contest
                .rows
                .iter()
                .map(|row| (row.name, format!("{} {}", row.bar, row.peers.join(" | "))))
                .collect(),
            Self::Gauge(gauge) => gauge.rows.iter().map(|row| (row.name, row.promise())).collect(),
        }
    }
}

/// The same work done by ours and by peers, in interleaved rounds.
#[derive(Debug)]
pub(crate) struct Contest {
    pub(crate) name: &'static str,
    /// One line on what one unit of work is.
    pub(crate) about: &'static str,
    /// The first one is ours.
    pub(crate) contenders: &'static [Contender],
    pub(crate) rows: &'static [RowSpec],
}

/// One side of a contest: a set of OS processes that does rounds of work on request.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// Other people's software it needs on this machine.
    pub(crate) needs: &'static [Software],
    /// Starts its processes; they stay, idle, until the contest is over.
    pub(crate) start: fn(&Workshop) -> Result<Rig, Failure>,
}

impl fmt::Debug for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contender").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One row: ours against the best of `peers`.
#[derive(Debug)]
pub(crate) struct RowSpec {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    /// Names of contenders of the same contest; the best median of them is the peer.
    pub(crate) peers: &'static [&'static str],
    pub(crate) bar: Bar,
}

/// How a round (work done, time taken) is expressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Time per operation in nanoseconds; less is better.
    Nanos,
    /// Time per operation in microseconds; less is better.
    Micros,
    /// So many of these per second; more is better. One operation makes the given number of
    /// them: a message published to 16 subscribers is 16 deliveries.
    PerSecond(&'static str, u64),
}

impl Unit {
    /// Expresses `count` operations in `elapsed`.
    pub(crate) fn express(self, count: u64, elapsed: Duration) -> f64 {
        let seconds = elapsed.as_secs_f64();
        match self {
            Self::Nanos => seconds * 1e9 / count as f64,
            Self::Micros => seconds * 1e6 / count as f64,
            Self::PerSecond(_, per_operation) => (count * per_operation) as f64 / seconds,
        }
    }

    /// Is `left` the better value of the two?
    pub(crate) fn is_better(self, left: f64, right: f64) -> bool {
        match self {
            Self::Nanos | Self::Micros => left < right,
            Self::PerSecond(..) => left > right,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nanos => f.write_str("ns"),
            Self::Micros => f.write_str("us"),
            Self::PerSecond(what, _) => write!(f, "{what}/s"),
        }
    }
}

/// What the ratio ours / peer has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bar {
    /// For times and sizes.
    AtMost(f64),
    /// For rates.
    AtLeast(f64),
}

impl Bar {
    pub(crate) fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(limit) => ratio <= limit,
            Self::AtLeast(limit) => ratio >= limit,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
        }
    }
}

/// Something of ours with a fixed limit instead of a peer.
pub(crate) struct Gauge {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) rows: &'static [GaugeRow],
    /// `brief` asks for a quick look.
    pub(crate) read: fn(&Workshop, brief: bool) -> Result<Readings, Failure>,
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauge")
            .field("name", &self.name)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

/// One list of readings per row, in the order of the gauge's rows.
pub(crate) type Readings = Vec<Vec<f64>>;

/// One row of a gauge; it holds when the worst reading is within the limit. An infinite limit is
/// none: the row is reported.
#[derive(Debug)]
pub(crate) struct GaugeRow {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) limit: f64,
}

impl GaugeRow {
    fn promise(&self) -> String {
        if self.limit.is_finite() {
            format!("<= {} {}", self.limit, self.unit)
        } else {
            format!("reported, {}", self.unit)
        }
    }

    /// What share of its limit a reading uses up; above 1 it does not hold.
    pub(crate) fn share(&self, reading: f64) -> f64 {
        // Nothing of nothing is within the limit, and anything is too much.
        if reading == 0.0 { 0.0 } else { reading / self.limit }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bar, GaugeRow, Unit};
    use std::time::Duration;

    #[test]
    fn a_bar_on_its_limit_holds() {
        assert!(Bar::AtMost(1.5).holds(1.5));
        assert!(!Bar::AtMost(1.5).holds(1.51));
        assert!(Bar::AtLeast(0.7).holds(0.7));
        assert!(!Bar::AtLeast(0.7).holds(0.69));
    }

    #[test]
    fn a_limit_of_nothing_holds_for_nothing_and_no_limit_for_everything() {
        let row = |limit| GaugeRow { name: "row", unit: "ns", limit };
        assert_eq!(row(0.0).share(0.0), 0.0);
        assert!(row(0.0).share(1.0) > 1.0);
        assert_eq!(row(f64::INFINITY).share(1e9), 0.0);
        assert_eq!(row(4.0).share(2.0), 0.5);
        assert_eq!(row(4.0).promise(), "<= 4 ns");
        assert_eq!(row(f64::INFINITY).promise(), "reported, ns");
    }

    #[test]
    fn times_and_rates_of_the_same_round_agree() {
        let elapsed = Duration::from_millis(500);
        assert_eq!(Unit::Nanos.express(1_000, elapsed), 500_000.0);
        assert_eq!(Unit::Micros.express(1_000, elapsed), 500.0);
        assert_eq!(Unit::PerSecond("calls", 1).express(1_000, elapsed), 2_000.0);
        assert_eq!(Unit::PerSecond("deliveries", 16).express(1_000, elapsed), 32_000.0);
        assert!(Unit::Nanos.is_better(1.0, 2.0));
        assert!(Unit::PerSecond("calls", 1).is_better(2.0, 1.0));
    }
}
