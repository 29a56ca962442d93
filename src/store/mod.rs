//! Where sessions lie.
//!
//! * [`memory`]: in this process

pub mod memory;
