//! Sessions, as SSL_SESSION in OpenSSL.
//!
//! * `attributes`: attributes that many sessions have in common
//! * [`events`]: events of sessions, as they happen
//! * [`histogram`]: durations, counted in buckets
//! * `id`: session ids
//! * [`owners`]: totals of each identity
//! * [`recent`]: the latest lookups that missed and handshakes that failed
//! * `miss`: the reasons why a lookup finds no session
//! * [`sealing`]: sessions that are sealed in the ticket of their client
//! * `secret`: the part of a session that only its library can read
//! * [`stats`]: the counters of SSL_CTX_sess_number(3), and the reasons of removals and misses
//!
//! A session never changes once it is in the cache (CVE-2024-2511 came from one that did). The
//! number of open connections that use it does change, and is counted beside it.

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
    store::memory::{Entry, EntryState},
};

mod attributes;
pub mod events;
pub mod histogram;
mod id;
mod miss;
pub mod owners;
pub mod recent;
pub mod sealing;
mod secret;
pub mod stats;

pub use attributes::{Attributes, SharedAttributes};
pub use id::SessionId;
pub use miss::Miss;
pub use secret::{ClientSession, Secret};

/// Longest life of a session after its authentication: seven days (RFC 8446 section 4.6.1).
pub const LIFETIME_MAX: Duration = Duration::from_secs(604_800);

/// Why a session was removed from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalReason {
    /// Its connection was cleared, freed or lost while open.
    Unclosed,
    /// A fatal alert was sent or received on one of its connections.
    FatalAlert,
    /// It expired.
    Expired,
    /// It was evicted.
    CacheFull,
    /// It was single-use, and a lookup consumed it.
    Taken,
    /// A caller removed it: SSL_CTX_remove_session(3).
    Removed,
    /// It was revoked.
    Revoked,
    /// A reload replaced the scope that it was made in.
    ScopeChanged,
}

impl RemovalReason {
    /// All reasons, in the order of their numbers.
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
    /// The subject in the string form of RFC 4514, with its escapes, or empty. For a session of a
    /// worker, the text is as the worker put it.
    pub subject: String,
    /// DNS names of the subject alternative names, as [`ServerName`] writes them.
    pub dns_names: Vec<String>,
    /// URI names, including SPIFFE ids.
    pub uris: Vec<String>,
    /// When the certificate expires, by the wall clock. Every session that was authenticated with
    /// it expires then.
    pub not_after: WallTime,
}

/// The library that can read a session's secret part. A lookup finds a session only with an equal
/// format.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The daemon's own engine.
    Rustls,
    /// A worker's library, by the worker's name for its encoding.
    Worker(Arc<str>),
}

impl Format {
    /// Returns the name of the format.
    pub fn name(&self) -> &str {
        match self {
            Self::Rustls => "rustls",
            Self::Worker(name) => name,
        }
    }
}

/// The criteria that a session must match to be resumed, besides the scope of the cache.
///
/// Every lookup checks them with [`Attributes::fits`]: by id, by ticket, and by server name.
#[derive(Clone, Copy, Debug)]
pub struct ResumeCriteria<'a> {
    /// The library that will read the secret.
    pub format: &'a Format,
    /// The worker's binding; must be equal as a whole.
    pub binding: &'a [u8],
    /// The versions that can be spoken.
    pub versions: &'a [Version],
    /// The name of the server. Empty: the peer named none.
    pub server_name: &'a ServerName<'a>,
    /// IANA name of the only cipher suite that can be agreed on. `None`: any.
    pub cipher_suite: Option<&'a str>,
}

/// The public part of a session. Never changes.
#[derive(Clone)]
pub struct SessionInfo {
    /// The id of the session.
    pub id: SessionId,
    /// The attributes that the session shares with others.
    pub kind: Arc<Attributes>,
    /// When the peers last authenticated with certificates. A resumption carries it over.
    pub authenticated: Timestamp,
    /// Milliseconds from `authenticated` until the handshake made the session; at most
    /// [`LIFETIME_MAX`].
    pub(crate) created_after: u32,
    /// Milliseconds from `authenticated` until the session expires; at most [`LIFETIME_MAX`].
    pub(crate) lives: u32,
}

impl SessionInfo {
    /// Returns when the handshake made the session.
    pub fn created(&self) -> Timestamp {
        self.authenticated
            .after(Duration::from_millis(self.created_after.into()))
    }

    /// Returns when the session expires, from its lifetime alone; see [`Self::expired`].
    pub fn expires(&self) -> Timestamp {
        self.authenticated
            .after(Duration::from_millis(self.lives.into()))
    }

    /// Returns whether the session's lifetime or its peer's certificate has expired.
    ///
    /// The certificate may expire before [`Self::expires`] where the wall clock was set forward
    /// since the session was made.
    pub fn expired(&self, now: Now) -> bool {
        now.at >= self.expires()
            || self
                .kind
                .peer
                .as_ref()
                .is_some_and(|peer| now.wall() >= peer.not_after)
    }
}

impl fmt::Debug for SessionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("role", &self.kind.role)
            .field("version", &self.kind.version)
            .field("server_name", &self.kind.server_name)
            .finish_non_exhaustive()
    }
}

/// A session as it was made.
///
/// Its secret is overwritten when the last reference is dropped. The fields that a lookup reads
/// come first, so that they take two cache lines, rarely three.
#[repr(C)]
pub struct Session {
    pub(crate) facts: SessionInfo,
    mark: EntryState,
    open: AtomicU32,
    pub(crate) secret: Secret,
}

/// Memory of a session besides its secret and its [`Attributes`], in bytes: the object with an id of up
/// to 38 bytes, its slot in the store and its share of tables. `tests/overhead.rs` measures it.
pub const OVERHEAD: usize = 152;

impl Session {
    pub(crate) fn new(facts: SessionInfo, secret: Secret) -> Self {
        Self {
            facts,
            mark: EntryState::default(),
            open: AtomicU32::new(0),
            secret,
        }
    }

    /// Makes a sealed session whose ticket alone has its secret.
    pub(crate) fn without_secret(facts: SessionInfo) -> Self {
        Self::new(facts, Secret::copied(&[]))
    }

    /// Makes a session of the shared store, which `open` connections use.
    pub(crate) fn of_fleet(facts: SessionInfo, secret: Secret, open: u32) -> Self {
        let session = Self::new(facts, secret);
        session.open.store(open, Ordering::Relaxed);
        session
    }

    /// Returns the public part.
    pub fn facts(&self) -> &SessionInfo {
        &self.facts
    }

    /// Returns the id.
    pub fn id(&self) -> &SessionId {
        &self.facts.id
    }

    /// Returns the attributes that the session shares with others.
    pub fn kind(&self) -> &Arc<Attributes> {
        &self.facts.kind
    }

    /// Returns when the peers authenticated.
    pub fn authenticated(&self) -> Timestamp {
        self.facts.authenticated
    }

    /// Returns when the session expires, from its lifetime alone.
    pub fn expires(&self) -> Timestamp {
        self.facts.expires()
    }

    /// Returns an upper bound of the session's memory in bytes: its secret, all of its [`Attributes`],
    /// and [`OVERHEAD`].
    pub fn size(&self) -> usize {
        OVERHEAD + self.facts.id.heap() + self.secret.len() + self.facts.kind.size()
    }

    /// Returns the number of bytes that the worker or the peer decides: secret, binding and names.
    ///
    /// `session_bytes_max` limits them.
    pub fn told(&self) -> usize {
        self.secret.len() + self.facts.kind.told()
    }

    /// Returns whether the session has expired; see [`SessionInfo::expired`].
    pub fn expired(&self, now: Now) -> bool {
        self.facts.expired(now)
    }

    /// Returns the secret, with which its library resumes the session.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Returns the number of open connections that use the session.
    pub fn open_connections(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts one more open connection that uses the session.
    pub fn hold(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one open connection less. Pairs with [`Self::hold`].
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

    fn mark(&self) -> &EntryState {
        &self.mark
    }

    /// Reads the id, which a tombstone hashes, and the secret, which is overwritten.
    fn prefetch(&self) {
        let bytes = self.secret.as_bytes().unwrap_or_default();
        let first = self
            .facts
            .id
            .as_bytes()
            .first()
            .copied()
            .unwrap_or_default();
        // A cache line has 64 bytes.
        std::hint::black_box(
            bytes
                .iter()
                .step_by(64)
                .fold(first, |all, &byte| all ^ byte),
        );
    }
}

/// Shows no secret.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts.fmt(f)
    }
}

/// A session as a handshake made it. The cache makes a [`Session`] from it.
pub struct NewSession {
    /// Server: the id that a peer will offer. Client: `None`; the cache makes an id.
    pub id: Option<SessionId>,
    /// The version that the handshake agreed on.
    pub version: Version,
    /// IANA name of the cipher suite.
    pub cipher_suite: Cow<'static, str>,
    /// Client: the name of the server. Server: the SNI of the handshake, or empty.
    pub server_name: ServerName<'static>,
    /// The library that can read the secret part.
    pub format: Format,
    /// The binding that a lookup must equal.
    pub binding: Box<[u8]>,
    /// Whether it is handed out at most once.
    pub single_use: bool,
    /// The counters of the context that the session is made under.
    pub account: Arc<stats::Account>,
    /// The identity that the peer proved.
    pub peer: Option<Arc<PeerIdentity>>,
    /// When the peers authenticated.
    pub authenticated: Timestamp,
    /// Lifetime after the authentication, at most [`LIFETIME_MAX`].
    pub timeout: Duration,
    /// The secret, with which its library resumes the session.
    pub secret: Secret,
}
