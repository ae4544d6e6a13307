//! Several sources as one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use futures_util::future::BoxFuture;
use tokio::{sync::mpsc, task::JoinSet};

use super::{Discovery, DiscoveryError};

type News = (usize, Result<BTreeSet<SocketAddr>, DiscoveryError>);

/// The union of what several sources report.
///
/// Each source runs in a task of its own, from the first call of [`Discovery::next`] on, so a slow
/// one holds up no other; the tasks end with this value. A source that fails contributes its last
/// list.
#[derive(Debug)]
pub struct Combined {
    described: String,
    waiting: Vec<Box<dyn Discovery>>,
    tasks: JoinSet<()>,
    lists: BTreeMap<usize, BTreeSet<SocketAddr>>,
    told: Option<BTreeSet<SocketAddr>>,
    news: mpsc::Receiver<News>,
    /// Kept here so that the channel stays open even without sources.
    teller: mpsc::Sender<News>,
}

impl Combined {
    /// All of `sources`; none are as good as one that never finds anything.
    #[must_use]
    pub fn new(sources: Vec<Box<dyn Discovery>>) -> Self {
        let described =
            sources.iter().map(|source| source.describe()).collect::<Vec<_>>().join("; ");
        // One place: a source goes on only when its news was taken.
        let (teller, news) = mpsc::channel(1);
        Self {
            described,
            waiting: sources,
            tasks: JoinSet::new(),
            lists: BTreeMap::new(),
            told: None,
            news,
            teller,
        }
    }

    async fn next_list(&mut self) -> Result<BTreeSet<SocketAddr>, DiscoveryError> {
        for (number, source) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            self.tasks.spawn(run(number, source, self.teller.clone()));
        }
        loop {
            let (number, news) =
                self.news.recv().await.expect("the channel is open: this value holds a sender");
            self.lists.insert(number, news?);
            let union: BTreeSet<_> = self.lists.values().flatten().copied().collect();
            if self.told.as_ref() != Some(&union) {
                self.told = Some(union.clone());
                return Ok(union);
            }
        }
    }
}

impl Discovery for Combined {
    fn describe(&self) -> String {
        self.described.clone()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<BTreeSet<SocketAddr>, DiscoveryError>> {
        Box::pin(self.next_list())
    }
}

async fn run(number: usize, mut source: Box<dyn Discovery>, teller: mpsc::Sender<News>) {
    loop {
        let news = source.next().await;
        if teller.send((number, news)).await.is_err() {
            return;
        }
    }
}
