//! `tls-sessiond` holds TLS connection objects and the TLS session cache of many workers, behind gRPC.
//!
//! The rooms, in reading order; each imports only those below it (`ARCHITECTURE.md`):

pub mod cli; // serve and check
pub mod daemon; // the recipe, from configuration to drain

pub mod rpc; // gRPC: sockets, services, statuses

pub mod connection; // SSL: connection objects, their life, and the close rule
pub mod context; // SSL_CTX: certificates, trust, versions, and whom they let resume
pub mod session; // what can be resumed, by whom, for how long
pub mod store; // where sessions lie

pub mod clock; // the one source of time
pub mod config; // file, environment and command line in, a valid Config out
mod hex; // ids as the API writes them
pub mod proto; // the generated contract
