//! What a proxy counts.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tls_sessiond_core::session::stats::{Counter, Failures};
use tls_sessiond_types::Version;

/// Why a connection came to no handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// As many connections were open as the proxy allows.
    TooMany,
    /// It ended, without a whole ClientHello.
    Ended,
    /// The time for the handshake was over.
    TimedOut,
    /// It had to make room for a later connection before its handshake was done.
    MadeRoom,
    /// The first bytes were not TLS.
    NotTls,
    /// The first bytes were an HTTP request.
    PlainHttp,
    /// A PROXY header came, and none is expected.
    UnexpectedProxyHeader,
    /// A PROXY header was expected, and something else came.
    MissingProxyHeader,
    /// The PROXY header is malformed, or tells of something else than a stream.
    InvalidProxyHeader,
    /// The peer does not belong to the networks that send PROXY headers.
    Stranger,
    /// No site has the server name.
    NoSite,
    /// The daemon that runs TLS could not be reached, or refused the connection.
    DaemonAway,
}

impl Unserved {
    pub(super) const ALL: [Self; 12] = [
        Self::TooMany,
        Self::Ended,
        Self::TimedOut,
        Self::MadeRoom,
        Self::NotTls,
        Self::PlainHttp,
        Self::UnexpectedProxyHeader,
        Self::MissingProxyHeader,
        Self::InvalidProxyHeader,
        Self::Stranger,
        Self::NoSite,
        Self::DaemonAway,
    ];

    /// Returns the reason as a label has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::TooMany => "too_many_connections",
            Self::Ended => "ended",
            Self::TimedOut => "timed_out",
            Self::MadeRoom => "made_room",
            Self::NotTls => "not_tls",
            Self::PlainHttp => "plain_http",
            Self::UnexpectedProxyHeader => "unexpected_proxy_header",
            Self::MissingProxyHeader => "missing_proxy_header",
            Self::InvalidProxyHeader => "invalid_proxy_header",
            Self::Stranger => "stranger",
            Self::NoSite => "no_site",
            Self::DaemonAway => "daemon_away",
        }
    }
}

/// How a connection ended after its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With a close_notify of this side: its session stays.
    Closed,
    /// The peer ended without a close_notify: an attacker may have cut the data.
    Truncated,
    /// The peer reset the connection, or could not be written to.
    PeerReset,
    /// A fatal alert, sent or received.
    Alert,
    /// The backend or the server reset the connection.
    BackendReset,
    /// The backend or the server could not be reached.
    BackendAway,
    /// The daemon that runs TLS was lost.
    DaemonLost,
    /// No byte passed for too long.
    Idle,
    /// The process stopped before it ended.
    Stopped,
}

impl End {
    pub(super) const ALL: [Self; 9] = [
        Self::Closed,
        Self::Truncated,
        Self::PeerReset,
        Self::Alert,
        Self::BackendReset,
        Self::BackendAway,
        Self::DaemonLost,
        Self::Idle,
        Self::Stopped,
    ];

    /// Returns the end as a label has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Truncated => "truncated",
            Self::PeerReset => "peer_reset",
            Self::Alert => "alert",
            Self::BackendReset => "backend_reset",
            Self::BackendAway => "backend_away",
            Self::DaemonLost => "daemon_lost",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
        }
    }
}

/// The counters of one proxy since it started.
#[derive(Debug, Default)]
pub(super) struct ProxyTally {
    /// Connections before the end of their handshake, and after it.
    pub(super) handshaking: AtomicUsize,
    pub(super) open: AtomicUsize,
    handshakes: [Counter; 4],
    unserved: [Counter; Unserved::ALL.len()],
    /// NoHandshake handshakes by alert.
    pub(super) failures: Failures,
    ends: [Counter; End::ALL.len()],
    /// Bytes of plaintext to the backend or server, and from it.
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

impl ProxyTally {
    pub(super) fn finished(&self, version: Version, is_resumed: bool) {
        self.handshakes[place(version, is_resumed)].count();
    }

    pub(super) fn handshakes(&self, version: Version, is_resumed: bool) -> u64 {
        self.handshakes[place(version, is_resumed)].get()
    }

    pub(super) fn unserved(&self, why: Unserved) {
        self.unserved[why as usize].count();
    }

    pub(super) fn unserved_by(&self, why: Unserved) -> u64 {
        self.unserved[why as usize].get()
    }

    pub(super) fn ended(&self, end: End) {
        self.ends[end as usize].count();
    }

    pub(super) fn ended_by(&self, end: End) -> u64 {
        self.ends[end as usize].get()
    }
}

fn place(version: Version, is_resumed: bool) -> usize {
    let version = match version {
        Version::Tls12 => 0,
        Version::Tls13 => 2,
    };
    version + usize::from(is_resumed)
}

/// Counts one connection in a gauge until it is dropped.
pub(super) struct InGauge<'t>(&'t AtomicUsize);

impl<'t> InGauge<'t> {
    pub(super) fn enter(gauge: &'t AtomicUsize) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for InGauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_word_of_its_own() {
        let tally = ProxyTally::default();
        Unserved::ALL.iter().for_each(|&why| tally.unserved(why));
        End::ALL.iter().for_each(|&end| tally.ended(end));
        let mut words = Vec::new();
        for why in Unserved::ALL {
            assert_eq!(tally.unserved_by(why), 1);
            words.push(why.word());
        }
        for end in End::ALL {
            assert_eq!(tally.ended_by(end), 1);
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Unserved::ALL.len());
        tally.finished(Version::Tls13, true);
        assert_eq!(tally.handshakes(Version::Tls13, true), 1);
        assert_eq!(tally.handshakes(Version::Tls12, true), 0);
    }
}
