//! What a scenario waits for.

use std::{collections::BTreeSet, fmt};

use purlin::Node;
use purlin::cluster::Member;
use purlin::replica::ReplicaSet;

use crate::World;

type Check = Box<dyn FnMut(&World) -> Result<(), String>>;

/// Something that will hold: a name for failures, and a look at the world that says what it sees
/// instead. Also made from a pair of both.
pub struct Condition {
    name: String,
    check: Check,
}

impl Condition {
    /// The condition `name`; `check` says what it sees when it does not hold.
    pub fn new(
        name: impl Into<String>,
        check: impl FnMut(&World) -> Result<(), String> + 'static,
    ) -> Self {
        Self { name: name.into(), check: Box::new(check) }
    }

    /// What is waited for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn check(&mut self, world: &World) -> Result<(), String> {
        (self.check)(world)
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: impl Into<Self>) -> Self {
        let (mut one, mut other) = (self, other.into());
        let name = format!("{} and {}", one.name, other.name);
        Self::new(name, move |world| one.check(world).and_then(|()| other.check(world)))
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "condition: {}", self.name)
    }
}

impl<N: Into<String>, F: FnMut(&World) -> Result<(), String> + 'static> From<(N, F)> for Condition {
    fn from((name, check): (N, F)) -> Self {
        Self::new(name, check)
    }
}

fn names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Vec<String> {
    names.into_iter().map(|name| name.as_ref().to_owned()).collect()
}

/// The names of the members that `node` can reach, itself included.
#[must_use]
pub fn reachable(node: &Node) -> BTreeSet<String> {
    let view = node.cluster().view();
    let reachable = view.members.iter().filter(|member| member.is_reachable());
    reachable.map(|member: &Member| member.name().to_string()).collect()
}

/// Each of these hosts sees exactly these as members it can reach.
pub fn members<S: AsRef<str>>(these: impl IntoIterator<Item = S>) -> Condition {
    let these = names(these);
    let wanted: BTreeSet<String> = these.iter().cloned().collect();
    Condition::new(format!("each of {} to see exactly these", these.join(", ")), move |world| {
        for name in &these {
            let seen = world.at(name, reachable).ok_or_else(|| format!("{name} is down"))?;
            if seen != wanted {
                return Err(format!("{name} sees {}", Vec::from_iter(seen).join(", ")));
            }
        }
        Ok(())
    })
}

/// `seer` sees `other` as one it cannot reach, or not at all.
#[must_use]
pub fn down(seer: &str, other: &str) -> Condition {
    let (seer, other) = (seer.to_owned(), other.to_owned());
    Condition::new(format!("{seer} to see {other} down"), move |world| {
        match world.at(&seer, reachable) {
            Some(seen) if seen.contains(&other) => Err(format!("{seer} sees {other} as there")),
            Some(_) => Ok(()),
            None => Err(format!("{seer} is down")),
        }
    })
}

fn difference(
    one: &str,
    other: &str,
    ours: &ReplicaSet,
    theirs: &ReplicaSet,
) -> Result<(), String> {
    let (ours, theirs) = (ours.scan(b"", None, usize::MAX), theirs.scan(b"", None, usize::MAX));
    if ours == theirs {
        return Ok(());
    }
    let only = |these: &[_], those: &[_]| {
        let missing = |entry: &&_| !those.contains(*entry);
        these.iter().filter(missing).take(3).map(|entry| format!("{entry:?}")).collect::<Vec<_>>()
    };
    let (mine, yours) = (only(&ours, &theirs), only(&theirs, &ours));
    Err(format!("{one} alone has {}; {other} alone has {}", mine.join(", "), yours.join(", ")))
}

/// All hosts that run a node hold the same replicated data: named state, ephemeral values, flags.
#[must_use]
pub fn converged() -> Condition {
    Condition::new("all replicas to be equal", |world| {
        let running = world.running();
        let mut nodes = Vec::new();
        for name in running {
            nodes.extend(world.at(&name, Node::clone).map(|node| (name, node)));
        }
        for pair in nodes.windows(2) {
            let [(one, a), (other, b)] = pair else { unreachable!("windows of two") };
            // Both are read at one moment of the world.
            let equal = |which: fn(&Node) -> &ReplicaSet| {
                let theirs = which(b);
                world.at(one, |_| difference(one, other, which(a), theirs)).unwrap_or(Ok(()))
            };
            equal(Node::crdt)?;
            equal(Node::ephemeral)?;
            equal(|node| node.flags().set())?;
        }
        Ok(())
    })
}
