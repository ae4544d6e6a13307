//! purlin-server
