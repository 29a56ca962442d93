//! The daemon as a whole, through its API and with real peers.

mod closing;
mod harness;
mod interop;
mod lifecycle;
mod process;
mod returning;
