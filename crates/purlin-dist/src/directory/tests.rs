use proptest::prelude::*;
use purlin_core::{Hlc, Incarnation, WallTime};
use purlin_process::{Metadata, ProcessId};

use super::*;

fn node(name: &str, life: u64) -> NodeId {
    NodeId::new(NodeName::parse(name).unwrap(), Incarnation(life))
}

fn at(seconds: u64) -> Instant {
    Instant::from_start(Duration::from_secs(seconds))
}

/// The row `number` of `owner`, first written at `since` and last at `version`.
fn row(owner: &NodeId, number: u64, space: Space, key: &str, since: u64, version: u64) -> Input {
    let stamp = |millis| Hlc::new(owner).now(WallTime::from_millis(millis)).unwrap();
    let at = RowKey { owner: owner.clone(), number };
    let entry = Entry {
        at: at.clone(),
        space,
        scope: "default".into(),
        key: key.into(),
        process: Some(ProcessId(number)),
        kind: "Cart".into(),
        metadata: Metadata::default(),
        since: stamp(since),
        version: stamp(version),
        local: None,
    };
    Input::Row(at, Some(Word::Held(Arc::new(entry))))
}

fn name(owner: &NodeId, number: u64, key: &str, since: u64) -> Input {
    row(owner, number, Space::Unique, key, since, since)
}

fn ends(owner: &NodeId, number: u64, end: End) -> Input {
    Input::Row(RowKey { owner: owner.clone(), number }, Some(Word::Ended(end)))
}

/// A directory of `n1`, and what it did in short words.
struct World {
    directory: Directory,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { directory: Directory::new(node("n1", 1), Duration::from_secs(60)), now: at(1) };
        let present = |n| (node(n, 1), Standing::Present);
        assert!(world.step(Input::Members(["n1", "n2", "n3"].map(present).to_vec())).is_empty());
        world
    }

    fn step(&mut self, input: Input) -> Vec<String> {
        let mut out = Vec::new();
        self.directory.step(self.now, input, &mut out);
        let side = |it: &Option<Arc<Entry>>| {
            it.as_ref().map_or_else(|| "-".to_owned(), |it| format!("{:?}", it.at))
        };
        out.iter()
            .map(|output| match output {
                Output::Changed(change) => {
                    let (before, now) = (side(&change.before), side(&change.now));
                    format!("{before} -> {now}: {}", change.why.as_str())
                }
                Output::Lost { mine, winner } => format!("{:?} lost to {:?}", mine.at, winner.at),
                Output::Sweep(at) => format!("sweep {at:?}"),
                Output::Restore(row) => format!("restore {:?}", row.at),
            })
            .collect()
    }

    fn members(&mut self, members: &[(&NodeId, Standing)]) -> Vec<String> {
        let members = members.iter().map(|(node, standing)| ((*node).clone(), *standing));
        self.step(Input::Members(members.collect()))
    }
}

#[test]
fn a_row_is_hidden_while_its_node_is_down_and_shown_again_without_being_sent() {
    let (n1, n2) = (node("n1", 1), node("n2", 1));
    let mut world = World::new();
    assert_eq!(world.step(name(&n2, 1, "a", 10)), ["- -> n2@1/1: registered"]);
    let down = [(&n1, Standing::Present), (&n2, Standing::Down)];
    assert_eq!(world.members(&down), ["n2@1/1 -> -: node_down"]);
    assert!(world.directory.holder("default", "a").is_none());
    assert!(world.step(row(&n2, 1, Space::Unique, "a", 10, 11)).is_empty(), "still hidden");
    let back = [(&n1, Standing::Present), (&n2, Standing::Present)];
    assert_eq!(world.members(&back), ["- -> n2@1/1: node_back"]);
    assert!(world.members(&back).is_empty());
    assert_eq!(world.directory.wake_at(), None, "nothing to sweep, nothing to wait for");
}

#[test]
fn a_name_taken_over_during_a_cut_stays_where_it_was_taken_to() {
    let (n1, n2) = (node("n1", 1), node("n2", 1));
    let mut world = World::new();
    world.step(name(&n2, 1, "a", 10));
    world.members(&[(&n1, Standing::Present), (&n2, Standing::Down)]);
    assert_eq!(world.step(name(&n1, 1, "a", 20)), ["- -> n1@1/1: registered"]);
    let healed = world.members(&[(&n1, Standing::Present), (&n2, Standing::Present)]);
    assert!(healed.is_empty(), "the later one keeps it here; its owner ends the other: {healed:?}");
    assert!(world.step(ends(&n2, 1, End::Conflict)).is_empty());
    assert_eq!(world.directory.holder("default", "a").unwrap().at.owner, n1);
}

#[test]
fn the_earlier_of_two_holders_loses_and_only_its_own_node_says_so() {
    let (n1, n2, n3) = (node("n1", 1), node("n2", 1), node("n3", 1));
    let mut world = World::new();
    world.step(name(&n1, 1, "a", 10));
    assert_eq!(
        world.step(name(&n2, 1, "a", 11)),
        ["n1@1/1 -> n2@1/1: conflict", "n1@1/1 lost to n2@1/1"]
    );
    assert!(world.step(ends(&n1, 1, End::Conflict)).is_empty());
    // Between two others it is not our business.
    assert_eq!(world.step(name(&n3, 1, "a", 12)), ["n2@1/1 -> n3@1/1: conflict"]);
    assert!(world.step(ends(&n2, 1, End::Conflict)).is_empty());
    assert_eq!(world.step(ends(&n3, 1, End::Normal)), ["n3@1/1 -> -: normal"]);
}

#[test]
fn when_the_later_holder_goes_the_earlier_one_that_is_left_has_the_name() {
    let (n2, n3) = (node("n2", 1), node("n3", 1));
    let mut world = World::new();
    world.step(name(&n2, 1, "a", 10));
    world.step(name(&n3, 1, "a", 11));
    let crashed = End::Crashed("boom".into());
    assert_eq!(world.step(ends(&n3, 1, crashed)), ["n3@1/1 -> n2@1/1: crashed"]);
}

#[test]
fn rows_of_a_life_that_is_over_go_for_good_and_are_swept_by_one_node() {
    let (n1, n2, n3) = (node("n1", 1), node("n2", 1), node("n3", 1));
    for (standing, why) in [
        (Standing::Left { drained: true }, "node_drained"),
        (Standing::Left { drained: false }, "node_left"),
        (Standing::Superseded, "node_restarted"),
    ] {
        let mut world = World::new();
        world.step(name(&n2, 1, "a", 10));
        let members = [(&n1, Standing::Present), (&n2, standing), (&n3, Standing::Present)];
        assert_eq!(world.members(&members), [format!("n2@1/1 -> -: {why}")]);
        assert!(world.directory.wake_at().unwrap() <= world.now);
        assert_eq!(world.step(Input::Woke), ["sweep n2@1/1"]);
        assert!(world.step(Input::Woke).is_empty(), "one batch at a time");
        assert!(world.step(Input::Row(RowKey { owner: n2.clone(), number: 1 }, None)).is_empty());
        assert_eq!(world.directory.wake_at(), None);
    }
    // n0 is before us: it sweeps.
    let mut world = World::new();
    world.step(name(&n2, 1, "a", 10));
    let n0 = node("n0", 1);
    let later = node("n2", 2);
    world.members(&[
        (&n0, Standing::Present),
        (&n1, Standing::Present),
        (&later, Standing::Present),
    ]);
    assert_eq!(world.directory.wake_at(), None);
    assert!(world.step(Input::Woke).is_empty());
}

#[test]
fn rows_that_come_before_their_node_is_introduced_wait_for_it_a_bounded_time() {
    let (n1, n4) = (node("n1", 1), node("n4", 1));
    let mut world = World::new();
    assert!(world.step(name(&n4, 1, "a", 10)).is_empty());
    assert_eq!(world.directory.wake_at(), Some(at(61)));
    let both = [(&n1, Standing::Present), (&n4, Standing::Present)];
    assert_eq!(world.members(&both), ["- -> n4@1/1: registered"]);
    let mut world = World::new();
    world.step(name(&n4, 1, "a", 10));
    world.now = at(61);
    assert_eq!(world.step(Input::Woke), ["sweep n4@1/1"], "nobody knows it");
    assert_eq!(world.members(&both), ["- -> n4@1/1: node_back"], "and it was here after all");
}

#[test]
fn a_row_of_ours_that_others_removed_is_written_again() {
    let n1 = node("n1", 1);
    let mut world = World::new();
    world.step(name(&n1, 1, "a", 10));
    assert_eq!(world.step(Input::Row(RowKey { owner: n1, number: 1 }, None)), ["restore n1@1/1"]);
    assert!(world.directory.holder("default", "a").is_some());
}

#[test]
fn an_older_word_changes_nothing_and_counts_follow_what_is_visible() {
    let (n1, n2) = (node("n1", 1), node("n2", 1));
    let mut world = World::new();
    assert_eq!(world.step(row(&n2, 1, Space::Group, "g", 5, 9)), ["- -> n2@1/1: registered"]);
    assert!(world.step(row(&n2, 1, Space::Group, "g", 5, 8)).is_empty());
    assert_eq!(world.step(row(&n2, 1, Space::Group, "g", 5, 10)), ["n2@1/1 -> n2@1/1: updated"]);
    world.step(row(&n2, 2, Space::Group, "g", 6, 6));
    let counts = |world: &World| {
        world.directory.counts(Space::Group).map(|(_, count)| count).collect::<Vec<_>>()
    };
    assert_eq!(counts(&world), [2]);
    assert_eq!(world.directory.counts(Space::Unique).count(), 0);
    world.members(&[(&n1, Standing::Present), (&n2, Standing::Down)]);
    assert!(counts(&world).is_empty());
    world.step(ends(&n2, 1, End::Asked));
    world.members(&[(&n1, Standing::Present), (&n2, Standing::Present)]);
    assert_eq!(counts(&world), [1]);
}

/// What is visible in the end, without how it came about.
fn picture(directory: &Directory) -> Vec<String> {
    let names = directory.names.iter().map(|(name, holders)| {
        format!("{} = {:?}", name.key, holders.last().expect("no empty list is kept").at)
    });
    names.chain(directory.visible().map(|row| format!("{:?} {:?}", row.at, row.version))).collect()
}

proptest! {
    /// The order in which rows and members are heard does not matter, and what readers are told
    /// adds up to what is visible.
    #[test]
    fn what_is_visible_depends_on_what_was_heard_not_on_when(
        rows in prop::collection::vec((0..4_usize, 0..6_u64, 0..3_u64, 0..2_u8, 0..100_u64), 1..40),
        standings in prop::collection::vec(0..4_u8, 4),
        order in prop::collection::vec(any::<prop::sample::Index>(), 60),
    ) {
        let nodes = ["n1", "n2", "n3", "n4"].map(|n| node(n, 1));
        let standing = |code: u8| match code {
            0 => Standing::Present,
            1 => Standing::Down,
            2 => Standing::Left { drained: false },
            _ => Standing::Superseded,
        };
        let last: BTreeMap<(usize, u64), Input> = rows
            .iter()
            .map(|&(owner, number, key, space, since)| {
                let space = if space == 0 { Space::Unique } else { Space::Shared };
                // One row keeps its key, as owners promise.
                let key = format!("k{}", (key + number) % 3);
                ((owner, number), row(&nodes[owner], number, space, &key, since, since + 1))
            })
            .collect();
        let members = Input::Members(
            nodes.iter().zip(&standings).map(|(n, &code)| (n.clone(), standing(code))).collect(),
        );
        let everyone = nodes.iter().map(|n| (n.clone(), Standing::Present)).collect();
        let straight: Vec<Input> = std::iter::once(Input::Members(everyone))
            .chain(last.values().cloned())
            .chain([members.clone()])
            .collect();
        let mut mixed = straight.clone();
        for (n, index) in order.iter().enumerate().take(mixed.len()) {
            let other = index.index(mixed.len());
            mixed.swap(n, other);
        }
        mixed.push(members);
        let mut pictures = Vec::new();
        for inputs in [straight, mixed] {
            let mut directory = Directory::new(node("n1", 1), Duration::from_secs(60));
            let mut told: BTreeMap<String, RowKey> = BTreeMap::new();
            for input in inputs {
                let mut out = Vec::new();
                directory.step(at(1), input, &mut out);
                for output in out {
                    let Output::Changed(change) = output else { continue };
                    let of = change.entry();
                    let key = match of.space {
                        Space::Unique => format!("unique {}", of.key),
                        _ => format!("{:?}", of.at),
                    };
                    let before = told.remove(&key);
                    prop_assert_eq!(before, change.before.as_ref().map(|it| it.at.clone()));
                    told.extend(change.now.map(|it| (key, it.at.clone())));
                }
            }
            let unique = directory.names.len();
            let shared = directory.visible().filter(|it| it.space == Space::Shared).count();
            prop_assert_eq!(told.len(), unique + shared);
            pictures.push(picture(&directory));
        }
        prop_assert_eq!(&pictures[0], &pictures[1]);
    }
}
