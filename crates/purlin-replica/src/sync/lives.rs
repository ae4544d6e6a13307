//! Lives that are over, and when what was seen of them may be forgotten.
//!
//! Every restart of a node is a new life with dots of its own, so contexts grow with restarts unless
//! lives that are over leave them. One may leave once nothing that anybody may still bring up is new:
//! when every member has said that it will hear no more from that life itself and has seen no more of
//! it than this replica has. Then what it wrote is *stable*; as soon as nothing of it is left here, it
//! takes 16 bytes instead of a place in every context.
//!
//! That a life is over is never inferred from silence, which a partition looks like too. A node says
//! so of its own earlier lives, the membership of one that left or was followed by another life of
//! its node; neighbours pass it on. A member that cannot be reached holds everything up until it comes
//! back or has left. Nodes that began without a disk during a partition know of no such member, so
//! a life is let be for a long time in any case ([`super::SyncConfig::prune_after`]). Who comes back after having left, with an old disk, is told of the pruned lives
//! it still knows ([`crate::knowledge::Knowledge`]), so nothing rises again.
//!
//! # Source
//! Baquero, Almeida, Shoker 2014 (causal stability).

use std::collections::{BTreeMap, BTreeSet};

use purlin_cluster::{
    State,
    view::{Member, View},
};
use purlin_core::{Incarnation, Instant, NodeId, NodeName, hlc::NodeTag};
use serde::{Deserialize, Serialize};

use super::{Output, Sync};
use crate::{journal::Record, knowledge::Claim};

/// Who is a member, as the membership sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Counts the changes; one that is not above the last is ignored.
    pub epoch: u64,
    /// Every member but this node, alive, suspected or down.
    pub others: Vec<NodeId>,
    /// Those that left: they are not coming back under this life.
    pub left: Vec<NodeId>,
}

impl Membership {
    /// The membership as a view shows it.
    #[must_use]
    pub fn of(view: &View) -> Self {
        let all = view.members.iter().filter(|member| member.id.name != view.me.name);
        let (left, others): (Vec<_>, Vec<_>) = all.partition(|member| member.state == State::Left);
        let ids = |of: Vec<&Member>| of.into_iter().map(|member| member.id.clone()).collect();
        Self { epoch: view.epoch.0, others: ids(others), left: ids(left) }
    }
}

/// What a replica remembers of lives across its restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownLives {
    /// Nodes that are members, reachable or not, with the last life heard of.
    members: BTreeMap<NodeName, Incarnation>,
    /// Lives that are over and still in the context.
    over: BTreeSet<NodeTag>,
    /// This replica's own lives that are still in the context.
    own: BTreeSet<NodeTag>,
}

#[derive(Debug, Default)]
pub(super) struct Lives {
    epoch: Option<u64>,
    known: KnownLives,
    /// Members that the present view shows.
    present: BTreeSet<NodeName>,
    /// Since when lives that are over were first looked at; begins anew with every restart.
    over_since: BTreeMap<NodeTag, Instant>,
}

impl Lives {
    /// Whether everybody may have been told that nothing more comes from this life itself.
    pub(super) fn is_over(&self, life: NodeTag) -> bool {
        self.known.over.contains(&life)
    }

    /// The lives that every member must have seen nothing more of, by the life it has now; `None`
    /// while a member is missing from the view.
    fn witnesses(&self) -> Option<Vec<NodeTag>> {
        self.epoch?;
        let present = |name: &NodeName| self.present.contains(name);
        let all = self.known.members.keys().all(present);
        let tag = |(name, &life): (&NodeName, &Incarnation)| {
            NodeTag::of(&NodeId::new(name.clone(), life))
        };
        all.then(|| self.known.members.iter().map(tag).collect())
    }
}

impl Sync {
    /// What to remember of lives.
    #[must_use]
    pub fn known_lives(&self) -> &KnownLives {
        &self.lives.known
    }

    pub(super) fn recover_lives(&mut self, known: &KnownLives) {
        self.lives.known = known.clone();
    }

    /// After recovery: what this node was before is over, and this life begins.
    pub(super) fn begin_life(&mut self) {
        let known = &mut self.lives.known;
        let earlier = known.own.iter().filter(|life| **life != self.me);
        let earlier: Vec<NodeTag> = earlier.copied().collect();
        known.over.extend(earlier);
        known.own.insert(self.me);
    }

    pub(super) fn handle_members(&mut self, membership: Membership, out: &mut Vec<Output>) {
        if self.lives.epoch.is_some_and(|epoch| epoch >= membership.epoch) {
            return;
        }
        self.lives.epoch = Some(membership.epoch);
        let before = self.lives.known.clone();
        let mut ended: Vec<NodeTag> = Vec::new();
        let known = &mut self.lives.known;
        for node in &membership.others {
            let last = known.members.entry(node.name.clone()).or_insert(node.incarnation);
            if *last < node.incarnation {
                ended.push(NodeTag::of(&NodeId::new(node.name.clone(), *last)));
                *last = node.incarnation;
            }
        }
        for node in &membership.left {
            ended.push(NodeTag::of(node));
            if known.members.get(&node.name) == Some(&node.incarnation) {
                known.members.remove(&node.name);
            }
        }
        self.lives.present = membership.others.into_iter().map(|node| node.name).collect();
        ended.into_iter().for_each(|life| self.end(life));
        if self.lives.known != before {
            self.persist(out, || Record::Lives(self.lives.known.clone()));
        }
    }

    /// Nothing more is heard from this life itself from now on.
    fn end(&mut self, life: NodeTag) {
        if life == self.me || !self.store.context().has_life(&life) {
            return;
        }
        self.lives.known.over.insert(life);
        self.peers.retain(|node, _| NodeTag::of(node) != life);
    }

    /// Lives in the context that are over.
    pub(super) fn over(&self) -> Vec<NodeTag> {
        let seen = self.store.context();
        self.lives.known.over.iter().filter(|life| seen.has_life(life)).copied().collect()
    }

    /// Of the lives that are over, those in the context, and those forgotten here that somebody who
    /// has seen `theirs` still knows.
    pub(super) fn over_for(&self, theirs: &[Claim]) -> Vec<NodeTag> {
        let mut over = self.over();
        let known = theirs.iter().flat_map(|claim| claim.seen.iter().map(|(life, _)| *life));
        over.extend(known.filter(|life| self.store.known().is_pruned(*life)));
        over.sort_unstable();
        over.dedup();
        over
    }

    /// Notes which lives `from` calls over, and of which of them it has seen no more than we have.
    pub(super) fn note_covered(&mut self, from: &NodeId, theirs: &[Claim], over: &[NodeTag]) {
        for life in over {
            self.end(*life);
        }
        let seen = self.store.context();
        let Some(peer) = self.peers.get_mut(from) else { return };
        for life in over.iter().filter(|life| seen.has_life(life)) {
            if theirs.iter().all(|claim| seen.covers_life(&claim.seen, life)) {
                peer.covered.insert(*life);
            } else {
                peer.covered.remove(life);
            }
        }
    }

    /// Forgets lives that are over and stable, and closes the gaps of those of which something is
    /// left.
    pub(super) fn prune(&mut self, now: Instant, out: &mut Vec<Output>) {
        let over = self.over();
        let since = &mut self.lives.over_since;
        since.retain(|life, _| over.contains(life));
        let mut old_enough = over;
        old_enough.retain(|life| {
            let since = *since.entry(*life).or_insert(now);
            now.saturating_since(since) >= self.config.prune_after
        });
        let Some(witnesses) = self.lives.witnesses() else { return };
        if !self.store.known().is_whole() {
            return;
        }
        let covers = |witness: &NodeTag, life: &NodeTag| {
            let mut peers = self.peers.iter();
            peers.any(|(node, peer)| NodeTag::of(node) == *witness && peer.covered.contains(life))
        };
        let stable: Vec<NodeTag> = old_enough
            .into_iter()
            .filter(|life| witnesses.iter().all(|witness| covers(witness, life)))
            .collect();
        for life in stable {
            if self.store.alive(life) > 0 {
                self.store.known_mut().close_gaps(life);
            } else if self.store.known_mut().prune(life) {
                self.counters.pruned += 1;
                self.lives.known.over.remove(&life);
                self.lives.known.own.remove(&life);
                for peer in self.peers.values_mut() {
                    peer.covered.remove(&life);
                }
                self.persist(out, || Record::Pruned(life));
            }
        }
    }
}
