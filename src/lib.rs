//! `tls-sessiond` holds TLS connection objects and the TLS session cache of many workers, behind
//! gRPC.
//!
//! The modules, in reading order. Each imports only modules below it (`ARCHITECTURE.md`):

pub mod cli; // serve and check
pub mod daemon; // the life of the daemon, from configuration to drain

pub mod rpc; // gRPC: sockets, services, statuses

pub mod config; // file, environment and command line to a valid Config
pub mod log; // lines on stderr, best effort and bounded
