use proptest::{
    prelude::{Just, ProptestConfig, prop_assert, prop_oneof, proptest},
    strategy::Strategy as Generate,
};

use super::*;

fn at(ms: u64) -> Instant {
    Instant::from_start(Duration::from_millis(ms))
}

fn rule(id: &str) -> Rule {
    Rule {
        id: id.into(),
        restart: Restart::Permanent,
        shutdown: Shutdown::Within(Duration::from_secs(5)),
        backoff: None,
        quarantine: None,
    }
}

const A: ChildNumber = ChildNumber(1);
const B: ChildNumber = ChildNumber(2);
const C: ChildNumber = ChildNumber(3);

fn crash() -> ExitReason {
    ExitReason::failed("boom")
}

/// A lifecycle with the outputs of its last step.
struct Watched {
    lifecycle: Lifecycle,
    out: Vec<Output>,
}

impl Watched {
    fn new(strategy: Strategy, rules: Vec<Rule>) -> Self {
        let lifecycle = Lifecycle::new(strategy, Intensity::default(), 10, rules).unwrap();
        Self { lifecycle, out: Vec::new() }
    }

    /// Booted, with all children up.
    fn up(strategy: Strategy, rules: Vec<Rule>) -> Self {
        let children = rules.len() as u64;
        let mut watched = Self::new(strategy, rules);
        watched.lifecycle.boot(at(0), &mut watched.out);
        for number in 1..=children {
            watched.step(0, Input::Started(ChildNumber(number)));
        }
        assert!(watched.out.contains(&Output::Ready), "{:?}", watched.out);
        watched
    }

    fn step(&mut self, ms: u64, input: Input) -> &[Output] {
        self.out.clear();
        self.lifecycle.step(at(ms), input, &mut self.out);
        &self.out
    }
}

fn start(child: ChildNumber, restarts: u32) -> Output {
    Output::Start { child, restarts }
}

#[test]
fn children_come_up_in_order_each_once_the_one_before_is_up() {
    let mut watched = Watched::new(Strategy::OneForOne, vec![rule("a"), rule("b")]);
    watched.lifecycle.boot(at(0), &mut watched.out);
    assert_eq!(watched.out, [start(A, 0)]);
    assert_eq!(watched.step(1, Input::Started(A)), [Output::Up(A), start(B, 0)]);
    assert_eq!(watched.step(2, Input::Started(B)), [Output::Up(B), Output::Ready]);
}

#[test]
fn a_first_child_that_does_not_start_ends_the_boot_and_takes_the_others_down() {
    let mut watched = Watched::new(Strategy::OneForOne, vec![rule("a"), rule("b")]);
    watched.lifecycle.boot(at(0), &mut watched.out);
    watched.step(1, Input::Started(A));
    let out = watched.step(2, Input::Exited(B, crash()));
    assert!(matches!(out, [Output::StartFailed(B, _), Output::GiveUp(_)]), "{out:?}");
    assert_eq!(watched.step(3, Input::Shutdown), [Output::Stop(A), Output::WakeAt(at(5_003))]);
    assert_eq!(
        watched.step(4, Input::Exited(A, ExitReason::Shutdown)),
        [Output::Down(A), Output::Done]
    );
}

#[test]
fn one_for_one_restarts_only_the_child_that_failed() {
    let mut watched = Watched::up(Strategy::OneForOne, vec![rule("a"), rule("b")]);
    assert_eq!(
        watched.step(1, Input::Exited(A, crash())),
        [Output::Restarting(A, Duration::ZERO), start(A, 1)]
    );
    assert_eq!(watched.step(2, Input::Started(A)), [Output::Up(A)]);
}

#[test]
fn one_for_all_stops_the_others_backwards_and_starts_all_forwards() {
    let mut watched = Watched::up(Strategy::OneForAll, vec![rule("a"), rule("b"), rule("c")]);
    let stop_at = Output::WakeAt(at(5_001));
    assert_eq!(
        watched.step(1, Input::Exited(B, crash())),
        [Output::Restarting(B, Duration::ZERO), Output::Stop(C), stop_at.clone()]
    );
    assert_eq!(watched.step(1, Input::Exited(C, ExitReason::Shutdown)), [Output::Stop(A), stop_at]);
    assert_eq!(watched.step(2, Input::Exited(A, ExitReason::Shutdown)), [start(A, 0)]);
    assert_eq!(watched.step(2, Input::Started(A)), [Output::Up(A), start(B, 1)]);
    assert_eq!(watched.step(2, Input::Started(B)), [Output::Up(B), start(C, 0)]);
    assert_eq!(watched.step(2, Input::Started(C)), [Output::Up(C)]);
}

#[test]
fn rest_for_one_leaves_those_started_before_alone() {
    let mut watched = Watched::up(Strategy::RestForOne, vec![rule("a"), rule("b"), rule("c")]);
    watched.step(1, Input::Exited(B, crash()));
    assert!(watched.out.contains(&Output::Stop(C)) && !watched.out.contains(&Output::Stop(A)));
    assert_eq!(watched.step(2, Input::Exited(C, ExitReason::Shutdown)), [start(B, 1)]);
    assert_eq!(watched.step(2, Input::Started(B)), [Output::Up(B), start(C, 0)]);
}

#[test]
fn a_second_crash_in_the_middle_of_a_restart_changes_nothing_about_its_order() {
    let mut watched = Watched::up(Strategy::OneForAll, vec![rule("a"), rule("b"), rule("c")]);
    watched.step(1, Input::Exited(C, crash()));
    assert!(watched.out.contains(&Output::Stop(B)));
    // A dies by itself before its turn came: not a second failure, it was to go down anyway.
    assert_eq!(watched.step(1, Input::Exited(A, crash())), [Output::WakeAt(at(5_001))]);
    assert_eq!(watched.step(1, Input::Exited(B, ExitReason::Shutdown)), [start(A, 0)]);
}

#[test]
fn the_fourth_failure_within_the_window_is_one_too_many() {
    let mut watched = Watched::up(Strategy::OneForOne, vec![rule("a")]);
    for ms in [0, 1_000, 2_000] {
        watched.step(ms, Input::Exited(A, crash()));
        assert!(watched.out.contains(&Output::Restarting(A, Duration::ZERO)), "{:?}", watched.out);
        watched.step(ms, Input::Started(A));
    }
    let out = watched.step(5_000, Input::Exited(A, crash()));
    let [Output::GiveUp(ExitReason::Failed(why))] = out else { panic!("{out:?}") };
    assert_eq!(&**why, "more than 3 restarts in 5s; last, child \"a\": failed: boom");
}

#[test]
fn a_failure_that_left_the_window_no_longer_counts() {
    let mut watched = Watched::up(Strategy::OneForOne, vec![rule("a")]);
    for ms in [0, 1_000, 2_000, 5_001, 6_001, 7_001] {
        watched.step(ms, Input::Exited(A, crash()));
        assert!(watched.out.contains(&Output::Restarting(A, Duration::ZERO)), "at {ms} ms");
        watched.step(ms, Input::Started(A));
    }
}

#[test]
fn transient_children_stay_down_after_a_normal_exit_and_temporary_ones_are_forgotten() {
    let transient = Rule { restart: Restart::Transient, ..rule("a") };
    let temporary = Rule { restart: Restart::Temporary, ..rule("b") };
    let mut watched = Watched::up(Strategy::OneForOne, vec![transient, temporary]);
    assert_eq!(watched.step(1, Input::Exited(A, ExitReason::Normal)), [Output::Down(A)]);
    assert_eq!(watched.step(1, Input::Exited(B, crash())), [Output::Down(B), Output::Forgotten(B)]);
    assert_eq!(watched.lifecycle.len(), 1);
}

#[test]
fn backoff_doubles_with_failures_in_a_row_and_starts_over_after_a_long_life() {
    let backoff = Backoff { first: Duration::from_secs(2), most: Duration::from_secs(6) };
    let rules = vec![Rule { backoff: Some(backoff), ..rule("a") }];
    let mut watched = Watched::up(Strategy::OneForOne, rules);
    let mut now = 0;
    for wait in [2_000, 4_000, 6_000, 6_000] {
        now += 1;
        assert_eq!(
            watched.step(now, Input::Exited(A, crash())),
            [Output::Restarting(A, Duration::from_millis(wait)), Output::WakeAt(at(now + wait))]
        );
        assert_eq!(watched.step(now + wait - 1, Input::Woke), [Output::WakeAt(at(now + wait))]);
        now += wait;
        watched.step(now, Input::Woke);
        assert!(matches!(watched.out[..], [Output::Start { .. }]), "{:?}", watched.out);
        watched.step(now, Input::Started(A));
    }
    watched.step(now + 6_001, Input::Exited(A, crash()));
    assert_eq!(watched.out[0], Output::Restarting(A, Duration::from_secs(2)));
}

#[test]
fn a_child_in_quarantine_costs_the_supervisor_nothing_and_comes_back_when_asked_for() {
    let limit = Intensity { restarts_max: 1, within: Duration::from_secs(60) };
    let poisonous = Rule { quarantine: Some(limit), ..rule("a") };
    let mut watched = Watched::up(Strategy::OneForOne, vec![poisonous, rule("b")]);
    watched.step(1, Input::Exited(A, crash()));
    watched.step(1, Input::Started(A));
    assert_eq!(watched.step(2, Input::Exited(A, crash())), [Output::Quarantined(A)]);
    watched.out.clear();
    watched.lifecycle.restart(at(3), "a", &mut watched.out).unwrap();
    assert_eq!(watched.out, [start(A, 1)]);
}

#[test]
fn a_child_that_does_not_end_in_time_is_killed_and_then_given_up() {
    let mut watched = Watched::up(Strategy::OneForOne, vec![rule("a")]);
    assert_eq!(watched.step(0, Input::Shutdown), [Output::Stop(A), Output::WakeAt(at(5_000))]);
    assert_eq!(watched.step(5_000, Input::Woke), [Output::Kill(A), Output::WakeAt(at(10_000))]);
    assert_eq!(
        watched.step(10_000, Input::Woke),
        [Output::Abandoned(A), Output::Down(A), Output::Done]
    );
    // Its late end is nobody's any more.
    assert_eq!(watched.step(11_000, Input::Exited(A, ExitReason::Killed)), []);
}

#[test]
fn a_brutal_kill_does_not_ask() {
    let rules = vec![Rule { shutdown: Shutdown::Kill, ..rule("a") }];
    let mut watched = Watched::up(Strategy::OneForOne, rules);
    assert_eq!(watched.step(0, Input::Shutdown)[0], Output::Kill(A));
}

#[test]
fn dynamic_children_are_stopped_all_at_once() {
    let mut watched = Watched::up(Strategy::Dynamic, vec![rule("a"), rule("b")]);
    assert_eq!(
        watched.step(0, Input::Shutdown),
        [Output::Stop(A), Output::Stop(B), Output::WakeAt(at(5_000))]
    );
}

#[test]
fn an_added_child_that_does_not_start_is_forgotten_and_its_name_is_free() {
    let mut watched = Watched::up(Strategy::OneForOne, vec![rule("a")]);
    watched.out.clear();
    let added = watched.lifecycle.add(at(1), rule("b"), &mut watched.out).unwrap();
    assert_eq!(watched.out, [start(added, 0)]);
    let refused = watched.lifecycle.add(at(1), rule("b"), &mut Vec::new());
    assert_eq!(refused, Err(Refusal::Duplicate("b".into())));
    assert_eq!(
        watched.step(2, Input::Exited(added, crash())),
        [Output::StartFailed(added, crash()), Output::Down(added), Output::Forgotten(added)]
    );
    assert!(watched.lifecycle.add(at(3), rule("b"), &mut Vec::new()).is_ok());
}

#[test]
fn stop_restart_and_remove_do_what_they_say() {
    let mut watched = Watched::up(Strategy::OneForOne, vec![rule("a"), rule("b")]);
    let out = &mut Vec::new();
    watched.lifecycle.stop(at(1), "a", out).unwrap();
    assert_eq!(out[..], [Output::Stop(A), Output::WakeAt(at(5_001))]);
    assert_eq!(watched.step(2, Input::Exited(A, ExitReason::Shutdown)), [Output::Down(A)]);
    out.clear();
    watched.lifecycle.restart(at(3), "a", out).unwrap();
    assert_eq!(out[..], [start(A, 0)]);
    watched.step(3, Input::Started(A));
    out.clear();
    watched.lifecycle.restart(at(4), "a", out).unwrap();
    assert_eq!(out[..], [Output::Stop(A), Output::WakeAt(at(5_004))]);
    assert_eq!(watched.step(5, Input::Exited(A, ExitReason::Shutdown)), [start(A, 0)]);
    watched.step(5, Input::Started(A));
    out.clear();
    watched.lifecycle.remove(at(6), "a", out).unwrap();
    assert_eq!(
        watched.step(7, Input::Exited(A, ExitReason::Shutdown)),
        [Output::Down(A), Output::Forgotten(A)]
    );
    assert_eq!(watched.lifecycle.stop(at(8), "a", out), Err(Refusal::Unknown("a".into())));
}

#[test]
fn the_bound_on_children_is_told_with_its_numbers() {
    let mut lifecycle =
        Lifecycle::new(Strategy::Dynamic, Intensity::default(), 1, [rule("a")]).unwrap();
    assert_eq!(
        lifecycle.add(at(0), rule("b"), &mut Vec::new()),
        Err(Refusal::TooMany { children: 1, children_max: 1 })
    );
}

/// The world a lifecycle lives in: children that start, fail, hang and end as a seed says.
struct World {
    lifecycle: Lifecycle,
    strategy: Strategy,
    now: u64,
    /// What the supervisor believes to be alive, by its own outputs: `true` once up.
    alive: BTreeMap<ChildNumber, bool>,
    stopping: BTreeSet<ChildNumber>,
    stops: Vec<ChildNumber>,
    restarts: Vec<u64>,
    gave_up: bool,
    done: usize,
}

#[derive(Debug, Clone)]
enum Event {
    Starts(usize),
    Crashes(usize),
    EndsNormally(usize),
    ObeysStop(usize),
    TimePasses(u64),
    Adds(u8),
    Stops(u8),
    Restarts(u8),
    Removes(u8),
}

fn event() -> impl Generate<Value = Event> {
    prop_oneof![
        4 => (0..8_usize).prop_map(Event::Starts),
        4 => (0..8_usize).prop_map(Event::Crashes),
        1 => (0..8_usize).prop_map(Event::EndsNormally),
        4 => (0..8_usize).prop_map(Event::ObeysStop),
        3 => (1..4_000_u64).prop_map(Event::TimePasses),
        1 => (0..8_u8).prop_map(Event::Adds),
        1 => (0..8_u8).prop_map(Event::Stops),
        1 => (0..8_u8).prop_map(Event::Restarts),
        1 => (0..8_u8).prop_map(Event::Removes),
    ]
}

fn any_rule(number: u8) -> impl Generate<Value = Rule> {
    let restart = prop_oneof![
        3 => Just(Restart::Permanent), 1 => Just(Restart::Transient), 1 => Just(Restart::Temporary)
    ];
    let shutdown = prop_oneof![
        Just(Shutdown::Within(Duration::from_millis(500))),
        Just(Shutdown::Unbounded),
        Just(Shutdown::Kill)
    ];
    let backoff = proptest::option::of(Just(Backoff {
        first: Duration::from_millis(100),
        most: Duration::from_secs(1),
    }));
    (restart, shutdown, backoff).prop_map(move |(restart, shutdown, backoff)| Rule {
        restart,
        shutdown,
        backoff,
        ..rule(&number.to_string())
    })
}

impl World {
    fn apply(&mut self, out: Vec<Output>) {
        for output in out {
            assert_eq!(self.done, 0, "{output:?} after the end");
            match output {
                Output::Start { child, .. } => {
                    let before = self.alive.insert(child, false);
                    assert_eq!(before, None, "{child:?} was started beside itself");
                    assert!(!self.gave_up, "{child:?} was started after giving up");
                }
                Output::Stop(child) | Output::Kill(child) => {
                    assert!(
                        self.alive.contains_key(&child),
                        "{child:?} is not there to be stopped"
                    );
                    if self.stopping.insert(child) {
                        self.stops.push(child);
                    }
                }
                Output::Abandoned(child) => {
                    self.alive.remove(&child);
                    self.stopping.remove(&child);
                }
                Output::Restarting(..) => self.restarts.push(self.now),
                Output::GiveUp(_) => self.gave_up = true,
                Output::Done => {
                    self.done += 1;
                    assert!(self.alive.is_empty(), "done with {:?} alive", self.alive);
                }
                Output::Up(child) => {
                    assert_eq!(self.alive.get(&child), Some(&true));
                }
                Output::Down(child) | Output::Forgotten(child) | Output::Quarantined(child) => {
                    assert!(!self.alive.contains_key(&child), "{child:?} is down but alive");
                }
                Output::StartFailed(..) | Output::Ready | Output::WakeAt(_) => {}
            }
        }
    }

    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        self.lifecycle.step(at(self.now), input, &mut out);
        self.apply(out);
    }

    fn exits(&mut self, child: ChildNumber, reason: ExitReason) {
        self.alive.remove(&child);
        self.stopping.remove(&child);
        self.input(Input::Exited(child, reason));
    }

    fn pick(of: impl Iterator<Item = ChildNumber>, at: usize) -> Option<ChildNumber> {
        let all: Vec<_> = of.collect();
        (!all.is_empty()).then(|| all[at % all.len()])
    }

    fn happens(&mut self, event: &Event) {
        let mut out = Vec::new();
        match *event {
            Event::Starts(n) => {
                let starting = self.alive.iter().filter(|(_, up)| !**up).map(|(child, _)| *child);
                if let Some(child) = Self::pick(starting, n) {
                    self.alive.insert(child, true);
                    // One that was told to stop while starting no longer reports its start.
                    if !self.stopping.contains(&child) {
                        self.input(Input::Started(child));
                    }
                }
            }
            Event::Crashes(n) => {
                if let Some(child) = Self::pick(self.alive.keys().copied(), n) {
                    self.exits(child, crash());
                }
            }
            Event::EndsNormally(n) => {
                if let Some(child) = Self::pick(self.alive.keys().copied(), n) {
                    self.exits(child, ExitReason::Normal);
                }
            }
            Event::ObeysStop(n) => {
                if let Some(child) = Self::pick(self.stopping.iter().copied(), n) {
                    self.exits(child, ExitReason::Shutdown);
                }
            }
            Event::TimePasses(ms) => {
                self.now += ms;
                self.input(Input::Woke);
            }
            Event::Adds(id) => {
                let added = self.lifecycle.add(at(self.now), rule(&format!("+{id}")), &mut out);
                drop(added);
            }
            Event::Stops(id) => drop(self.lifecycle.stop(at(self.now), &id.to_string(), &mut out)),
            Event::Restarts(id) => {
                drop(self.lifecycle.restart(at(self.now), &id.to_string(), &mut out));
            }
            Event::Removes(id) => {
                drop(self.lifecycle.remove(at(self.now), &id.to_string(), &mut out));
            }
        }
        self.apply(out);
        self.check();
    }

    fn check(&self) {
        let Intensity { restarts_max, within } = Intensity::default();
        let within = u64::try_from(within.as_millis()).unwrap();
        for (first, &from) in self.restarts.iter().enumerate() {
            let in_window = self.restarts[first..].iter().take_while(|&&ms| ms - from <= within);
            let count = in_window.count();
            assert!(
                count <= restarts_max as usize,
                "{count} restarts from {from} ms on: {:?}",
                self.restarts
            );
        }
        let ordered = matches!(self.strategy, Strategy::OneForAll | Strategy::RestForOne);
        if ordered {
            assert!(self.stopping.len() <= 1, "stopped together: {:?}", self.stopping);
        }
    }

    /// Ends it all with children that obey, and checks that it ends.
    fn shut_down(&mut self) {
        self.stops.clear();
        let before: BTreeSet<_> = self.stopping.clone();
        self.input(Input::Shutdown);
        for _ in 0..1_000 {
            if self.done > 0 {
                break;
            }
            let Some(child) = self.stopping.first().copied() else {
                panic!("nothing is being stopped, and nothing is done: {:?}", self.lifecycle)
            };
            self.exits(child, ExitReason::Shutdown);
        }
        assert_eq!(self.done, 1, "{:?}", self.lifecycle);
        if self.strategy != Strategy::Dynamic {
            let stops: Vec<_> = self.stops.iter().filter(|child| !before.contains(child)).collect();
            assert!(stops.is_sorted_by(|a, b| a > b), "not backwards: {stops:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_intensity_order_and_uniqueness_hold(
        strategy in prop_oneof![
            Just(Strategy::OneForOne), Just(Strategy::OneForAll),
            Just(Strategy::RestForOne), Just(Strategy::Dynamic)
        ],
        rules in (0..5_u8).prop_flat_map(|children| {
            (0..children).map(any_rule).collect::<Vec<_>>()
        }),
        events in proptest::collection::vec(event(), 0..120),
    ) {
        let lifecycle = Lifecycle::new(strategy, Intensity::default(), 8, rules).unwrap();
        let mut world = World {
            lifecycle,
            strategy,
            now: 0,
            alive: BTreeMap::new(),
            stopping: BTreeSet::new(),
            stops: Vec::new(),
            restarts: Vec::new(),
            gave_up: false,
            done: 0,
        };
        let mut out = Vec::new();
        world.lifecycle.boot(at(0), &mut out);
        world.apply(out);
        for event in &events {
            world.happens(event);
        }
        world.shut_down();
    }

    #[test]
    fn with_children_that_behave_everything_that_should_be_up_comes_up(
        strategy in prop_oneof![
            Just(Strategy::OneForOne), Just(Strategy::OneForAll), Just(Strategy::RestForOne)
        ],
        crashes in proptest::collection::vec(0..4_usize, 0..3),
    ) {
        let rules: Vec<_> = (0..4).map(|number| rule(&number.to_string())).collect();
        let mut watched = Watched::up(strategy, rules);
        let mut pending: VecDeque<Output> = VecDeque::new();
        for (turn, crash_at) in crashes.into_iter().enumerate() {
            let child = ChildNumber(crash_at as u64 + 1);
            let now = turn as u64;
            pending.extend(watched.step(now, Input::Exited(child, crash())).iter().cloned());
            while let Some(output) = pending.pop_front() {
                let reaction = match output {
                    Output::Start { child, .. } => Input::Started(child),
                    Output::Stop(child) => Input::Exited(child, ExitReason::Shutdown),
                    _ => continue,
                };
                pending.extend(watched.step(now, reaction).iter().cloned());
            }
            let down: Vec<_> = watched
                .lifecycle
                .children()
                .filter(|(.., state, _)| *state != ChildState::Running)
                .map(|(number, ..)| number)
                .collect();
            prop_assert!(down.is_empty(), "{down:?} stayed down");
        }
    }
}
