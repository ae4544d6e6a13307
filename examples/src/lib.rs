//! Small programs that show Purlin; `tests/` runs each.
