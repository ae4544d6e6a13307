//! purlin-pubsub
