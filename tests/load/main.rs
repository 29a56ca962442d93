//! The daemon under more than it can serve, under abuse, and for long: what stays bounded, and what is left behind.
//!
//! A program of its own, for these tests measure: cargo runs it after the others, and it runs one test at a time.

// Always so here; clippy allows unwrap where it is said.
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
