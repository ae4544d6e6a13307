//! Replicated state that every side of a partition may read and write, and that loses nothing.
//!
//! A database with one leader refuses writes on the minority side; last-writer-wins replication
//! accepts them and loses some. Here every node writes to its own replica at once, and replicas
//! become equal by joining dots ([`purlin_crdt`]): what nobody removed knowingly is there in the
//! end, on every side.
//!
//! In reading order:
//! - [`slot`], [`cell`]: keys, and what one key holds
//! - [`interest`], [`knowledge`]: which keys a replica keeps, and what it has seen of them
//! - [`store`]: one replica's state: writes make updates, updates make changes
//! - [`log`], [`digest`], [`wire`], [`sync`]: how replicas become equal; pure
//! - [`journal`]: what a durable replica writes down
//! - [`replica`]: [`ReplicaSet`], the shell: channels, time, disk, readers
//! - [`index`]: values by key, read without a lock
//! - [`collection`]: maps and sets of any size by name, and a catalogue of names
//! - [`flag`], [`flags`]: feature flags: what one says, and where they are kept

pub mod cell;
pub mod collection;
pub mod digest;
mod expiry;
pub mod flag;
pub mod flags;
pub mod index;
pub mod interest;
pub mod journal;
mod kinds;
pub mod knowledge;
mod leaves;
pub mod log;
mod pack;
pub mod replica;
pub mod slot;
pub mod store;
pub mod sync;
mod view;
pub mod wire;

pub use cell::{Cell, Kind, Path, UnknownKind, Wins, Written};
pub use collection::{Map, NamedState, Set};
pub use flags::Flags;
pub use interest::{Interest, InterestError};
pub use kinds::Splice;
pub use purlin_crdt::{TextError, text::TEXT_BYTES_MAX};
pub use replica::{Change, Origin, ReplicaConfig, ReplicaSet, SetStatus, StateError};
pub use slot::{KEY_BYTES_MAX, KeyError};
pub use store::{PATH_KEYS_MAX, VALUE_BYTES_MAX, WriteError};
pub use sync::{Counters, Lag, SyncConfig};
