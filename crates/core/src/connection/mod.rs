//! Connection objects: what SSL is in OpenSSL.
//!
//! * [`table`]: all live connections, and who drives them
//! * `exchange`: bytes in, bytes out - the handshake and the traffic
//! * `close`: Shutdown, SetShutdown, Clear and Free - the close rule
//! * `error`: why calls are refused
//! * `engine`: rustls over memory
//! * `outlook`: how rustls will answer a ClientHello
//! * [`worker`]: connections whose TLS runs in the worker
//! * `id`: how connections are named
//! * [`unanswered`]: bytes of unfinished handshakes
//! * `family`: the sessions that a connection made or uses
//!
//! ```text
//!               first Exchange               handshake done
//!   New ─▶ Before ─────────────▶ Handshaking ─────────────▶ Established
//!            ▲                       │ fatal alert, end of stream │
//!            │                       ▼                            │
//!            ├──────── Clear ───── Failed ◀───────────────────────┤
//!            └──────── Clear ─────────────────────────────────────┘
//! ```
//!
//! Within Established the two flags of [`Shutdown`] say which sides have closed:
//!
//! ```text
//!                  Shutdown, SetShutdown
//!   open ──────────────────────────────────────▶ SENT
//!    │                                             │ close_notify
//!    │ close_notify                                ▼
//!    └────────▶ RECEIVED ───────────────────▶ SENT and RECEIVED
//!                          Shutdown, SetShutdown,
//!                          end of stream
//! ```
//!
//! The end of the stream fails a connection without RECEIVED, unless the context has `ignore-unexpected-eof`: there it
//! counts as the peer's close_notify. With RECEIVED it closes this side, because nothing more can come.
//!
//! *Open* is: established, with a session, and not closed by this side as the context's policy wants it. What ends while it
//! is open loses its family: every session or ticket that it made or uses.
//!
//! Nothing here waits, reads a clock or does I/O, so that a test can drive it like a simulation.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use rustls::pki_types;
use tls_sessiond_types::{Role, Version, client_hello::FirstFlight, server_name::ServerName};

use crate::{
    cache::tombstones::Departure,
    clock::Timestamp,
    context::{ClosePolicy, Context},
    session::{PeerIdentity, Session},
};

mod close;
mod daemon_engine;
mod error;
mod exchange;
mod family;
pub mod handshake_store;
mod id;
mod outlook;
pub mod table;
pub mod unanswered;
pub mod worker_engine;

pub use close::ShutdownStatus;
pub use error::Error;
pub use exchange::{Input, Output};
pub use family::Removed;
pub use id::ConnectionId;
pub use table::Table;
pub use tls_sessiond_types::alert::Alert;

use daemon_engine::Engine;
use family::Family;
use outlook::Retried;
use unanswered::Lease;

/// Where the TLS of a connection runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// In this daemon.
    Daemon,
    /// In the worker's own library.
    Worker,
}

/// What SetSession names.
#[derive(Debug)]
pub enum Named {
    /// Nothing: detach.
    Nothing,
    /// A session that is not there, or not any more.
    Gone,
    /// A session of this scope that left the cache, and that a handshake may have been given before.
    Departed(Departure),
    /// A session of this scope.
    Session(Arc<Session>),
}

/// What SSL_get_state(3) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No handshake has begun since New or Clear.
    Before,
    /// SSL_in_init(3).
    Handshaking,
    /// SSL_is_init_finished(3).
    Established,
    /// A fatal error ended it.
    Failed,
}

/// The mask of SSL_get_shutdown(3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// SSL_SENT_SHUTDOWN.
    pub sent: bool,
    /// SSL_RECEIVED_SHUTDOWN.
    pub received: bool,
}

/// What is known of how this side closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// SENT is not set.
    None,
    /// SetShutdown set it.
    Asserted,
    /// A close_notify was made.
    Written,
}

/// What the next handshake of a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// What is attached, or else the newest that the cache offers by itself.
    Free,
    /// What is attached, and nothing else: SetSession said so.
    Named,
}

/// What a handshake agreed on.
#[derive(Clone, Debug, Default)]
struct Agreed {
    version: Option<Version>,
    cipher_suite: Cow<'static, str>,
    alpn: String,
    /// SNI, for a server.
    server_name: Option<ServerName<'static>>,
    /// Whether the SNI came with a trailing dot.
    dotted: bool,
    reused: bool,
    peer: Option<Arc<PeerIdentity>>,
    authenticated: Timestamp,
}

/// What a new connection shall be.
#[derive(Debug)]
pub struct Plan {
    /// What it inherits.
    pub context: Arc<Context>,
    /// Which side it plays.
    pub role: Role,
    /// Where its TLS runs.
    pub engine: EngineKind,
    /// A client's peer.
    pub server_name: String,
    /// The worker that owns it.
    pub owner: Arc<str>,
    /// How long it may lie unused; none: as the context says.
    pub idle_timeout: Option<Duration>,
    /// The address of its peer, as the worker gave it, or empty. Nothing is decided by it.
    pub peer_address: String,
}

/// Why a connection failed.
#[derive(Debug)]
struct Failure {
    why: String,
    /// Before the handshake was done.
    in_handshake: bool,
}

/// A connection object.
pub struct Connection {
    id: ConnectionId,
    context: Arc<Context>,
    role: Role,
    engine_kind: EngineKind,
    owner: Arc<str>,
    created: Timestamp,
    idle_timeout: Duration,
    peer_address: Box<str>,
    /// A client's peer, as a name and as rustls wants it.
    target: Option<(ServerName<'static>, pki_types::ServerName<'static>)>,

    state: State,
    shutdown: Shutdown,
    /// Whether Shutdown set SENT, with a close_notify on the wire.
    written: bool,
    pin: Option<Version>,
    choice: Choice,
    attached: Option<Arc<Session>>,
    family: Family,
    agreed: Agreed,
    failure: Option<Failure>,

    /// A server's, until the ClientHello is whole.
    first_flight: Option<FirstFlight>,
    engine: Option<Engine>,
    /// A server's, from its ClientHello on: what the ClientHello after a HelloRetryRequest must agree with.
    retry: Option<Retried>,
    /// Whether a HelloRetryRequest has left in this handshake.
    retried: bool,
    /// What the handshake was given to resume with.
    offered: Option<Arc<Session>>,
    /// What is kept of an unfinished handshake. `None`: not counted, for the connection is in no table.
    unanswered: Option<Lease>,
}

impl Connection {
    /// SSL_new(3).
    ///
    /// # Errors
    /// The context cannot play this role, or a client's server name is missing or malformed.
    pub fn new(plan: Plan, now: Timestamp) -> Result<Self, Error> {
        let here = plan.engine == EngineKind::Daemon;
        let target = match plan.role {
            Role::Server if here && plan.context.server.is_none() => {
                return Err(Error::WithoutCertificate(Arc::clone(&plan.context.name)));
            }
            Role::Server => None,
            Role::Client if plan.server_name.is_empty() => return Err(Error::ServerNameRequired),
            Role::Client => {
                let name = ServerName::new(&plan.server_name).into_owned();
                let target = pki_types::ServerName::try_from(name.to_string())
                    .map_err(|_| Error::ServerNameMalformed(plan.server_name.clone()))?;
                if here && plan.context.client.is_none() {
                    return Err(Error::WithoutTrust(Arc::clone(&plan.context.name)));
                }
                Some((name, target))
            }
        };
        Ok(Self {
            id: ConnectionId::random()?,
            idle_timeout: plan.idle_timeout.unwrap_or(plan.context.idle_timeout),
            context: plan.context,
            role: plan.role,
            engine_kind: plan.engine,
            owner: plan.owner,
            peer_address: plan.peer_address.into(),
            created: now,
            target,
            state: State::Before,
            shutdown: Shutdown::default(),
            written: false,
            pin: None,
            choice: Choice::Free,
            attached: None,
            family: Family::default(),
            agreed: Agreed::default(),
            failure: None,
            first_flight: None,
            engine: None,
            retry: None,
            retried: false,
            offered: None,
            unanswered: None,
        })
    }

    /// SSL_set_session(3): what the next handshake offers, and, as the pin, the version it speaks. The sessions of an open
    /// connection are removed. Of a worker's connection it tells that a handshake is finished and has resumed it.
    ///
    /// # Errors
    /// The session was made with another server, a handshake is running, or the connection has failed.
    pub fn set_session(&mut self, named: Named) -> Result<Vec<Removed>, Error> {
        let resumed = self.engine_kind == EngineKind::Worker && !matches!(named, Named::Nothing);
        let (session, departed) = match named {
            Named::Session(session) => (Some(session), None),
            Named::Departed(departure) => (None, Some(departure)),
            Named::Nothing | Named::Gone => (None, None),
        };
        match self.state {
            State::Handshaking => return Err(Error::HandshakeRunning),
            State::Failed => return Err(self.has_failed()),
            State::Before | State::Established => {}
        }
        if let (Some(session), Some((name, _))) = (&session, &self.target)
            && session.kind().server_name != *name
        {
            return Err(Error::SessionOutOfScope);
        }
        // Naming what is attached already replaces nothing, so nothing is lost by it.
        let same = matches!((&session, &self.attached), (Some(new), Some(old)) if Arc::ptr_eq(new, old));
        let removed = if same && self.state == State::Established { Vec::new() } else { self.leave_family() };
        // A context may share the cache of one that speaks other versions. Such a session cannot be offered; what a
        // worker says that it has resumed, it has.
        let session =
            session.filter(|session| resumed || self.context.versions.contains(&session.kind().version));
        // One of the family that has just been removed is gone like any other.
        let session = session.filter(|session| !removed.iter().any(|removed| removed.id == *session.id()));
        if resumed {
            let held = session.as_ref().map(|session| (session.kind(), session.authenticated()));
            let gone = departed.as_ref().map(|departure| (&departure.kind, departure.authenticated));
            self.resumed_by_worker(held.or(gone));
        } else {
            self.pin = session.as_ref().map(|session| session.kind().version);
            self.choice = Choice::Named;
        }
        if self.state == State::Established
            && let Some(session) = &session
        {
            self.family.join(session);
        }
        self.attached = session;
        Ok(removed)
    }

    /// SSL_get_session(3).
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.attached.as_ref()
    }

    fn has_failed(&self) -> Error {
        Error::Failed(self.failure.as_ref().map(|failure| failure.why.clone()).unwrap_or_default())
    }

    /// Why its handshake failed, if one did since New or Clear.
    pub fn handshake_failure(&self) -> Option<&str> {
        self.failure.as_ref().filter(|failure| failure.in_handshake).map(|failure| &*failure.why)
    }

    /// The address of its peer, as the worker gave it, or empty.
    pub fn peer_address(&self) -> &str {
        &self.peer_address
    }

    /// Tells the time of what comes next, for the records of sessions that leave by it.
    pub(super) fn tell_time(&self, now: Timestamp) {
        self.context.cache(self.role).tell_time(now);
    }

    /// Its id.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// What it inherited.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Which side it plays.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Where its TLS runs.
    pub fn engine_kind(&self) -> EngineKind {
        self.engine_kind
    }

    /// The worker that owns it.
    pub fn owner(&self) -> &Arc<str> {
        &self.owner
    }

    /// When it was made.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// How long it may lie unused.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// When it lapses if nothing uses it from now on: after its idle time-out, or before that because its peer does not go on
    /// with a handshake.
    pub fn lapses(&self, now: Timestamp) -> Timestamp {
        let idle = now.after(self.idle_timeout);
        match self.unanswered.as_ref().and_then(Lease::ends) {
            Some(ends) => idle.min(ends),
            None => idle,
        }
    }

    /// How far it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// SSL_get_shutdown(3).
    pub fn shutdown_flags(&self) -> Shutdown {
        self.shutdown
    }

    /// How this side closed.
    pub fn evidence(&self) -> Evidence {
        match (self.shutdown.sent, self.written) {
            (false, _) => Evidence::None,
            (true, false) => Evidence::Asserted,
            (true, true) => Evidence::Written,
        }
    }

    /// SSL_version(3), once it is chosen.
    pub fn version(&self) -> Option<Version> {
        self.agreed.version
    }

    /// The one version that the next handshake may use.
    pub fn pinned_version(&self) -> Option<Version> {
        self.pin
    }

    /// IANA name of the cipher suite, once it is chosen.
    pub fn cipher_suite(&self) -> &str {
        &self.agreed.cipher_suite
    }

    /// The agreed application protocol, or empty.
    pub fn alpn(&self) -> &str {
        &self.agreed.alpn
    }

    /// Client: whom it asked for. Server: the SNI, or empty.
    pub fn server_name(&self) -> &ServerName<'static> {
        match (&self.target, &self.agreed.server_name) {
            (Some((name, _)), _) | (None, Some(name)) => name,
            (None, None) => &ServerName::NONE,
        }
    }

    /// SSL_session_reused(3).
    pub fn session_reused(&self) -> bool {
        self.agreed.reused
    }

    /// Who the peer proved to be.
    pub fn peer(&self) -> Option<&Arc<PeerIdentity>> {
        self.agreed.peer.as_ref()
    }

    /// Whether its sessions are lost if it ends now.
    pub fn is_open(&self) -> bool {
        self.state == State::Established
            && self.context.close_policy != ClosePolicy::ErrorsOnly
            && !self.is_closed()
            && (self.attached.is_some() || !self.family.is_empty())
    }

    /// Whether this side has closed as its context wants it.
    fn is_closed(&self) -> bool {
        match self.context.close_policy {
            ClosePolicy::Flag | ClosePolicy::ErrorsOnly => self.shutdown.sent,
            ClosePolicy::Written => self.evidence() == Evidence::Written,
        }
    }
}

/// Without keys and names.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("role", &self.role)
            .field("state", &self.state)
            .field("shutdown", &self.shutdown)
            .finish_non_exhaustive()
    }
}
