//! Real processes of the real binary: killed, paused, drained and fed with bad input.
//!
//! One program for all, so that it is linked once; `support` is the only place that knows how the
//! processes are started.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

mod commands;
mod failure;
mod names;
mod node;
mod programs;
mod replicated;
mod support;
mod topics;
mod up;
