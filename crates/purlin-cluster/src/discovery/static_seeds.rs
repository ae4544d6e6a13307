//! Seeds that are written down, and the resolving of the names among them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use purlin_core::{Clock, Rng};

use super::{
    Discovery, DiscoveryError, SeedAddr,
    refresh::{Answer, Refresh, Report, Schedule},
};

/// How long the operating system may take to resolve one name. Its own timeouts are often 30 s,
/// too long to keep a node from joining through another seed.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// A fixed list of `host:port`.
///
/// Addresses are reported at once. Names are resolved by the operating system (hosts file
/// included), again and again: a name that cannot be resolved is retried with backoff, and one
/// that moves is noticed within [`Schedule::refresh_max`].
#[derive(Debug)]
pub struct StaticSeeds {
    written: String,
    resolving: Resolving,
}

impl StaticSeeds {
    /// The seeds in `texts`, each `host:port`.
    ///
    /// # Errors
    /// [`DiscoveryError::Seed`] for the first text that is none.
    pub fn parse<T: AsRef<str>>(
        texts: impl IntoIterator<Item = T>,
        schedule: Schedule,
        clock: Arc<dyn Clock>,
        rng: Rng,
    ) -> Result<Self, DiscoveryError> {
        let seeds =
            texts.into_iter().map(|text| text.as_ref().parse()).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(seeds, schedule, clock, rng))
    }

    /// The given seeds.
    #[must_use]
    pub fn new(seeds: Vec<SeedAddr>, schedule: Schedule, clock: Arc<dyn Clock>, rng: Rng) -> Self {
        let written = seeds.iter().map(SeedAddr::to_string).collect::<Vec<_>>().join(", ");
        Self { written, resolving: Resolving::new(seeds, schedule, clock, rng) }
    }
}

impl Discovery for StaticSeeds {
    fn describe(&self) -> String {
        format!("static seeds {}", self.written)
    }

    fn next(&mut self) -> BoxFuture<'_, Result<BTreeSet<SocketAddr>, DiscoveryError>> {
        Box::pin(self.resolving.next())
    }
}

/// A list of seeds whose names are kept resolved.
#[derive(Debug)]
pub(crate) struct Resolving {
    schedule: Schedule,
    clock: Arc<dyn Clock>,
    rng: Rng,
    literals: BTreeSet<SocketAddr>,
    names: BTreeMap<SeedAddr, Name>,
    told: Option<BTreeSet<SocketAddr>>,
    troubles: VecDeque<DiscoveryError>,
}

#[derive(Debug)]
struct Name {
    refresh: Refresh,
    addrs: BTreeSet<SocketAddr>,
    tried: bool,
}

impl Resolving {
    pub(crate) fn new(
        seeds: Vec<SeedAddr>,
        schedule: Schedule,
        clock: Arc<dyn Clock>,
        rng: Rng,
    ) -> Self {
        let mut resolving = Self {
            schedule,
            clock,
            rng,
            literals: BTreeSet::new(),
            names: BTreeMap::new(),
            told: None,
            troubles: VecDeque::new(),
        };
        resolving.replace(seeds);
        resolving
    }

    /// Takes another list; names in both keep what is known of them.
    pub(crate) fn replace(&mut self, seeds: Vec<SeedAddr>) {
        let (literals, names) = SeedAddr::split(seeds);
        self.literals = literals;
        self.names.retain(|name, _| names.contains(name));
        for name in names {
            let Self { schedule, rng, names, .. } = self;
            names.entry(name).or_insert_with(|| Name {
                refresh: Refresh::new(schedule.clone(), rng.fork()),
                addrs: BTreeSet::new(),
                tried: false,
            });
        }
    }

    /// See [`Discovery::next`].
    pub(crate) async fn next(&mut self) -> Result<BTreeSet<SocketAddr>, DiscoveryError> {
        loop {
            if let Some(list) = self.news() {
                return Ok(list);
            }
            if let Some(trouble) = self.troubles.pop_front() {
                return Err(trouble);
            }
            let Some(due) = self.names.values().map(|name| name.refresh.due()).min() else {
                return std::future::pending().await;
            };
            tokio::time::sleep(due.saturating_since(self.clock.now())).await;
            self.resolve_due().await;
        }
    }

    /// The whole list if it has changed. Before the first list, an empty one is news only when
    /// every name was tried: the others may still have something to say.
    fn news(&mut self) -> Option<BTreeSet<SocketAddr>> {
        let resolved = self.names.values().flat_map(|name| name.addrs.iter().copied());
        let list: BTreeSet<_> = self.literals.iter().copied().chain(resolved).collect();
        let too_early = list.is_empty() && self.names.values().any(|name| !name.tried);
        if too_early || self.told.as_ref() == Some(&list) {
            return None;
        }
        self.told = Some(list.clone());
        Some(list)
    }

    /// Resolves, at the same time, every name whose time has come.
    async fn resolve_due(&mut self) {
        let now = self.clock.now();
        let due = self
            .names
            .iter()
            .filter(|(_, name)| name.refresh.due() <= now)
            .map(|(seed, _)| seed.clone());
        let answers = join_all(due.map(|seed| async { (resolve(&seed).await, seed) })).await;
        // Nothing above changed this list, so a dropped future only looks again.
        let now = self.clock.now();
        for (answer, seed) in answers {
            self.apply(now, seed, answer);
        }
    }

    fn apply(
        &mut self,
        now: purlin_core::Instant,
        seed: SeedAddr,
        answer: Result<BTreeSet<SocketAddr>, String>,
    ) {
        let Some(name) = self.names.get_mut(&seed) else { return };
        name.tried = true;
        let (answer, reason) = match answer {
            Ok(addrs) => (Answer::Found { addrs, ttl: self.schedule.refresh_max }, String::new()),
            Err(reason) => (Answer::Failed, reason),
        };
        match name.refresh.on_answer(now, answer) {
            Some(Report::List(addrs)) => name.addrs = addrs,
            Some(Report::Failed { retry_in }) => {
                self.troubles.push_back(DiscoveryError::Resolve {
                    seed: seed.to_string(),
                    reason,
                    retry_in,
                });
            }
            Some(Report::Absent { .. }) | None => {}
        }
    }
}

async fn resolve(seed: &SeedAddr) -> Result<BTreeSet<SocketAddr>, String> {
    let lookup = tokio::net::lookup_host((seed.host(), seed.port()));
    match tokio::time::timeout(RESOLVE_WITHIN, lookup).await {
        Ok(Ok(addrs)) => Ok(addrs.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {RESOLVE_WITHIN:?}")),
    }
}
