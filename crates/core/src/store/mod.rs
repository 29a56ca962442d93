//! Where sessions lie.
//!
//! * [`memory`]: in this process
//! * [`keyed`]: hashes of keys that callers choose

pub mod keyed;
pub mod memory;
