//! Sessions: what SSL_SESSION is in OpenSSL.
//!
//! * [`cache`]: the policy over the store - who finds what, for how long, and what makes room
//! * [`resumption`]: rustls' storage traits, answered for one connection at a time
//! * [`stats`]: the counters of SSL_CTX_sess_number(3)
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
};

pub use crate::{client_hello::SESSION_ID_MAX, config::Version};
use crate::{clock::Timestamp, hex};

pub mod cache;
pub mod resumption;
pub mod stats;

pub use cache::Cache;
pub use resumption::Secret;

/// Which side of the handshake: SSL_set_connect_state(3), SSL_set_accept_state(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Begins handshakes.
    Client,
    /// Accepts them.
    Server,
}

/// What names a session: a TLS 1.2 session id, the identity of a stateful TLS 1.3 ticket, or, on the client side, an id
/// that the daemon gave it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Box<[u8]>);

impl SessionId {
    /// Takes 1 to [`SESSION_ID_MAX`] bytes as they are; nothing is padded or cut.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        Self::owned(bytes.to_vec())
    }

    /// The same, of bytes that are ours already.
    pub fn owned(bytes: Vec<u8>) -> Option<Self> {
        (1..=SESSION_ID_MAX).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

/// Shows the first four bytes: enough to follow one in a log, too little to offer it.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0[..self.0.len().min(4)], f)?;
        f.write_str("…")
    }
}

/// Why a connection took its sessions out of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalReason {
    /// Its connection was cleared, freed or lost while open.
    Unclosed,
    /// A fatal alert was sent or received on one of its connections.
    FatalAlert,
}

/// Names that a peer's certificate proves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// SHA-256 of the leaf certificate's DER form.
    pub certificate_sha256: [u8; 32],
    /// The subject, in the form of RFC 4514.
    pub subject: String,
    /// DNS names of the subject alternative names.
    pub dns_names: Vec<String>,
    /// URI names, SPIFFE ids among them.
    pub uris: Vec<String>,
    /// When the certificate ends, and every session that it authenticated with it.
    pub not_after: Timestamp,
}

/// The library that can read a session's secret part. Only who names it gets it back.
#[derive(Clone, Debug, PartialEq, Eq)]
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
/// [`Session::fits`]: by id, by ticket, and from the pool.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Who can read the secret.
    pub format: &'a Format,
    /// Whatever else a worker says must agree; compared as a whole.
    pub binding: &'a [u8],
    /// The versions that can be spoken.
    pub versions: &'a [Version],
    /// The name of the server; none: it is not known, or part of the binding.
    pub server_name: Option<&'a str>,
}

/// A session as it was made. Holds its secret, which is zeroed when the last user drops it.
pub struct Session {
    /// What it is found by.
    pub id: SessionId,
    /// Whose it is.
    pub role: Role,
    /// The one version it can be resumed with.
    pub version: Version,
    /// IANA name of the cipher suite.
    pub cipher_suite: Cow<'static, str>,
    /// Client: whom it resumes with. Server: the SNI it was made under, or empty.
    pub server_name: Arc<str>,
    /// Who can read its secret part.
    pub format: Format,
    /// Whatever else its worker says must agree.
    pub binding: Box<[u8]>,
    /// Handed out at most once (RFC 8446 appendix C.4).
    pub single_use: bool,
    /// Name of the context it was made under.
    pub context: Arc<str>,
    /// Who the peer proved to be.
    pub peer: Option<Arc<PeerIdentity>>,
    /// When the handshake made it.
    pub created: Timestamp,
    /// When the peers last authenticated with certificates; a resumption carries it over.
    pub authenticated: Timestamp,
    /// From then on it is not resumed.
    pub expires: Timestamp,
    secret: Secret,
    open: AtomicU32,
}

impl Session {
    /// Whether it may be resumed on these terms.
    pub fn fits(&self, terms: &Terms<'_>) -> bool {
        self.format == *terms.format
            && *self.binding == *terms.binding
            && terms.versions.contains(&self.version)
            && terms.server_name.is_none_or(|name| *self.server_name == *name)
    }

    /// What it takes, in bytes, nearly: its secret and whatever else a worker or a peer decides the length of.
    pub fn size(&self) -> usize {
        let names = self.peer.as_deref().map_or(0, |peer| {
            peer.dns_names.iter().chain(&peer.uris).chain([&peer.subject]).map(String::len).sum()
        });
        self.secret.len() + self.binding.len() + self.server_name.len() + names
    }

    /// Whether it is over at `now`.
    pub fn expired(&self, now: Timestamp) -> bool {
        now >= self.expires
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

impl AsRef<SessionId> for Session {
    fn as_ref(&self) -> &SessionId {
        &self.id
    }
}

/// Without the secret.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("role", &self.role)
            .field("version", &self.version)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
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
    pub server_name: Arc<str>,
    /// Who can read its secret part.
    pub format: Format,
    /// Whatever else its worker says must agree.
    pub binding: Box<[u8]>,
    /// To be handed out at most once.
    pub single_use: bool,
    /// Name of the context it is made under.
    pub context: Arc<str>,
    /// Who the peer proved to be.
    pub peer: Option<Arc<PeerIdentity>>,
    /// When the peers authenticated.
    pub authenticated: Timestamp,
    /// How long after that it may be resumed.
    pub timeout: std::time::Duration,
    /// What its library resumes it with.
    pub secret: Secret,
}
