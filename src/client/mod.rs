//! The client for workers written in Rust. It sends lookups and reports over one Attach stream and
//! never holds up a handshake.
//!
//! ```no_run
//! # async fn worker() -> Result<(), tls_sessiond::client::InvalidEndpoint> {
//! use tls_sessiond::client::{Lookup, Options, Put, Role, Version, Worker};
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
//! What a program uses:
//!
//! * `worker`: looks sessions up and opens connections
//! * `connection`: the handle of one connection object
//! * `message`: lookups and sessions that are put
//! * `found`: a session that a lookup returned
//! * `options`, `counters`
//! * `rustls`: an acceptor for tokio-rustls (cargo feature `rustls`)
//! * `openssl`: the adapter for OpenSSL (cargo feature `openssl`)
//!
//! The stream:
//!
//! * `attach`: connects and reconnects
//! * `address`: the daemon's endpoint and the transport to it; `tls`: TLS for a remote daemon
//! * `link`: the outbox of one stream
//! * `queue`: the bounded queue of an outbox; `calls`: encodes calls; `wiped`: a buffer that is
//!   overwritten when it is dropped
//! * `places`: the pending calls, which wait for answers
//! * `stream`: sends batches from the queue and hands out answers, over HTTP/2
//! * `frames`: gRPC's length-prefixed messages
//! * `answers`: decodes answers; `fields`: reads protobuf fields without a copy
//! * `bells`: the wake set, which records which part of a stream is ready
//! * `keepalive`: detects a dead peer
//! * `lookout`: busy polling before the stream sleeps
//!
//! Back-off. These modules are synchronous and read no clock:
//!
//! * `gate`: admits lookups on many threads; `breaker`: stops lookups to a daemon that does not
//!   answer
//! * `backoff`: the pauses between attempts

mod address;
mod answers;
mod attach;
mod backoff;
mod breaker;
mod calls;
mod connection;
mod counters;
mod found;
mod frames;
mod gate;
mod link;
mod lookout;
mod message;
#[cfg(feature = "openssl")]
pub mod openssl;
mod options;
mod places;
mod queue;
#[cfg(feature = "rustls")]
pub mod rustls;
mod stream;
#[cfg(feature = "rustls")]
mod tls;
mod worker;

pub use connection::Connection;
pub use counters::Counters;
pub use found::Found;
pub use message::{Lookup, Put, Role, Version};
pub use options::{InvalidEndpoint, Limits, Options};
pub use worker::Worker;

pub use tls_sessiond_proto::PeerIdentity;
