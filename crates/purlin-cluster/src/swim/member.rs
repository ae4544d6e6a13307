//! Members, what is believed of them, and the order in which beliefs override each other.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use purlin_core::{Incarnation, Instant, NodeId, NodeName};
use serde::{Deserialize, Serialize};

use super::{config::TOMBSTONES_MAX, suspicion::Suspicion};

/// The most bytes a [`Meta`] may take on the wire, so that it always fits one datagram.
pub const META_BYTES_MAX: usize = 700;
/// The most bytes of a zone, region, version, role, label key or label value.
pub const META_TEXT_BYTES_MAX: usize = 128;
/// The most roles a member may have.
pub const ROLES_MAX: usize = 16;
/// The most labels a member may have.
pub const LABELS_MAX: usize = 32;

/// How often a member has contradicted bad news about itself in this life.
///
/// SWIM calls this the incarnation number; in Purlin an [`Incarnation`] is a process start.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Refutation(pub u32);

impl Refutation {
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// What this node believes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It answers, or nobody has complained.
    Alive,
    /// Somebody got no answer; it has a short time to refute.
    Suspect,
    /// It could not be reached. A verdict about reachability, not about death: the same
    /// incarnation may refute it, for example after a partition heals.
    Down,
    /// It said goodbye. Final for this incarnation.
    Left,
}

impl State {
    /// The word used in HTTP bodies, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a member is [`State::Down`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Nobody got an answer from it for as long as a suspicion lasts.
    Silent,
    /// Its connections were reset and its address refuses new ones: the process is gone.
    Refused,
    /// A newer incarnation of the same name has joined.
    Superseded,
}

impl Why {
    /// The word used in HTTP bodies, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Refused => "refused",
            Self::Superseded => "superseded",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One belief about the node of one name. Beliefs are totally ordered and the greater one wins,
/// so that nodes that heard the same news in any order agree.
///
/// The order: a later incarnation beats everything about an earlier one; within an incarnation
/// `Left` is final; then the higher refutation wins; at the same refutation
/// `Alive < Suspect < Down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) incarnation: Incarnation,
    pub(crate) refutation: Refutation,
    pub(crate) state: State,
}

impl Standing {
    fn rank(&self) -> (Incarnation, bool, Refutation, State) {
        if self.state == State::Left {
            // The refutation of a farewell means nothing: two farewells are the same news.
            return (self.incarnation, true, Refutation(0), State::Left);
        }
        (self.incarnation, false, self.refutation, self.state)
    }
}

impl PartialOrd for Standing {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Standing {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// What a member says about itself; everybody holds a copy.
///
/// At most [`META_BYTES_MAX`] bytes on the wire. Changing it is one update that reaches every
/// member within seconds; do not use it for values that change all the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Where its TCP listener and its UDP socket are, as others reach them.
    pub cluster_addr: SocketAddr,
    /// Where its HTTP API is, if it has one.
    pub http_addr: Option<SocketAddr>,
    /// The failure domain within a region: a rack or an availability zone.
    pub zone: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// What it is for: `web`, `voter`, ... At most [`ROLES_MAX`].
    pub roles: BTreeSet<String>,
    /// Free text for selectors. At most [`LABELS_MAX`].
    pub labels: BTreeMap<String, String>,
    /// Whether it is being drained: place nothing new there.
    pub draining: bool,
    /// The release it runs.
    pub version: String,
}

/// Why a [`Meta`] cannot be announced. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// One of its texts is too long.
    #[error("member {field} of {len} bytes exceeds limit {META_TEXT_BYTES_MAX}")]
    TextTooLong {
        /// Which text.
        field: &'static str,
        /// How long it is.
        len: usize,
    },
    /// It has too many roles or labels.
    #[error("member has {len} {field}, limit {max}")]
    TooMany {
        /// `roles` or `labels`.
        field: &'static str,
        /// How many there are.
        len: usize,
        /// How many there may be.
        max: usize,
    },
    /// All together it would not fit one datagram.
    #[error("member metadata of {len} bytes exceeds limit {META_BYTES_MAX}")]
    TooLarge {
        /// Its encoded size.
        len: usize,
    },
}

impl Meta {
    /// A member reached at `cluster_addr` that says nothing else about itself.
    #[must_use]
    pub fn new(cluster_addr: SocketAddr) -> Self {
        Self {
            cluster_addr,
            http_addr: None,
            zone: None,
            region: None,
            roles: BTreeSet::new(),
            labels: BTreeMap::new(),
            draining: false,
            version: String::new(),
        }
    }

    /// Whether it keeps within the limits.
    ///
    /// # Errors
    /// [`MetaError`] names the first limit it breaks.
    pub fn check(&self) -> Result<(), MetaError> {
        let too_many = |field, len, max| {
            if len > max { Err(MetaError::TooMany { field, len, max }) } else { Ok(()) }
        };
        too_many("roles", self.roles.len(), ROLES_MAX)?;
        too_many("labels", self.labels.len(), LABELS_MAX)?;
        let texts = [("zone", self.zone.as_ref()), ("region", self.region.as_ref())]
            .into_iter()
            .filter_map(|(field, text)| text.map(|text| (field, text)))
            .chain([("version", &self.version)])
            .chain(self.roles.iter().map(|role| ("role", role)))
            .chain(self.labels.iter().flat_map(|(k, v)| [("label key", k), ("label value", v)]));
        for (field, text) in texts {
            if text.len() > META_TEXT_BYTES_MAX {
                return Err(MetaError::TextTooLong { field, len: text.len() });
            }
        }
        let len = super::wire::encoded_len(self);
        if len > META_BYTES_MAX {
            return Err(MetaError::TooLarge { len });
        }
        Ok(())
    }
}

/// A member as this node sees it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) id: NodeId,
    pub(crate) refutation: Refutation,
    pub(crate) state: State,
    /// When `state` last changed.
    pub(crate) since: Instant,
    pub(crate) why: Option<Why>,
    pub(crate) meta: Arc<Meta>,
    pub(crate) meta_version: u32,
    /// Smoothed round trip of direct datagram probes.
    pub(crate) rtt: Option<Duration>,
    /// When it last gave a sign of life that reached us, by any road.
    pub(crate) heard_at: Option<Instant>,
    /// Whether its control channel has stood since it was last down.
    pub(crate) was_met: bool,
    /// Present exactly while `state` is `Suspect`.
    pub(crate) suspicion: Option<Suspicion>,
    /// Present exactly while `state` is `Down`.
    pub(crate) recontact: Option<Recontact>,
    /// Who accused it, kept for the `Down` rumour.
    pub(crate) accusers: BTreeSet<NodeName>,
}

impl Member {
    pub(crate) fn standing(&self) -> Standing {
        Standing {
            incarnation: self.id.incarnation,
            refutation: self.refutation,
            state: self.state,
        }
    }

    /// Whether probes and news still go there.
    pub(crate) fn is_contactable(&self) -> bool {
        matches!(self.state, State::Alive | State::Suspect)
    }

    pub(crate) fn note_rtt(&mut self, sample: Duration) {
        // RFC 6298's gain of 1/8: one slow answer does not double the estimate.
        self.rtt = Some(self.rtt.map_or(sample, |old| old - old / 8 + sample / 8));
    }
}

/// When a down member is contacted next, and how long the pause after that is.
#[derive(Debug, Clone)]
pub(crate) struct Recontact {
    pub(crate) at: Instant,
    pub(crate) pause: Duration,
}

/// Incarnations that were forgotten but must not be raised by an old rumour.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    barred: BTreeMap<NodeName, Standing>,
    oldest_first: VecDeque<NodeName>,
}

impl Tombstones {
    pub(crate) fn bar(&mut self, name: NodeName, standing: Standing) {
        let entry = self.barred.get(&name);
        if entry.is_some_and(|known| *known >= standing) {
            return;
        }
        if entry.is_none() {
            self.oldest_first.push_back(name.clone());
        }
        self.barred.insert(name, standing);
        while self.barred.len() > TOMBSTONES_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.barred.remove(&oldest);
        }
    }

    /// The standing that forbids `claim`, if one does.
    pub(crate) fn forbids(&self, name: &NodeName, claim: Standing) -> Option<Standing> {
        self.barred.get(name).copied().filter(|barred| *barred >= claim)
    }

    pub(crate) fn get(&self, name: &NodeName) -> Option<Standing> {
        self.barred.get(name).copied()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.barred.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing() -> impl Strategy<Value = Standing> {
        (0_u64..3, 0_u32..3, 0_usize..4).prop_map(|(incarnation, refutation, state)| Standing {
            incarnation: Incarnation(incarnation),
            refutation: Refutation(refutation),
            state: [State::Alive, State::Suspect, State::Down, State::Left][state],
        })
    }

    proptest! {
        #[test]
        fn beliefs_are_totally_ordered(a in standing(), b in standing(), c in standing()) {
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if a <= b && b <= c { prop_assert!(a <= c); }
            // Merging is `max`, so this is all that convergence needs.
            prop_assert_eq!(a.max(b).max(c).rank(), c.max(a.max(b)).rank());
        }

        #[test]
        fn a_farewell_is_beaten_only_by_a_later_life(left in standing(), other in standing()) {
            let left = Standing { state: State::Left, ..left };
            if other > left { prop_assert!(other.incarnation > left.incarnation); }
        }

        #[test]
        fn a_down_member_comes_back_only_by_a_higher_refutation(down in standing(), alive in standing()) {
            let down = Standing { state: State::Down, ..down };
            let alive = Standing { state: State::Alive, incarnation: down.incarnation, ..alive };
            prop_assert_eq!(alive > down, alive.refutation > down.refutation);
        }
    }

    #[test]
    fn tombstones_are_bounded_and_drop_the_oldest() {
        let mut tombstones = Tombstones::default();
        let left = |n| Standing {
            incarnation: Incarnation(n),
            refutation: Refutation(0),
            state: State::Left,
        };
        let name = |n: usize| NodeName::parse(&format!("n{n}")).unwrap();
        for n in 0..TOMBSTONES_MAX + 10 {
            tombstones.bar(name(n), left(1));
        }
        assert_eq!(tombstones.len(), TOMBSTONES_MAX);
        assert_eq!(tombstones.forbids(&name(3), left(1)), None);
        assert!(tombstones.forbids(&name(TOMBSTONES_MAX), left(1)).is_some());
        assert_eq!(tombstones.forbids(&name(TOMBSTONES_MAX), left(2)), None);
    }

    #[test]
    fn metadata_beyond_a_limit_names_it() {
        let mut meta = Meta::new("127.0.0.1:7400".parse().unwrap());
        assert_eq!(meta.check(), Ok(()));
        meta.zone = Some("z".repeat(129));
        assert_eq!(
            meta.check().unwrap_err().to_string(),
            "member zone of 129 bytes exceeds limit 128"
        );
        meta.zone = None;
        meta.roles = (0..17).map(|n| n.to_string()).collect();
        assert_eq!(meta.check().unwrap_err().to_string(), "member has 17 roles, limit 16");
        meta.roles.clear();
        meta.labels = (0..8).map(|n| (n.to_string(), "v".repeat(128))).collect();
        assert!(matches!(meta.check(), Err(MetaError::TooLarge { .. })));
    }
}
