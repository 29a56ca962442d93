//! Load tests: the daemon under overload, under abuse, and for a long time. They check that
//! resources are bounded and returned.
//!
//! A program of its own, because these tests measure. cargo runs it after the others, and it runs
//! one test at a time.

// Always true here. Clippy allows `unwrap` in tests only where `cfg(test)` is written.
#![cfg(test)]

#[path = "../it/binary.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod binary;
#[path = "../it/calls.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod calls;
#[path = "../it/harness.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod harness;
#[path = "../it/pki.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod pki;

mod callers;
mod frames;
mod hostile;
mod http2_abuse;
mod meter;
mod overload;

mod soak;
