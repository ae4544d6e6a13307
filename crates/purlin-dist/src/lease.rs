//! Leases: what one node holds at a time, for a while, with a token that only grows.
//!
//! Here is only what singletons and split policies ask of a lease service. An engine that keeps its
//! word across partitions and restarts is built on consensus; [`SoleLeases`] is for one process.

use std::{collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use purlin_core::{Clock, Instant, NodeId};

/// A lease that was granted.
///
/// Its holder counts its time from the moment it asked, by its own monotonic clock, and stops before
/// that is over: the service's clock began later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What is leased.
    pub name: Arc<str>,
    /// To whom.
    pub holder: NodeId,
    /// Greater than that of every earlier lease of the name, for ever. Stays when it is renewed.
    pub token: u64,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Another holds it. Nothing was changed; ask again later.
    #[error("lease {name:?} is held by {by}")]
    Held {
        /// Which lease.
        name: String,
        /// Who holds it.
        by: NodeId,
    },
    /// It is over, or was never granted. The holder must have stopped.
    #[error("lease {0:?} is over")]
    Over(String),
    /// The service cannot be reached, or has no quorum. What was asked may have been done.
    #[error("leases cannot be asked for: {0}")]
    Unreachable(String),
}

/// What a lease service answers with.
pub type Leased<'a, T> = Pin<Box<dyn Future<Output = Result<T, LeaseError>> + Send + 'a>>;

/// A lease service.
///
/// # Guarantees
/// At any moment at most one holder of a name may believe that it holds it, provided that holders
/// count as [`Lease`] says and their monotonic clocks run at one rate. Tokens of a name only grow,
/// across restarts of the service too.
pub trait Leases: Send + Sync + fmt::Debug + 'static {
    /// Leases `name` to `holder` for `ttl`, unless another has it. Whoever holds it already gets
    /// the same lease, renewed.
    fn acquire<'a>(&'a self, name: &'a str, holder: &'a NodeId, ttl: Duration)
    -> Leased<'a, Lease>;

    /// Holds it for `ttl` more, from now on.
    fn renew<'a>(&'a self, lease: &'a Lease, ttl: Duration) -> Leased<'a, ()>;

    /// Gives it back. One that is over is given back already.
    fn release<'a>(&'a self, lease: &'a Lease) -> Leased<'a, ()>;

    /// Who holds `name` now, as far as the service knows.
    fn holder<'a>(&'a self, name: &'a str) -> Leased<'a, Option<NodeId>>;
}

/// Leases of one process, in memory: for tests, and for a node that stands alone.
///
/// Shared by several nodes of one process it is a lease service for them; between processes it
/// promises nothing. Tokens begin anew with it.
#[derive(Debug)]
pub struct SoleLeases {
    clock: Arc<dyn Clock>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    token: u64,
    /// Bounded by the names that are asked for: those that are over are dropped with the next.
    leases: BTreeMap<String, (Lease, Instant)>,
}

impl SoleLeases {
    /// Nothing is leased yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, held: Mutex::default() }
    }

    fn now_held(&self) -> parking_lot::MutexGuard<'_, Held> {
        let now = self.clock.now();
        let mut held = self.held.lock();
        held.leases.retain(|_, (_, until)| *until > now);
        held
    }
}

impl Leases for SoleLeases {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        holder: &'a NodeId,
        ttl: Duration,
    ) -> Leased<'a, Lease> {
        let until = self.clock.now() + ttl;
        let mut held = self.now_held();
        let answer = match held.leases.get_mut(name) {
            Some((lease, end)) if lease.holder == *holder => {
                *end = until;
                Ok(lease.clone())
            }
            Some((lease, _)) => {
                Err(LeaseError::Held { name: name.to_owned(), by: lease.holder.clone() })
            }
            None => {
                held.token += 1;
                let lease = Lease { name: name.into(), holder: holder.clone(), token: held.token };
                held.leases.insert(name.to_owned(), (lease.clone(), until));
                Ok(lease)
            }
        };
        Box::pin(std::future::ready(answer))
    }

    fn renew<'a>(&'a self, lease: &'a Lease, ttl: Duration) -> Leased<'a, ()> {
        let until = self.clock.now() + ttl;
        let mut held = self.now_held();
        let answer = match held.leases.get_mut(&*lease.name) {
            Some((now, end)) if now == lease => {
                *end = until;
                Ok(())
            }
            _ => Err(LeaseError::Over(lease.name.to_string())),
        };
        Box::pin(std::future::ready(answer))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> Leased<'a, ()> {
        let mut held = self.now_held();
        if held.leases.get(&*lease.name).is_some_and(|(now, _)| now == lease) {
            held.leases.remove(&*lease.name);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn holder<'a>(&'a self, name: &'a str) -> Leased<'a, Option<NodeId>> {
        let held = self.now_held();
        let holder = held.leases.get(name).map(|(lease, _)| lease.holder.clone());
        Box::pin(std::future::ready(Ok(holder)))
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{SystemClock, WallTime};

    use super::*;

    #[derive(Debug, Default)]
    struct Hands(Mutex<Duration>);

    impl Clock for Hands {
        fn now(&self) -> Instant {
            Instant::from_start(*self.0.lock())
        }

        fn wall(&self) -> WallTime {
            SystemClock::new().wall()
        }
    }

    #[tokio::test]
    async fn a_lease_has_one_holder_until_it_is_over_and_its_token_only_grows() {
        let clock = Arc::new(Hands::default());
        let leases = SoleLeases::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let [one, two]: [NodeId; 2] = ["n1@1", "n2@1"].map(|id| id.parse().unwrap());
        let ttl = Duration::from_secs(10);
        let pass = |by: u64| *clock.0.lock() += Duration::from_secs(by);
        let first = leases.acquire("a", &one, ttl).await.unwrap();
        assert_eq!(leases.acquire("a", &one, ttl).await, Ok(first.clone()));
        let by = one.clone();
        let refused = LeaseError::Held { name: "a".to_owned(), by };
        assert_eq!(leases.acquire("a", &two, ttl).await, Err(refused));
        pass(9);
        leases.renew(&first, ttl).await.unwrap();
        pass(9);
        assert_eq!(leases.holder("a").await, Ok(Some(one.clone())));
        pass(1);
        let second = leases.acquire("a", &two, ttl).await.unwrap();
        assert!(second.token > first.token);
        assert_eq!(leases.renew(&first, ttl).await, Err(LeaseError::Over("a".to_owned())));
        leases.release(&first).await.unwrap();
        assert_eq!(leases.holder("a").await, Ok(Some(two)));
        leases.release(&second).await.unwrap();
        assert_eq!(leases.holder("a").await, Ok(None));
        assert!(leases.acquire("a", &one, ttl).await.unwrap().token > second.token);
    }
}
