//! Why a lookup finds no session.

/// Why a lookup found no session to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The id was never stored, or its tombstone is no longer kept.
    Unknown,
    /// The session has expired.
    Expired,
    /// The session was removed or consumed. Its tombstone has the reason.
    Removed,
    /// The session is stored but does not match the lookup (see [`ResumeCriteria`](super::ResumeCriteria)), or a reload has replaced
    /// its scope.
    Scope,
    /// The session was revoked.
    Revoked,
    /// The context keeps no sessions (SSL_SESS_CACHE_OFF).
    CacheOff,
    /// The shared store is away, or did not answer in time, or has lost its heartbeats lately; or
    /// what it has does not open.
    StoreUnavailable,
    /// A daemon that holds the session is lost: its connection may have ended unclosed.
    HolderLost,
}

impl Miss {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Expired,
        Self::Removed,
        Self::Scope,
        Self::Revoked,
        Self::CacheOff,
        Self::StoreUnavailable,
        Self::HolderLost,
    ];
}
