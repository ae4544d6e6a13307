//! purlin-process
