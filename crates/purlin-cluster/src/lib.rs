//! purlin-cluster
