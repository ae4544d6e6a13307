//! Remote calls between members: by name, and to all that a selector means.
//!
//! [`Rpc`] calls peers, which are connections. Here one calls members, which have a state: who is
//! down or has left is not called at all, and that answer costs nothing and is certain.

use std::{fmt, future::Future, sync::Arc};

use purlin_core::{Advice, NodeId, NodeName, Outcome};
use purlin_net::{
    Peer, SendError, Transport,
    rpc::{CallError, CallOptions, Method, Rejection, Rpc, RpcContext, ServeError},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    cluster::Cluster,
    drain::Intake,
    swim::State,
    view::{Member, Selector},
};

/// Why a call to a member has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemberCallError {
    /// Nobody of this name is known. Nothing was sent.
    #[error("no member is called {0}")]
    NoMember(NodeName),
    /// The member is down or has left. Nothing was sent.
    #[error("member {node} is {state}")]
    Gone {
        /// Who.
        node: NodeId,
        /// `Down` or `Left`.
        state: State,
    },
    /// It is this node: call your own function. Nothing was sent.
    #[error("{0} is this node")]
    Myself(NodeName),
    /// The call itself ended without a reply.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl MemberCallError {
    /// Whether it may have run.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NoMember(_) | Self::Gone { .. } | Self::Myself(_) => Outcome::NotDone,
            Self::Call(error) => error.outcome(),
        }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::NoMember(_) | Self::Gone { .. } => Advice::RetryElsewhere(None),
            Self::Myself(_) => Advice::GiveUp,
            Self::Call(error) => error.advice(),
        }
    }
}

impl From<SendError> for MemberCallError {
    fn from(error: SendError) -> Self {
        Self::Call(CallError::NotSent(error))
    }
}

/// Remote calls between the members of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct MembersRpc {
    cluster: Cluster,
    transport: Transport,
    rpc: Rpc,
}

impl fmt::Debug for MembersRpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "calls between members, seen by {}", self.cluster.node())
    }
}

impl MembersRpc {
    /// Calls over `rpc` to the members of `cluster`, both on `transport`. A drain of the cluster
    /// from now on refuses new calls to this node and waits for the accepted ones.
    ///
    /// Make it once per node and clone it.
    #[must_use]
    pub fn new(cluster: Cluster, transport: Transport, rpc: Rpc) -> Self {
        cluster.add_intake(Arc::new(Calls(rpc.clone())));
        Self { cluster, transport, rpc }
    }

    /// The calls underneath, to peers instead of members.
    #[must_use]
    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// Answers calls of `method` with `handler`; see [`Rpc::serve`].
    ///
    /// # Errors
    /// [`ServeError`] when the name is served already.
    pub fn serve<Q, R, F, Fut>(&self, method: Method<Q, R>, handler: F) -> Result<(), ServeError>
    where
        Q: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(RpcContext, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Rejection>> + Send + 'static,
    {
        self.rpc.serve(method, handler)
    }

    /// The connection to the member called `name`, if it may be called now.
    ///
    /// # Errors
    /// [`MemberCallError`]; nothing was sent.
    pub fn peer(&self, name: &NodeName) -> Result<Peer, MemberCallError> {
        let view = self.cluster.view();
        let member = view.get(name).ok_or_else(|| MemberCallError::NoMember(name.clone()))?;
        self.peer_of(member)
    }

    fn peer_of(&self, member: &Member) -> Result<Peer, MemberCallError> {
        let node = &member.id;
        if node == self.cluster.node() {
            return Err(MemberCallError::Myself(node.name.clone()));
        }
        if !member.is_reachable() {
            return Err(MemberCallError::Gone { node: node.clone(), state: member.state });
        }
        self.transport.peer(node).ok_or_else(|| SendError::NotAPeer(node.clone()).into())
    }

    /// Calls `method` on the member called `name` and waits for its reply.
    ///
    /// # Units and limits
    /// As [`Rpc::call`].
    ///
    /// # Errors
    /// [`MemberCallError`]; [`MemberCallError::outcome`] says whether it may have run.
    ///
    /// # Guarantees
    /// At most once. Partitioned: ends as unknown at the latest by its deadline, at once when the
    /// member is found down. Restarted: a call made to the old life never reaches the new one.
    ///
    /// # Cancel safety
    /// As [`Rpc::call`].
    pub async fn call<Q, R>(
        &self,
        name: &NodeName,
        method: Method<Q, R>,
        request: &Q,
        options: impl Into<CallOptions>,
    ) -> Result<R, MemberCallError>
    where
        Q: Serialize,
        R: DeserializeOwned,
    {
        let peer = self.peer(name)?;
        Ok(self.rpc.call(&peer, method, request, options).await?)
    }

    /// Sends `message` to `method` on the member called `name` and does not wait.
    ///
    /// # Errors
    /// [`MemberCallError`], always with nothing done: the message never left this node.
    pub fn cast<Q: Serialize, R>(
        &self,
        name: &NodeName,
        method: Method<Q, R>,
        message: &Q,
        options: CallOptions,
    ) -> Result<(), MemberCallError> {
        let peer = self.peer(name)?;
        Ok(self.rpc.cast(&peer, method, message, options)?)
    }

    /// Calls `method` on all members alive that `selector` means, this node left out. One outcome
    /// per member, in the order of their names; ready at the deadline at the latest.
    ///
    /// # Guarantees
    /// As [`call`](Self::call) for each. Whom to call is decided once, by the view of this moment.
    ///
    /// # Cancel safety
    /// As [`Rpc::call`], for every member.
    pub async fn multi_call<Q, R>(
        &self,
        selector: &Selector,
        method: Method<Q, R>,
        request: &Q,
        options: impl Into<CallOptions>,
    ) -> Vec<(NodeId, Result<R, MemberCallError>)>
    where
        Q: Serialize,
        R: DeserializeOwned,
    {
        let view = self.cluster.view();
        let me = self.cluster.node();
        let mut outcomes = Vec::new();
        let mut peers = Vec::new();
        for member in view.select(selector).filter(|member| member.id != *me) {
            match self.peer_of(member) {
                Ok(peer) => peers.push(peer),
                Err(error) => outcomes.push((member.id.clone(), Err(error))),
            }
        }
        let called = self.rpc.multi_call(&peers, method, request, options).await;
        outcomes.extend(called.into_iter().map(|(id, end)| (id, end.map_err(Into::into))));
        outcomes.sort_by(|(a, _), (b, _)| a.cmp(b));
        outcomes
    }
}

/// The calls that other nodes make here.
struct Calls(Rpc);

impl Intake for Calls {
    fn name(&self) -> &str {
        "rpc calls"
    }

    fn refuse_new(&self) {
        self.0.refuse_new();
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }
}
