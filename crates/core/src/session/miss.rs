//! Why a lookup finds no session.

/// What a lookup answers where there is nothing to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Never seen, or forgotten.
    Unknown,
    /// Its lifetime is over.
    Expired,
    /// It was removed or handed out; the journal says why.
    Removed,
    /// It is there, but not on these terms.
    Scope,
    /// It was revoked.
    Revoked,
    /// The context keeps none (SSL_SESS_CACHE_OFF).
    CacheOff,
}

impl Miss {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Unknown, Self::Expired, Self::Removed, Self::Scope, Self::Revoked, Self::CacheOff];
}
