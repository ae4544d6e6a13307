//! purlin-net
