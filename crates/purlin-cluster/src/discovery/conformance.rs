//! Checks a [`Discovery`] implementation against what the trait promises.
//!
//! Implement [`Harness`] for your source (start it, change what it should find, break it) and call
//! [`check`] in a test. Purlin's own sources go through the same check.

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{Discovery, DiscoveryError};

/// What the check needs to be able to do with the source under test.
///
/// Methods that a source cannot support return `false`; what depends on them is then not checked.
pub trait Harness: Send {
    /// A new source that finds what was last [published](Harness::publish), at first `addrs`.
    fn start<'a>(
        &'a mut self,
        addrs: &'a BTreeSet<SocketAddr>,
    ) -> BoxFuture<'a, Box<dyn Discovery>>;

    /// Makes the source find `addrs` from now on. False if its list can never change.
    fn publish<'a>(&'a mut self, addrs: &'a BTreeSet<SocketAddr>) -> BoxFuture<'a, bool>;

    /// Makes the source fail from now on, until the next publish. False if it cannot fail.
    fn fail(&mut self) -> BoxFuture<'_, bool>;
}

type News = Result<BTreeSet<SocketAddr>, DiscoveryError>;

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// The promise, as a sentence.
    pub promise: &'static str,
    /// What happened instead.
    pub evidence: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken promise: {}: {}", self.promise, self.evidence)
    }
}

impl std::error::Error for Breach {}

/// The most news a source may have in [`QUIET_FOR`] when nothing happens.
const QUIET_NEWS_MAX: usize = 2;

/// How long the source is watched while nothing happens.
const QUIET_FOR: Duration = Duration::from_millis(500);

/// Takes a source through its life; every wait is at most `within` (give three times what your
/// source needs to notice a change).
///
/// # Errors
/// The first [`Breach`].
pub async fn check(harness: &mut impl Harness, within: Duration) -> Result<(), Breach> {
    let first = addrs(&[1, 2, 3]);
    let mut source = harness.start(&first).await;
    describes_itself(&*source)?;
    let early = drop_futures(&mut *source);
    let promise = "the first list is complete, even after dropped futures";
    if early != Some(Ok(first.clone())) {
        expect_list(&mut *source, &first, within, promise).await?;
    }
    is_quiet(&mut *source).await?;

    for (next, promise) in [
        (addrs(&[2, 3, 4]), "a changed list is reported, complete"),
        (addrs(&[4]), "a list without some earlier addresses replaces the longer one"),
    ] {
        if !harness.publish(&next).await {
            break;
        }
        expect_list(&mut *source, &next, within, promise).await?;
    }
    if harness.fail().await {
        expect_trouble(&mut *source, within).await?;
        let healed = addrs(&[5, 6]);
        harness.publish(&healed).await;
        expect_list(&mut *source, &healed, within, "a source that failed goes on by itself")
            .await?;
    }
    is_quiet(&mut *source).await
}

fn addrs(ports: &[u16]) -> BTreeSet<SocketAddr> {
    ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], 7400 + port))).collect()
}

fn describes_itself(source: &dyn Discovery) -> Result<(), Breach> {
    let text = source.describe();
    if text.is_empty() || text.contains('\n') || text != source.describe() {
        return Err(Breach {
            promise: "a source describes itself in one stable line",
            evidence: format!("{text:?}"),
        });
    }
    Ok(())
}

/// Polls a few futures once each and drops them unless they are ready, as a `select!` does.
fn drop_futures(source: &mut dyn Discovery) -> Option<News> {
    let mut nobody = Context::from_waker(Waker::noop());
    (0..5).find_map(|_| match source.next().as_mut().poll(&mut nobody) {
        Poll::Ready(news) => Some(news),
        Poll::Pending => None,
    })
}

async fn expect_list(
    source: &mut dyn Discovery,
    expected: &BTreeSet<SocketAddr>,
    within: Duration,
    promise: &'static str,
) -> Result<(), Breach> {
    let mut seen = Vec::new();
    let reached = async {
        loop {
            match source.next().await {
                Ok(list) if list == *expected => return,
                // Troubles and lists on the way there are allowed, not being stuck there.
                other => seen.push(format!("{other:?}")),
            }
        }
    };
    match tokio::time::timeout(within, reached).await {
        Ok(()) => Ok(()),
        Err(_) => Err(Breach {
            promise,
            evidence: format!("expected {expected:?} within {within:?}, got {seen:?}"),
        }),
    }
}

async fn expect_trouble(source: &mut dyn Discovery, within: Duration) -> Result<(), Breach> {
    let promise = "a failure is reported, and is not an empty list";
    match tokio::time::timeout(within, source.next()).await {
        Ok(Err(_)) => Ok(()),
        Ok(Ok(list)) => Err(Breach { promise, evidence: format!("got the list {list:?}") }),
        Err(_) => {
            Err(Breach { promise, evidence: format!("nothing was reported within {within:?}") })
        }
    }
}

async fn is_quiet(source: &mut dyn Discovery) -> Result<(), Breach> {
    let mut news = Vec::new();
    let watching = async {
        while news.len() <= QUIET_NEWS_MAX {
            news.push(format!("{:?}", source.next().await));
        }
    };
    match tokio::time::timeout(QUIET_FOR, watching).await {
        Err(_) => Ok(()),
        Ok(()) => Err(Breach {
            promise: "while nothing changes, nothing is reported",
            evidence: format!("{} reports within {QUIET_FOR:?}: {news:?}", news.len()),
        }),
    }
}
