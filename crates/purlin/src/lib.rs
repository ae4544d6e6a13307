//! purlin
