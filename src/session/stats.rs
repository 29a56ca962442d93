//! The counters of SSL_CTX_sess_number(3), one set for each context.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened on the connections of one context since the daemon started.
#[derive(Debug, Default)]
pub struct HandshakeStats {
    /// SSL_CTX_sess_accept: handshakes begun as server.
    pub accept: Counter,
    /// SSL_CTX_sess_accept_good: handshakes finished as server.
    pub accept_good: Counter,
    /// SSL_CTX_sess_connect: handshakes begun as client.
    pub connect: Counter,
    /// SSL_CTX_sess_connect_good: handshakes finished as client.
    pub connect_good: Counter,
    /// SSL_CTX_sess_hits: a server counts when it accepts the session, a client when the handshake ends.
    pub hits: Counter,
    /// SSL_CTX_sess_misses: offered to this server and not in the cache.
    pub misses: Counter,
    /// SSL_CTX_sess_timeouts: offered and found, but expired.
    pub timeouts: Counter,
    /// Sessions removed because their connection was not closed.
    pub unclosed: Counter,
}
