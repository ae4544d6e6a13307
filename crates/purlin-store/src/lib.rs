//! What a node must still know after a crash.
//!
//! "Write it to a file" hides five questions: is it on the disk yet, is it whole, is it what was
//! written, what happens when the disk is full, and who pays for the flush. This crate answers
//! them once. Nothing is acknowledged before it is flushed; many waiting writers share one flush;
//! every record is checksummed; a torn tail is told apart from damage in the middle, and damage is
//! refused with a sentence that says where it is.
//!
//! In reading order:
//! - [`disk`]: the [`Disk`] port: the real one, and one that fails on purpose
//! - [`record`], [`segment`]: the format on disk and what recovery makes of it; pure
//! - [`log`]: [`Log`], an append-only log with group commit
//!
//! # Source
//! Pillai et al. 2014 (what crashes leave behind); Rebello et al. 2020 (a failed flush is final);
//! Alagappan et al. 2018 (a corrupt tail is not a torn one).

pub mod disk;
pub mod log;
pub mod record;
pub mod segment;

pub use disk::{Disk, DiskFile, DiskLock, FaultyDisk, LockError, Pace, RealDisk};
pub use log::{AppendError, Log, LogConfig, OpenError, Recovered};
pub use record::Lsn;
