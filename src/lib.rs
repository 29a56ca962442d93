//! `tls-sessiond` holds TLS connection objects and the TLS session cache of many workers, behind
//! gRPC.
//!
//! The modules, in reading order. Each imports only modules below it (`ARCHITECTURE.md`):

#[cfg(feature = "daemon")]
pub mod cli; // serve and check
#[cfg(feature = "daemon")]
pub mod daemon; // the life of the daemon, from configuration to drain

#[cfg(feature = "daemon")]
pub mod rpc; // gRPC: sockets, services, statuses

#[cfg(feature = "client")]
pub mod client; // the library for workers written in Rust

#[cfg(feature = "daemon")]
pub mod config; // file, environment and command line to a valid Config
#[cfg(feature = "daemon")]
pub mod log; // lines on stderr, best effort and bounded
