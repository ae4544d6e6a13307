//! Names, groups and presences that every node knows, and that end with their owners.
//!
//! In most registries of this kind a writer cannot read its own registration, a node that was
//! merely slow loses its names, and two sides that heal kill each other's holders. Here rows
//! belong to the life of the node that wrote them: they are hidden while it is down, back without
//! being sent when it is, and gone for good only with it. Every change has a reason that watchers
//! hear.
//!
//! In reading order:
//! - [`row`]: what travels; [`directory`]: what is visible and why, a pure state machine
//! - `index`, [`history`]: what readers and watchers see
//! - [`dist`]: [`Dist`], the shell: replica set, members, processes; `confirm`: waiting for others
//! - [`registry`]: [`Registry`], names; [`groups`]: [`Groups`]; [`error`]: why something was refused
//! - [`supervisor`]: processes that survive their node; [`singleton`]: work that runs once;
//!   [`lease`]: what fences it
//! - `exec`: programs of the operating system as processes (on Unix)
//! - [`presence`]: [`Presence`]; [`diffs`]: who came and went, without the flicker of a drain; pure
//! - [`feed`]: a client's copy of a topic, and counts without rows; [`fetch`]: what is not in rows

mod confirm;
pub mod diffs;
pub mod directory;
pub mod dist;
pub mod error;
#[cfg(unix)]
pub mod exec;
pub mod feed;
pub mod fetch;
pub mod groups;
pub mod history;
mod index;
pub mod lease;
pub mod presence;
pub mod registry;
pub mod row;
pub mod singleton;
pub mod supervisor;

pub use confirm::SyncTo;
pub use diffs::{Diff, Field, Update};
pub use directory::{Change, Why};
pub use dist::{Dist, DistConfig, DistStats, Ground, Lost, Merge, ROWS};
pub use error::{DistError, SyncError};
pub use feed::{Counted, Counts, Fed, Feed, FeedOptions, Page, TopicCount};
pub use fetch::{FetchConfig, FetchError, Fetched, Fetcher};
pub use groups::{Groups, Published};
pub use history::{Event, Missed, Watch};
pub use presence::{CALM_FOR, Handling, Presence, Tracked};
pub use registry::{
    AnotherKind, Cursor, CursorError, NameLost, OnConflict, ProcessOf, RegisterOptions, Registry,
};
pub use row::{Entry, RowKey, Space};
