//! Who goes on when the cluster is cut, and who stops.
//!
//! A node that no longer hears of others cannot tell a dead node from a cut cable. If it takes the
//! children of the silent ones over, both sides of a cut run them; if it does not, nobody runs
//! those of the dead. No rule is right for everything, so a supervisor has a [`Policy`]; each keeps
//! the promise that of two sides that cannot reach each other at most one goes on (all but
//! [`Policy::None`]), and each loses something else for it, which its documentation says and
//! [`simulate`] shows before anybody depends on it.
//!
//! What a promise like this usually breaks on:
//! - *Who counts is what is visible.* Then a minority that gains members becomes a majority, and
//!   members that are forgotten one by one make every side whole. Here voters are configured, or
//!   else frozen as they were when everybody was there; nothing lowers a quorum but
//!   [`Split::forget`] and members that leave in peace.
//! - *Half-broken links.* Two nodes that do not reach each other but share a third are on one side
//!   and on two at once. Both stop, and the others decide without them.
//! - *Acting too early.* The side that goes on waits, after its view has been stable, for
//!   [`SplitConfig::takeover_after`], in which the other side stops.
//!
//! Deciding takes the same time on both sides only as far as clocks run alike and views change
//! together: a node that was paused may go on for a moment after the others took over. What must
//! never run twice needs a fencing token beside any of these.
//!
//! Pure: told what is seen and when, answers with a [`Verdict`].
//!
//! # Source
//! The strategies are those of Akka's split brain resolver; counting configured voters is that of
//! every consensus system.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
    str::FromStr,
    time::Duration,
};

use purlin_cluster::{swim::State, view::View};
use purlin_core::{Instant, NodeName};

/// How long a view must not have changed before it is decided on, unless chosen otherwise.
///
/// Longer than the members of a small cluster take to agree on who is down. A guess.
pub const STABLE_AFTER_DEFAULT: Duration = Duration::from_secs(5);

/// The longest [`SplitConfig::stable_after`] and [`SplitConfig::takeover_after`].
pub const WAIT_MAX: Duration = Duration::from_secs(600);

/// The most voters that may be configured.
pub const VOTERS_MAX: usize = 1_024;

/// Which side of a cut goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum Policy {
    /// Every side goes on: children run on each until the cut heals, then one of each stays.
    /// Nothing ever stops for a cut.
    #[default]
    None,
    /// The side with more than half of the voters goes on; of two halves the one with the voter
    /// whose name is least. Wrong when more than half of the voters die at once, or when a cut has
    /// three sides: then all stop.
    KeepMajority,
    /// Whoever has at least `size` voters goes on, and a cluster that never had as many does not
    /// begin. Wrong when so many die that fewer are left: then all stop, until some are back.
    StaticQuorum {
        /// How many voters are needed: more than half of them.
        size: NonZeroU32,
    },
    /// The side with the oldest voter goes on, for what runs on the oldest. Wrong when the oldest
    /// is on a small side: that one goes on, and all others stop.
    KeepOldest {
        /// Whether the oldest stops when it is all alone, so that the others go on. Without it a
        /// crash of the oldest stops everybody else.
        down_if_alone: bool,
    },
    /// All stop, whatever the cut: for what had rather not run than run twice, and is restarted by
    /// others. Wrong at every crash.
    DownAll,
    /// The side that gets a lease goes on; one with fewer than half of the voters asks later.
    /// Wrong when nobody reaches the lease: then all stop.
    Lease,
}

impl Policy {
    /// All policies, with `size` for the quorum.
    #[must_use]
    pub fn all(size: NonZeroU32) -> Vec<Self> {
        vec![
            Self::None,
            Self::KeepMajority,
            Self::StaticQuorum { size },
            Self::KeepOldest { down_if_alone: true },
            Self::KeepOldest { down_if_alone: false },
            Self::DownAll,
            Self::Lease,
        ]
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::KeepMajority => f.pad("keep-majority"),
            Self::StaticQuorum { size } => f.pad(&format!("static-quorum={size}")),
            Self::KeepOldest { down_if_alone: true } => f.pad("keep-oldest"),
            Self::KeepOldest { down_if_alone: false } => f.pad("keep-oldest-even-alone"),
            Self::DownAll => f.pad("down-all"),
            Self::Lease => f.pad("lease"),
        }
    }
}

/// A text is no [`Policy`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "policy {0:?} is none of none, keep-majority, static-quorum=SIZE, keep-oldest, keep-oldest-even-alone, down-all, lease"
)]
pub struct PolicyError(String);

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        Ok(match text {
            "none" => Self::None,
            "keep-majority" => Self::KeepMajority,
            "keep-oldest" => Self::KeepOldest { down_if_alone: true },
            "keep-oldest-even-alone" => Self::KeepOldest { down_if_alone: false },
            "down-all" => Self::DownAll,
            "lease" => Self::Lease,
            other => {
                let size = other.strip_prefix("static-quorum=").and_then(|size| size.parse().ok());
                Self::StaticQuorum { size: size.ok_or_else(|| PolicyError(text.to_owned()))? }
            }
        })
    }
}

/// A policy, who counts for it and how long it waits. The same on all nodes, or sides may decide
/// by different rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitConfig {
    /// The policy.
    pub policy: Policy,
    /// Who counts, whether seen or not. Empty: the members there were when last nobody was
    /// missing, which a node that starts during a cut cannot know.
    pub voters: BTreeSet<NodeName>,
    /// Only members with this role count. Not together with `voters`, who are named already.
    pub role: Option<String>,
    /// How long the view must not have changed before it is decided on. At least as long as the
    /// members take to agree on who is down; longer means later failover. At most [`WAIT_MAX`].
    pub stable_after: Duration,
    /// How long the side that goes on waits beyond that, while the other stops. At least what the
    /// slowest child takes to stop. At most [`WAIT_MAX`].
    pub takeover_after: Duration,
    /// Whether all stop when the view keeps changing for so long (`stable_after` and three quarters
    /// more) that sides may have decided on different views.
    pub stop_when_unstable: bool,
}

impl SplitConfig {
    /// `policy` among the members last agreed on, with the usual waits.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            voters: BTreeSet::new(),
            role: None,
            stable_after: STABLE_AFTER_DEFAULT,
            takeover_after: STABLE_AFTER_DEFAULT,
            stop_when_unstable: true,
        }
    }

    /// Whether the policy can keep its promise with this.
    ///
    /// # Errors
    /// [`SplitError`] naming what cannot be.
    pub fn check(&self) -> Result<(), SplitError> {
        for (field, value) in
            [("stable_after", self.stable_after), ("takeover_after", self.takeover_after)]
        {
            if value > WAIT_MAX {
                return Err(SplitError::TooLong { field, value });
            }
        }
        if self.voters.len() > VOTERS_MAX {
            return Err(SplitError::TooManyVoters { len: self.voters.len() });
        }
        if let Some(role) = &self.role
            && !self.voters.is_empty()
        {
            return Err(SplitError::RoleAndVoters { role: role.clone() });
        }
        let Policy::StaticQuorum { size } = self.policy else { return Ok(()) };
        if self.voters.is_empty() || is_quorum(size, self.voters.len()) {
            return Ok(());
        }
        Err(SplitError::NoQuorum { size, voters: self.voters.len() })
    }
}

/// Whether of `voters`, no two sides can have `size` each, and one side can.
fn is_quorum(size: NonZeroU32, voters: usize) -> bool {
    let size = wide(size);
    size <= voters && size * 2 > voters
}

fn wide(size: NonZeroU32) -> usize {
    usize::try_from(size.get()).unwrap_or(usize::MAX / 2)
}

/// Why a [`SplitConfig`] is refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// A wait is out of bounds.
    #[error("{field} of {value:?} exceeds limit {WAIT_MAX:?}")]
    TooLong {
        /// Which wait.
        field: &'static str,
        /// How long it is.
        value: Duration,
    },
    /// There are too many voters.
    #[error("{len} voters exceed limit {VOTERS_MAX}")]
    TooManyVoters {
        /// How many there are.
        len: usize,
    },
    /// Two answers to who counts.
    #[error("role {role:?} and voters both say who counts; give one")]
    RoleAndVoters {
        /// The role.
        role: String,
    },
    /// Two sides could have that many, or none can.
    #[error(
        "a quorum of {size} does not suit {voters} voters: it takes more than half of them and at most all"
    )]
    NoQuorum {
        /// What was asked for.
        size: NonZeroU32,
        /// How many voters there are.
        voters: usize,
    },
}

/// What counts about a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fact {
    /// When it started, comparable between members: less is older.
    pub since: u64,
    /// What it is for.
    pub roles: BTreeSet<String>,
}

/// What a node knows about the cluster at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Who is looking.
    pub me: NodeName,
    /// Everybody who has not left, reached or not, oneself included.
    pub members: BTreeMap<NodeName, Fact>,
    /// Those who left in peace, as far as it is still known. Who is merely no longer remembered is
    /// not among them, and so still counts.
    pub left: BTreeSet<NodeName>,
    /// Those of them that can be reached, if need be through others; oneself included.
    pub reached: BTreeSet<NodeName>,
    /// Pairs that do not reach each other directly, as far as it is known here.
    pub broken: BTreeSet<(NodeName, NodeName)>,
    /// What is known of the lease; for [`Policy::Lease`].
    pub lease: LeaseSight,
}

/// What is known of the lease that decides under [`Policy::Lease`].
///
/// Whoever reports it stops reporting it when it may have expired.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LeaseSight {
    /// It was not asked for, or the answer is too old.
    #[default]
    Unknown,
    /// This node has it.
    Held(NodeName),
    /// Whoever keeps it could not be asked.
    Unreachable,
}

impl Sight {
    /// What `view` says: alive and suspected members are reached, and who suspects whom is broken.
    #[must_use]
    pub fn of(view: &View, lease: LeaseSight) -> Self {
        let present = || view.members.iter().filter(|member| member.state != State::Left);
        let fact = |since, roles: &BTreeSet<String>| Fact { since, roles: roles.clone() };
        Self {
            me: view.me.name.clone(),
            members: present()
                .map(|m| (m.id.name.clone(), fact(m.id.incarnation.0, &m.meta.roles)))
                .collect(),
            left: view
                .members
                .iter()
                .filter(|member| member.state == State::Left)
                .map(|member| member.id.name.clone())
                .collect(),
            reached: present()
                .filter(|member| member.is_reachable() || member.id == view.me)
                .map(|member| member.id.name.clone())
                .collect(),
            broken: view.suspicions().map(|(by, whom)| (by.clone(), whom.clone())).collect(),
            lease,
        }
    }

    /// Whom `node` does not reach although both are reached from here.
    fn cannot_reach(&self, node: &NodeName) -> Option<&NodeName> {
        self.broken.iter().find_map(|(a, b)| match (a == node, b == node) {
            (true, _) if self.reached.contains(b) => Some(b),
            (_, true) if self.reached.contains(a) => Some(a),
            _ => None,
        })
    }

    /// The reached nodes that reach each other.
    fn fully_connected(&self) -> BTreeSet<NodeName> {
        self.reached.iter().filter(|node| self.cannot_reach(node).is_none()).cloned().collect()
    }
}

/// Whether a node goes on, and why, if its view stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opinion {
    /// Whether it goes on.
    pub keeps: bool,
    /// What makes it so.
    pub why: Why,
}

/// What makes a node go on or stop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Nobody is missing.
    Whole,
    /// The policy stops nobody.
    NoPolicy,
    /// The policy stops everybody.
    All,
    /// So many of the voters are here.
    Votes {
        /// Voters here.
        here: usize,
        /// All voters.
        of: usize,
    },
    /// Exactly half of the voters are here; this one decides.
    Half {
        /// The voter of the least name.
        lowest: NodeName,
    },
    /// So many voters are here, and so many are needed.
    Quorum {
        /// Voters here.
        here: usize,
        /// How many are needed.
        needs: usize,
    },
    /// There are so many voters that two sides could have a quorum.
    QuorumTooSmall {
        /// How many are needed.
        needs: usize,
        /// All voters.
        of: usize,
    },
    /// The oldest voter decides.
    Oldest {
        /// Who it is.
        oldest: NodeName,
    },
    /// The oldest voter is the only one missing, or is alone here: the others go on.
    OldestAlone {
        /// Who it is.
        oldest: NodeName,
    },
    /// A voter has never been seen, so who is oldest is not known.
    NeverSeen {
        /// The voter.
        voter: NodeName,
    },
    /// Who has the lease decides.
    Lease {
        /// Who has it.
        holder: NodeName,
    },
    /// The lease was not asked for yet.
    LeaseUnknown,
    /// Whoever keeps the lease could not be asked.
    LeaseUnreachable,
    /// This node does not reach another that others reach.
    Indirect {
        /// The other.
        to: NodeName,
    },
    /// The view changes faster than it can be decided on.
    Unstable,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("nobody is missing"),
            Self::NoPolicy => f.write_str("no policy stops it"),
            Self::All => f.write_str("the policy stops all"),
            Self::Votes { here, of } => write!(f, "{here} of {of} voters"),
            Self::Half { lowest } => write!(f, "half of the voters; {lowest} decides"),
            Self::Quorum { here, needs } => write!(f, "{here} voters, quorum {needs}"),
            Self::QuorumTooSmall { needs, of } => {
                write!(f, "a quorum of {needs} is too small for {of} voters")
            }
            Self::Oldest { oldest } => write!(f, "{oldest} is the oldest"),
            Self::OldestAlone { oldest } => write!(f, "the oldest, {oldest}, is alone"),
            Self::NeverSeen { voter } => write!(f, "{voter} was never seen and may be the oldest"),
            Self::Lease { holder } => write!(f, "{holder} has the lease"),
            Self::LeaseUnknown => f.write_str("the lease was not asked for"),
            Self::LeaseUnreachable => f.write_str("the lease cannot be asked for"),
            Self::Indirect { to } => write!(f, "does not reach {to}, which others do"),
            Self::Unstable => f.write_str("the members keep changing"),
        }
    }
}

/// What a node is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on, and take over what the missing ones had.
    Keep {
        /// What makes it so.
        why: Why,
    },
    /// Stop the children here, and start none.
    Stop {
        /// What makes it so.
        why: Why,
    },
    /// Go on with what runs, and take nothing over. Ask again at `until`, or when something is
    /// seen.
    Undecided {
        /// When the time is up.
        until: Instant,
        /// What it will be if the view stays: when this does not keep, nothing new is to start.
        leaning: Opinion,
        /// Whether to ask for the lease now, in the name of this side: its first fully connected
        /// voter does, the others ask who has it.
        ask_lease: bool,
    },
}

/// Follows what is seen until it has been stable, and decides then.
///
/// One per supervisor with a policy. Keeps, beside the configuration, who was there when last
/// nobody was missing; a restart forgets that, which is why voters are better configured.
#[derive(Debug, Clone)]
pub struct Split {
    config: SplitConfig,
    /// Who was there when last nobody was missing.
    agreed: BTreeMap<NodeName, Fact>,
    seen: Option<Seen>,
    changed_at: Instant,
    /// When the first of the changes came that have not been stable since.
    unstable_since: Option<Instant>,
}

/// What a change is a change of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    whole: bool,
    reached: BTreeSet<NodeName>,
    connected: BTreeSet<NodeName>,
}

impl Split {
    /// A node that has seen nothing yet.
    ///
    /// # Errors
    /// As for [`SplitConfig::check`].
    pub fn new(config: SplitConfig) -> Result<Self, SplitError> {
        config.check()?;
        Ok(Self {
            config,
            agreed: BTreeMap::new(),
            seen: None,
            changed_at: Instant::ZERO,
            unstable_since: None,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &SplitConfig {
        &self.config
    }

    /// No longer counts `node`, which is never to come back, unless it is a configured voter.
    ///
    /// For people: only they can know that a node is dead and not merely out of reach. Said on two
    /// sides of a cut about each other, it makes both whole.
    pub fn forget(&mut self, node: &NodeName) {
        self.agreed.remove(node);
    }

    /// Takes what is seen now and says what to do. An early, late or repeated call does no harm.
    pub fn step(&mut self, now: Instant, sight: &Sight) -> Verdict {
        // Whoever leaves in peace has stopped what it ran; leaving makes its own side smaller
        // first, so it cannot give another side the majority.
        self.agreed.retain(|node, _| !sight.left.contains(node));
        if self.is_whole(sight) {
            self.agreed.clone_from(&sight.members);
        }
        self.note(now, sight);
        let opinion = decide(&self.config, &self.agreed, sight);
        if opinion.keeps && (opinion.why == Why::NoPolicy || self.is_whole(sight)) {
            return Verdict::Keep { why: opinion.why };
        }
        if let Some(until) = self.unstable_until(now) {
            if now >= until {
                return Verdict::Stop { why: Why::Unstable };
            }
            return self.wait(until.min(self.changed_at + self.config.stable_after), opinion);
        }
        self.settle(now, opinion)
    }

    /// Whether everybody who was there is, every voter too, and all reach each other.
    fn is_whole(&self, sight: &Sight) -> bool {
        let connected = sight.fully_connected();
        connected.len() == sight.reached.len()
            && self.config.voters.iter().chain(self.agreed.keys()).all(|n| connected.contains(n))
    }

    fn note(&mut self, now: Instant, sight: &Sight) {
        let whole = self.is_whole(sight);
        let seen =
            Seen { whole, reached: sight.reached.clone(), connected: sight.fully_connected() };
        // More members, or fewer in peace, are no reason for doubt.
        let is_calm = self.seen.as_ref().is_some_and(|last| last.whole && whole || *last == seen);
        if !is_calm {
            if now >= self.changed_at + self.config.stable_after {
                self.unstable_since = None;
            }
            self.unstable_since.get_or_insert(now);
            self.changed_at = now;
        }
        self.seen = Some(seen);
    }

    /// Until when the view has to become stable; none once it has.
    fn unstable_until(&self, now: Instant) -> Option<Instant> {
        let is_stable = now >= self.changed_at + self.config.stable_after;
        let since = self.unstable_since.filter(|_| !is_stable && self.config.stop_when_unstable)?;
        Some(since + self.config.stable_after + self.config.stable_after * 3 / 4)
    }

    /// What to do about an opinion that is as old as the last change.
    fn settle(&self, now: Instant, opinion: Opinion) -> Verdict {
        let stable_at = self.changed_at + self.config.stable_after;
        if opinion.why == Why::LeaseUnknown {
            // A smaller side leaves the lease to the larger one for a while.
            let ask_at =
                if opinion.keeps { stable_at } else { stable_at + self.config.takeover_after / 2 };
            let ask_lease = now >= ask_at;
            let until = if ask_lease { now + self.config.stable_after } else { ask_at };
            return Verdict::Undecided { until, leaning: opinion, ask_lease };
        }
        let at = if opinion.keeps { stable_at + self.config.takeover_after } else { stable_at };
        match (now >= at, opinion.keeps) {
            (true, true) => Verdict::Keep { why: opinion.why },
            (true, false) => Verdict::Stop { why: opinion.why },
            (false, _) => self.wait(at, opinion),
        }
    }

    fn wait(&self, until: Instant, leaning: Opinion) -> Verdict {
        Verdict::Undecided { until, leaning, ask_lease: false }
    }
}

/// What a node that sees `sight` makes of it by `config`, with `agreed` members when nobody was
/// missing. Timeless: [`Split`] adds when to act on it.
///
/// Under [`Policy::Lease`] with an unknown lease, `keeps` tells whether to ask for it at once.
#[must_use]
pub fn decide(config: &SplitConfig, agreed: &BTreeMap<NodeName, Fact>, sight: &Sight) -> Opinion {
    let keeps = |keeps, why| Opinion { keeps, why };
    if config.policy == Policy::None {
        return keeps(true, Why::NoPolicy);
    }
    if let Some(to) = sight.cannot_reach(&sight.me) {
        return keeps(false, Why::Indirect { to: to.clone() });
    }
    let count = Count::new(config, agreed, sight);
    let is_whole = count.is_everybody_here && sight.reached.len() == sight.fully_connected().len();
    match config.policy {
        Policy::StaticQuorum { size } => count.quorum(size),
        _ if is_whole => keeps(true, Why::Whole),
        Policy::None => keeps(true, Why::NoPolicy),
        Policy::KeepMajority => count.majority(),
        Policy::KeepOldest { down_if_alone } => count.oldest(down_if_alone),
        Policy::DownAll => keeps(false, Why::All),
        Policy::Lease => match &sight.lease {
            LeaseSight::Held(holder) => {
                keeps(count.connected.contains(holder), Why::Lease { holder: holder.clone() })
            }
            LeaseSight::Unknown => keeps(count.majority().keeps, Why::LeaseUnknown),
            LeaseSight::Unreachable => keeps(false, Why::LeaseUnreachable),
        },
    }
}

/// The voters, and which of them are here.
struct Count<'a> {
    /// With what is known of each; nothing of one never seen.
    voters: BTreeMap<&'a NodeName, Option<&'a Fact>>,
    /// The nodes of this side that reach each other, voters or not.
    connected: BTreeSet<NodeName>,
    is_everybody_here: bool,
}

impl<'a> Count<'a> {
    fn new(
        config: &'a SplitConfig,
        agreed: &'a BTreeMap<NodeName, Fact>,
        sight: &'a Sight,
    ) -> Self {
        let connected = sight.fully_connected();
        // A present life is not as old as the one that was agreed on; that one is what others know.
        let fact = |node| agreed.get(node).or_else(|| sight.members.get(node));
        let voters: BTreeMap<_, _> = if config.voters.is_empty() {
            let has_role =
                |fact: &Fact| config.role.as_ref().is_none_or(|r| fact.roles.contains(r));
            agreed.iter().filter(|(_, fact)| has_role(fact)).map(|(n, f)| (n, Some(f))).collect()
        } else {
            config.voters.iter().map(|node| (node, fact(node))).collect()
        };
        let mut everybody = config.voters.iter().chain(agreed.keys());
        let is_everybody_here = everybody.all(|node| connected.contains(node));
        Self { voters, connected, is_everybody_here }
    }

    fn here(&self) -> usize {
        self.voters.keys().filter(|node| self.connected.contains(**node)).count()
    }

    fn majority(&self) -> Opinion {
        let (here, of) = (self.here(), self.voters.len());
        match self.voters.first_key_value() {
            Some((lowest, _)) if here * 2 == of => Opinion {
                keeps: self.connected.contains(*lowest),
                why: Why::Half { lowest: (*lowest).clone() },
            },
            _ => Opinion { keeps: here * 2 > of, why: Why::Votes { here, of } },
        }
    }

    fn quorum(&self, size: NonZeroU32) -> Opinion {
        let (here, needs, of) = (self.here(), wide(size), self.voters.len());
        if of >= needs * 2 {
            return Opinion { keeps: false, why: Why::QuorumTooSmall { needs, of } };
        }
        Opinion { keeps: here >= needs, why: Why::Quorum { here, needs } }
    }

    fn oldest(&self, down_if_alone: bool) -> Opinion {
        if let Some((voter, _)) = self.voters.iter().find(|(_, fact)| fact.is_none()) {
            return Opinion { keeps: false, why: Why::NeverSeen { voter: (*voter).clone() } };
        }
        let age = |(node, fact): &(&&NodeName, &Option<&Fact>)| {
            (fact.map(|fact| fact.since), (**node).clone())
        };
        let Some((oldest, _)) = self.voters.iter().min_by_key(age) else {
            return Opinion { keeps: false, why: Why::Votes { here: 0, of: 0 } };
        };
        let (is_here, here, of) =
            (self.connected.contains(*oldest), self.here(), self.voters.len());
        let is_alone = if is_here { here == 1 } else { here + 1 == of };
        let oldest = (*oldest).clone();
        if down_if_alone && is_alone && of > 1 {
            return Opinion { keeps: !is_here, why: Why::OldestAlone { oldest } };
        }
        Opinion { keeps: is_here, why: Why::Oldest { oldest } }
    }
}

/// What breaks, for [`simulate`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cut {
    /// Nodes of different sets do not reach each other. A node in none reaches all.
    pub sides: Vec<BTreeSet<NodeName>>,
    /// Pairs that do not reach each other, whatever their sides.
    pub broken: BTreeSet<(NodeName, NodeName)>,
    /// Nodes that died.
    pub crashed: BTreeSet<NodeName>,
}

impl Cut {
    fn reaches(&self, a: &NodeName, b: &NodeName) -> bool {
        let side = |node| self.sides.iter().position(|side| side.contains(node));
        let is_cut = matches!((side(a), side(b)), (Some(one), Some(other)) if one != other);
        let pair = (a.clone(), b.clone());
        let riap = (b.clone(), a.clone());
        !is_cut && !self.broken.contains(&pair) && !self.broken.contains(&riap)
    }
}

/// What the nodes of one side decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Each node's opinion; they differ where links are half broken.
    pub nodes: BTreeMap<NodeName, Opinion>,
}

impl Side {
    /// Whether any of its nodes goes on.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.nodes.values().any(|opinion| opinion.keeps)
    }
}

/// What each side would decide by `config` if `cluster`, until then whole, were hit by `cut`, once
/// every node has learned what there is to learn on its side.
///
/// Sides come largest first. A lease goes to the first of them that asks, which is one with most
/// of the voters, if there is one; all are taken to reach whoever keeps it.
#[must_use]
pub fn simulate(config: &SplitConfig, cluster: &BTreeMap<NodeName, Fact>, cut: &Cut) -> Vec<Side> {
    let mut sides: Vec<Vec<Sight>> = components(cluster, cut)
        .into_iter()
        .map(|side| side.iter().map(|me| sight(me, &side, cluster, cut)).collect())
        .collect();
    if config.policy == Policy::Lease {
        let opinions = |side: &[Sight]| -> Vec<Opinion> {
            side.iter().map(|sight| decide(config, cluster, sight)).collect()
        };
        let asks = |side: &&Vec<Sight>, at_once: bool| {
            opinions(side).iter().any(|o| o.why == Why::LeaseUnknown && (o.keeps || !at_once))
        };
        let first = sides.iter().find(|side| asks(side, true));
        let first = first.or_else(|| sides.iter().find(|side| asks(side, false)));
        let holder = first.and_then(|side| side[0].fully_connected().into_iter().next());
        if let Some(holder) = holder {
            for sight in sides.iter_mut().flatten() {
                sight.lease = LeaseSight::Held(holder.clone());
            }
        }
    }
    let opinion = |sight: Sight| {
        let opinion = decide(config, cluster, &sight);
        (sight.me, opinion)
    };
    sides.into_iter().map(|side| Side { nodes: side.into_iter().map(opinion).collect() }).collect()
}

/// The nodes that reach each other, if need be through others; the largest set first.
fn components(cluster: &BTreeMap<NodeName, Fact>, cut: &Cut) -> Vec<BTreeSet<NodeName>> {
    let mut left: BTreeSet<&NodeName> =
        cluster.keys().filter(|node| !cut.crashed.contains(*node)).collect();
    let mut sides = Vec::new();
    while let Some(first) = left.pop_first() {
        let (mut side, mut edge) = (BTreeSet::from([first.clone()]), vec![first]);
        while let Some(node) = edge.pop() {
            let next: Vec<_> =
                left.iter().copied().filter(|other| cut.reaches(node, other)).collect();
            for other in next {
                left.remove(other);
                side.insert(other.clone());
                edge.push(other);
            }
        }
        sides.push(side);
    }
    sides.sort_by_key(|side| std::cmp::Reverse(side.len()));
    sides
}

fn sight(
    me: &NodeName,
    side: &BTreeSet<NodeName>,
    cluster: &BTreeMap<NodeName, Fact>,
    cut: &Cut,
) -> Sight {
    let pairs = side.iter().flat_map(|a| side.iter().map(move |b| (a, b)));
    Sight {
        me: me.clone(),
        members: cluster.clone(),
        left: BTreeSet::new(),
        reached: side.clone(),
        broken: pairs
            .filter(|(a, b)| a < b && !cut.reaches(a, b))
            .map(|(a, b)| (a.clone(), b.clone()))
            .collect(),
        lease: LeaseSight::Unknown,
    }
}

#[cfg(test)]
mod tests;
