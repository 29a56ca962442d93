//! The client for workers written in Rust. It sends lookups and reports over one Attach stream and
//! never holds up a handshake.
//!
//! ```no_run
//! # async fn worker() -> Result<(), tls_sessiond_client::InvalidEndpoint> {
//! use tls_sessiond_client::{Lookup, Options, Put, Role, Version, Worker};
//!
//! let worker = Worker::connect(Options::new("unix:///run/tls-sessiond/api.sock", "openssl")?);
//! // A peer offers session id ab:cd. Without an answer in time the handshake is a full one.
//! let found = worker.lookup(Lookup::server(b"\xab\xcd")).await;
//! let connection = worker.open(Role::Server, "", found.as_ref().map(|found| found.session_id()));
//! if found.is_none() {
//!     let session = b"i2d_SSL_SESSION".to_vec();
//!     connection.put(Put { session_id: b"\xef\x01".to_vec(), ..Put::new(Version::Tls12, session) });
//! }
//! connection.shutdown(); // without this, dropping the handle removes the session from the cache
//! # Ok(())
//! # }
//! ```
//!
//! A [`Worker`] uses one stream for all its calls and connections, on an HTTP/2 connection of its
//! own. It opens no further connection, so the daemon's `limits.streams` never limits it.
//!
//! An [`engine::Engine`] is for clients whose TLS the daemon runs: plaintext here, records on the
//! caller's socket. It opens as many HTTP/2 connections as its connections need.
//!
//! Cargo features: `rustls` adds an acceptor for tokio-rustls, and TLS to a remote daemon. `openssl` adds the adapter for
//! OpenSSL.
//!
//! Parts:
//!
//! * `worker`: looks sessions up and opens connections
//! * `connection`: the handle of one connection object
//! * `lookup`: a lookup, from the breaker over the outbox to the answer
//! * `engine`: connections whose TLS the daemon runs, over Drive
//! * `message`, `found`: the sessions that are looked up and put, and those that are found
//! * `options`, `counters`
//! * `endpoint`: the daemon's address and the transport to it
//! * `stream`: sends batches and hands out answers over HTTP/2, reconnects, and busy-polls
//! * `outbox`: the calls of one stream: queued, encoded, pending, and their answers decoded
//! * `framing`: gRPC's length-prefixed messages
//! * `breaker`: stops lookups to a daemon that does not answer. It is synchronous and reads no clock

mod breaker;
mod connection;
mod counters;
mod endpoint;
pub mod engine;
mod found;
mod framing;
mod lookup;
mod message;
#[cfg(feature = "openssl")]
pub mod openssl;
mod options;
mod outbox;
#[cfg(feature = "rustls")]
pub mod rustls;
mod stream;
mod worker;

pub use connection::Connection;
pub use counters::Counters;
pub use found::Found;
pub use message::{Lookup, Put, Role, Version};
pub use options::{InvalidEndpoint, Limits, Options};
pub use worker::Worker;

pub use tls_sessiond_proto::PeerIdentity;
