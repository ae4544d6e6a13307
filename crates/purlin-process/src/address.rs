//! A process, here or on another node: the same methods, the same errors.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    CallError, CastError, DownSink, Handle, MonitorId, Monitored, Pid, ProcessRef, RemoteMessage,
    RemoteRef, Server, Unwatch, call::CALL_WITHIN,
};

/// Where a process is: on this node, or on another.
///
/// Code written against an address does not change when the process moves to another node; its
/// promises do: see [`RemoteRef`] for what a network adds to what can go wrong.
pub enum Address<S: Server> {
    /// On this node.
    Local(ProcessRef<S>),
    /// On another node.
    Remote(RemoteRef<S>),
}

impl<S: Server> Clone for Address<S> {
    fn clone(&self) -> Self {
        match self {
            Self::Local(process) => Self::Local(process.clone()),
            Self::Remote(process) => Self::Remote(process.clone()),
        }
    }
}

impl<S: Server> fmt::Debug for Address<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(process) => process.fmt(f),
            Self::Remote(process) => process.fmt(f),
        }
    }
}

impl<S: Server> From<ProcessRef<S>> for Address<S> {
    fn from(process: ProcessRef<S>) -> Self {
        Self::Local(process)
    }
}

impl<S: Server> From<RemoteRef<S>> for Address<S> {
    fn from(process: RemoteRef<S>) -> Self {
        Self::Remote(process)
    }
}

impl<S: Server> Address<S> {
    /// Its identity.
    #[must_use]
    pub fn pid(&self) -> &Pid {
        match self {
            Self::Local(process) => process.pid(),
            Self::Remote(process) => process.pid(),
        }
    }

    /// The local reference, if it is on this node.
    #[must_use]
    pub fn local(&self) -> Option<&ProcessRef<S>> {
        match self {
            Self::Local(process) => Some(process),
            Self::Remote(_) => None,
        }
    }

    /// Sends `message` and waits for its reply, 5 s at most.
    ///
    /// # Errors
    /// As [`ProcessRef::call_within`] and [`RemoteRef::call_within`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the reply; the work may be done all the same.
    pub async fn call<M: RemoteMessage>(&self, message: M) -> Result<M::Reply, CallError>
    where
        S: Handle<M>,
    {
        self.call_within(message, CALL_WITHIN).await
    }

    /// Sends `message` and waits for its reply, `within` at most.
    ///
    /// # Errors
    /// As [`ProcessRef::call_within`] and [`RemoteRef::call_within`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the reply; the work may be done all the same.
    pub async fn call_within<M: RemoteMessage>(
        &self,
        message: M,
        within: Duration,
    ) -> Result<M::Reply, CallError>
    where
        S: Handle<M>,
    {
        match self {
            Self::Local(process) => process.call_within(message, within).await,
            Self::Remote(process) => process.call_within(message, within).await,
        }
    }

    /// Sends `message` without waiting for it to be handled; waits for room if need be.
    ///
    /// # Errors
    /// As [`ProcessRef::cast`] and [`RemoteRef::cast`].
    ///
    /// # Cancel safety
    /// Dropping the future before it is done sends nothing.
    pub async fn cast<M: RemoteMessage>(&self, message: M) -> Result<(), CastError>
    where
        S: Handle<M>,
    {
        match self {
            Self::Local(process) => process.cast(message).await,
            Self::Remote(process) => process.cast(message).await,
        }
    }

    /// Sends `message` now or not at all.
    ///
    /// # Errors
    /// As [`ProcessRef::try_cast`] and [`RemoteRef::try_cast`].
    pub fn try_cast<M: RemoteMessage>(&self, message: M) -> Result<(), CastError>
    where
        S: Handle<M>,
    {
        match self {
            Self::Local(process) => process.try_cast(message),
            Self::Remote(process) => process.try_cast(&message),
        }
    }
}

impl<S: Server> Monitored for Address<S> {
    fn watch(&self, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch {
        match self {
            Self::Local(process) => process.watch(monitor, sink),
            Self::Remote(process) => process.watch(monitor, sink),
        }
    }
}
