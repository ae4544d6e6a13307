//! Leaving well: the drain, as a pure state machine.
//!
//! A process that just stops turns its callers' requests into unknown outcomes. A drain is the
//! order in which nothing is lost: say it, stop being chosen, hand over what one owns, finish what
//! one has accepted, and only then say goodbye. Every step has the deadline over it: a drain that
//! hangs is worse than one that reports what it had to leave behind.
//!
//! `Drain` decides; the loop in `drainer` waits.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use purlin_core::{Deadline, Instant};

/// How long members have to confirm that they have read a piece of news of ours. Who does not is
/// suspected by then; waiting longer would let one stalled member hold up everybody's shutdown.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);

/// How long a node stays reachable after everybody has read its farewell: requests that were on
/// their way at that moment still get their refusal. Longer than a round trip between regions.
const LINGER: Duration = Duration::from_millis(300);

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// No drain: the node takes work.
    Serving,
    /// Telling the members, so that nobody places anything here or sends new calls.
    Announcing,
    /// Processes and state go to other nodes.
    HandingOff,
    /// Leaderships go to other nodes.
    Transferring,
    /// New calls are refused; those accepted before are being answered.
    Finishing,
    /// Saying goodbye.
    Leaving,
    /// Gone: this incarnation never comes back.
    Left,
}

impl Phase {
    /// The word used in HTTP bodies, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Announcing => "announcing",
            Self::HandingOff => "handing_off",
            Self::Transferring => "transferring",
            Self::Finishing => "finishing",
            Self::Leaving => "leaving",
            Self::Left => "left",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// When a [`DrainHook`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Move processes and state to other nodes.
    HandOff,
    /// Give leaderships away.
    Transfer,
}

/// What a layer above does when its node is drained.
///
/// All hooks of a stage run at once; the next stage begins when all have ended or the deadline
/// has passed, whichever is first. A hook that is still running then is dropped.
pub trait DrainHook: Send + Sync + 'static {
    /// What is drained, for people: `supervised processes`.
    fn name(&self) -> &str;

    /// When it runs.
    fn stage(&self) -> Stage;

    /// Does it. Runs once per drain; must bear being dropped at any await.
    ///
    /// # Errors
    /// A sentence saying what stays behind. The drain goes on and reports it.
    fn run(
        &self,
        deadline: Deadline,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}

/// Where requests come in, and which of them are unanswered.
///
/// While finishing, the drain closes every intake and waits until all are empty.
pub trait Intake: Send + Sync + 'static {
    /// What comes in, for people: `rpc calls`.
    fn name(&self) -> &str;

    /// From now on answers new requests with a typed "draining, nothing was done". Must be atomic
    /// with accepting: what was accepted before is counted by [`in_flight`](Self::in_flight).
    fn refuse_new(&self);

    /// How many requests were accepted and have no answer written yet.
    fn in_flight(&self) -> usize;
}

/// How a drain stands, for whoever watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainProgress {
    /// How far it is.
    pub phase: Phase,
    /// Requests accepted and not yet answered; counted while finishing.
    pub in_flight: usize,
    /// What went wrong on the way: hooks that failed, members that did not confirm, the deadline.
    pub problems: Vec<String>,
}

/// Something that happened to a drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Somebody wants it, to be over at the deadline.
    Begin(Deadline),
    /// All reachable members have confirmed the news or the farewell.
    Announced,
    /// All hooks of a stage have ended, these of them badly.
    StageDone(Stage, Vec<String>),
    /// So many requests are unanswered, after new ones are refused.
    InFlight(usize),
    /// Time has passed.
    Woke,
}

/// Something to do for a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Tell the members that this node is draining.
    Announce,
    /// Run the hooks of this stage; stop those of earlier ones.
    Run(Stage),
    /// Close all intakes and count what is in flight until it is none.
    RefuseNew,
    /// Say goodbye to the members.
    Leave,
    /// It is over.
    Done,
}

/// One drain of one node.
#[derive(Debug)]
pub(crate) struct Drain {
    phase: Phase,
    deadline: Option<Deadline>,
    confirm_by: Option<Deadline>,
    linger_until: Option<Deadline>,
    in_flight: usize,
    problems: Vec<String>,
}

impl Drain {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Serving,
            deadline: None,
            confirm_by: None,
            linger_until: None,
            in_flight: 0,
            problems: Vec::new(),
        }
    }

    pub(crate) fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        match (self.phase, input) {
            (Phase::Serving, Input::Begin(deadline)) => {
                self.deadline = Some(deadline);
                self.confirm_by = Some(Deadline::after(now, CONFIRM_WITHIN));
                self.enter(Phase::Announcing, Output::Announce, out);
            }
            // A second wish for what is under way can only make it more urgent.
            (_, Input::Begin(deadline)) => {
                self.deadline = self.deadline.map(|old| old.min(deadline));
            }
            (Phase::Announcing, Input::Announced) => {
                self.enter(Phase::HandingOff, Output::Run(Stage::HandOff), out);
            }
            (Phase::HandingOff, Input::StageDone(Stage::HandOff, problems)) => {
                self.problems.extend(problems);
                self.enter(Phase::Transferring, Output::Run(Stage::Transfer), out);
            }
            (Phase::Transferring, Input::StageDone(Stage::Transfer, problems)) => {
                self.problems.extend(problems);
                self.enter(Phase::Finishing, Output::RefuseNew, out);
            }
            (Phase::Finishing, Input::InFlight(count)) => {
                self.in_flight = count;
                if count == 0 {
                    self.leave(now, out);
                }
            }
            (Phase::Leaving, Input::Announced) => {
                self.linger_until.get_or_insert_with(|| Deadline::after(now, LINGER));
            }
            // Late or doubled news of an earlier phase.
            (_, Input::Announced | Input::StageDone(..) | Input::InFlight(_) | Input::Woke) => {}
        }
        self.check_time(now, out);
    }

    fn check_time(&mut self, now: Instant, out: &mut Vec<Output>) {
        let past = |deadline: Option<Deadline>| deadline.is_some_and(|d| d.is_past(now));
        match self.phase {
            Phase::Serving | Phase::Left => {}
            Phase::Leaving => {
                if past(self.linger_until) {
                    self.enter(Phase::Left, Output::Done, out);
                } else if self.linger_until.is_none() && past(self.confirm_by) {
                    self.problems.push("not all members confirmed the farewell".into());
                    self.enter(Phase::Left, Output::Done, out);
                }
            }
            Phase::Announcing | Phase::HandingOff | Phase::Transferring | Phase::Finishing
                if past(self.deadline) =>
            {
                self.problems.push(format!(
                    "deadline passed while {}{}",
                    self.phase,
                    if self.phase == Phase::Finishing {
                        format!(", {} requests unanswered", self.in_flight)
                    } else {
                        String::new()
                    }
                ));
                if self.phase < Phase::Finishing {
                    out.push(Output::RefuseNew);
                }
                self.leave(now, out);
            }
            Phase::Announcing => {
                if past(self.confirm_by) {
                    self.problems.push("not all members confirmed the announcement".into());
                    self.enter(Phase::HandingOff, Output::Run(Stage::HandOff), out);
                }
            }
            Phase::HandingOff | Phase::Transferring | Phase::Finishing => {}
        }
    }

    fn leave(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.confirm_by = Some(Deadline::after(now, CONFIRM_WITHIN));
        self.enter(Phase::Leaving, Output::Leave, out);
    }

    fn enter(&mut self, phase: Phase, output: Output, out: &mut Vec<Output>) {
        assert!(phase > self.phase, "a drain only goes forward: {} to {phase}", self.phase);
        self.phase = phase;
        out.push(output);
    }

    /// When [`Input::Woke`] is due.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let confirm_by = self.confirm_by.map(|d| d.at);
        let deadline = self.deadline.map(|d| d.at);
        match self.phase {
            Phase::Serving | Phase::Left => None,
            Phase::Leaving => self.linger_until.map(|d| d.at).or(confirm_by),
            Phase::Announcing => confirm_by.min(deadline),
            Phase::HandingOff | Phase::Transferring | Phase::Finishing => deadline,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    pub(crate) fn progress(&self) -> DrainProgress {
        DrainProgress {
            phase: self.phase,
            in_flight: self.in_flight,
            problems: self.problems.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> Instant {
        Instant::from_start(Duration::from_secs(secs))
    }

    fn step(drain: &mut Drain, secs: u64, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        drain.step(at(secs), input, &mut out);
        out
    }

    fn begin(secs: u64) -> Input {
        Input::Begin(Deadline { at: at(secs) })
    }

    #[test]
    fn a_drain_goes_through_its_phases_in_order() {
        let mut drain = Drain::new();
        assert_eq!(step(&mut drain, 0, begin(30)), [Output::Announce]);
        assert_eq!(step(&mut drain, 1, Input::Announced), [Output::Run(Stage::HandOff)]);
        let done = Input::StageDone(Stage::HandOff, vec!["one stayed".into()]);
        assert_eq!(step(&mut drain, 1, done.clone()), [Output::Run(Stage::Transfer)]);
        assert_eq!(step(&mut drain, 1, done), [], "doubled");
        let done = Input::StageDone(Stage::Transfer, vec![]);
        assert_eq!(step(&mut drain, 2, done), [Output::RefuseNew]);
        assert_eq!(step(&mut drain, 2, Input::InFlight(3)), []);
        assert_eq!(drain.progress().in_flight, 3);
        assert_eq!(step(&mut drain, 3, Input::InFlight(0)), [Output::Leave]);
        assert_eq!(step(&mut drain, 3, Input::Announced), []);
        assert_eq!(drain.wake_at(), Some(at(3) + LINGER), "stragglers are still refused");
        assert_eq!(step(&mut drain, 4, Input::Woke), [Output::Done]);
        assert_eq!(drain.progress().problems, ["one stayed"]);
    }

    #[test]
    fn the_deadline_ends_any_phase_and_says_what_was_left_behind() {
        let mut drain = Drain::new();
        step(&mut drain, 0, begin(10));
        step(&mut drain, 0, Input::Announced);
        assert_eq!(drain.wake_at(), Some(at(10)));
        assert_eq!(step(&mut drain, 10, Input::Woke), [Output::RefuseNew, Output::Leave]);
        assert_eq!(drain.progress().problems, ["deadline passed while handing_off"]);
        assert_eq!(step(&mut drain, 12, Input::Woke), [Output::Done]);
    }

    #[test]
    fn unanswered_requests_are_waited_for_until_the_deadline_only() {
        let mut drain = Drain::new();
        step(&mut drain, 0, begin(10));
        step(&mut drain, 0, Input::Announced);
        step(&mut drain, 0, Input::StageDone(Stage::HandOff, vec![]));
        step(&mut drain, 0, Input::StageDone(Stage::Transfer, vec![]));
        assert_eq!(step(&mut drain, 9, Input::InFlight(2)), []);
        assert_eq!(step(&mut drain, 10, Input::InFlight(2)), [Output::Leave]);
        assert!(drain.progress().problems[0].contains("2 requests unanswered"));
    }

    #[test]
    fn a_member_that_never_confirms_holds_up_nobody() {
        let mut drain = Drain::new();
        step(&mut drain, 0, begin(60));
        assert_eq!(drain.wake_at(), Some(at(2)));
        assert_eq!(step(&mut drain, 2, Input::Woke), [Output::Run(Stage::HandOff)]);
    }

    #[test]
    fn asking_again_joins_the_drain_under_way_and_may_hurry_it() {
        let mut drain = Drain::new();
        step(&mut drain, 0, begin(60));
        step(&mut drain, 0, Input::Announced);
        assert_eq!(step(&mut drain, 1, begin(600)), []);
        assert_eq!(drain.wake_at(), Some(at(60)));
        assert_eq!(step(&mut drain, 2, begin(1)), [Output::RefuseNew, Output::Leave]);
        assert_eq!(step(&mut drain, 3, begin(1)), []);
    }

    proptest! {
        #[test]
        fn whatever_happens_it_goes_forward_and_ends(inputs in proptest::collection::vec((0_u64..4, 0_usize..7), 0..60)) {
            let mut drain = Drain::new();
            let (mut secs, mut phase, mut left) = (0, Phase::Serving, 0);
            let mut give = |drain: &mut Drain, secs: u64, input: Input| {
                let out = step(drain, secs, input);
                let now = drain.progress().phase;
                assert!(now >= phase);
                phase = now;
                left += out.iter().filter(|o| **o == Output::Leave).count();
                assert!(left <= 1);
            };
            give(&mut drain, 0, begin(20));
            for (wait, input) in inputs {
                secs += wait;
                let input = match input {
                    0 => begin(secs + 20),
                    1 => Input::Announced,
                    2 => Input::StageDone(Stage::HandOff, vec![]),
                    3 => Input::StageDone(Stage::Transfer, vec![]),
                    4 => Input::InFlight(1),
                    5 => Input::InFlight(0),
                    _ => Input::Woke,
                };
                give(&mut drain, secs, input);
            }
            while let Some(wake) = drain.wake_at() {
                secs = secs.max(wake.since_start().as_secs() + 1);
                give(&mut drain, secs, Input::Woke);
            }
            prop_assert_eq!(drain.progress().phase, Phase::Left);
        }
    }
}
