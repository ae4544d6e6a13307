//! Processes: state that answers messages, fails alone and is started again.
//!
//! A task with a channel is easy; what is missing is everything around it. Who notices when it
//! panics? Who tells the callers that wait? What happens when messages come faster than they are
//! handled, when the caller has stopped waiting, when the node shuts down? Purlin's processes
//! answer these once, in the manner of Erlang/OTP's `gen_server` and `supervisor`: typed messages,
//! bounded mailboxes, deadlines, links, monitors, exit reasons and supervision trees.
//!
//! # How to use it
//! ```
//! use std::collections::BTreeMap;
//! use purlin_process::{ChildSpec, Processes, SpawnOptions, Strategy, SupervisorSpec};
//!
//! struct Cart {
//!     items: BTreeMap<String, u32>,
//! }
//!
//! // With the `purlin` crate it is `#[purlin::server]`, without the argument.
//! #[purlin_process::server(crate = "::purlin_process")]
//! impl Cart {
//!     #[init]
//!     fn open() -> Self {
//!         Self { items: BTreeMap::new() }
//!     }
//!
//!     /// Adds `count` of `sku` and tells how many of it there are now.
//!     #[call]
//!     fn add_item(&mut self, sku: String, count: u32) -> u32 {
//!         let have = self.items.entry(sku).or_default();
//!         *have += count;
//!         *have
//!     }
//!
//!     #[cast]
//!     fn clear(&mut self) {
//!         self.items.clear();
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let processes = Processes::for_tests();
//!
//! // A process, and the handle that talks to it, here or from another node.
//! let cart = CartHandle::spawn(&processes).await?;
//! assert_eq!(cart.add_item("oak-beam".to_owned(), 2).await?, 2);
//! cart.clear().await?;
//!
//! // Started again when it fails, at most three times in five seconds.
//! let child = ChildSpec::remote_server::<Cart>("cart", || ()).options(SpawnOptions::named("cart"));
//! let shop = processes.supervise(SupervisorSpec::new(Strategy::OneForOne).child(child)).await?;
//! let cart = CartHandle::from(processes.whereis::<Cart>("cart").ok_or("no cart")?);
//! assert_eq!(cart.add_item("nail".to_owned(), 40).await?, 40);
//! shop.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! The trait form ([`Server`], [`Handle`]) underneath is public and sufficient.
//!
//! In reading order:
//! - [`message`]: [`Message`], [`Server`], [`Handle`], [`Info`]; [`id`]: who is who
//! - [`process`]: starting one, [`ProcessRef`], its task; [`context`]: what callbacks can do
//! - [`mailbox`]: the bounded queue; [`call`]: a local call; [`deadline`]: no timer per call
//! - [`exit`], [`link`], [`timer`]: ends, who hears of them, and time
//! - [`system`]: all [`Processes`] of a node; [`registry`]: their names; [`introspect`]
//! - [`supervisor`]: who starts them again
//! - [`visit`]: a closure as a message
//! - [`remote`], [`address`]: the seam to other nodes

pub mod address;
pub mod call;
pub mod context;
pub mod deadline;
pub mod error;
pub mod exit;
pub mod id;
pub mod introspect;
pub mod link;
pub mod mailbox;
pub mod message;
pub mod process;
pub mod registry;
pub mod remote;
pub mod supervisor;
pub mod system;
pub mod timer;
pub mod visit;

pub use address::Address;
pub use call::{CALL_WITHIN, Call};
pub use context::Context;
pub use deadline::Swept;
pub use error::{CallError, Callee, CastError, SpawnError};
pub use exit::{ExitReason, IntoExitReason};
pub use id::{MonitorId, Pid, ProcessId};
pub use introspect::{ProcessInfo, SummaryError};
pub use link::{DownSink, Monitored, Unwatch};
pub use mailbox::{Envelope, MailboxLimits, Overload};
pub use message::{Handle, Info, Message, MessageKind, Server};
pub use process::{AnyProcess, Phase, ProcessRef, SpawnOptions};
pub use purlin_macros::server;
pub use registry::{Metadata, RegisterError, Registration, Registry};
pub use remote::{
    Answer, ConsumeRoute, Consumed, DecodeError, Encode, EncodeError, Inbound, Outbound,
    RemoteMessage, RemoteRef, RemoteServer, RemoteTarget, ReplyRoute, ReplySlot, ReplyTo, Target,
    Undelivered, current_trace, with_trace,
};
pub use supervisor::{
    Backoff, ChildCounts, ChildError, ChildInfo, ChildSpec, ChildState, Intensity, Restart,
    Shutdown, Strategy, Supervisor, SupervisorRef, SupervisorSpec,
};
pub use system::{InboundCounts, ProcessLimits, Processes, ShutdownReport};
pub use visit::Visit;

/// What `#[server]` writes refers to; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use serde;

    /// How many bytes a field of a message owns elsewhere, as far as its type tells. Which trait
    /// applies is settled by method lookup on `&&Heap`: as it is, then borrowed once more, then
    /// with a reference less.
    #[derive(Debug)]
    pub struct Heap<'a, T>(pub &'a T);

    /// Text and bytes.
    pub trait HeapOfBytes {
        /// The bytes owned.
        fn heap_bytes(&self) -> usize;
    }

    impl<T: AsRef<[u8]>> HeapOfBytes for &Heap<'_, T> {
        fn heap_bytes(&self) -> usize {
            self.0.as_ref().len()
        }
    }

    /// Lists of values; what the values own in turn is not counted.
    pub trait HeapOfItems {
        /// The bytes owned.
        fn heap_bytes(&self) -> usize;
    }

    impl<T> HeapOfItems for &&Heap<'_, Vec<T>> {
        fn heap_bytes(&self) -> usize {
            self.0.len() * size_of::<T>()
        }
    }

    /// Everything else.
    pub trait HeapUnknown {
        /// Nothing is known to be owned.
        fn heap_bytes(&self) -> usize {
            0
        }
    }

    impl<T> HeapUnknown for Heap<'_, T> {}
}
