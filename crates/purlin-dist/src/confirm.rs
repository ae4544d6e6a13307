//! Waiting until other nodes have what was written here.
//!
//! Confirmations of the replica set's log are not enough: what travels by comparison never passes
//! it. So a waiter asks each node whether it has seen every write of ours up to a number, and the
//! node answers when it has, and when its readers see them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use purlin_core::{NodeId, hlc::NodeTag};
use purlin_net::{
    Method,
    rpc::{Rejection, ServeError},
};
use tokio::sync::oneshot;

use crate::{dist::Inner, error::SyncError};

/// How many waiters a node keeps for others.
pub(crate) const WAITING_MAX: usize = 1_024;
/// How long a node waits for writes of another before it says that it has not seen them.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Whether every write of a life up to a number has been seen.
const SEEN: Method<(NodeTag, u64), bool> = Method::new("dist.seen");

/// Whom to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncTo {
    /// Every other member that can be reached now.
    All,
    /// So many other members, whichever are first.
    Nodes(usize),
}

pub(crate) fn serve(inner: &Arc<Inner>) -> Result<(), ServeError> {
    let weak = Arc::downgrade(inner);
    inner.rpc.serve(SEEN, move |context, (life, upto)| {
        let weak = weak.clone();
        async move {
            let gone = || Rejection::here("this node has ended");
            let mut pause = Duration::from_micros(250);
            let mut waited = Duration::ZERO;
            loop {
                let inner = weak.upgrade().ok_or_else(gone)?;
                if inner.rows.seen(life) >= upto {
                    inner.catch_up().await;
                    return Ok(true);
                }
                let late = context.deadline.is_some_and(|it| it.is_past(inner.clock.now()));
                if late || waited >= WAIT_MAX {
                    return Ok(false);
                }
                drop(inner);
                tokio::time::sleep(pause).await;
                waited += pause;
                pause = (pause * 2).min(Duration::from_millis(10));
            }
        }
    })
}

impl Inner {
    /// Waits until readers here see what the replica set holds now.
    async fn catch_up(&self) {
        let (done, seen) = oneshot::channel();
        if self.barriers.send(done).await.is_ok() {
            // Gone only with the node.
            seen.await.ok();
        }
    }

    pub(crate) async fn sync_to(
        &self,
        to: SyncTo,
        within: Duration,
    ) -> Result<Vec<NodeId>, SyncError> {
        let wanted_writes = (NodeTag::of(&self.me), self.rows.written());
        let view = self.cluster.view();
        let others: BTreeSet<NodeId> = view
            .members
            .iter()
            .filter(|member| member.is_reachable() && member.id != self.me)
            .map(|member| member.id.clone())
            .collect();
        let wanted = match to {
            SyncTo::All => others.len(),
            SyncTo::Nodes(nodes) => nodes,
        };
        let mut asked: FuturesUnordered<_> = others
            .into_iter()
            .map(|node| async move {
                let seen = self.rpc.call(&node.name, SEEN, &wanted_writes, within).await;
                seen.is_ok_and(|seen| seen).then_some(node)
            })
            .collect();
        let mut confirmed = Vec::new();
        let all = async {
            while confirmed.len() < wanted {
                match asked.next().await {
                    Some(node) => confirmed.extend(node),
                    None => break,
                }
            }
        };
        // Each call has its own deadline; this one bounds a call that is not even sent.
        tokio::time::timeout(within, all).await.ok();
        if confirmed.len() >= wanted { Ok(confirmed) } else { Err(SyncError { confirmed, wanted }) }
    }
}
