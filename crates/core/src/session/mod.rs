//! Sessions: what SSL_SESSION is in OpenSSL.
//!
//! * [`cache`]: the policy over the store - who finds what, for how long, and what makes room
//! * `pool`: client sessions by server name
//! * [`revocation`]: who may not resume any more, whatever the cache holds
//! * [`budget`]: what all caches may hold together, and whose share gives way
//! * [`journal`]: why a session left
//! * [`ledger`]: what all caches have in common
//! * [`watch`]: what happens to sessions, as it happens
//! * [`resumption`]: rustls' storage traits, answered for one connection at a time
//! * `secret`, `shell`: memory of sessions that left, used again
//! * [`stats`]: the counters of SSL_CTX_sess_number(3), and why sessions left or were missed
//! * `id`, `kind`: a session's name, and what many sessions have in common
//!
//! A session never changes once it is in the cache (CVE-2024-2511 came from one that did). What changes - how many open
//! connections use it - is counted beside it.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

pub use tls_sessiond_types::{Role, Version};

pub use tls_sessiond_types::client_hello::SESSION_ID_MAX;
use tls_sessiond_types::server_name::ServerName;

use crate::{
    clock::{Now, Timestamp, WallTime},
    store::memory::{Entry, Mark},
};

mod attributes;
pub mod events;
mod id;
mod miss;
mod secret;
pub mod stats;

pub use attributes::{Kind, Kinds};
pub use id::SessionId;
pub use miss::Miss;
pub use secret::{ClientSession, Secret};

/// Longest life of a session after its authentication: seven days (RFC 8446 section 4.6.1).
pub const LIFETIME_MAX: Duration = Duration::from_secs(604_800);

/// Why a session left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalReason {
    /// Its connection was cleared, freed or lost while open.
    Unclosed,
    /// A fatal alert was sent or received on one of its connections.
    FatalAlert,
    /// Its lifetime was over.
    Expired,
    /// It had to make room.
    CacheFull,
    /// It was single-use, and handed out.
    Taken,
    /// Somebody asked for it: SSL_CTX_remove_session(3).
    Removed,
    /// It was revoked.
    Revoked,
    /// A reload replaced the scope that it was made in: what decides who may resume has changed.
    ScopeChanged,
}

impl RemovalReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Unclosed,
        Self::FatalAlert,
        Self::Expired,
        Self::CacheFull,
        Self::Taken,
        Self::Removed,
        Self::Revoked,
        Self::ScopeChanged,
    ];
}

/// Names that a peer's certificate proves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// SHA-256 of the leaf certificate's DER form.
    pub certificate_sha256: [u8; 32],
    /// The subject in the string form of RFC 4514, with its escapes; empty where there is none. Of a worker's session, as the
    /// worker put it.
    pub subject: String,
    /// DNS names of the subject alternative names, as [`ServerName`] writes them.
    pub dns_names: Vec<String>,
    /// URI names, SPIFFE ids among them.
    pub uris: Vec<String>,
    /// When the certificate ends, by the wall clock. Every session that was authenticated with it ends then.
    pub not_after: WallTime,
}

/// The library that can read a session's secret part. Only who names it gets it back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The daemon's own engine.
    Rustls,
    /// What a worker calls its library's encoding.
    Worker(Arc<str>),
}

impl Format {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Rustls => "rustls",
            Self::Worker(name) => name,
        }
    }
}

/// What a resumption must agree with, besides the scope of the cache that it looks in. Every path asks
/// [`Kind::fits`]: by id, by ticket, and from the pool.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Who can read the secret.
    pub format: &'a Format,
    /// Whatever else a worker says must agree; compared as a whole.
    pub binding: &'a [u8],
    /// The versions that can be spoken.
    pub versions: &'a [Version],
    /// The name of the server; empty: the peer named none.
    pub server_name: &'a ServerName<'a>,
    /// The IANA name of the one cipher suite that can be agreed on. None: any.
    pub cipher_suite: Option<&'a str>,
}

/// What is public of a session. Never changes.
#[derive(Clone)]
pub struct Facts {
    /// What it is found by.
    pub id: SessionId,
    /// What it has in common with others.
    pub kind: Arc<Kind>,
    /// When the peers last authenticated with certificates; a resumption carries it over.
    pub authenticated: Timestamp,
    /// Milliseconds from then until the handshake made it, and until it is over: both within [`LIFETIME_MAX`].
    pub(crate) created_after: u32,
    pub(crate) lives: u32,
}

impl Facts {
    /// When the handshake made it.
    pub fn created(&self) -> Timestamp {
        self.authenticated.after(Duration::from_millis(self.created_after.into()))
    }

    /// From then on it is not resumed.
    pub fn expires(&self) -> Timestamp {
        self.authenticated.after(Duration::from_millis(self.lives.into()))
    }

    /// Whether its life is over, or its peer's certificate has ended. The second may happen before [`Self::expires`] where
    /// the wall clock was set forward since the session was made.
    pub fn expired(&self, now: Now) -> bool {
        now.at >= self.expires() || self.kind.peer.as_ref().is_some_and(|peer| now.wall() >= peer.not_after)
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("role", &self.kind.role)
            .field("version", &self.kind.version)
            .field("server_name", &self.kind.server_name)
            .finish_non_exhaustive()
    }
}

/// A session as it was made. Holds its secret, which is zeroed when the last user drops it. What a lookup reads comes first:
/// it is two lines of a cache then, seldom three.
#[repr(C)]
pub struct Session {
    facts: Facts,
    mark: Mark,
    open: AtomicU32,
    pub(crate) secret: Secret,
}

/// What a session takes beside its secret and its [`Kind`], in bytes: the object with an id of up to 38 bytes, its place in the
/// store and its share of tables. `tests/overhead.rs` measures it.
pub const OVERHEAD: usize = 152;

impl Session {
    pub(crate) fn new(facts: Facts, secret: Secret) -> Self {
        Self { facts, mark: Mark::default(), open: AtomicU32::new(0), secret }
    }

    /// What is public of it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What it is found by.
    pub fn id(&self) -> &SessionId {
        &self.facts.id
    }

    /// What it has in common with others.
    pub fn kind(&self) -> &Arc<Kind> {
        &self.facts.kind
    }

    /// When the peers authenticated.
    pub fn authenticated(&self) -> Timestamp {
        self.facts.authenticated
    }

    /// From then on it is not resumed.
    pub fn expires(&self) -> Timestamp {
        self.facts.expires()
    }

    /// Upper bound of what it takes, in bytes: its secret, all that it has in common with others, and [`OVERHEAD`].
    pub fn size(&self) -> usize {
        OVERHEAD + self.facts.id.heap() + self.secret.len() + self.facts.kind.size()
    }

    /// Bytes whose number its worker or its peer decides: secret, binding and names. `session_bytes_max` limits them.
    pub fn told(&self) -> usize {
        self.secret.len() + self.facts.kind.told()
    }

    /// Whether it is over; see [`Facts::expired`].
    pub fn expired(&self, now: Now) -> bool {
        self.facts.expired(now)
    }

    /// What its library resumes it with.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// How many open connections use it.
    pub fn open_connections(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// One more open connection uses it.
    pub fn hold(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// One connection that used it is no longer open. Pairs with [`Self::hold`].
    pub fn release(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Entry for Session {
    fn key(&self) -> &[u8] {
        self.facts.id.as_bytes()
    }

    fn weight(&self) -> usize {
        self.size()
    }

    fn expires(&self) -> Timestamp {
        self.facts.expires()
    }

    fn mark(&self) -> &Mark {
        &self.mark
    }

    /// The id, which the journal hashes, and the secret, which is overwritten.
    fn touch(&self) {
        let bytes = self.secret.as_bytes().unwrap_or_default();
        let first = self.facts.id.as_bytes().first().copied().unwrap_or_default();
        // A line of a cache has 64 bytes.
        std::hint::black_box(bytes.iter().step_by(64).fold(first, |all, &byte| all ^ byte));
    }
}

/// Without the secret.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts.fmt(f)
    }
}

/// What a handshake says of the session it made; the cache makes a [`Session`] of it.
pub struct NewSession {
    /// Server: what a peer will offer. Client: none, the cache gives one.
    pub id: Option<SessionId>,
    /// The version that the handshake agreed on.
    pub version: Version,
    /// IANA name of the cipher suite.
    pub cipher_suite: Cow<'static, str>,
    /// The name it belongs to.
    pub server_name: ServerName<'static>,
    /// Who can read its secret part.
    pub format: Format,
    /// Whatever else its worker says must agree.
    pub binding: Box<[u8]>,
    /// To be handed out at most once.
    pub single_use: bool,
    /// The account of the context it is made under.
    pub account: Arc<stats::Account>,
    /// Who the peer proved to be.
    pub peer: Option<Arc<PeerIdentity>>,
    /// When the peers authenticated.
    pub authenticated: Timestamp,
    /// How long after that it may be resumed, at most [`LIFETIME_MAX`].
    pub timeout: Duration,
    /// What its library resumes it with.
    pub secret: Secret,
}
