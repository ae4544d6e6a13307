//! Scenarios, then every interleaving of two nodes that dial each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use purlin_core::Rng;

use super::*;

fn orders(step: impl FnOnce(&mut Vec<Order>)) -> Vec<Order> {
    let mut out = vec![];
    step(&mut out);
    out
}

#[test]
fn a_single_dial_is_welcomed_confirmed_and_used() {
    let (mut dialler, mut acceptor) = (Link::new(false), Link::new(true));
    assert_eq!(orders(|out| acceptor.on_hello(1, 0, out)), [Order::Welcome(1)]);
    assert_eq!(orders(|out| dialler.on_welcome(1, out)), [Order::Confirm(1)]);
    assert_eq!(orders(|out| acceptor.on_confirm(1, out)), [Order::Use(1)]);
    assert_eq!((dialler.used(), acceptor.used()), (Some(1), Some(1)));
}

#[test]
fn of_two_welcomed_dials_the_preferred_one_wins() {
    let (mut small, mut large) = (Link::new(true), Link::new(false));
    small.on_hello(20, 0, &mut vec![]);
    large.on_hello(10, 0, &mut vec![]);
    assert_eq!(orders(|out| large.on_welcome(20, out)), [Order::Hold(20)]);
    assert_eq!(orders(|out| small.on_welcome(10, out)), [Order::Confirm(10), Order::Drop(20)]);
    assert_eq!(orders(|out| large.on_confirm(10, out)), [Order::Use(10), Order::Drop(20)]);
}

#[test]
fn a_preferred_dial_that_dies_lets_the_held_one_through() {
    let mut large = Link::new(false);
    large.on_hello(10, 0, &mut vec![]);
    large.on_welcome(20, &mut vec![]);
    assert_eq!(orders(|out| large.on_gone(10, out)), [Order::Confirm(20)]);
}

#[test]
fn a_black_holed_preferred_dial_holds_nobody_up() {
    let mut large = Link::new(false);
    assert_eq!(orders(|out| large.on_welcome(20, out)), [Order::Confirm(20)]);
}

#[test]
fn a_late_hello_is_a_duplicate_but_a_redial_replaces() {
    let mut link = Link::new(true);
    link.on_welcome(10, &mut vec![]);
    assert_eq!(orders(|out| link.on_hello(20, 0, out)), [Order::RefuseDuplicate(20)]);
    assert_eq!(orders(|out| link.on_hello(21, 10, out)), [Order::Replace(10), Order::Welcome(21)]);
}

#[test]
fn a_confirmation_for_a_dropped_connection_is_dropped() {
    let mut link = Link::new(true);
    assert_eq!(orders(|out| link.on_confirm(9, out)), [Order::Drop(9)]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Hello { last: u64 },
    Welcome,
    Duplicate,
    Confirm,
    Gone,
}

/// Two nodes and the bytes in flight; each connection and direction delivers in order.
struct World {
    sides: [Link; 2],
    wires: BTreeMap<(u64, usize), VecDeque<Message>>,
    dead: BTreeSet<(u64, usize)>,
    /// What each side uses, in the order it began to.
    used: [Vec<u64>; 2],
}

impl World {
    fn new() -> Self {
        Self {
            sides: [Link::new(true), Link::new(false)],
            wires: BTreeMap::new(),
            dead: BTreeSet::new(),
            used: [vec![], vec![]],
        }
    }

    fn send(&mut self, number: u64, to: usize, message: Message) {
        self.wires.entry((number, to)).or_default().push_back(message);
    }

    fn dial(&mut self, side: usize, number: u64) {
        let last = self.sides[side].last();
        self.send(number, 1 - side, Message::Hello { last });
    }

    fn deliver(&mut self, number: u64, side: usize) {
        let wire = self.wires.get_mut(&(number, side)).unwrap();
        let Some(message) = wire.pop_front() else { return };
        if self.dead.contains(&(number, side)) {
            return;
        }
        let mut out = vec![];
        let link = &mut self.sides[side];
        match message {
            Message::Hello { last } => link.on_hello(number, last, &mut out),
            Message::Welcome => link.on_welcome(number, &mut out),
            Message::Confirm => link.on_confirm(number, &mut out),
            Message::Duplicate | Message::Gone => link.on_gone(number, &mut out),
        }
        for order in out {
            self.obey(side, order);
        }
    }

    fn obey(&mut self, side: usize, order: Order) {
        match order {
            Order::Welcome(number) => self.send(number, 1 - side, Message::Welcome),
            Order::RefuseDuplicate(number) => self.send(number, 1 - side, Message::Duplicate),
            Order::Confirm(number) => {
                self.used[side].push(number);
                self.send(number, 1 - side, Message::Confirm);
            }
            Order::Use(number) => self.used[side].push(number),
            Order::Hold(_) => {}
            Order::Drop(number) | Order::Replace(number) => {
                self.dead.insert((number, side));
                self.send(number, 1 - side, Message::Gone);
            }
        }
    }

    fn busy(&self) -> Vec<(u64, usize)> {
        self.wires.iter().filter(|(_, wire)| !wire.is_empty()).map(|(key, _)| *key).collect()
    }
}

#[test]
fn two_dials_become_one_connection_in_every_order_of_delivery() {
    for seed in 0..20_000 {
        let mut rng = Rng::from_seed(seed);
        let mut world = World::new();
        let mut undialled = vec![(0, 100), (1, 200)];
        rng.shuffle(&mut undialled);
        loop {
            let busy = world.busy();
            if busy.is_empty() && undialled.is_empty() {
                break;
            }
            if !undialled.is_empty() && (busy.is_empty() || rng.chance(0.4)) {
                let (side, number) = undialled.pop().unwrap();
                if world.sides[side].used().is_none() {
                    world.dial(side, number);
                }
            } else {
                let (number, side) = busy[rng.below(busy.len())];
                world.deliver(number, side);
            }
        }
        // Both use the same single connection and never used another: no data was on a loser.
        let [one, two] = &world.used;
        assert_eq!(one, two, "seed {seed}");
        assert_eq!(one.len(), 1, "seed {seed}");
        assert_eq!(world.sides[0].used(), world.sides[1].used(), "seed {seed}");
    }
}

#[test]
fn a_link_heals_after_one_side_lost_it() {
    for seed in 0..5_000 {
        let mut rng = Rng::from_seed(seed);
        let mut world = World::new();
        world.dial(0, 1);
        let mut settle = |world: &mut World| {
            loop {
                let busy = world.busy();
                if busy.is_empty() {
                    return;
                }
                let (number, side) = busy[rng.below(busy.len())];
                world.deliver(number, side);
            }
        };
        settle(&mut world);
        // One side sees the connection die; the other does not (its packets are lost).
        let loser = usize::try_from(seed % 2).unwrap();
        world.sides[loser].on_gone(1, &mut vec![]);
        world.dead.insert((1, loser));
        world.dial(loser, 2);
        settle(&mut world);
        assert_eq!(world.sides[0].used(), Some(2), "seed {seed}");
        assert_eq!(world.sides[1].used(), Some(2), "seed {seed}");
    }
}
