//! purlin-macros
