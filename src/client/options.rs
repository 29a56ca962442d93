//! How a worker reaches its daemon, and how much it may cost.

use std::time::Duration;

use super::address::Address;
#[cfg(feature = "rustls")]
use super::tls::Tls;

/// How long a new line and its stream may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the daemon is, and what all calls of a worker have in common.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    pub(super) address: Address,
    /// The context of lookups and connections. Empty: `default`.
    pub context: String,
    /// Name of the encoding of this worker's sessions: `openssl`, `go` ...; 1 to 32 of a-z, 0-9, `-` and `.`.
    pub format: String,
    /// A lookup without an answer by then is a miss. 20 ms.
    pub lookup_deadline: Duration,
    /// What may pile up.
    pub limits: Limits,
    /// So many lookups in a row without an answer, and the daemon is not asked for a while. 5.
    pub breaker_timeouts: u32,
    /// How long it is not asked then, and how long a lost daemon is not called: at first, and when it goes
    /// on. 100 ms and 5 s.
    pub back_off: (Duration, Duration),
}

/// What may pile up between this process and the daemon. What is more is dropped and counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls that wait to be sent. 8192.
    pub queued_calls: usize,
    /// Their bytes. 16 MiB.
    pub queued_bytes: usize,
    /// The largest call, and about the largest message. 1 MiB; the daemon takes 2 MiB, or its `limits.message` where
    /// that is less, and ends the stream of who sends more.
    pub call_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queued_calls: 8192, queued_bytes: 16 << 20, call_bytes: 1 << 20 }
    }
}

/// The text is not an endpoint.
#[derive(Debug, thiserror::Error)]
#[error(
    "invalid endpoint `{0}`: expected tcp://HOST:PORT, unix:///PATH, or tls://HOST:PORT with TLS; http:// and https:// mean the same"
)]
pub struct InvalidEndpoint(String);

impl Options {
    /// The daemon at `tcp://HOST:PORT` (or `http://`) or `unix:///PATH`, for sessions of one format.
    ///
    /// # Errors
    /// The endpoint is neither.
    pub fn new(endpoint: &str, format: &str) -> Result<Self, InvalidEndpoint> {
        let address = Address::parse(endpoint).ok_or_else(|| InvalidEndpoint(endpoint.to_owned()))?;
        Ok(Self::at(address, format))
    }

    fn at(address: Address, format: &str) -> Self {
        Self {
            address,
            context: String::new(),
            format: format.to_owned(),
            lookup_deadline: Duration::from_millis(20),
            limits: Limits::default(),
            breaker_timeouts: 5,
            back_off: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }

    /// The daemon at `tls://HOST:PORT` (or `https://`), or what stands before it there. `config` names the authorities to trust, and for mutual TLS
    /// the certificate of this worker; HOST is the name that the daemon's certificate must have. What it says of
    /// application protocols is replaced by `h2`.
    ///
    /// # Errors
    /// The endpoint is no such address.
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

    /// How long the stream may take to begin.
    pub(super) fn connect_timeout(&self) -> Duration {
        CONNECT_TIMEOUT
    }
}
