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

#[cfg(any(feature = "daemon", feature = "rustls"))]
pub mod alert; // how a connection was ended, by number and name
#[cfg(any(feature = "daemon", feature = "rustls"))]
pub mod cipher_suite; // cipher suites by name
#[cfg(any(feature = "daemon", feature = "rustls"))]
pub mod client_hello; // what a peer offers to resume
#[cfg(feature = "daemon")]
pub mod clock; // the one source of time
#[cfg(feature = "daemon")]
pub mod config; // file, environment and command line in, a valid Config out
#[cfg(any(feature = "daemon", feature = "client"))]
mod hex; // ids as the API writes them
#[cfg(any(feature = "daemon", feature = "client"))]
mod keepalive; // whether the peer of an HTTP/2 connection lives
#[cfg(any(feature = "daemon", feature = "client"))]
mod looks; // when to look once more before one sleeps
#[cfg(feature = "daemon")]
mod pem; // reads keys and certificates; its errors hold no content of a file
pub mod proto; // the generated contract
#[cfg(any(feature = "daemon", feature = "openssl", feature = "rustls"))]
pub mod server_name; // names of servers, in the one form in which they are compared
#[cfg(feature = "daemon")]
mod sync; // what the core locks and counts with
#[cfg(any(feature = "daemon", feature = "client"))]
mod unix; // a Unix socket that wakes nobody for nothing
#[cfg(any(feature = "daemon", feature = "client"))]
mod wire; // fields of messages, written by hand
