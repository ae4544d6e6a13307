//! What a replica has seen of the keys it keeps, so that absence can be told from not having heard.
//!
//! A causal context names dots, not keys. A replica that keeps a part of the keys takes over the
//! contexts of others, and with them dots of keys that it does not keep; that costs nothing, as
//! long as its context is held to speak of *its own keys only*. So a claim is a context together
//! with the keys it speaks of. When a replica begins to keep more keys, what it has seen says
//! nothing about those: they get a context of their own, which begins empty, until both say the same.
//!
//! Lives that have ended for good are *pruned* once every member of the cluster is known to have
//! seen no more of them than this replica and nothing they wrote is left: 16 bytes instead of a
//! context entry, and never again on the wire, unless somebody comes back who still knows them.
//!
//! # Source
//! Almeida, Shoker, Baquero 2018 (causal contexts); Baquero et al. 2014 (causal stability).

use purlin_core::{Dot, hlc::NodeTag};
use purlin_crdt::{CausalContext, Dots, Knows};
use serde::{Deserialize, Serialize};

use crate::interest::Interest;

/// How many contexts a replica keeps at once: one, and one more for each time it began to keep more
/// keys and has not yet caught up.
pub const CLAIMS_MAX: usize = 8;

/// How many pruned lives are remembered; further ones stay in the context.
pub const PRUNED_MAX: usize = 65_536;

/// "Of these keys I have seen these dots."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of which keys it speaks: those of them that no claim before it covers.
    pub keys: Interest,
    /// What was seen.
    pub seen: CausalContext<NodeTag>,
}

/// What somebody says to have seen: the first claim that covers a key speaks for it.
pub type Claims = Vec<Claim>;

/// What a replica has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    claims: Claims,
    /// Lives of which nothing is left, each with its last dot: all up to there was seen, whatever
    /// the key. In order.
    pruned: Vec<(NodeTag, u64)>,
}

/// What was seen as far as one key is concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfKey<'a> {
    seen: Option<&'a CausalContext<NodeTag>>,
    pruned: &'a [(NodeTag, u64)],
}

impl OfKey<'_> {
    /// The last dot of `life` if it is pruned, else 0.
    fn pruned_to(&self, life: NodeTag) -> u64 {
        let at = self.pruned.binary_search_by_key(&life, |&(life, _)| life);
        at.map_or(0, |at| self.pruned[at].1)
    }
}

impl Knows<NodeTag> for OfKey<'_> {
    fn contains(&self, dot: &Dot<NodeTag>) -> bool {
        self.seen.is_some_and(|seen| seen.contains(dot)) || dot.counter <= self.pruned_to(dot.node)
    }

    fn window(&self, node: &NodeTag, window: u64) -> u64 {
        let mut pruned = Dots::default();
        pruned.insert_span(*node, 1, self.pruned_to(*node));
        self.seen.map_or(0, |seen| seen.window(node, window)) | pruned.window(node, window)
    }
}

/// What `claims` say of `key`.
pub(crate) fn of_key<'a>(claims: &'a [Claim], key: &[u8]) -> OfKey<'a> {
    let claim = match claims {
        [only] if only.keys.is_all() => Some(only),
        _ => claims.iter().find(|claim| claim.keys.covers(key)),
    };
    OfKey { seen: claim.map(|claim| &claim.seen), pruned: &[] }
}

impl Default for Knowledge {
    fn default() -> Self {
        Self::nothing_of(Interest::all())
    }
}

impl Knowledge {
    /// Nothing seen yet of these keys.
    pub(crate) fn nothing_of(keys: Interest) -> Self {
        Self { claims: vec![Claim { keys, seen: CausalContext::new() }], pruned: Vec::new() }
    }

    pub(crate) fn of(&self, key: &[u8]) -> OfKey<'_> {
        OfKey { pruned: &self.pruned, ..of_key(&self.claims, key) }
    }

    /// What can be told to others.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What was seen of the keys kept for longest: everything, unless more keys were added and are
    /// still being caught up with.
    pub(crate) fn first(&self) -> &CausalContext<NodeTag> {
        &self.claims.first().expect("there is always a claim").seen
    }

    /// Up to which of its writes everything of `life` was seen.
    pub(crate) fn seen_of(&self, life: NodeTag) -> u64 {
        let upto = || self.first().iter().find(|(known, _)| **known == life).map(|(_, upto)| upto);
        self.pruned_to(life).or_else(upto).unwrap_or(0)
    }

    /// Whether one context speaks for all keys.
    pub(crate) fn is_whole(&self) -> bool {
        self.claims.len() == 1
    }

    /// Lives whose dots need no context any more.
    pub(crate) fn pruned(&self) -> &[(NodeTag, u64)] {
        &self.pruned
    }

    pub(crate) fn is_pruned(&self, life: NodeTag) -> bool {
        self.find_pruned(life).is_ok()
    }

    fn find_pruned(&self, life: NodeTag) -> Result<usize, usize> {
        self.pruned.binary_search_by_key(&life, |&(life, _)| life)
    }

    /// Takes a life back into the contexts.
    fn unprune(&mut self, life: NodeTag) {
        if let Ok(at) = self.find_pruned(life) {
            let (life, last) = self.pruned.remove(at);
            self.claims.iter_mut().for_each(|claim| claim.seen.fill(&life, last));
        }
    }

    /// Notes a dot. A context may hold dots of keys it does not speak of, so all of them take it.
    pub(crate) fn insert(&mut self, dot: &Dot<NodeTag>) {
        if let Some(last) = self.pruned_to(dot.node) {
            if dot.counter <= last {
                return;
            }
            // Somebody who had been given up brings more of it: nothing is lost on its account.
            self.unprune(dot.node);
        }
        self.claims.iter_mut().for_each(|claim| claim.seen.insert(dot));
    }

    fn pruned_to(&self, life: NodeTag) -> Option<u64> {
        if self.pruned.is_empty() {
            return None;
        }
        self.find_pruned(life).ok().map(|at| self.pruned[at].1)
    }

    /// Notes all of `dots`.
    pub(crate) fn insert_all(&mut self, dots: &Dots<NodeTag>) {
        let mut left = Dots::default();
        for (&life, first, last) in dots.spans() {
            match self.pruned_to(life) {
                Some(known) if last <= known => continue,
                Some(_) => self.unprune(life),
                None => {}
            }
            left.insert_span(life, first, last);
        }
        self.claims.iter_mut().for_each(|claim| claim.seen.insert_all(&left));
    }

    /// Takes over what somebody has seen whose state has been taken in completely, as far as it
    /// speaks of all keys of a claim here; of the life `author`, all of whose writes were
    /// within the keys it keeps, in any case.
    pub(crate) fn absorb(&mut self, theirs: &[Claim], author: Option<NodeTag>) {
        for claim in &mut self.claims {
            // Several of their claims may share the keys of one here; then none speaks for all.
            let mut touching =
                theirs.iter().filter(|one| !one.keys.intersection(&claim.keys).is_none());
            let first = touching.next();
            match first.filter(|one| claim.keys.is_within(&one.keys)) {
                Some(one) => claim.seen.join(&one.seen),
                None => {
                    if let (Some(author), Some(one)) = (author, theirs.first()) {
                        claim.seen.join_life(&one.seen, &author);
                    }
                }
            }
        }
        // Of a pruned life only more than was known of it counts.
        let more = |&(life, last): &(NodeTag, u64)| {
            self.claims.iter().any(|claim| claim.seen.highest(&life) > last)
        };
        let risen: Vec<NodeTag> =
            self.pruned.iter().filter(|one| more(one)).map(|&(life, _)| life).collect();
        risen.into_iter().for_each(|life| self.unprune(life));
        let pruned = &self.pruned;
        let is_pruned = |life: &NodeTag| pruned.binary_search_by_key(life, |one| one.0).is_ok();
        self.claims.iter_mut().for_each(|claim| claim.seen.retain(|life| !is_pruned(life)));
    }

    /// Begins to speak of more keys, of which nothing has been seen. `false` when [`CLAIMS_MAX`]
    /// would be exceeded; nothing was changed.
    pub(crate) fn widen(&mut self, keys: Interest) -> bool {
        if self.claims.len() >= CLAIMS_MAX {
            return false;
        }
        // That nothing of a life is missing was known of the keys kept so far.
        for (life, _) in self.pruned.clone() {
            self.unprune(life);
        }
        self.claims.push(Claim { keys, seen: CausalContext::new() });
        true
    }

    /// Speaks of fewer keys from now on.
    pub(crate) fn narrow(&mut self, keys: &Interest) {
        for claim in &mut self.claims {
            claim.keys = claim.keys.intersection(keys);
        }
        let last = self.claims.len() - 1;
        let mut at = 0;
        self.claims.retain(|claim| {
            at += 1;
            at > last || !claim.keys.is_none()
        });
        self.melt();
    }

    /// Makes one claim of neighbouring ones that say the same.
    pub(crate) fn melt(&mut self) {
        let mut at = 0;
        while at + 1 < self.claims.len() {
            let (one, next) = (&self.claims[at], &self.claims[at + 1]);
            if one.seen == next.seen && one.keys.is_within(&next.keys) {
                self.claims.remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// Notes that everything of `life` has been seen by everybody and nothing of it is left.
    /// `false` when [`PRUNED_MAX`] are remembered already; nothing was changed.
    pub(crate) fn prune(&mut self, life: NodeTag) -> bool {
        if let Err(at) = self.find_pruned(life) {
            if self.pruned.len() >= PRUNED_MAX {
                return false;
            }
            let last = self.claims.iter().map(|claim| claim.seen.highest(&life)).max();
            self.pruned.insert(at, (life, last.unwrap_or(0)));
        }
        self.claims.iter_mut().for_each(|claim| claim.seen.retain(|kept| *kept != life));
        true
    }

    /// Notes every dot of `life` below the highest as seen: nobody has what is missing.
    pub(crate) fn close_gaps(&mut self, life: NodeTag) {
        for claim in &mut self.claims {
            let highest = claim.seen.highest(&life);
            claim.seen.fill(&life, highest);
        }
    }

    /// What can be told to somebody who has seen `theirs`: also of pruned lives he still knows,
    /// whose writes he may still have.
    pub(crate) fn claims_for(&self, theirs: &[Claim]) -> Claims {
        let mut claims = self.claims.clone();
        if self.pruned.is_empty() {
            return claims;
        }
        for &(life, last) in &self.pruned {
            if theirs.iter().any(|known| known.seen.has_life(&life)) {
                claims.iter_mut().for_each(|claim| claim.seen.fill(&life, last));
            }
        }
        claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(node: u64, counter: u64) -> Dot<NodeTag> {
        Dot { node: NodeTag(node), counter }
    }

    fn keys(prefix: &str) -> Interest {
        Interest::prefixes([prefix.to_owned()]).unwrap()
    }

    fn claim(keys: Interest, dots: &[Dot<NodeTag>]) -> Claim {
        Claim { keys, seen: dots.iter().copied().collect() }
    }

    #[test]
    fn keys_begun_to_keep_later_are_not_taken_for_seen() {
        let mut known = Knowledge::nothing_of(keys("a"));
        known.insert(&dot(1, 1));
        assert!(known.widen(Interest::all()));
        assert!(known.of(b"a1").contains(&dot(1, 1)));
        assert!(!known.of(b"b1").contains(&dot(1, 1)), "it may be a write of b1");
        known.absorb(&[claim(Interest::all(), &[dot(1, 1), dot(2, 1)])], None);
        known.melt();
        assert!(known.is_whole() && known.of(b"b1").contains(&dot(1, 1)));
    }

    #[test]
    fn a_claim_of_some_keys_is_not_taken_over_for_all() {
        let mut known = Knowledge::default();
        known.absorb(&[claim(keys("a"), &[dot(1, 1), dot(2, 1)])], Some(NodeTag(2)));
        assert!(!known.of(b"b").contains(&dot(1, 1)));
        assert!(known.of(b"b").contains(&dot(2, 1)), "whose author keeps the keys it writes");
    }

    #[test]
    fn a_pruned_life_is_seen_for_ever_and_told_only_to_who_knows_it() {
        let mut known = Knowledge::default();
        known.insert(&dot(1, 1));
        known.insert(&dot(2, 1));
        assert!(known.prune(NodeTag(1)));
        known.insert(&dot(1, 1));
        assert!(known.of(b"k").contains(&dot(1, 1)) && !known.of(b"k").contains(&dot(1, 2)));
        assert_eq!(known.of(b"k").window(&NodeTag(1), 0), 0b10);
        assert_eq!(known.first().lives(), 1);
        assert_eq!(known.claims_for(&[]), *known.claims());
        let told = known.claims_for(&[claim(Interest::all(), &[dot(1, 1)])]);
        assert!(of_key(&told, b"k").contains(&dot(1, 1)));
    }

    #[test]
    fn more_of_a_pruned_life_is_taken_in_and_keys_begun_later_know_nothing_of_it() {
        let mut known = Knowledge::nothing_of(keys("a"));
        known.insert(&dot(1, 1));
        assert!(known.prune(NodeTag(1)));
        known.insert(&dot(1, 3));
        assert!(known.pruned().is_empty() && known.first().gaps() == 1);
        assert!(known.prune(NodeTag(1)) && known.widen(Interest::all()));
        assert!(known.of(b"a").contains(&dot(1, 3)) && !known.of(b"b").contains(&dot(1, 3)));
    }

    #[test]
    fn there_is_a_bound_on_catching_up_at_once() {
        let mut known = Knowledge::nothing_of(keys("a"));
        assert!((2..=CLAIMS_MAX).all(|n| known.widen(keys(&"b".repeat(n)))));
        assert!(!known.widen(Interest::all()));
    }
}
