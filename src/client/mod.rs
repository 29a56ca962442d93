//! What workers written in Rust import: lookups and reports over one Attach stream, which never hold a
//! handshake up.
//!
//! ```no_run
//! # async fn worker() -> Result<(), tls_sessiond::client::InvalidEndpoint> {
//! use tls_sessiond::client::{Lookup, Options, Put, Role, Version, Worker};
//!
//! let worker = Worker::connect(Options::new("unix:///run/tls-sessiond/api.sock", "openssl")?);
//! // A peer offers session id ab:cd. No answer in time is a miss: the handshake is a full one.
//! let found = worker.lookup(Lookup::server(b"\xab\xcd")).await;
//! let connection = worker.open(Role::Server, "", found.as_ref().map(|found| found.session_id()));
//! if found.is_none() {
//!     let session = b"i2d_SSL_SESSION".to_vec();
//!     connection.put(Put { session_id: b"\xef\x01".to_vec(), ..Put::new(Version::Tls12, session) });
//! }
//! connection.shutdown(); // without it, the session leaves the cache when the handle is dropped
//! # Ok(())
//! # }
//! ```
//!
//! A [`Worker`] needs one stream, on an HTTP/2 connection of its own, for all its calls and connections. So it never meets
//! the daemon's `limits.streams`, and opens no further connection.
//!
//! * `worker`: what a program holds · `connection`: the handle of one connection object
//! * `message`: what is asked and told · `found`: what comes of it · `options` · `counters`
//! * `link`: one stream · `queue`: what it is to send, bounded, over `calls`, which writes it, and `wiped`, a buffer
//!   that leaves nothing behind · `places`: who waits for its answers
//! * `stream`: batches out of the queue, answers into their places, over HTTP/2 · `frames`: messages behind their
//!   lengths · `answers`, over `fields`: takes them apart · `bells`: which part of a stream has something to do ·
//!   `keepalive`: whether a silent daemon lives · `lookout`: what it does before it sleeps
//! * `attach`: connects, and connects again · `address`: where the daemon is, over `tls` where it is far
//! * `gate`: lets lookups out, over `breaker`; that and `backoff` say when not to ask, sync and without a clock of
//!   their own
//! * `rustls`: an acceptor for tokio-rustls (cargo feature `rustls`)

mod address;
mod answers;
mod attach;
mod backoff;
mod bells;
mod breaker;
mod calls;
mod connection;
mod counters;
mod fields;
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

pub use crate::proto::PeerIdentity;
