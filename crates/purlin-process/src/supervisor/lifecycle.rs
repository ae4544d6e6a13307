//! What a supervisor decides, as a pure state machine: no tasks, no clock, no processes.
//!
//! Every child has a state, and a goal; after each input the machine looks for the next step
//! towards the goals. In order: what must go down goes first, the last started first, one at a
//! time; then what must come up, the first first, one at a time. A strategy only says whose goals
//! a failure changes. So a crash in the middle of a restart, or a stop in the middle of a start,
//! needs no rule of its own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use purlin_core::Instant;

use crate::{
    ExitReason,
    supervisor::{Backoff, Intensity, Restart, Shutdown, Strategy},
};

/// A child's place in the order of starting. Kept over its restarts, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildNumber(pub u64);

/// What the machine must know about a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it is called.
    pub id: Arc<str>,
    /// Whether it is started again.
    pub restart: Restart,
    /// How it is ended.
    pub shutdown: Shutdown,
    /// How long to wait before it is started again; at once if `None`.
    pub backoff: Option<Backoff>,
    /// How many failures put it in quarantine; if `None`, they count for the supervisor.
    pub quarantine: Option<Intensity>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The `init` of a child that was being started succeeded.
    Started(ChildNumber),
    /// A child's process ended, or could not be started.
    Exited(ChildNumber, ExitReason),
    /// It is the time of the last [`Output::WakeAt`]; earlier or later does no harm.
    Woke,
    /// The supervisor is to end.
    Shutdown,
}

/// Something to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Start the child's process; `restarts` tells how often that was done before.
    Start {
        /// Which child.
        child: ChildNumber,
        /// Starts after failures so far.
        restarts: u32,
    },
    /// Ask the child's process to end.
    Stop(ChildNumber),
    /// Kill the child's process.
    Kill(ChildNumber),
    /// The child is up.
    Up(ChildNumber),
    /// A child failed and counts against the intensity; it will be started again after this long.
    Restarting(ChildNumber, Duration),
    /// A start that somebody asked for failed.
    StartFailed(ChildNumber, ExitReason),
    /// The child is down and stays down until asked for.
    Down(ChildNumber),
    /// The child failed too often and stays down until asked for.
    Quarantined(ChildNumber),
    /// The child's process could not even be killed; it is given up.
    Abandoned(ChildNumber),
    /// The child is forgotten; it is the last output about it.
    Forgotten(ChildNumber),
    /// All first children are up.
    Ready,
    /// The supervisor must end itself with this reason; [`Input::Shutdown`] follows.
    GiveUp(ExitReason),
    /// All children are down after a shutdown.
    Done,
    /// Give [`Input::Woke`] at this time.
    WakeAt(Instant),
}

/// Where a child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildState {
    /// Not running, and not about to.
    Down,
    /// To be started when this time has come.
    Waiting(Instant),
    /// Its `init` runs.
    Starting,
    /// It runs.
    Running,
    /// It was asked to end, or was killed.
    Stopping,
    /// It failed too often; down until asked for.
    Quarantined,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Up,
    Down,
    Gone,
}

#[derive(Debug)]
struct Child {
    rule: Rule,
    state: ChildState,
    goal: Goal,
    /// Must go down before it may be up (again).
    bounce: bool,
    /// Somebody waits for this start and is told if it fails.
    asked_for: bool,
    restarts: u32,
    /// Failures one after the other, without a long life in between.
    in_a_row: u32,
    up_since: Instant,
    failures: VecDeque<Instant>,
    /// While stopping: when to kill, then when to give it up.
    stop_until: Option<Instant>,
    killed: bool,
}

impl Child {
    fn is_alive(&self) -> bool {
        match self.state {
            ChildState::Starting | ChildState::Running | ChildState::Stopping => true,
            ChildState::Down | ChildState::Waiting(_) | ChildState::Quarantined => false,
        }
    }

    fn must_stop(&self) -> bool {
        matches!(self.state, ChildState::Starting | ChildState::Running)
            && (self.bounce || self.goal != Goal::Up)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first children are coming up.
    Booting,
    Up,
    /// It gave up, and waits for [`Input::Shutdown`].
    GivingUp,
    ShuttingDown,
    Done,
}

/// Why a request about a child was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is a child of that name.
    #[error("child {0:?} exists already")]
    Duplicate(Arc<str>),
    /// There is no child of that name.
    #[error("no child {0:?}")]
    Unknown(Arc<str>),
    /// There are as many children as may be.
    #[error("{children} children exist; the limit is {children_max}")]
    TooMany {
        /// How many there are.
        children: usize,
        /// The most there may be.
        children_max: usize,
    },
    /// The supervisor is ending.
    #[error("the supervisor is shutting down")]
    ShuttingDown,
}

/// How long a killed child may take to be gone before it is given up.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The supervisor's memory and judgement.
#[derive(Debug)]
pub struct Lifecycle {
    strategy: Strategy,
    intensity: Intensity,
    children_max: usize,
    phase: Phase,
    children: BTreeMap<ChildNumber, Child>,
    by_id: BTreeMap<Arc<str>, ChildNumber>,
    next: u64,
    /// When children failed, within the window.
    failures: VecDeque<Instant>,
    timers: BTreeSet<(Instant, ChildNumber)>,
    alive: usize,
}

impl Lifecycle {
    /// A supervisor with its first children, none of them started: the first step does that.
    ///
    /// # Errors
    /// Two children with one name, or too many of them.
    pub fn new(
        strategy: Strategy,
        intensity: Intensity,
        children_max: usize,
        rules: impl IntoIterator<Item = Rule>,
    ) -> Result<Self, Refusal> {
        let mut lifecycle = Self {
            strategy,
            intensity,
            children_max,
            phase: Phase::Booting,
            children: BTreeMap::new(),
            by_id: BTreeMap::new(),
            next: 1,
            failures: VecDeque::new(),
            timers: BTreeSet::new(),
            alive: 0,
        };
        for rule in rules {
            lifecycle.insert(rule)?;
        }
        Ok(lifecycle)
    }

    /// Applies one input. Effects are pushed to `out`, in order.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        let touched = match input {
            Input::Started(child) => {
                self.started(now, child, out);
                Some(child)
            }
            Input::Exited(child, reason) => {
                self.exited(now, child, &reason, out);
                Some(child)
            }
            Input::Woke => {
                self.woke(now, out);
                None
            }
            Input::Shutdown => {
                self.shut_down(now, out);
                None
            }
        };
        self.settle(now, touched, out);
        self.wake_up_call(out);
    }

    /// Starts the first children; give it once, before any input.
    pub fn boot(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.settle(now, None, out);
        self.wake_up_call(out);
    }

    /// Adds a child after the others and starts it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was changed then.
    pub fn add(
        &mut self,
        now: Instant,
        rule: Rule,
        out: &mut Vec<Output>,
    ) -> Result<ChildNumber, Refusal> {
        self.admit()?;
        let number = self.insert(rule)?;
        self.child(number).asked_for = true;
        self.settle(now, Some(number), out);
        self.wake_up_call(out);
        Ok(number)
    }

    /// Takes a child down and leaves it there.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was changed then.
    pub fn stop(
        &mut self,
        now: Instant,
        id: &str,
        out: &mut Vec<Output>,
    ) -> Result<ChildNumber, Refusal> {
        self.aim(now, id, Goal::Down, out)
    }

    /// Takes a child down and forgets it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was changed then.
    pub fn remove(
        &mut self,
        now: Instant,
        id: &str,
        out: &mut Vec<Output>,
    ) -> Result<ChildNumber, Refusal> {
        self.aim(now, id, Goal::Gone, out)
    }

    /// Starts a child that is down or in quarantine, or takes one that runs down and starts it
    /// again. Counts against no intensity.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was changed then.
    pub fn restart(
        &mut self,
        now: Instant,
        id: &str,
        out: &mut Vec<Output>,
    ) -> Result<ChildNumber, Refusal> {
        self.admit()?;
        let number = self.find(id)?;
        let child = self.child(number);
        child.goal = Goal::Up;
        child.asked_for = true;
        child.failures.clear();
        match child.state {
            ChildState::Running | ChildState::Starting => child.bounce = true,
            ChildState::Waiting(until) => {
                child.state = ChildState::Down;
                self.timers.remove(&(until, number));
            }
            ChildState::Quarantined => child.state = ChildState::Down,
            ChildState::Down | ChildState::Stopping => {}
        }
        self.settle(now, Some(number), out);
        self.wake_up_call(out);
        Ok(number)
    }

    /// The children in order, with their states and restarts.
    pub fn children(&self) -> impl Iterator<Item = (ChildNumber, &Rule, ChildState, u32)> {
        self.children
            .iter()
            .map(|(&number, child)| (number, &child.rule, child.state, child.restarts))
    }

    /// How many children there are, up or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.children.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    fn admit(&self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Booting | Phase::Up => Ok(()),
            Phase::GivingUp | Phase::ShuttingDown | Phase::Done => Err(Refusal::ShuttingDown),
        }
    }

    fn find(&self, id: &str) -> Result<ChildNumber, Refusal> {
        self.by_id.get(id).copied().ok_or_else(|| Refusal::Unknown(id.into()))
    }

    fn child(&mut self, number: ChildNumber) -> &mut Child {
        self.children.get_mut(&number).expect("numbers come from `children`")
    }

    fn insert(&mut self, rule: Rule) -> Result<ChildNumber, Refusal> {
        if self.by_id.contains_key(&rule.id) {
            return Err(Refusal::Duplicate(rule.id));
        }
        if self.children.len() >= self.children_max {
            let (children, children_max) = (self.children.len(), self.children_max);
            return Err(Refusal::TooMany { children, children_max });
        }
        let number = ChildNumber(self.next);
        self.next += 1;
        self.by_id.insert(Arc::clone(&rule.id), number);
        self.children.insert(
            number,
            Child {
                rule,
                state: ChildState::Down,
                goal: Goal::Up,
                bounce: false,
                asked_for: false,
                restarts: 0,
                in_a_row: 0,
                up_since: Instant::ZERO,
                failures: VecDeque::new(),
                stop_until: None,
                killed: false,
            },
        );
        Ok(number)
    }

    fn aim(
        &mut self,
        now: Instant,
        id: &str,
        goal: Goal,
        out: &mut Vec<Output>,
    ) -> Result<ChildNumber, Refusal> {
        self.admit()?;
        let number = self.find(id)?;
        let child = self.child(number);
        child.goal = goal;
        child.bounce = false;
        if !child.is_alive() {
            if let ChildState::Waiting(until) = child.state {
                self.timers.remove(&(until, number));
            }
            self.rest(number, out);
        }
        self.settle(now, Some(number), out);
        self.wake_up_call(out);
        Ok(number)
    }

    fn started(&mut self, now: Instant, number: ChildNumber, out: &mut Vec<Output>) {
        let Some(child) = self.children.get_mut(&number) else { return };
        if child.state == ChildState::Starting {
            child.state = ChildState::Running;
            child.asked_for = false;
            child.up_since = now;
            out.push(Output::Up(number));
        }
    }

    fn exited(
        &mut self,
        now: Instant,
        number: ChildNumber,
        reason: &ExitReason,
        out: &mut Vec<Output>,
    ) {
        let Some(child) = self.children.get_mut(&number) else { return };
        let was = child.state;
        if !child.is_alive() {
            return;
        }
        self.alive -= 1;
        child.state = ChildState::Down;
        if let Some(until) = child.stop_until.take() {
            self.timers.remove(&(until, number));
        }
        if was == ChildState::Stopping || child.bounce || child.goal != Goal::Up {
            // As intended, or sooner than we got to it.
            child.bounce = false;
            if child.goal != Goal::Up {
                self.rest(number, out);
            }
            return;
        }
        if !matches!(self.phase, Phase::Booting | Phase::Up) {
            return;
        }
        if was == ChildState::Starting && child.asked_for {
            child.asked_for = false;
            child.goal = if child.restarts == 0 && child.up_since == Instant::ZERO {
                Goal::Gone
            } else {
                Goal::Down
            };
            out.push(Output::StartFailed(number, reason.clone()));
            self.rest(number, out);
            return;
        }
        if was == ChildState::Starting && self.phase == Phase::Booting {
            let id = Arc::clone(&child.rule.id);
            out.push(Output::StartFailed(number, reason.clone()));
            self.give_up(format!("child {id:?} did not start: {reason}"), out);
            return;
        }
        let again = match child.rule.restart {
            Restart::Permanent => true,
            Restart::Transient => !reason.is_normal(),
            Restart::Temporary => false,
        };
        if again {
            self.failed(now, number, reason, out);
        } else {
            let forget =
                child.rule.restart == Restart::Temporary || self.strategy == Strategy::Dynamic;
            child.goal = if forget { Goal::Gone } else { Goal::Down };
            self.rest(number, out);
        }
    }

    /// A child failed and is to be started again, if that has not happened too often.
    fn failed(
        &mut self,
        now: Instant,
        number: ChildNumber,
        reason: &ExitReason,
        out: &mut Vec<Output>,
    ) {
        let (intensity, strategy) = (self.intensity, self.strategy);
        let child = self.child(number);
        if let Some(limit) = child.rule.quarantine
            && exceeds(&mut child.failures, limit, now)
        {
            child.goal = Goal::Down;
            child.state = ChildState::Quarantined;
            out.push(Output::Quarantined(number));
            return;
        }
        if exceeds(&mut self.failures, intensity, now) {
            let child = self.child(number);
            let id = Arc::clone(&child.rule.id);
            let Intensity { restarts_max, within } = intensity;
            self.give_up(
                format!(
                    "more than {restarts_max} restarts in {within:?}; last, child {id:?}: {reason}"
                ),
                out,
            );
            return;
        }
        let child = self.child(number);
        child.restarts = child.restarts.saturating_add(1);
        let mut delay = Duration::ZERO;
        if let Some(backoff) = child.rule.backoff {
            let lived_long = now - child.up_since > backoff.most;
            child.in_a_row = if lived_long { 1 } else { child.in_a_row.saturating_add(1) };
            delay = backoff.after(child.in_a_row);
        }
        if !delay.is_zero() {
            child.state = ChildState::Waiting(now + delay);
            self.timers.insert((now + delay, number));
        }
        out.push(Output::Restarting(number, delay));
        match strategy {
            Strategy::OneForOne | Strategy::Dynamic => {}
            Strategy::OneForAll => {
                let others = self.children.iter_mut().filter(|(other, _)| **other != number);
                others.for_each(|(_, child)| drag_down(child));
            }
            Strategy::RestForOne => {
                let after = (std::ops::Bound::Excluded(number), std::ops::Bound::Unbounded);
                self.children.range_mut(after).for_each(|(_, child)| drag_down(child));
            }
        }
    }

    fn give_up(&mut self, why: String, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Booting | Phase::Up) {
            self.phase = Phase::GivingUp;
            out.push(Output::GiveUp(ExitReason::Failed(why.into())));
        }
    }

    /// A child has reached a goal other than up.
    fn rest(&mut self, number: ChildNumber, out: &mut Vec<Output>) {
        let child = self.child(number);
        child.state = ChildState::Down;
        child.asked_for = false;
        out.push(Output::Down(number));
        if child.goal == Goal::Gone {
            let id = Arc::clone(&child.rule.id);
            self.children.remove(&number);
            self.by_id.remove(&id);
            out.push(Output::Forgotten(number));
        }
    }

    fn shut_down(&mut self, now: Instant, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::ShuttingDown | Phase::Done) {
            return;
        }
        self.phase = Phase::ShuttingDown;
        let mut to_stop = Vec::new();
        for (&number, child) in &mut self.children {
            child.goal = Goal::Down;
            child.bounce = false;
            if let ChildState::Waiting(until) = child.state {
                child.state = ChildState::Down;
                self.timers.remove(&(until, number));
            }
            if self.strategy == Strategy::Dynamic && child.must_stop() {
                to_stop.push(number);
            }
        }
        for number in to_stop {
            self.begin_stop(now, number, out);
        }
    }

    fn woke(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(&(at, number)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let child = self.child(number);
            match child.state {
                ChildState::Stopping if !child.killed => {
                    child.killed = true;
                    child.stop_until = Some(now + KILL_GRACE);
                    self.timers.insert((now + KILL_GRACE, number));
                    out.push(Output::Kill(number));
                }
                ChildState::Stopping => {
                    child.stop_until = None;
                    out.push(Output::Abandoned(number));
                    self.exited(now, number, &ExitReason::Killed, out);
                }
                ChildState::Down
                | ChildState::Waiting(_)
                | ChildState::Starting
                | ChildState::Running
                | ChildState::Quarantined => {}
            }
            if self.is_independent() {
                self.settle_alone(now, number, out);
            }
        }
    }

    /// Whether children can be looked at one by one. While the first ones come up they cannot:
    /// each waits for the one before.
    fn is_independent(&self) -> bool {
        self.phase == Phase::Up && matches!(self.strategy, Strategy::OneForOne | Strategy::Dynamic)
    }

    /// Takes the next steps towards the goals. `touched` is the child the input was about; where
    /// children are independent nothing else needs looking at, however many there are.
    fn settle(&mut self, now: Instant, touched: Option<ChildNumber>, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Done | Phase::GivingUp => {}
            Phase::ShuttingDown => {
                // Without an order all were stopped at once, when the shutdown began.
                if self.strategy != Strategy::Dynamic {
                    self.stop_last(now, out);
                }
                if self.alive == 0 {
                    self.phase = Phase::Done;
                    out.push(Output::Done);
                }
            }
            Phase::Up if self.is_independent() => {
                if let Some(number) = touched {
                    self.settle_alone(now, number, out);
                }
            }
            Phase::Up | Phase::Booting => {
                if self.stop_last(now, out) {
                    return;
                }
                let all_up = self.start_first(now, out);
                if all_up && self.phase == Phase::Booting {
                    self.phase = Phase::Up;
                    out.push(Output::Ready);
                }
            }
        }
    }

    fn settle_alone(&mut self, now: Instant, number: ChildNumber, out: &mut Vec<Output>) {
        let Some(child) = self.children.get(&number) else { return };
        if child.must_stop() {
            self.begin_stop(now, number, out);
        } else {
            self.start_if_due(now, number, out);
        }
    }

    /// Stops the last child that must go down, unless one is going down already; whether there is
    /// any such child.
    fn stop_last(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        if self.children.values().any(|child| child.state == ChildState::Stopping) {
            return true;
        }
        let last = self.children.iter().rev().find(|(_, child)| child.must_stop());
        let Some(number) = last.map(|(&number, _)| number) else { return false };
        self.begin_stop(now, number, out);
        true
    }

    /// Starts the first child that must come up, unless one is coming up already; whether all
    /// that must be up are.
    fn start_first(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        let first = self
            .children
            .iter()
            .find(|(_, child)| child.goal == Goal::Up && child.state != ChildState::Running);
        let Some(number) = first.map(|(&number, _)| number) else { return true };
        self.start_if_due(now, number, out);
        false
    }

    fn start_if_due(&mut self, now: Instant, number: ChildNumber, out: &mut Vec<Output>) {
        let child = self.child(number);
        let due = match child.state {
            ChildState::Down => child.goal == Goal::Up,
            ChildState::Waiting(until) => child.goal == Goal::Up && until <= now,
            ChildState::Starting
            | ChildState::Running
            | ChildState::Stopping
            | ChildState::Quarantined => false,
        };
        if !due {
            return;
        }
        let was = std::mem::replace(&mut child.state, ChildState::Starting);
        child.killed = false;
        child.bounce = false;
        out.push(Output::Start { child: number, restarts: child.restarts });
        if let ChildState::Waiting(until) = was {
            self.timers.remove(&(until, number));
        }
        self.alive += 1;
    }

    fn begin_stop(&mut self, now: Instant, number: ChildNumber, out: &mut Vec<Output>) {
        let child = self.child(number);
        child.state = ChildState::Stopping;
        child.killed = child.rule.shutdown == Shutdown::Kill;
        let patience = match child.rule.shutdown {
            Shutdown::Within(patience) => Some(patience),
            Shutdown::Kill => Some(KILL_GRACE),
            Shutdown::Unbounded => None,
        };
        child.stop_until = patience.map(|patience| now + patience);
        out.push(if child.killed { Output::Kill(number) } else { Output::Stop(number) });
        if let Some(until) = child.stop_until {
            self.timers.insert((until, number));
        }
    }

    fn wake_up_call(&self, out: &mut Vec<Output>) {
        out.extend(self.timers.first().map(|&(at, _)| Output::WakeAt(at)));
    }
}

/// Makes a child go down because another one failed.
fn drag_down(child: &mut Child) {
    if child.goal != Goal::Up {
        return;
    }
    if child.rule.restart == Restart::Temporary {
        child.goal = Goal::Gone;
    } else if matches!(child.state, ChildState::Starting | ChildState::Running) {
        child.bounce = true;
    }
}

/// Counts a failure now; whether there were more than `limit` allows.
fn exceeds(failures: &mut VecDeque<Instant>, limit: Intensity, now: Instant) -> bool {
    failures.push_back(now);
    while failures.front().is_some_and(|&first| now - first > limit.within) {
        failures.pop_front();
    }
    // The queue is bounded by this: one more than the limit, and then it is over.
    failures.len() > usize::try_from(limit.restarts_max).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
