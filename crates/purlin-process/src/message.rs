//! What processes say to each other, and the trait form of a server.
//!
//! A server handles each message type with its own reply type, checked when the *caller* is
//! compiled: `cart.call(AddItem { .. })` exists only if `Cart: Handle<AddItem>`.

use std::{any::Any, fmt, future::Future};

use serde::{Deserialize, Serialize};

use crate::{Context, ExitReason, MonitorId, Pid};

/// The kind of a message on the wire: a hash of [`Message::NAME`].
///
/// The name, not the order of declaration, is what two releases must agree on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageKind(pub u64);

impl MessageKind {
    /// The kind of messages called `name` (64-bit FNV-1a).
    #[must_use]
    pub const fn of(name: &str) -> Self {
        let bytes = name.as_bytes();
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        Self(hash)
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Something that can be sent to a process, and what comes back.
pub trait Message: Send + Sized + 'static {
    /// What a call with this message returns. A cast drops it.
    type Reply: Send + 'static;

    /// What the message is called on the wire and in introspection, such as `Cart.add_item`.
    const NAME: &'static str;

    /// The message's kind on the wire.
    const KIND: MessageKind = MessageKind::of(Self::NAME);

    /// How many bytes the message holds, for the mailbox's bound in bytes.
    ///
    /// The default is the size of the value itself; messages that own large buffers add those.
    /// Messages from other nodes count with their encoded size instead when that is larger.
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

/// A process's state and its life: the trait form underneath `#[server]`.
///
/// One task runs all callbacks of one process, one after the other, so `&mut self` needs no lock.
/// A panic in any callback ends the process with [`ExitReason::Panicked`]; it takes no task and
/// no other process with it, except those linked to it.
///
/// Not for grouping functions: a process exists for concurrency, isolation or a lifetime.
///
/// ```
/// use purlin_process::{Context, ExitReason, Handle, Message, Processes, Server, SpawnOptions};
///
/// struct Counter(u64);
/// struct Add(u64);
///
/// impl Message for Add {
///     type Reply = u64;
///     const NAME: &'static str = "Counter.add";
/// }
/// impl Server for Counter {
///     const KIND: &'static str = "Counter";
///     type Args = u64;
///     async fn init(start: u64, _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
///         Ok(Counter(start))
///     }
/// }
/// impl Handle<Add> for Counter {
///     async fn handle(&mut self, add: Add, _ctx: &mut Context<Self>) -> u64 {
///         self.0 += add.0;
///         self.0
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let processes = Processes::for_tests();
/// let counter = processes.spawn::<Counter>(40, SpawnOptions::default()).await.unwrap();
/// assert_eq!(counter.call(Add(2)).await, Ok(42));
/// # }
/// ```
pub trait Server: Send + Sized + 'static {
    /// What kind of server this is, for introspection, logs and metrics.
    const KIND: &'static str;

    /// What [`Server::init`] needs. A supervisor makes a fresh one for every restart.
    type Args: Send + 'static;

    /// Makes the state. The process takes messages from the moment it is spawned, and handles
    /// them once this has returned.
    ///
    /// # Errors
    /// The reason the process exits with instead of starting; whoever spawned it gets it as
    /// [`SpawnError::Init`](crate::SpawnError::Init).
    fn init(
        args: Self::Args,
        ctx: &mut Context<Self>,
    ) -> impl Future<Output = Result<Self, ExitReason>> + Send;

    /// Handles what is not a message of its own type: timers, exits of linked processes, ends
    /// of monitored ones. The default drops it.
    fn info(&mut self, info: Info, ctx: &mut Context<Self>) -> impl Future<Output = ()> + Send {
        let _ = ctx;
        tracing::trace!(server = Self::KIND, ?info, "info without a handler");
        std::future::ready(())
    }

    /// Cleans up: the last callback, on every exit but a kill and a failed `init`.
    ///
    /// After a panic the state is as the panic left it. Bounded by
    /// [`SpawnOptions::terminate_within`](crate::SpawnOptions::terminate_within).
    fn terminate(
        &mut self,
        reason: &ExitReason,
        ctx: &mut Context<Self>,
    ) -> impl Future<Output = ()> + Send {
        let _ = (reason, ctx);
        std::future::ready(())
    }

    /// The state in a line or two for people, on request. Runs between two messages, so keep it
    /// cheap, and keep secrets out of it.
    fn summary(&self) -> String {
        String::new()
    }
}

/// A [`Server`] that handles messages of type `M`.
pub trait Handle<M: Message>: Server {
    /// Handles one message. Its value is the caller's answer; for a cast it is dropped.
    ///
    /// The future may be dropped at an await point when the process is killed or a linked
    /// process fails: keep the state consistent across awaits.
    fn handle(
        &mut self,
        message: M,
        ctx: &mut Context<Self>,
    ) -> impl Future<Output = M::Reply> + Send;

    /// Handles one message without a future, or gives it back to be handled with one.
    ///
    /// For handlers that never wait: a future has to be put somewhere, and that allocation is a
    /// good part of what a message costs. `#[server]` writes this for methods that are not
    /// `async`. The default gives the message back.
    ///
    /// # Errors
    /// The message itself, untouched: [`Handle::handle`] gets it next.
    fn handle_now(&mut self, message: M, ctx: &mut Context<Self>) -> Result<M::Reply, M> {
        let _ = ctx;
        Err(message)
    }
}

/// What reaches a process without being a message of its own type.
#[derive(Debug)]
#[non_exhaustive]
pub enum Info {
    /// A linked process ended, and this one traps exits.
    Exit {
        /// Who ended.
        from: Pid,
        /// Why.
        reason: ExitReason,
    },
    /// A monitored process ended, or cannot be reached any more.
    Down {
        /// The monitor that fires; each fires once.
        monitor: MonitorId,
        /// Who ended.
        process: Pid,
        /// Why.
        reason: ExitReason,
    },
    /// A timer of this process fired; holds its key.
    Timer(&'static str),
    /// Anything else that was sent with `send_info`.
    Message(Box<dyn Any + Send>),
}
