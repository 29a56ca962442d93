//! `tls-sessiond` holds TLS connection objects and the TLS session cache of many workers, behind
//! gRPC.
//!
//! The modules, in reading order. Each imports only modules below it (`ARCHITECTURE.md`):

pub mod cli; // serve and check, and the commands that call a daemon
pub mod proxy; // TLS for programs that speak plaintext

pub mod daemon; // the life of the daemon, from configuration to drain

pub mod otlp; // traces and metrics, sent to a collector

pub mod admin; // metrics, probes and the status page

pub mod server; // how a call arrives: sockets, HTTP/2, admission

pub mod api; // what a call means: services, rights, statuses

pub mod rings; // ticket keys: time, log lines and files of their rings

pub mod store; // the connections to a store that several daemons share

pub mod config; // file, environment and command line to a valid Config
pub mod shutdown; // the stages of a stop

pub mod doctor; // what is wrong, in words, and what to do

pub mod supervisor; // the service manager, and what it is told

pub mod trace; // spans of calls

pub mod log; // lines on stderr, best effort and bounded
