//! The daemon as a whole, through its API and with real peers.

// Always so here; clippy allows unwrap where it is said.
#![cfg(test)]

mod closing;
mod harness;
mod interop;
mod lifecycle;
mod process;
mod returning;
