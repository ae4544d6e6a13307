//! The local registry: unique names, and keys that many processes share.
//!
//! Writing a name into a map is easy; removing it when the process ends is where registries lie.
//! Here every process remembers what it registered, and its end removes exactly that.
//!
//! The guarantee: a lookup returns no process that has stopped taking messages, and once the end
//! of a process is told (links, monitors, `exited`), its names are free. Between the two a unique
//! name is taken but not found: a successor never runs beside its predecessor's `terminate`.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::RwLock;

use crate::{AnyProcess, ProcessId};

/// The most bytes a name or key may have.
pub const REGISTERED_BYTES_MAX: usize = 255;

/// The most registrations one node holds; each costs about 200 bytes.
pub const REGISTRATIONS_MAX: usize = 1_000_000;

/// Text by text, what is known about a registration beside its process. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata(Arc<BTreeMap<String, String>>);

impl Metadata {
    /// The value under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of it, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(Arc::new(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect()))
    }
}

/// One process under one name or key.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The name or key.
    pub key: Arc<str>,
    /// Whether no other process can have it.
    pub unique: bool,
    /// The process.
    pub process: AnyProcess,
    /// What was said about it.
    pub metadata: Metadata,
}

/// Why a registration was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// A process that has not ended yet has the name.
    #[error("name {name:?} is taken by process {by}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        by: ProcessId,
    },
    /// The process to register has ended.
    #[error("process {0} has ended")]
    NoProcess(ProcessId),
    /// The name or key is empty or too long.
    #[error("a name of {0} bytes; it needs 1 to {REGISTERED_BYTES_MAX}")]
    Length(usize),
    /// The registry is full.
    #[error("{REGISTRATIONS_MAX} registrations exist, which is the limit")]
    TooMany,
}

/// What a process must take out of the registry when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Registered {
    Name(Arc<str>),
    Key(Arc<str>),
}

impl Registered {
    fn text(&self) -> &str {
        match self {
            Self::Name(text) | Self::Key(text) => text,
        }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    process: AnyProcess,
    metadata: Metadata,
}

#[derive(Debug, Default)]
struct Shard {
    names: BTreeMap<Arc<str>, Entry>,
    keys: BTreeMap<Arc<str>, BTreeMap<ProcessId, Entry>>,
}

const SHARDS: usize = 16;

/// The registry of one node. Obtained from [`Processes::registry`](crate::Processes::registry).
#[derive(Debug, Default)]
pub struct Registry {
    shards: [RwLock<Shard>; SHARDS],
    count: AtomicUsize,
    hasher: std::hash::RandomState,
}

impl Registry {
    /// Gives `process` the unique name `name`. One process may have several.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing was changed then.
    pub fn register(
        &self,
        name: &str,
        process: impl Into<AnyProcess>,
        metadata: Metadata,
    ) -> Result<(), RegisterError> {
        let process = process.into();
        self.admit(name)?;
        let name: Arc<str> = name.into();
        let registered = Registered::Name(Arc::clone(&name));
        let mut shard = self.shard(&name).write();
        if let Some(entry) = shard.names.get(&name) {
            return Err(RegisterError::NameTaken {
                name: name.as_ref().to_owned(),
                by: entry.process.id(),
            });
        }
        // Under the shard's lock: the end of the process either finds this in its list, or has
        // begun and refuses it.
        if !process.control().core().ties.register(registered) {
            return Err(RegisterError::NoProcess(process.id()));
        }
        shard.names.insert(name, Entry { process, metadata });
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the unique name `name` from whoever has it; whether anybody had it.
    pub fn unregister(&self, name: &str) -> bool {
        let Some((name, entry)) = self.shard(name).write().names.remove_entry(name) else {
            return false;
        };
        self.count.fetch_sub(1, Ordering::Relaxed);
        entry.process.control().core().ties.unregister(&Registered::Name(name));
        true
    }

    /// The process with the unique name `name`, if it still takes messages.
    #[must_use]
    pub fn whereis(&self, name: &str) -> Option<AnyProcess> {
        self.lookup(name).map(|registration| registration.process)
    }

    /// The process with the unique name `name` and its metadata, if it still takes messages.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Registration> {
        let shard = self.shard(name).read();
        let (key, entry) = shard.names.get_key_value(name)?;
        let registration = entry.registration(key, true);
        drop(shard);
        registration.process.is_alive().then_some(registration)
    }

    /// Puts `process` under the shared key `key`; a second time replaces its metadata.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing was changed then.
    pub fn join(
        &self,
        key: &str,
        process: impl Into<AnyProcess>,
        metadata: Metadata,
    ) -> Result<(), RegisterError> {
        let process = process.into();
        self.admit(key)?;
        let key: Arc<str> = key.into();
        let mut shard = self.shard(&key).write();
        let members = shard.keys.entry(Arc::clone(&key)).or_default();
        if let Some(entry) = members.get_mut(&process.id()) {
            entry.metadata = metadata;
            return Ok(());
        }
        if !process.control().core().ties.register(Registered::Key(Arc::clone(&key))) {
            if members.is_empty() {
                shard.keys.remove(&key);
            }
            return Err(RegisterError::NoProcess(process.id()));
        }
        members.insert(process.id(), Entry { process, metadata });
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes `process` from under the shared key `key`; whether it was there.
    pub fn leave(&self, key: &str, process: impl Into<AnyProcess>) -> bool {
        let process = process.into();
        let removed = self.shard(key).write().remove_member(key, process.id());
        if let Some(key) = &removed {
            self.count.fetch_sub(1, Ordering::Relaxed);
            process.control().core().ties.unregister(&Registered::Key(Arc::clone(key)));
        }
        removed.is_some()
    }

    /// The processes under the shared key `key` that still take messages, oldest first.
    #[must_use]
    pub fn members(&self, key: &str) -> Vec<Registration> {
        let shard = self.shard(key).read();
        let members = shard.keys.get_key_value(key);
        let members: Vec<_> = members
            .into_iter()
            .flat_map(|(key, members)| members.values().map(|entry| entry.registration(key, false)))
            .collect();
        drop(shard);
        members.into_iter().filter(|member| member.process.is_alive()).collect()
    }

    /// Every live registration whose name or key starts with `prefix`, in order of their text.
    #[must_use]
    pub fn select(&self, prefix: &str) -> Vec<Registration> {
        let mut found: Vec<Registration> = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            let from = || (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
            let names = shard.names.range::<str, _>(from());
            found.extend(
                names
                    .take_while(|(name, _)| name.starts_with(prefix))
                    .map(|(name, entry)| entry.registration(name, true)),
            );
            let keys = shard.keys.range::<str, _>(from());
            found.extend(keys.take_while(|(key, _)| key.starts_with(prefix)).flat_map(
                |(key, members)| members.values().map(|entry| entry.registration(key, false)),
            ));
        }
        found.retain(|registration| registration.process.is_alive());
        found.sort_by(|a, b| (&a.key, a.process.id()).cmp(&(&b.key, b.process.id())));
        found
    }

    /// How many registrations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn remove_all(&self, process: ProcessId, registered: Vec<Registered>) {
        for registered in registered {
            let mut shard = self.shard(registered.text()).write();
            let removed = match &registered {
                Registered::Name(name) => match shard.names.get(name) {
                    Some(entry) if entry.process.id() == process => {
                        shard.names.remove(name).is_some()
                    }
                    Some(_) | None => false,
                },
                Registered::Key(key) => shard.remove_member(key, process).is_some(),
            };
            if removed {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn admit(&self, text: &str) -> Result<(), RegisterError> {
        if text.is_empty() || text.len() > REGISTERED_BYTES_MAX {
            return Err(RegisterError::Length(text.len()));
        }
        if self.len() >= REGISTRATIONS_MAX {
            return Err(RegisterError::TooMany);
        }
        Ok(())
    }

    fn shard(&self, text: &str) -> &RwLock<Shard> {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(text.as_bytes());
        let at = usize::try_from(hasher.finish() % SHARDS as u64).expect("less than SHARDS");
        &self.shards[at]
    }
}

impl Shard {
    fn remove_member(&mut self, key: &str, process: ProcessId) -> Option<Arc<str>> {
        let (key, members) = self.keys.get_key_value(key)?;
        if !members.contains_key(&process) {
            return None;
        }
        let key = Arc::clone(key);
        if members.len() == 1 {
            self.keys.remove(&key);
        } else if let Some(members) = self.keys.get_mut(&key) {
            members.remove(&process);
        }
        Some(key)
    }
}

impl Entry {
    fn registration(&self, key: &Arc<str>, unique: bool) -> Registration {
        Registration {
            key: Arc::clone(key),
            unique,
            process: self.process.clone(),
            metadata: self.metadata.clone(),
        }
    }
}
