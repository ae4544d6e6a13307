//! Groups of processes, known on every node: who is in, who is near, and all of them at once.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use purlin_core::NodeId;
use purlin_process::{
    Address, CallError, CastError, Handle, Metadata, Pid, RemoteMessage, RemoteServer,
};

use crate::{
    dist::{Draft, Inner},
    error::{DistError, check_scope},
    history::{Filter, Watch},
    index::Shelf,
    registry::{AnotherKind, Cursor, OnConflict, ProcessOf},
    row::{Entry, Space},
};

/// How many calls of one [`Groups::multi_call`] are under way at once.
const CALLS_AT_ONCE: usize = 256;

/// What [`Groups::publish`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// To how many members the message was handed.
    pub sent: usize,
    /// Who did not take it, and why.
    pub refused: Vec<(Pid, CastError)>,
    /// Members of another kind, to which nothing was sent.
    pub skipped: usize,
}

/// The groups of one scope. Cheap to clone.
///
/// A process is in a group at most once; joining again replaces its metadata. It leaves when it
/// ends.
///
/// # Guarantees
/// Healthy: a member is seen here when `join` returns, elsewhere a round trip later. Partitioned:
/// each side sees its own members once the other counts as down, and all again after the heal.
/// Restarted: nothing is kept; the new life joins anew.
///
/// # Source
/// OTP's `pg`: scopes, local members, monitors. We differ by metadata, and by counting a process
/// once however often it joins.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
    scope: Arc<str>,
    /// Filled once the scope holds something: to look opens nothing.
    shelf: OnceLock<Arc<Shelf>>,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Groups {
    pub(crate) fn new(inner: Arc<Inner>, scope: &str) -> Self {
        Self { inner, scope: scope.into(), shelf: OnceLock::new() }
    }

    fn shelf(&self) -> Option<&Shelf> {
        if self.shelf.get().is_none()
            && let Some(shelf) = self.inner.index.get(Space::Group, &self.scope)
        {
            // Whoever was first, it is the same.
            self.shelf.set(shelf).ok();
        }
        self.shelf.get().map(|shelf| &**shelf)
    }

    /// The groups of the scope `scope`.
    ///
    /// # Errors
    /// As [`Registry::scope`](crate::Registry::scope).
    pub fn scope(&self, scope: &str) -> Result<Self, DistError> {
        check_scope("scope", scope)?;
        Ok(Self::new(Arc::clone(&self.inner), scope))
    }

    /// What the scope is called.
    #[must_use]
    pub fn scope_name(&self) -> &str {
        &self.scope
    }

    /// The scopes there are: up to `limit` that begin with `prefix`, after `after`.
    #[must_use]
    pub fn scopes(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Arc<str>> {
        let scopes = self.inner.index.list(Space::Group, prefix, after, limit);
        scopes.into_iter().map(|(scope, _)| scope).collect()
    }

    /// Makes the process of this node a member of `group`, until it ends or leaves.
    ///
    /// # Errors
    /// [`DistError`], but never [`DistError::NameTaken`]; nothing was changed.
    pub fn join<'a>(
        &self,
        group: &str,
        process: impl Into<ProcessOf<'a>>,
        metadata: Metadata,
    ) -> Result<Arc<Entry>, DistError> {
        let (space, on_conflict) = (Space::Group, OnConflict::Tell);
        let draft = Draft { space, scope: &self.scope, key: group, metadata, on_conflict };
        self.inner.add(&draft, &process.into().0)
    }

    /// Takes the process of this node out of `group`; whether it was in.
    pub fn leave<'a>(&self, group: &str, process: impl Into<ProcessOf<'a>>) -> bool {
        self.inner.remove(Space::Group, &self.scope, group, process.into().0.id())
    }

    /// All members of `group`, in the order of their nodes. Local; takes no lock.
    #[must_use]
    pub fn members(&self, group: &str) -> Vec<Arc<Entry>> {
        self.page(group, None, usize::MAX)
    }

    /// Up to `limit` members of `group`, after the place `after`.
    #[must_use]
    pub fn page(&self, group: &str, after: Option<&Cursor>, limit: usize) -> Vec<Arc<Entry>> {
        let after = after.map(|cursor| cursor.place().1);
        self.shelf().map(|shelf| shelf.of_key(group, after, limit)).unwrap_or_default()
    }

    /// The members of `group` that run on this node.
    #[must_use]
    pub fn local_members(&self, group: &str) -> Vec<Arc<Entry>> {
        self.members_on(group, &self.inner.me)
    }

    /// The members of `group` that run on `node`. Costs as much as there are of them.
    #[must_use]
    pub fn members_on(&self, group: &str, node: &NodeId) -> Vec<Arc<Entry>> {
        self.shelf().map(|shelf| shelf.of_key_on(group, node)).unwrap_or_default()
    }

    /// How many members `group` has. Costs one lookup.
    #[must_use]
    pub fn count(&self, group: &str) -> usize {
        self.shelf().map_or(0, |shelf| shelf.count(group))
    }

    /// How many members `group` has on this node. Costs one lookup.
    #[must_use]
    pub fn local_count(&self, group: &str) -> usize {
        self.count_on(group, &self.inner.me)
    }

    /// How many members `group` has on `node`. Costs one lookup.
    #[must_use]
    pub fn count_on(&self, group: &str, node: &NodeId) -> usize {
        self.shelf().map_or(0, |shelf| shelf.count_on(group, node))
    }

    /// How many memberships each node has, in all groups of all scopes. Costs as much as there are
    /// nodes.
    #[must_use]
    pub fn counts(&self) -> Vec<(NodeId, usize)> {
        self.inner.counts(Space::Group).into_iter().collect()
    }

    /// Up to `limit` groups that begin with `prefix`, in order, after the group `after`, with how
    /// many members each has.
    #[must_use]
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<(Arc<str>, usize)> {
        self.shelf().map(|shelf| shelf.keys(prefix, after, limit)).unwrap_or_default()
    }

    /// The member of `group` that is nearest: here, else in this zone, else in this region, else
    /// the one whose node answers fastest. One whose node is being drained only if there is no
    /// other.
    #[must_use]
    pub fn nearest(&self, group: &str) -> Option<Arc<Entry>> {
        let view = self.inner.cluster.view();
        let me = view.get(&self.inner.me.name);
        let distance = |entry: &Arc<Entry>| {
            let its = view.get(&entry.at.owner.name);
            let is_draining = its.is_some_and(|member| member.meta.draining);
            let differs = |of: fn(&purlin_cluster::Meta) -> &Option<String>| {
                let (mine, its) = (me.map(|it| of(&it.meta)), its.map(|it| of(&it.meta)));
                mine != its || mine.is_none_or(Option::is_none)
            };
            (
                is_draining,
                entry.at.owner != self.inner.me,
                differs(|meta| &meta.zone),
                differs(|meta| &meta.region),
                its.and_then(|member| member.rtt).unwrap_or(Duration::MAX),
                entry.at.clone(),
            )
        };
        self.members(group).into_iter().min_by_key(distance)
    }

    /// A member of `group` at random, each as likely as its metadata `weight` says: a number from
    /// 0, and 1 if there is none. One whose node is being drained only if there is no other.
    #[must_use]
    pub fn pick(&self, group: &str) -> Option<Arc<Entry>> {
        let weight = |entry: &Entry| entry.metadata.get("weight")?.parse().ok();
        self.pick_by(group, |entry| weight(entry).unwrap_or(1))
    }

    /// A member of `group` at random, each as likely as `weight` says; never one of weight 0.
    #[must_use]
    pub fn pick_by(&self, group: &str, weight: impl Fn(&Entry) -> u32) -> Option<Arc<Entry>> {
        let view = self.inner.cluster.view();
        let is_draining = |entry: &Arc<Entry>| {
            view.get(&entry.at.owner.name).is_some_and(|member| member.meta.draining)
        };
        let (going, staying): (Vec<_>, Vec<_>) =
            self.members(group).into_iter().partition(is_draining);
        let draw = |members: Vec<Arc<Entry>>| {
            let weights: Vec<u64> = members.iter().map(|entry| u64::from(weight(entry))).collect();
            let all: u64 = weights.iter().sum();
            let mut left = self.inner.rng.lock().next_u64().checked_rem(all)?;
            let drawn = weights.into_iter().position(|weight| {
                let is_it = left < weight;
                left = left.saturating_sub(weight);
                is_it
            });
            drawn.and_then(|at| members.get(at).cloned())
        };
        draw(staying).or_else(|| draw(going))
    }

    /// A member, to call and cast to wherever it is.
    ///
    /// # Errors
    /// [`AnotherKind`] when it is not an `S`.
    pub fn address<S: RemoteServer>(&self, member: &Entry) -> Result<Address<S>, AnotherKind> {
        self.inner.address(member)
    }

    /// Casts `message` to every member of `group` that is an `S`, now or not at all. What becomes
    /// of it is as with [`Address::try_cast`]: at most once, and nobody waits for slow members.
    pub fn publish<S, M>(&self, group: &str, message: &M) -> Published
    where
        S: RemoteServer + Handle<M>,
        M: RemoteMessage + Clone,
    {
        let mut published = Published::default();
        for member in self.members(group) {
            let Ok(address) = self.address::<S>(&member) else {
                published.skipped += 1;
                continue;
            };
            match address.try_cast(message.clone()) {
                Ok(()) => published.sent += 1,
                Err(error) => published.refused.push((address.pid().clone(), error)),
            }
        }
        published
    }

    /// Calls every member of `group` that is an `S` with `message`, 256 at once, and returns what
    /// each answered within `within`.
    ///
    /// # Errors
    /// Each answer has its own: see [`Address::call_within`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the replies; the work may be done all the same.
    pub async fn multi_call<S, M>(
        &self,
        group: &str,
        message: &M,
        within: Duration,
    ) -> Vec<(Pid, Result<M::Reply, CallError>)>
    where
        S: RemoteServer + Handle<M>,
        M: RemoteMessage + Clone,
    {
        let members = self.members(group).into_iter();
        let calls = members.filter_map(|member| self.address::<S>(&member).ok()).map(|address| {
            let message = message.clone();
            async move {
                let answer = address.call_within(message, within).await;
                (address.pid().clone(), answer)
            }
        });
        stream::iter(calls).buffer_unordered(CALLS_AT_ONCE).collect().await
    }

    /// The number of the last event of groups so far.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.inner.groups.revision()
    }

    /// Follows who joins and leaves the one group `group`, after the event `after`; 0 for all that
    /// are remembered.
    #[must_use]
    pub fn monitor(&self, group: &str, after: u64) -> Watch {
        let filter = Filter::Key(Arc::clone(&self.scope), group.into());
        self.inner.groups.watch(filter, after)
    }

    /// Follows who joins and leaves the groups that begin with `prefix`, as [`Groups::monitor`].
    #[must_use]
    pub fn watch(&self, prefix: &str, after: u64) -> Watch {
        let filter = Filter::Prefix(Arc::clone(&self.scope), prefix.into());
        self.inner.groups.watch(filter, after)
    }
}
