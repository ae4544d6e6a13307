//! Kinds of children: how any node makes a process out of a name and bytes.
//!
//! A child that survives its node cannot be started by a closure: closures do not travel. What
//! travels is the name of a [`Kind`] and its arguments, encoded; every node that registered the
//! kind can make the process. The same holds for its state when it moves.

use std::{fmt, future::Future, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use purlin_core::{Advice, Outcome};
use purlin_process::{
    AnyProcess, CallError, ExitReason, Processes, RemoteServer, Server, SpawnError, SpawnOptions,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The most bytes a kind's name may have.
pub const KIND_BYTES_MAX: usize = 255;

/// The number of one start of a child: greater than that of every earlier start of the same id
/// that its starter knew of, also across removal and a new start.
///
/// Give it to what the child writes to: who refuses a smaller number than the greatest it has
/// seen is safe from a copy that does not know yet that it is over. Two sides of a cut do not know
/// each other's starts: after the heal the copy that stays has the greater number, see
/// [`core`](crate::supervisor::core#conflicts).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a child is told about itself when it starts.
#[derive(Debug, Clone)]
pub struct Birth<T> {
    /// The supervisor it belongs to.
    pub supervisor: Arc<str>,
    /// What it is called there.
    pub id: Arc<str>,
    /// The number of this start.
    pub fence: Fence,
    /// How often it was started again because it or its node failed.
    pub restarts: u32,
    /// What the process before this one gave, when it moved or went to sleep; `None` at a first
    /// start and after a failure.
    pub state: Option<T>,
}

/// A kind of child: what all nodes that may run it know about it.
///
/// ```
/// # use purlin_process::{Context, Envelope, ExitReason, Inbound, MessageKind, RemoteServer, Server, Undelivered};
/// use purlin_dist::supervisor::{Birth, Kind, KindError};
///
/// struct Room { seats: u32, taken: u32 }
/// # impl Server for Room {
/// #     const KIND: &'static str = "Room";
/// #     type Args = (u32, u32);
/// #     async fn init((seats, taken): (u32, u32), _: &mut Context<Self>) -> Result<Self, ExitReason> {
/// #         Ok(Room { seats, taken })
/// #     }
/// # }
/// # impl RemoteServer for Room {
/// #     fn receive(kind: MessageKind, _: &[u8], inbound: Inbound) -> Result<Envelope<Self>, Undelivered> {
/// #         Err(inbound.unknown::<Self>(kind))
/// #     }
/// # }
///
/// struct Rooms;
///
/// impl Kind for Rooms {
///     const NAME: &'static str = "room";
///     type Server = Room;
///     type Args = u32;
///     type State = u32;
///
///     fn args(&self, seats: u32, birth: Birth<u32>) -> Result<(u32, u32), KindError> {
///         Ok((seats, birth.state.unwrap_or(0)))
///     }
///
///     fn hand_off(&self, room: &mut Room) -> Option<u32> {
///         Some(room.taken)
///     }
/// }
/// ```
pub trait Kind: Send + Sync + 'static {
    /// Its name on the wire, 1 to 255 bytes. All nodes that may run such children register the
    /// same.
    const NAME: &'static str;
    /// What a child is.
    type Server: RemoteServer;
    /// What a child is started from. Kept, and decoded again for every start, by the release that
    /// runs then: only append fields, and only such that an older release may ignore.
    type Args: Serialize + DeserializeOwned + Send + 'static;
    /// What one process gives to the next when a child moves; `()` for nothing.
    type State: Serialize + DeserializeOwned + Send + 'static;
    /// The version of `State` that this release gives.
    const STATE_VERSION: u32 = 1;

    /// What the server's `init` gets. Runs for every start; a panic in it is a failed start.
    ///
    /// # Errors
    /// [`KindError::refused`] when it cannot be started from these arguments: it is not tried
    /// again on this node.
    fn args(
        &self,
        args: Self::Args,
        birth: Birth<Self::State>,
    ) -> Result<<Self::Server as Server>::Args, KindError>;

    /// Takes out of a process what its successor needs. Runs in the process after the last message
    /// it handles: later ones go to the successor. The default gives nothing.
    fn hand_off(&self, server: &mut Self::Server) -> Option<Self::State> {
        let _ = server;
        None
    }

    /// Reads state that a process of version `version` gave: of this release or, during an
    /// upgrade, of another. The default reads its own version only.
    ///
    /// # Errors
    /// [`KindError::StateVersion`] or [`KindError::State`]; the child then starts without it or
    /// stays where it is, as its options say.
    fn state(&self, version: u32, bytes: &[u8]) -> Result<Self::State, KindError> {
        if version != Self::STATE_VERSION {
            let (kind, known) = (Self::NAME.to_owned(), Self::STATE_VERSION);
            return Err(KindError::StateVersion { kind, found: version, known });
        }
        postcard::from_bytes(bytes).map_err(|error| KindError::State {
            kind: Self::NAME.to_owned(),
            reason: error.to_string(),
        })
    }

    /// How its processes are spawned: mailbox, and how long `init` and `terminate` may take. A
    /// name in it is not used: the same child may run on any node.
    fn options(&self) -> SpawnOptions {
        SpawnOptions::default()
    }
}

/// Why no process came of a kind and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum KindError {
    /// This node knows no such kind. Another one may.
    #[error("kind {0:?} is not registered here")]
    Unknown(String),
    /// The arguments are not of this kind, or of another release of it.
    #[error("arguments of kind {kind:?} cannot be decoded: {reason}")]
    Args {
        /// The kind.
        kind: String,
        /// What the decoder said.
        reason: String,
    },
    /// The state was given by a release that this one cannot read.
    #[error("state of version {found} of kind {kind:?}; this release reads {known}")]
    StateVersion {
        /// The kind.
        kind: String,
        /// The version given.
        found: u32,
        /// The version read here.
        known: u32,
    },
    /// The state cannot be decoded.
    #[error("state of kind {kind:?} cannot be decoded: {reason}")]
    State {
        /// The kind.
        kind: String,
        /// What the decoder said.
        reason: String,
    },
    /// The kind refused the arguments, in its own words.
    #[error("refused: {0}")]
    Refused(String),
    /// [`Kind::args`] or `init` panicked, failed or took too long.
    #[error("start failed: {0}")]
    Start(String),
    /// The node runs as many processes as it may, or shuts down.
    #[error("no room: {0}")]
    NoRoom(String),
}

impl KindError {
    /// A refusal of these arguments, in the words of the kind.
    #[must_use]
    pub fn refused(why: impl fmt::Display) -> Self {
        Self::Refused(why.to_string())
    }

    /// Whether the same start may succeed on the same node later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Start(_) => true,
            Self::Unknown(_)
            | Self::Args { .. }
            | Self::StateVersion { .. }
            | Self::State { .. }
            | Self::Refused(_)
            | Self::NoRoom(_) => false,
        }
    }

    /// Whether something may have been left behind: a constructor may have acted before it failed.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.is_passing() { Outcome::Unknown } else { Outcome::NotDone }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Unknown(_) | Self::NoRoom(_) => Advice::RetryElsewhere(None),
            Self::Args { .. }
            | Self::StateVersion { .. }
            | Self::State { .. }
            | Self::Refused(_) => Advice::GiveUp,
            Self::Start(_) => Advice::SameRequestIdOnly,
        }
    }
}

impl From<SpawnError> for KindError {
    fn from(error: SpawnError) -> Self {
        match error {
            SpawnError::Init(_) | SpawnError::InitTooSlow(_) => Self::Start(error.to_string()),
            _ => Self::NoRoom(error.to_string()),
        }
    }
}

/// State on its way from one process to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// Its version.
    pub version: u32,
    /// What the kind encoded.
    pub bytes: Bytes,
}

/// The state could not be taken out of a process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandOffError {
    /// The process did not get to it in time, or ended before.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It is larger than may travel.
    #[error("state of {bytes} bytes exceeds limit {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// It cannot be encoded.
    #[error("state cannot be encoded: {0}")]
    Encode(String),
    /// The process is of another kind.
    #[error("not a process of this kind")]
    AnotherKind,
}

/// A future of a trait's method.
pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A kind without its types.
pub(crate) trait AnyKind: Send + Sync {
    /// Starts a process from encoded arguments and state.
    fn start<'a>(
        &'a self,
        processes: &'a Processes,
        args: &'a [u8],
        birth: Birth<Handed>,
    ) -> Boxed<'a, Result<AnyProcess, KindError>>;

    /// Whether the arguments can be decoded here.
    fn check(&self, args: &[u8]) -> Result<(), KindError>;

    /// How long its processes may take to terminate.
    fn terminate_within(&self) -> Duration;

    /// Takes the state out of `process`, which ends, unless the state is too large: then it goes on
    /// as if it had not been asked.
    fn hand_off(
        self: Arc<Self>,
        process: AnyProcess,
        bytes_max: usize,
        within: Duration,
    ) -> Boxed<'static, Result<Option<Handed>, HandOffError>>;
}

impl fmt::Debug for dyn AnyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyKind")
    }
}

/// What is written into a process that moves.
pub(crate) const MOVED: &str = "moved";

impl<K: Kind> AnyKind for K {
    fn start<'a>(
        &'a self,
        processes: &'a Processes,
        args: &'a [u8],
        birth: Birth<Handed>,
    ) -> Boxed<'a, Result<AnyProcess, KindError>> {
        let args = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let Birth { supervisor, id, fence, restarts, state } = birth;
            let state = state.map(|it| self.state(it.version, &it.bytes)).transpose()?;
            Kind::args(self, decode::<K>(args)?, Birth { supervisor, id, fence, restarts, state })
        }));
        Box::pin(async move {
            let args = args.map_err(|panic| {
                let text = panic.downcast_ref::<&'static str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                KindError::Start(format!("panicked: {}", text.unwrap_or_default()))
            })??;
            let options = SpawnOptions { name: None, ..self.options() };
            let process = processes.spawn_remote::<K::Server>(args, options).await?;
            Ok(process.untyped())
        })
    }

    fn check(&self, args: &[u8]) -> Result<(), KindError> {
        decode::<K>(args).map(drop)
    }

    fn terminate_within(&self) -> Duration {
        self.options().terminate_within
    }

    fn hand_off(
        self: Arc<Self>,
        process: AnyProcess,
        bytes_max: usize,
        within: Duration,
    ) -> Boxed<'static, Result<Option<Handed>, HandOffError>> {
        Box::pin(async move {
            let process = process.downcast::<K::Server>().ok_or(HandOffError::AnotherKind)?;
            let given = process.visit(
                move |server, ctx| {
                    let bytes = Kind::hand_off(&*self, server)
                        .map(|state| postcard::to_allocvec(&state))
                        .transpose()
                        .map_err(|error| HandOffError::Encode(error.to_string()))?
                        .map(Bytes::from);
                    if let Some(bytes) = &bytes
                        && bytes.len() > bytes_max
                    {
                        return Err(HandOffError::TooLarge { bytes: bytes.len(), max: bytes_max });
                    }
                    // What waits behind this goes to the successor.
                    ctx.stop(ExitReason::stopped(MOVED));
                    Ok(bytes)
                },
                within,
            );
            let bytes = given.await??;
            Ok(bytes.map(|bytes| Handed { version: K::STATE_VERSION, bytes }))
        })
    }
}

fn decode<K: Kind>(bytes: &[u8]) -> Result<K::Args, KindError> {
    // Left over bytes are what a later release says in addition.
    match postcard::take_from_bytes::<K::Args>(bytes) {
        Ok((args, _)) => Ok(args),
        Err(error) => Err(KindError::Args { kind: K::NAME.to_owned(), reason: error.to_string() }),
    }
}

/// Encodes the arguments of a child.
///
/// # Errors
/// [`KindError::Args`] when they cannot be.
pub(crate) fn encode_args<K: Kind>(args: &K::Args) -> Result<Bytes, KindError> {
    postcard::to_allocvec(args)
        .map(Bytes::from)
        .map_err(|error| KindError::Args { kind: K::NAME.to_owned(), reason: error.to_string() })
}
