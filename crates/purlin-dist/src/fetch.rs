//! What is not in the rows: names, pictures, whatever a database knows of those who are present.
//!
//! A topic that a thousand clients open at once would ask a database a thousand times for the same
//! users. Here one task asks for all of them: a key that many ask for is fetched once, keys that
//! wait go in one batch, and what was fetched is kept for a while, absence included.
//!
//! The decisions are [`Batches`], pure; the task around it waits.
//!
//! # Source
//! Phoenix.Presence's `fetch/2`. We differ by the cache, by coalescing, and by bounds.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    error::Error,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use purlin_core::{Advice, Clock, Instant, Outcome};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// What a fetch brought: the values of those keys that have one, or why it failed.
pub type Fetched<V> = Result<BTreeMap<Arc<str>, V>, Box<dyn Error + Send + Sync>>;

/// What an asker is told.
type Brought<V> = Result<BTreeMap<Arc<str>, V>, FetchError>;

/// The bounds of a [`Fetcher`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchConfig {
    /// How many keys are fetched at once. 0 counts as 1. Default 500.
    pub batch_max: usize,
    /// How many batches are under way at once. 0 counts as 1. Default 4.
    pub batches_max: usize,
    /// How many keys may be waited for, counted once for everybody who waits. Default 100,000.
    pub waiting_max: usize,
    /// How long a batch may take. Default 5 s.
    pub within: Duration,
    /// How many values are kept; the oldest goes for a new one. Default 10,000.
    pub kept_max: usize,
    /// How long a value is kept. A longer time spares fetches and shows older values. Default 30 s.
    pub kept_for: Duration,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            batch_max: 500,
            batches_max: 4,
            waiting_max: 100_000,
            within: Duration::from_secs(5),
            kept_max: 10_000,
            kept_for: Duration::from_secs(30),
        }
    }
}

/// Why nothing was fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// More keys are waited for than may be.
    #[error("{wanted} keys beside the {waiting} waited for exceed the limit {max}")]
    Full {
        /// How many were asked for.
        wanted: usize,
        /// How many are waited for.
        waiting: usize,
        /// The bound.
        max: usize,
    },
    /// The fetch failed, in its own words.
    #[error("fetch failed: {0}")]
    Failed(Arc<str>),
    /// The fetch took too long and was dropped.
    #[error("fetch took longer than {0:?}")]
    Late(Duration),
    /// The fetch panicked.
    #[error("fetch panicked")]
    Panicked,
    /// The runtime that would fetch is ending.
    #[error("fetches are over")]
    Over,
}

impl FetchError {
    /// Always "not done": a fetch only reads.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Full { .. } | Self::Failed(_) | Self::Late(_) | Self::Panicked => Advice::Retry,
            Self::Over => Advice::GiveUp,
        }
    }
}

/// Fetches what is not in the rows. Cheap to clone; ends with its last clone.
pub struct Fetcher<V> {
    asks: mpsc::Sender<Ask<V>>,
}

impl<V> Clone for Fetcher<V> {
    fn clone(&self) -> Self {
        Self { asks: self.asks.clone() }
    }
}

impl<V> fmt::Debug for Fetcher<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

/// How many asks wait to be taken in, which happens at once.
const ASKS: usize = 256;

/// What somebody asks the task.
enum Ask<V> {
    For(BTreeSet<Arc<str>>, oneshot::Sender<Brought<V>>),
    Forget(Arc<str>),
}

impl<V: Clone + Send + Sync + 'static> Fetcher<V> {
    /// Begins to fetch with `fetch`, which is called with the keys of one batch and runs in a task
    /// of its own: one that is slow, fails or panics costs those who wait for that batch, and
    /// nobody else.
    pub(crate) fn start<F, Fut>(config: FetchConfig, clock: Arc<dyn Clock>, fetch: F) -> Self
    where
        F: Fn(Vec<Arc<str>>) -> Fut + Send + 'static,
        Fut: Future<Output = Fetched<V>> + Send + 'static,
    {
        let (asks, asked) = mpsc::channel(ASKS);
        tokio::spawn(work(Batches::new(config), clock, asked, fetch));
        Self { asks }
    }

    /// What there is for each of `keys`: from what is kept, else fetched, together with what others
    /// ask for. Keys that have nothing are not in the answer.
    ///
    /// # Errors
    /// [`FetchError`]; nothing is returned of a part that was there.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the answer; a fetch under way goes on and is kept.
    pub async fn get<K: Into<Arc<str>>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<BTreeMap<Arc<str>, V>, FetchError> {
        let keys = keys.into_iter().map(Into::into).collect();
        let (tell, told) = oneshot::channel();
        // The task takes asks in without waiting for anything, so this is no hidden queue.
        self.asks.send(Ask::For(keys, tell)).await.map_err(|_over| FetchError::Over)?;
        told.await.unwrap_or(Err(FetchError::Over))
    }

    /// Lets go of what is kept for `key`: it has changed. A fetch under way that may have read the
    /// old value still answers, and is not kept.
    pub async fn forget(&self, key: impl Into<Arc<str>>) {
        // Without the task there is nothing kept.
        self.asks.send(Ask::Forget(key.into())).await.ok();
    }
}

async fn work<V, F, Fut>(
    mut batches: Batches<V>,
    clock: Arc<dyn Clock>,
    mut asked: mpsc::Receiver<Ask<V>>,
    fetch: F,
) where
    V: Clone + Send + Sync + 'static,
    F: Fn(Vec<Arc<str>>) -> Fut + Send + 'static,
    Fut: Future<Output = Fetched<V>> + Send + 'static,
{
    let mut running: JoinSet<(u64, Brought<V>)> = JoinSet::new();
    let mut waiting = BTreeMap::new();
    let (mut next_asker, mut out) = (0, Vec::new());
    loop {
        let mut input = tokio::select! {
            biased;
            Some(done) = running.join_next() => {
                // Neither aborted nor panicking: that is caught inside.
                let Ok((batch, fetched)) = done else { continue };
                Some(Input::Fetched(batch, fetched))
            }
            ask = asked.recv() => match ask {
                Some(ask) => Some(take_in(ask, &mut next_asker, &mut waiting)),
                None => return,
            },
        };
        // Whoever asks at the same moment shares the batch.
        while let Some(next) = input {
            batches.step(clock.now(), next, &mut out);
            let ask = asked.try_recv().ok();
            input = ask.map(|ask| take_in(ask, &mut next_asker, &mut waiting));
        }
        batches.begin(&mut out);
        let within = batches.config.within;
        for output in out.drain(..) {
            match output {
                Output::Answer(asker, answer) => {
                    if let Some(tell) = waiting.remove(&asker) {
                        // Who went away needs no answer.
                        oneshot::Sender::send(tell, answer).ok();
                    }
                }
                Output::Fetch(batch, keys) => {
                    let begun = std::panic::catch_unwind(AssertUnwindSafe(|| fetch(keys)));
                    running.spawn(async move {
                        let Ok(fetching) = begun else {
                            return (batch, Err(FetchError::Panicked));
                        };
                        let fetching = AssertUnwindSafe(fetching).catch_unwind();
                        let fetched = match tokio::time::timeout(within, fetching).await {
                            Ok(Ok(Ok(values))) => Ok(values),
                            Ok(Ok(Err(error))) => Err(FetchError::Failed(error.to_string().into())),
                            Ok(Err(_panic)) => Err(FetchError::Panicked),
                            Err(_late) => Err(FetchError::Late(within)),
                        };
                        (batch, fetched)
                    });
                }
            }
        }
    }
}

type Answers<V> = BTreeMap<u64, oneshot::Sender<Brought<V>>>;

fn take_in<V>(ask: Ask<V>, next_asker: &mut u64, waiting: &mut Answers<V>) -> Input<V> {
    match ask {
        Ask::Forget(key) => Input::Forget(key),
        Ask::For(keys, tell) => {
            let asker = *next_asker;
            *next_asker += 1;
            waiting.insert(asker, tell);
            Input::Asked(asker, keys)
        }
    }
}

/// Something that happened.
#[derive(Debug)]
enum Input<V> {
    /// This asker wants these.
    Asked(u64, BTreeSet<Arc<str>>),
    /// This batch is over.
    Fetched(u64, Brought<V>),
    /// What is kept of it is old.
    Forget(Arc<str>),
}

/// Something to do now.
#[derive(Debug, PartialEq, Eq)]
enum Output<V> {
    /// Fetch these as this batch.
    Fetch(u64, Vec<Arc<str>>),
    /// Tell this asker.
    Answer(u64, Brought<V>),
}

/// What is kept, asked for and under way: pure.
#[derive(Debug)]
struct Batches<V> {
    config: FetchConfig,
    kept: BTreeMap<Arc<str>, (Instant, Option<V>)>,
    /// When what is kept is old, first to last.
    ends: BTreeSet<(Instant, Arc<str>)>,
    askers: BTreeMap<u64, Asker<V>>,
    /// Who waits for each key, whether it is queued or under way.
    wanted: BTreeMap<Arc<str>, Vec<u64>>,
    queue: VecDeque<Arc<str>>,
    running: BTreeMap<u64, Vec<Arc<str>>>,
    /// Under way, and no longer to be kept.
    old: BTreeSet<Arc<str>>,
    next_batch: u64,
    /// How many keys are waited for, counted once for everybody who waits.
    waiting: usize,
}

/// Somebody who waits.
#[derive(Debug)]
struct Asker<V> {
    found: BTreeMap<Arc<str>, V>,
    missing: BTreeSet<Arc<str>>,
}

impl<V: Clone> Batches<V> {
    fn new(config: FetchConfig) -> Self {
        Self {
            config,
            kept: BTreeMap::new(),
            ends: BTreeSet::new(),
            askers: BTreeMap::new(),
            wanted: BTreeMap::new(),
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            old: BTreeSet::new(),
            next_batch: 0,
            waiting: 0,
        }
    }

    fn step(&mut self, now: Instant, input: Input<V>, out: &mut Vec<Output<V>>) {
        match input {
            Input::Asked(asker, keys) => self.handle_asked(now, asker, keys, out),
            Input::Fetched(batch, Ok(values)) => self.handle_fetched(now, batch, values, out),
            Input::Fetched(batch, Err(error)) => {
                for key in self.running.remove(&batch).unwrap_or_default() {
                    self.old.remove(&key);
                    for asker in self.wanted.remove(&key).unwrap_or_default() {
                        self.end(asker, Err(error.clone()), out);
                    }
                }
            }
            Input::Forget(key) => {
                self.let_go(&key);
                if self.running.values().any(|keys| keys.contains(&key)) {
                    self.old.insert(key);
                }
            }
        }
    }

    /// Begins as many batches as there may be. After all that came together was taken in.
    fn begin(&mut self, out: &mut Vec<Output<V>>) {
        while self.running.len() < self.config.batches_max.max(1) {
            let mut keys = Vec::new();
            while keys.len() < self.config.batch_max.max(1)
                && let Some(key) = self.queue.pop_front()
            {
                // Nobody waits for it any more when another batch of its askers failed.
                match self.wanted.get(&key) {
                    Some(askers) if askers.iter().any(|asker| self.askers.contains_key(asker)) => {
                        keys.push(key);
                    }
                    Some(_) | None => drop(self.wanted.remove(&key)),
                }
            }
            if keys.is_empty() {
                return;
            }
            out.push(Output::Fetch(self.next_batch, keys.clone()));
            self.running.insert(self.next_batch, keys);
            self.next_batch += 1;
        }
    }

    fn handle_asked(
        &mut self,
        now: Instant,
        asker: u64,
        keys: BTreeSet<Arc<str>>,
        out: &mut Vec<Output<V>>,
    ) {
        while let Some((until, key)) = self.ends.first().cloned()
            && until <= now
        {
            self.let_go(&key);
        }
        let mut waits = Asker { found: BTreeMap::new(), missing: BTreeSet::new() };
        for key in keys {
            match self.kept.get(&key) {
                Some((_, Some(value))) => drop(waits.found.insert(key, value.clone())),
                Some((_, None)) => {}
                None => drop(waits.missing.insert(key)),
            }
        }
        let (wanted, waiting, max) = (waits.missing.len(), self.waiting, self.config.waiting_max);
        if wanted == 0 {
            out.push(Output::Answer(asker, Ok(waits.found)));
            return;
        }
        if wanted + waiting > max {
            out.push(Output::Answer(asker, Err(FetchError::Full { wanted, waiting, max })));
            return;
        }
        self.waiting += wanted;
        for key in &waits.missing {
            let askers = self.wanted.entry(Arc::clone(key)).or_default();
            if askers.is_empty() {
                self.queue.push_back(Arc::clone(key));
            }
            askers.push(asker);
        }
        self.askers.insert(asker, waits);
    }

    fn handle_fetched(
        &mut self,
        now: Instant,
        batch: u64,
        mut values: BTreeMap<Arc<str>, V>,
        out: &mut Vec<Output<V>>,
    ) {
        for key in self.running.remove(&batch).unwrap_or_default() {
            let value = values.remove(&key);
            for asker in self.wanted.remove(&key).unwrap_or_default() {
                let Some(waits) = self.askers.get_mut(&asker) else { continue };
                if waits.missing.remove(&key) {
                    self.waiting -= 1;
                }
                if let Some(value) = &value {
                    waits.found.insert(Arc::clone(&key), value.clone());
                }
                if waits.missing.is_empty() {
                    let found = std::mem::take(&mut waits.found);
                    self.end(asker, Ok(found), out);
                }
            }
            if !self.old.remove(&key) {
                self.keep(now, key, value);
            }
        }
    }

    fn end(&mut self, asker: u64, answer: Brought<V>, out: &mut Vec<Output<V>>) {
        if let Some(waits) = self.askers.remove(&asker) {
            self.waiting -= waits.missing.len();
            out.push(Output::Answer(asker, answer));
        }
    }

    fn keep(&mut self, now: Instant, key: Arc<str>, value: Option<V>) {
        self.let_go(&key);
        if self.config.kept_max == 0 || self.config.kept_for.is_zero() {
            return;
        }
        if self.kept.len() >= self.config.kept_max
            && let Some((_, oldest)) = self.ends.first().cloned()
        {
            self.let_go(&oldest);
        }
        let until = now + self.config.kept_for;
        self.ends.insert((until, Arc::clone(&key)));
        self.kept.insert(key, (until, value));
    }

    fn let_go(&mut self, key: &Arc<str>) {
        if let Some((until, _)) = self.kept.remove(key) {
            self.ends.remove(&(until, Arc::clone(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::SystemClock;

    use super::*;

    fn config() -> FetchConfig {
        FetchConfig { batch_max: 3, batches_max: 1, waiting_max: 6, kept_max: 2, ..config_5s() }
    }

    fn config_5s() -> FetchConfig {
        FetchConfig { kept_for: Duration::from_secs(5), ..FetchConfig::default() }
    }

    fn keys(text: &str) -> BTreeSet<Arc<str>> {
        text.split_whitespace().map(Arc::from).collect()
    }

    fn values(text: &str) -> BTreeMap<Arc<str>, u64> {
        keys(text).into_iter().map(|key| (key, 7)).collect()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_start(Duration::from_secs(seconds))
    }

    /// Steps once and begins.
    fn step(batches: &mut Batches<u64>, now: u64, input: Input<u64>) -> Vec<Output<u64>> {
        let mut out = Vec::new();
        batches.step(at(now), input, &mut out);
        batches.begin(&mut out);
        out
    }

    fn fetch(batch: u64, text: &str) -> Output<u64> {
        Output::Fetch(batch, text.split_whitespace().map(Arc::from).collect())
    }

    #[test]
    fn a_key_that_many_ask_for_is_fetched_once_and_those_that_wait_go_together() {
        let mut batches = Batches::new(config());
        assert_eq!(step(&mut batches, 0, Input::Asked(0, keys("a b"))), [fetch(0, "a b")]);
        assert_eq!(step(&mut batches, 0, Input::Asked(1, keys("b c"))), []);
        assert_eq!(step(&mut batches, 0, Input::Asked(2, keys("d"))), []);
        // `b` is nobody's: an answer all the same.
        assert_eq!(
            step(&mut batches, 1, Input::Fetched(0, Ok(values("a")))),
            [Output::Answer(0, Ok(values("a"))), fetch(1, "c d")]
        );
        assert_eq!(
            step(&mut batches, 1, Input::Fetched(1, Ok(values("c d")))),
            [Output::Answer(1, Ok(values("c"))), Output::Answer(2, Ok(values("d")))]
        );
        assert_eq!((batches.waiting, batches.wanted.len(), batches.askers.len()), (0, 0, 0));
        // Two are kept, the last two.
        assert_eq!(step(&mut batches, 2, Input::Asked(3, keys("a c"))), [fetch(2, "a")]);
        // And not for ever.
        assert_eq!(step(&mut batches, 6, Input::Asked(4, keys("d"))), []);
    }

    #[test]
    fn more_than_may_wait_is_refused_and_disturbs_nobody() {
        let mut batches = Batches::new(config());
        step(&mut batches, 0, Input::Asked(0, keys("a b c d")));
        let full = FetchError::Full { wanted: 3, waiting: 4, max: 6 };
        assert_eq!(
            step(&mut batches, 0, Input::Asked(1, keys("e f g"))),
            [Output::Answer(1, Err(full))]
        );
        assert_eq!(step(&mut batches, 0, Input::Fetched(0, Ok(values("a b c")))), [fetch(1, "d")]);
    }

    #[test]
    fn a_batch_that_fails_fails_those_who_wait_for_it_and_the_next_try_is_free() {
        let mut batches = Batches::new(config());
        step(&mut batches, 0, Input::Asked(0, keys("a b c d")));
        step(&mut batches, 0, Input::Asked(1, keys("e")));
        // Asker 0 fails, so nobody wants d any more.
        assert_eq!(
            step(&mut batches, 0, Input::Fetched(0, Err(FetchError::Panicked))),
            [Output::Answer(0, Err(FetchError::Panicked)), fetch(1, "e")]
        );
        assert_eq!(batches.waiting, 1);
        step(&mut batches, 0, Input::Fetched(1, Ok(values("e"))));
        assert_eq!(step(&mut batches, 0, Input::Asked(2, keys("a d"))), [fetch(2, "a d")]);
    }

    #[test]
    fn what_was_forgotten_while_it_was_fetched_is_answered_and_not_kept() {
        let mut batches = Batches::new(config());
        step(&mut batches, 0, Input::Asked(0, keys("a")));
        step(&mut batches, 0, Input::Forget("a".into()));
        let answer = [Output::Answer(0, Ok(values("a")))];
        assert_eq!(step(&mut batches, 0, Input::Fetched(0, Ok(values("a")))), answer);
        assert_eq!(step(&mut batches, 0, Input::Asked(1, keys("a"))), [fetch(1, "a")]);
        assert!(batches.old.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_hangs_fails_or_panics_costs_those_who_wait_and_nobody_else() {
        let clock = Arc::new(SystemClock::new());
        let fetcher = Fetcher::start(FetchConfig::default(), clock, |keys| async move {
            match &*keys[0] {
                "hang" => std::future::pending().await,
                "panic" => panic!("asked to"),
                "fail" => Err("no such table".into()),
                _ => Ok(keys.into_iter().map(|key| (Arc::clone(&key), key.len())).collect()),
            }
        });
        let hanging = tokio::spawn({
            let fetcher = fetcher.clone();
            async move { fetcher.get(["hang"]).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(fetcher.get(["panic"]).await, Err(FetchError::Panicked));
        assert_eq!(fetcher.get(["fail"]).await, Err(FetchError::Failed("no such table".into())));
        let found = fetcher.get(["ada", "bo"]).await.unwrap();
        assert_eq!(found, BTreeMap::from([("ada".into(), 3), ("bo".into(), 2)]));
        assert_eq!(hanging.await.unwrap(), Err(FetchError::Late(Duration::from_secs(5))));
    }
}
