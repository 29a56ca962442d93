//! Storage of sessions.
//!
//! * [`memory`]: in the memory of this process
//! * [`keyed`]: hashes of keys that callers choose

pub mod keyed;
pub mod memory;
