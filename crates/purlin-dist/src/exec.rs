//! Programs of the operating system as children of the cluster.
//!
//! Starting a program is one system call; being the one who answers for it is not. Who ends it, and
//! everything it started, when the node is killed without a chance to say so? What if it floods its
//! standard output, or writes a line without an end? Which of two copies may write to the database
//! after a cut? And what is left to read when it has failed on a machine nobody looks at?
//!
//! Here a program is an [`Exec`], a process like any other: it has an exit reason that names status
//! or signal, a supervisor that starts it again, here or elsewhere, and an address. Beside it runs a
//! [`guard`](mod@guard), a second operating-system process that outlives a killed node just long
//! enough to end what the node started. Output is kept line by line, bounded, and can be read from any
//! node. The program is told which start of its name it is (`PURLIN_FENCE`), so that what it writes
//! to can refuse an earlier one.
//!
//! In reading order:
//! - [`spec`]: what to run and how; pure
//! - `lines`, [`log`]: output, cut into lines and bounded; pure. [`logs`]: of all names, with files
//! - [`server`]: [`Exec`]; `run`: the node's end of the line to a guard
//! - [`programs`]: [`Programs`], all of them, on whichever node
//! - `wire`: what node and guard say to each other; [`guard`](mod@guard): the other end
//! - `os`: what is asked of the kernel

mod files;
pub mod guard;
mod lines;
pub mod log;
pub mod logs;
mod os;
pub mod programs;
mod run;
pub mod server;
pub mod spec;
mod wire;

pub use guard::{GuardCommand, guarded};
pub use log::{Line, LogLimits, LogStream, Page};
pub use logs::{LogRead, Logs, ReadFrom, ReadLog};
pub use programs::{LogError, PROGRAMS, Program, Programs, Ran, RunError, TakePartError};
pub use server::{Exec, ExecArgs, ExecHandle, ExecHost, HostError, ProgramStatus};
pub use spec::{ExecRestart, ExecSpec, SpecError, StopSignal, check_name};
