//! Where sessions lie.
//!
//! * [`memory`]: in this process, over dashmap

pub mod memory;
