//! `tls-sessiond` holds TLS connection objects and the TLS session cache of many workers, behind gRPC.
//!
//! The rooms, in reading order; each imports only those below it (`ARCHITECTURE.md`):

#[cfg(feature = "daemon")]
pub mod cli; // serve and check
#[cfg(feature = "daemon")]
pub mod daemon; // the recipe, from configuration to drain

#[cfg(feature = "daemon")]
pub mod log;
#[cfg(feature = "daemon")]
pub mod rpc; // gRPC: sockets, services, statuses // lines on stderr, best effort and bounded

#[cfg(feature = "daemon")]
pub mod connection; // SSL: connection objects, their life, and the close rule
#[cfg(feature = "daemon")]
pub mod context; // SSL_CTX: certificates, trust, versions, and whom they let resume
#[cfg(feature = "daemon")]
pub mod session; // what can be resumed, by whom, for how long
#[cfg(feature = "daemon")]
pub mod store; // where sessions lie

#[cfg(feature = "client")]
pub mod client; // what workers written in Rust import

#[cfg(feature = "daemon")]
pub mod clock; // the one source of time
#[cfg(feature = "daemon")]
pub mod config; // file, environment and command line in, a valid Config out
#[cfg(any(feature = "daemon", feature = "client"))]
mod keepalive; // whether the peer of an HTTP/2 connection lives
#[cfg(any(feature = "daemon", feature = "client"))]
mod looks; // when to look once more before one sleeps
#[cfg(feature = "daemon")]
mod pem; // reads keys and certificates; its errors hold no content of a file
pub mod proto; // the generated contract
#[cfg(feature = "daemon")]
mod sync; // what the core locks and counts with
#[cfg(any(feature = "daemon", feature = "client"))]
mod unix; // a Unix socket that wakes nobody for nothing
#[cfg(any(feature = "daemon", feature = "client"))]
mod wire; // fields of messages, written by hand

// What other crates of the house define, under the names that it has here.
#[cfg(any(feature = "daemon", feature = "client"))]
use tls_sessiond_types::hex;
#[cfg(any(feature = "daemon", feature = "openssl", feature = "rustls"))]
pub use tls_sessiond_types::server_name;
#[cfg(any(feature = "daemon", feature = "rustls"))]
pub use tls_sessiond_types::{alert, cipher_suite, client_hello};
