//! Which nodes hold a key, which held it lately, and what has to move. Pure.
//!
//! Keys follow the members by the exact plan between the ring under which everything was last in
//! its place and the present one. Every holder offers, nobody is responsible alone: an offer names
//! versions only, so a second holder's offer costs names, not values, and no death in the middle
//! leaves a key without somebody to send it.

use std::{collections::VecDeque, num::NonZeroUsize, time::Duration};

use purlin_core::{Instant, NodeId, NodeName};
use purlin_ring::{Bucket, KeyHash, MovePlan, Ring, key_hash};

/// How long after a change of the members a reader who finds nothing still asks those who held the
/// key before. Longer than a move should take; a miss costs up to twice as many questions.
pub const FORMER_FOR: Duration = Duration::from_secs(300);

/// How many former rings are remembered.
const FORMER_MAX: usize = 8;

/// A member that may hold entries.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// Which life of it: a new one holds nothing yet.
    pub node: NodeId,
    /// Where it fails together with others.
    pub zone: Option<String>,
}

/// The rings of one node: present, former, and the one under which its entries are in place.
#[derive(Debug)]
pub struct Placement {
    me: NodeName,
    started: Instant,
    hosts: Vec<Host>,
    present: Ring<NodeName>,
    former: VecDeque<(Instant, Ring<NodeName>)>,
    settled: Vec<Host>,
    turn: u64,
}

/// What one holder does with one key when the members have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer<K> {
    /// The key.
    pub key: K,
    /// Whom to offer it.
    pub to: Vec<NodeName>,
    /// Whether the copy here is of no more use once all of them have it.
    pub is_stray: bool,
}

/// The ring of `hosts`.
#[must_use]
pub fn ring(hosts: &[Host]) -> Ring<NodeName> {
    let bucket =
        |host: &Host| Bucket { node: host.node.name.clone(), weight: 1, zone: host.zone.clone() };
    Ring::new(hosts.iter().map(bucket).collect())
        .expect("a view lists each name once, and has far fewer than 32,768 members")
}

impl Placement {
    /// The placement as `me` begins: nobody holds anything.
    #[must_use]
    pub fn new(me: NodeName, now: Instant) -> Self {
        Self {
            me,
            started: now,
            hosts: Vec::new(),
            present: ring(&[]),
            former: VecDeque::new(),
            settled: Vec::new(),
            turn: 0,
        }
    }

    /// Takes the members in that may hold entries now. `true` when they are others than before.
    pub fn hosts(&mut self, mut hosts: Vec<Host>, now: Instant) -> bool {
        hosts.sort_unstable();
        if hosts == self.hosts {
            return false;
        }
        let next = ring(&hosts);
        let former = std::mem::replace(&mut self.present, next);
        self.former.push_front((now, former));
        if now.saturating_since(self.started) < FORMER_FOR {
            // We have just joined; before that the others held everything among themselves.
            let others: Vec<_> = hosts.iter().filter(|h| h.node.name != self.me).cloned().collect();
            self.former.push_front((now, ring(&others)));
        }
        self.former.truncate(FORMER_MAX);
        self.hosts = hosts;
        self.turn += 1;
        true
    }

    /// The members that may hold entries now.
    pub fn present(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter()
    }

    /// Counts the changes of the members.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// Who holds the key, the first owner first.
    #[must_use]
    pub fn owners(&self, key: KeyHash, replicas: NonZeroUsize) -> Vec<NodeName> {
        owners(&self.present, key, replicas)
    }

    /// Who else may still have it because the members changed not long ago, the latest first.
    #[must_use]
    pub fn former_owners(
        &self,
        key: KeyHash,
        replicas: NonZeroUsize,
        now: Instant,
    ) -> Vec<NodeName> {
        let present = self.owners(key, replicas);
        let mut found: Vec<NodeName> = Vec::new();
        for (until, ring) in &self.former {
            if now.saturating_since(*until) >= FORMER_FOR {
                break;
            }
            for owner in owners(ring, key, replicas) {
                if !present.contains(&owner) && !found.contains(&owner) {
                    found.push(owner);
                }
            }
        }
        found
    }

    /// What a holder of `keys` has to offer, and to whom, until everything is where it belongs.
    pub fn transfers<K: AsRef<[u8]> + Clone>(
        &self,
        keys: impl IntoIterator<Item = K>,
        replicas: NonZeroUsize,
    ) -> Vec<Transfer<K>> {
        let (mut mine, mut strays) = (Vec::new(), Vec::new());
        for key in keys {
            let hash = key_hash(key.as_ref());
            let owners = self.owners(hash, replicas);
            if owners.contains(&self.me) {
                mine.push((key, hash));
            } else if !owners.is_empty() {
                strays.push(Transfer { key, to: owners, is_stray: true });
            }
        }
        let plan = MovePlan::between(&ring(&self.settled), &self.present, mine.clone(), replicas);
        let mut transfers: Vec<_> = plan
            .moves
            .into_iter()
            .filter(|moving| !moving.to.is_empty())
            .map(|moving| Transfer { key: moving.key, to: moving.to, is_stray: false })
            .collect();
        // The plan knows names. Who came back in a new life under an old name holds nothing.
        let restarted = self.restarted();
        if !restarted.is_empty() {
            let empty = |owner: &NodeName| restarted.contains(owner) && *owner != self.me;
            transfers.extend(mine.into_iter().filter_map(|(key, hash)| {
                let to: Vec<_> =
                    self.owners(hash, replicas).into_iter().filter(|owner| empty(owner)).collect();
                (!to.is_empty()).then_some(Transfer { key, to, is_stray: false })
            }));
        }
        transfers.extend(strays);
        transfers
    }

    fn restarted(&self) -> Vec<NodeName> {
        let is_new_life = |host: &&Host| {
            let earlier = self.settled.iter().find(|old| old.node.name == host.node.name);
            earlier.is_some_and(|old| old.node.incarnation != host.node.incarnation)
        };
        self.hosts.iter().filter(is_new_life).map(|host| host.node.name.clone()).collect()
    }

    /// Everything this node holds has been offered where it belongs, as of the `turn`.
    pub fn settle(&mut self, turn: u64) {
        if turn == self.turn {
            self.settled.clone_from(&self.hosts);
        }
    }
}

fn owners(ring: &Ring<NodeName>, key: KeyHash, replicas: NonZeroUsize) -> Vec<NodeName> {
    ring.owners(key, replicas).into_iter().map(|bucket| bucket.node.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use purlin_core::Incarnation;

    use super::*;

    type Stores = BTreeMap<NodeName, (Placement, BTreeSet<String>)>;

    fn host(number: usize, life: u64) -> Host {
        let name = NodeName::parse(&format!("n{number}")).unwrap();
        let zone = Some(format!("z{}", number % 2));
        Host { node: NodeId::new(name, Incarnation(life)), zone }
    }

    fn now() -> Instant {
        Instant::from_start(Duration::from_secs(1_000))
    }

    /// Everybody learns of `hosts` and does all its transfers, one after another.
    fn move_all(stores: &mut Stores, hosts: &[Host], replicas: NonZeroUsize) {
        let names: Vec<_> = stores.keys().cloned().collect();
        for name in &names {
            stores.get_mut(name).unwrap().0.hosts(hosts.to_vec(), now());
        }
        for name in names {
            let (placement, held) = &stores[&name];
            let transfers = placement.transfers(held.clone(), replicas);
            let turn = placement.turn();
            for transfer in transfers {
                for to in &transfer.to {
                    stores.get_mut(to).unwrap().1.insert(transfer.key.clone());
                }
                if transfer.is_stray {
                    stores.get_mut(&name).unwrap().1.remove(&transfer.key);
                }
            }
            stores.get_mut(&name).unwrap().0.settle(turn);
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Join(usize),
        Drain(usize),
        Kill(usize),
        Restart(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..6_usize).prop_map(Event::Join),
            (0..6_usize).prop_map(Event::Drain),
            (0..6_usize).prop_map(Event::Kill),
            (0..6_usize).prop_map(Event::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whoever comes, drains, is killed or restarts under its old name: when the transfers are
        /// done, every key is on exactly its owners.
        #[test]
        fn every_key_is_on_exactly_its_owners_when_the_transfers_are_done(
            events in proptest::collection::vec(event(), 1..12),
        ) {
            let replicas = NonZeroUsize::new(2).unwrap();
            let mut hosts: Vec<Host> = (0..3).map(|n| host(n, 1)).collect();
            let mut stores = Stores::new();
            let fresh = |name: &NodeName| (Placement::new(name.clone(), now()), BTreeSet::new());
            for one in &hosts {
                stores.insert(one.node.name.clone(), fresh(&one.node.name));
            }
            move_all(&mut stores, &hosts, replicas);
            let keys: Vec<String> = (0..60).map(|n| format!("key:{n}")).collect();
            for key in &keys {
                let owners = ring(&hosts);
                for owner in owners.owners(key_hash(key.as_bytes()), replicas) {
                    stores.get_mut(&owner.node).unwrap().1.insert(key.clone());
                }
            }
            let mut life = 1;
            for event in events {
                life += 1;
                let at = |n: usize| hosts.iter().position(|h| h.node.name == host(n, 1).node.name);
                match event {
                    Event::Join(n) if at(n).is_none() => {
                        hosts.push(host(n, life));
                        let name = host(n, life).node.name;
                        stores.insert(name.clone(), fresh(&name));
                    }
                    Event::Drain(n) if hosts.len() > 1 && at(n).is_some() => {
                        hosts.remove(at(n).unwrap());
                        move_all(&mut stores, &hosts, replicas);
                        let (_, left) = stores.remove(&host(n, 1).node.name).unwrap();
                        prop_assert!(left.is_empty(), "a drained node keeps nothing: {left:?}");
                    }
                    Event::Kill(n) if hosts.len() > 2 && at(n).is_some() => {
                        hosts.remove(at(n).unwrap());
                        stores.remove(&host(n, 1).node.name);
                    }
                    Event::Restart(n) if hosts.len() > 1 && at(n).is_some() => {
                        let place = at(n).unwrap();
                        hosts[place] = host(n, life);
                        let name = host(n, life).node.name;
                        stores.insert(name.clone(), fresh(&name));
                    }
                    Event::Join(_) | Event::Drain(_) | Event::Kill(_) | Event::Restart(_) => {}
                }
                move_all(&mut stores, &hosts, replicas);
                let ring = ring(&hosts);
                for key in &keys {
                    let mut owners: Vec<_> = ring
                        .owners(key_hash(key.as_bytes()), replicas)
                        .into_iter()
                        .map(|bucket| bucket.node.clone())
                        .collect();
                    owners.sort();
                    let holders: Vec<_> = stores
                        .iter()
                        .filter(|(_, (_, held))| held.contains(key))
                        .map(|(name, _)| name.clone())
                        .collect();
                    prop_assert_eq!(&holders, &owners, "{} after {:?}", key, event);
                }
            }
        }
    }

    #[test]
    fn a_newcomer_asks_those_who_held_the_key_before_it_came() {
        let me = host(3, 1).node.name;
        let mut placement = Placement::new(me.clone(), now());
        placement.hosts((0..4).map(|n| host(n, 1)).collect(), now());
        let one = NonZeroUsize::new(1).unwrap();
        let others = ring(&(0..3).map(|n| host(n, 1)).collect::<Vec<_>>());
        let moved = (0..1_000_u32)
            .map(|n| key_hash(&n.to_le_bytes()))
            .find(|key| placement.owners(*key, one) == [me.clone()])
            .unwrap();
        let before = others.owner(moved).unwrap().node.clone();
        assert_eq!(placement.former_owners(moved, one, now()), [before]);
        let later = now() + FORMER_FOR;
        assert!(placement.former_owners(moved, one, later).is_empty());
    }
}
