//! The options of a worker: the daemon's endpoint, deadlines and limits.

use std::{io, os::unix::net::UnixStream, sync::Arc, time::Duration};

#[cfg(feature = "rustls")]
use crate::endpoint::tls::Tls;
use crate::endpoint::{Address, Inside};

/// The longest time to connect and to begin a stream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The bounds that the daemon sets to `idle_timeout` of New.
const IDLE_TIMEOUT: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(24 * 60 * 60));

/// The daemon's endpoint, and options of all calls of a worker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    pub(super) address: Address,
    /// The context of lookups and connections. Empty: `default`.
    pub context: String,
    /// The name of the encoding of this worker's sessions, for example `openssl` or `go`: 1 to 32
    /// characters of a-z, 0-9, `-` and `.`.
    pub format: String,
    /// The longest time that a lookup waits for its answer. Later it is a miss. Default: 20 ms.
    pub lookup_deadline: Duration,
    /// The time after which the daemon frees a connection as unclosed if this worker makes no call
    /// for it: 1 s to 24 h. It must be longer than the longest connection, whose traffic the daemon
    /// does not see. The end of the stream, or of the handle, frees a connection at once whatever
    /// this time is. A time outside of these bounds counts as the nearer one. Default: 24 h.
    pub idle_timeout: Duration,
    /// Limits of the queue.
    pub limits: Limits,
    /// The number of consecutive timeouts that open the breaker: lookups are then not sent for a
    /// while. Default: 5.
    pub breaker_timeouts: u32,
    /// The initial and the maximum back-off, for the breaker and for reconnecting. Default: 100 ms
    /// and 5 s.
    pub back_off: (Duration, Duration),
}

/// Limits of the calls that wait to be sent to the daemon. A call beyond them is dropped and
/// counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The number of calls. Default: 8192.
    pub queued_calls: usize,
    /// The bytes of all calls. Default: 16 MiB.
    pub queued_bytes: usize,
    /// The largest call, and approximately the largest message, in bytes. Default: 1 MiB. The
    /// daemon accepts messages of 2 MiB, or of its `limits.message` if that is less, and ends a
    /// stream that sends a larger one.
    pub call_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queued_calls: 8192,
            queued_bytes: 16 << 20,
            call_bytes: 1 << 20,
        }
    }
}

/// The text is not an endpoint.
#[derive(Debug, thiserror::Error)]
#[error(
    "invalid endpoint `{0}`: expected tcp://HOST:PORT, unix:///PATH, or tls://HOST:PORT with TLS; http:// and https:// mean the same"
)]
pub struct InvalidEndpoint(String);

impl Options {
    /// Makes options for the daemon at `tcp://HOST:PORT` (or `http://`) or `unix:///PATH`, and for
    /// sessions of one format.
    ///
    /// # Errors
    /// Fails if the endpoint has neither form.
    pub fn new(endpoint: &str, format: &str) -> Result<Self, InvalidEndpoint> {
        let address =
            Address::parse(endpoint).ok_or_else(|| InvalidEndpoint(endpoint.to_owned()))?;
        Ok(Self::at(address, format))
    }

    /// Makes options for a daemon of this process. `connect` returns one end of a new pair of
    /// sockets, whose other end the daemon serves.
    pub fn inside(
        connect: impl Fn() -> io::Result<UnixStream> + Send + Sync + 'static,
        format: &str,
    ) -> Self {
        Self::at(Address::Inside(Inside(Arc::new(connect))), format)
    }

    fn at(address: Address, format: &str) -> Self {
        Self {
            address,
            context: String::new(),
            format: format.to_owned(),
            lookup_deadline: Duration::from_millis(20),
            idle_timeout: IDLE_TIMEOUT.1,
            limits: Limits::default(),
            breaker_timeouts: 5,
            back_off: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }

    /// Makes options for the daemon, or a proxy in front of it, at `tls://HOST:PORT` (or
    /// `https://`).
    ///
    /// HOST must be a name in the daemon's certificate. `config` has the trust anchors and, for
    /// mutual TLS, the certificate of this worker. Its application protocols are replaced by `h2`.
    ///
    /// # Errors
    /// Fails if the endpoint does not have this form.
    #[cfg(feature = "rustls")]
    pub fn over_tls(
        endpoint: &str,
        format: &str,
        config: &rustls::ClientConfig,
    ) -> Result<Self, InvalidEndpoint> {
        let address = Address::parse_tls(endpoint, |host| Tls::new(config, host));
        let address = address.ok_or_else(|| InvalidEndpoint(endpoint.to_owned()))?;
        Ok(Self::at(address, format))
    }

    /// Returns the idle time-out within the daemon's bounds. The daemon would refuse any other, and
    /// no session of the worker would be stored.
    pub(super) fn idle_timeout_within_bounds(&self) -> Duration {
        within_bounds(self.idle_timeout)
    }

    /// Returns the longest time to connect and to begin a stream.
    pub(super) fn connect_timeout(&self) -> Duration {
        CONNECT_TIMEOUT
    }
}

/// Returns the nearest idle time-out that the daemon accepts.
pub(super) fn within_bounds(idle_timeout: Duration) -> Duration {
    idle_timeout.clamp(IDLE_TIMEOUT.0, IDLE_TIMEOUT.1)
}
