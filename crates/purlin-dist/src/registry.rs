//! Names of processes, known on every node.
//!
//! A registry that asks another node on every lookup is as slow and as available as that node;
//! one whose writer cannot read what it wrote makes every caller retry. Here a lookup is local and
//! takes no lock, what is found carries the incarnation of its node, so that a process of an
//! earlier life is told from one of this, and what was registered is found by its writer at once.

use std::{
    fmt,
    ops::Bound,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use purlin_core::{HlcTimestamp, NodeId};
use purlin_process::{Address, AnyProcess, Metadata, Pid, RemoteServer};

use crate::{
    confirm::SyncTo,
    dist::{Draft, Inner, Merge},
    error::{DistError, SyncError, check_scope},
    history::{Filter, Watch},
    index::Shelf,
    row::{Entry, RowKey, Space},
};

/// What becomes of a process that loses its name to another node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnConflict {
    /// It is told ([`NameLost`]) and stopped: two copies must not go on.
    #[default]
    Stop,
    /// It is told, and decides for itself.
    Tell,
}

/// The info a process gets when a name of it went to another, as
/// [`Info::Message`](purlin_process::Info::Message).
#[derive(Debug, Clone)]
pub struct NameLost {
    /// What it was registered as.
    pub mine: Arc<Entry>,
    /// Who has the name now.
    pub winner: Arc<Entry>,
}

/// How to register.
#[derive(Debug, Clone, Default)]
pub struct RegisterOptions {
    /// What lookups find beside the process.
    pub metadata: Metadata,
    /// What becomes of the process when it loses the name.
    pub on_conflict: OnConflict,
}

impl From<Metadata> for RegisterOptions {
    fn from(metadata: Metadata) -> Self {
        Self { metadata, ..Self::default() }
    }
}

/// The process under a name is of another kind than asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("process {pid} under {key:?} is a {found}, not a {wanted}")]
pub struct AnotherKind {
    /// The name.
    pub key: String,
    /// The process.
    pub pid: Pid,
    /// What it is.
    pub found: String,
    /// What was asked for.
    pub wanted: &'static str,
}

/// A place in a listing of entries that share keys; text that can be kept and given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    key: Arc<str>,
    at: RowKey,
}

impl Cursor {
    /// The place behind `entry`.
    #[must_use]
    pub fn after(entry: &Entry) -> Self {
        Self { key: Arc::clone(&entry.key), at: entry.at.clone() }
    }

    pub(crate) fn place(&self) -> (&str, &RowKey) {
        (&self.key, &self.at)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.at.owner, self.at.number, self.key)
    }
}

/// A text is no [`Cursor`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no place in a listing; use one that a listing gave")]
pub struct CursorError(String);

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let parse = || {
            let (owner, rest) = text.split_once('/')?;
            let (number, key) = rest.split_once('/')?;
            let at = RowKey { owner: owner.parse().ok()?, number: number.parse().ok()? };
            Some(Self { key: key.into(), at })
        };
        parse().ok_or_else(|| CursorError(text.to_owned()))
    }
}

/// The names of one scope. Cheap to clone.
///
/// A name belongs to one process; a *shared* key to any number. Both end with their process, and
/// are known on every node.
///
/// # Guarantees
/// Healthy: what was registered is found here when the call returns, elsewhere a round trip later
/// (wait for it with [`Registry::sync_to`]). A lookup never finds a process of this node that has
/// stopped taking messages.
/// Partitioned: each side registers and finds its own; names of the other side are hidden once it
/// counts as down. After the heal they are back without being sent again, and of two holders of
/// one name the later keeps it on all nodes ([`directory`](crate::directory#conflicts)).
/// A node that was killed: its names go when the membership says so. A node that was drained: when
/// it leaves. Restarted: nothing is kept; the new life registers anew.
///
/// Not for what only one may do at a time: two sides of a cut may both have the name. That is for
/// the locks and elections of the next rung.
///
/// ```
/// # use purlin_dist::Registry;
/// # use purlin_process::{AnyProcess, Metadata};
/// fn enlist(registry: &Registry, cart: &AnyProcess) -> Result<(), purlin_dist::DistError> {
///     registry.register("cart:42", cart, Metadata::from_iter([("shop", "oslo")]))?;
///     let found = registry.lookup("cart:42").expect("a writer reads what it wrote");
///     assert_eq!(found.metadata.get("shop"), Some("oslo"));
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    scope: Arc<str>,
    /// Filled once the scope holds something: to look opens nothing.
    shelf: OnceLock<Arc<Shelf>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Registry {
    pub(crate) fn new(inner: Arc<Inner>, scope: &str) -> Self {
        Self { inner, scope: scope.into(), shelf: OnceLock::new() }
    }

    fn shelf(&self) -> Option<&Shelf> {
        if self.shelf.get().is_none()
            && let Some(shelf) = self.inner.index.get(Space::Unique, &self.scope)
        {
            // Whoever was first, it is the same.
            self.shelf.set(shelf).ok();
        }
        self.shelf.get().map(|shelf| &**shelf)
    }

    /// The names of the scope `scope`: other names than those of every other scope.
    ///
    /// # Errors
    /// [`DistError::Length`] or [`DistError::ZeroByte`]. A scope exists once something is in it,
    /// and so there being too many is an error of registering.
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
        let scopes = self.inner.index.list(Space::Unique, prefix, after, limit);
        scopes.into_iter().map(|(scope, _)| scope).collect()
    }

    /// Gives the process of this node the name `key`, until it ends or is unregistered.
    ///
    /// Options are [`Metadata`] alone or [`RegisterOptions`]. Whether the name is free is looked up
    /// here: two nodes may succeed at the same moment, and then the later one keeps it.
    ///
    /// # Units and limits
    /// `key` has 1 to 1,024 bytes and no zero byte; metadata and entries per node as
    /// [`DistConfig`](crate::DistConfig) says.
    ///
    /// # Errors
    /// [`DistError`]; nothing was changed.
    pub fn register<'a>(
        &self,
        key: &str,
        process: impl Into<ProcessOf<'a>>,
        options: impl Into<RegisterOptions>,
    ) -> Result<Arc<Entry>, DistError> {
        let RegisterOptions { metadata, on_conflict } = options.into();
        let draft = Draft { space: Space::Unique, scope: &self.scope, key, metadata, on_conflict };
        self.inner.add(&draft, &process.into().0)
    }

    /// Takes the name `key` from the process of this node that has it.
    ///
    /// # Errors
    /// [`DistError::Absent`], or [`DistError::Elsewhere`] when another node's process has it.
    pub fn unregister(&self, key: &str) -> Result<(), DistError> {
        self.inner.remove_name(&self.scope, key)
    }

    /// Puts the process of this node under the shared key `key`, until it ends or is taken out; a
    /// second time replaces its metadata.
    ///
    /// # Errors
    /// [`DistError`], but never [`DistError::NameTaken`]; nothing was changed.
    pub fn register_shared<'a>(
        &self,
        key: &str,
        process: impl Into<ProcessOf<'a>>,
        metadata: Metadata,
    ) -> Result<Arc<Entry>, DistError> {
        let (space, on_conflict) = (Space::Shared, OnConflict::Tell);
        let draft = Draft { space, scope: &self.scope, key, metadata, on_conflict };
        self.inner.add(&draft, &process.into().0)
    }

    /// Takes the process of this node from under the shared key `key`; whether it was there.
    pub fn unregister_shared<'a>(&self, key: &str, process: impl Into<ProcessOf<'a>>) -> bool {
        self.inner.remove(Space::Shared, &self.scope, key, process.into().0.id())
    }

    /// Replaces the metadata of the name `key` of this node, if its version is still `expected`;
    /// returns it with its new version.
    ///
    /// # Errors
    /// [`DistError::Overwritten`] when it is not; [`DistError::Absent`],
    /// [`DistError::Elsewhere`], [`DistError::Metadata`]. Nothing was changed.
    pub fn update(
        &self,
        key: &str,
        expected: HlcTimestamp,
        metadata: Metadata,
    ) -> Result<Arc<Entry>, DistError> {
        self.inner.update_name(&self.scope, key, Some(expected), |_| metadata)
    }

    /// Changes the metadata of the name `key` of this node by `change`, which nobody else's change
    /// comes between. It runs under a lock: keep it short, and ask nothing of this registry in it.
    ///
    /// # Errors
    /// As [`Registry::update`], but never [`DistError::Overwritten`].
    pub fn update_with(
        &self,
        key: &str,
        change: impl FnOnce(&Metadata) -> Metadata,
    ) -> Result<Arc<Entry>, DistError> {
        self.inner.update_name(&self.scope, key, None, change)
    }

    /// Who has the name `key`. Local; takes no lock.
    #[must_use]
    pub fn lookup(&self, key: &str) -> Option<Arc<Entry>> {
        self.shelf()?.name(key)
    }

    /// The process with the name `key`. Local; takes no lock.
    #[must_use]
    pub fn whereis(&self, key: &str) -> Option<Pid> {
        self.lookup(key)?.pid()
    }

    /// The process with the name `key`, to call and cast to wherever it is; `None` if nobody has
    /// it.
    ///
    /// The answer may be a moment old: what is sent to a process that has ended meanwhile, or to
    /// an earlier life of its node, is refused as such.
    ///
    /// # Errors
    /// [`AnotherKind`] when it is not an `S`.
    pub fn address<S: RemoteServer>(&self, key: &str) -> Result<Option<Address<S>>, AnotherKind> {
        self.lookup(key).map(|entry| self.inner.address(&entry)).transpose()
    }

    /// Up to `limit` processes under the shared key `key`, in the order of their nodes, after the
    /// place `after`.
    #[must_use]
    pub fn lookup_shared(
        &self,
        key: &str,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Vec<Arc<Entry>> {
        let found = |shelf: &Shelf| shelf.of_key(key, after.map(|cursor| &cursor.at), limit);
        self.shelf().map(found).unwrap_or_default()
    }

    /// How many processes are under the shared key `key`. Costs one lookup.
    #[must_use]
    pub fn count_shared(&self, key: &str) -> usize {
        self.shelf().map_or(0, |shelf| shelf.count(key))
    }

    /// Up to `limit` names that begin with `prefix`, in order, after the name `after`. Local; a
    /// moving picture, not a snapshot.
    #[must_use]
    pub fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Arc<Entry>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let found = |shelf: &Shelf| shelf.names(prefix, from, Bound::Unbounded, limit);
        self.shelf().map(found).unwrap_or_default()
    }

    /// Up to `limit` names from `from` to `until`, in order.
    #[must_use]
    pub fn range(&self, from: Bound<&str>, until: Bound<&str>, limit: usize) -> Vec<Arc<Entry>> {
        self.shelf().map(|shelf| shelf.names("", from, until, limit)).unwrap_or_default()
    }

    /// Up to `limit` entries of shared keys that begin with `prefix`, after the place `after`.
    #[must_use]
    pub fn scan_shared(
        &self,
        prefix: &str,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Vec<Arc<Entry>> {
        let found = |shelf: &Shelf| shelf.entries(prefix, after.map(Cursor::place), limit);
        self.shelf().map(found).unwrap_or_default()
    }

    /// How many names each node holds, in all scopes. Counted as they change: costs as much as
    /// there are nodes, not names.
    #[must_use]
    pub fn counts(&self) -> Vec<(NodeId, usize)> {
        self.inner.counts(Space::Unique).into_iter().collect()
    }

    /// The number of the last event of names so far: what a watch from now on begins after.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.inner.names.revision()
    }

    /// Follows the changes of names and shared keys that begin with `prefix`, after the event
    /// `after`; 0 for all that are remembered.
    ///
    /// Events are numbered per life of a node: `after` means nothing to another node.
    #[must_use]
    pub fn watch(&self, prefix: &str, after: u64) -> Watch {
        let filter = Filter::Prefix(Arc::clone(&self.scope), prefix.into());
        self.inner.names.watch(filter, after)
    }

    /// Follows the changes of the one key `key`, as [`Registry::watch`].
    #[must_use]
    pub fn watch_key(&self, key: &str, after: u64) -> Watch {
        let filter = Filter::Key(Arc::clone(&self.scope), key.into());
        self.inner.names.watch(filter, after)
    }

    /// Waits until everything this node registered, joined and tracked so far is seen by readers
    /// on other nodes, and returns which.
    ///
    /// # Errors
    /// [`SyncError`] after `within`, with those that have confirmed. The others may have it.
    ///
    /// # Cancel safety
    /// Safe: dropping it only stops waiting.
    pub async fn sync_to(&self, to: SyncTo, within: Duration) -> Result<Vec<NodeId>, SyncError> {
        self.inner.sync_to(to, within).await
    }

    /// What to do when a name of this scope is found held twice and this node's process loses it;
    /// replaces what was set before. See [`Merge`].
    pub fn on_conflict(&self, merge: impl Merge) {
        self.inner.on_conflict(&self.scope, Arc::new(merge));
    }
}

/// A process of this node, by value or by reference, typed or not.
#[derive(Debug)]
pub struct ProcessOf<'a>(pub(crate) std::borrow::Cow<'a, AnyProcess>);

impl<'a> From<&'a AnyProcess> for ProcessOf<'a> {
    fn from(process: &'a AnyProcess) -> Self {
        Self(std::borrow::Cow::Borrowed(process))
    }
}

impl From<AnyProcess> for ProcessOf<'_> {
    fn from(process: AnyProcess) -> Self {
        Self(std::borrow::Cow::Owned(process))
    }
}

impl<S: purlin_process::Server> From<&purlin_process::ProcessRef<S>> for ProcessOf<'_> {
    fn from(process: &purlin_process::ProcessRef<S>) -> Self {
        AnyProcess::from(process).into()
    }
}

impl Inner {
    /// The process of an entry, to call wherever it is.
    pub(crate) fn address<S: RemoteServer>(
        &self,
        entry: &Entry,
    ) -> Result<Address<S>, AnotherKind> {
        let pid = entry.pid().expect("names and groups are of processes");
        if &*entry.kind == S::KIND {
            return Ok(self.remote.address(&pid));
        }
        let (key, found) = (entry.key.to_string(), entry.kind.to_string());
        Err(AnotherKind { key, pid, found, wanted: S::KIND })
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{Incarnation, NodeName};

    use super::*;

    #[test]
    fn a_cursor_reads_back_whatever_the_key() {
        let owner = NodeId::new(NodeName::parse("n-1").unwrap(), Incarnation(3));
        let cursor = Cursor { key: "a/b/ c".into(), at: RowKey { owner, number: 9 } };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "a/b", "n1@x/1/k", "n1@1/x/k"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
