//! `tls-sessiond` holds TLS connection objects and the TLS session cache of many workers, behind gRPC.
//!
//! The rooms, in reading order; each imports only those below it (`ARCHITECTURE.md`):

#[cfg(feature = "daemon")]
pub mod cli; // serve and check
#[cfg(feature = "daemon")]
pub mod daemon; // the recipe, from configuration to drain

#[cfg(feature = "daemon")]
pub mod rpc; // gRPC: sockets, services, statuses

#[cfg(feature = "client")]
pub mod client; // what workers written in Rust import

#[cfg(feature = "daemon")]
pub mod config; // file, environment and command line in, a valid Config out
#[cfg(any(feature = "daemon", feature = "client"))]
mod keepalive; // whether the peer of an HTTP/2 connection lives
#[cfg(feature = "daemon")]
pub mod log; // lines on stderr, best effort and bounded
#[cfg(any(feature = "daemon", feature = "client"))]
mod looks; // when to look once more before one sleeps
pub mod proto; // the generated contract
#[cfg(any(feature = "daemon", feature = "client"))]
mod unix; // a Unix socket that wakes nobody for nothing
#[cfg(any(feature = "daemon", feature = "client"))]
mod wire; // fields of messages, written by hand
