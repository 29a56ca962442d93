//! Connection objects, the counterpart of SSL in OpenSSL.
//!
//! * [`table`]: all live connections, and the streams that drive them
//! * `exchange`: the handshake and the traffic: bytes in, bytes out
//! * `close`: the close rule: Shutdown, SetShutdown, Clear and Free
//! * `error`: the errors of calls on connections
//! * `daemon_engine`: connections whose TLS runs here: rustls over memory
//! * [`handshake_store`]: the storage traits of rustls, for one connection at a time
//! * `sealing`: sessions in the tickets of clients
//! * `session_form`: the form that rustls gives a session
//! * `outlook`: predicts how rustls answers a ClientHello
//! * [`worker_engine`]: connections whose TLS runs in the worker
//! * `id`: connection ids
//! * [`unanswered`]: limits on the bytes of unfinished handshakes
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
//! The effect of the end of the stream depends on RECEIVED:
//!
//! * With RECEIVED, this side closes as well, because no more data can come.
//! * Without RECEIVED, the connection fails. In a context with `ignore-unexpected-eof` the end of
//!   the stream sets RECEIVED instead, as a close_notify does.
//!
//! A connection is *open* if it is established, has a session, and this side has not closed as the
//! context's `close_policy` requires. Under `errors-only`, no connection is open. When an open
//! connection ends, its *family* is removed from the cache. The family is every session or ticket
//! that the connection made or uses.
//!
//! The code of this module never waits, reads no clock and does no I/O, so that a test can simulate
//! it.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use rustls::pki_types;
use tls_sessiond_types::{Role, Version, client_hello::FirstFlight, server_name::ServerName};

use crate::{
    cache::{Found, Unreached, tombstones::Tombstone},
    clock::{Now, Timestamp},
    context::{ClosePolicy, Context},
    session::{Miss, PeerIdentity, Session},
};

mod close;
mod daemon_engine;
mod error;
mod exchange;
mod family;
pub mod handshake_store;
mod id;
mod outlook;
mod sealing;
mod session_form;
pub mod table;
pub mod unanswered;
pub mod worker_engine;

pub use close::ShutdownStatus;
pub use error::Error;
pub use exchange::{Input, Output, Step};
pub use family::Removed;
pub use id::ConnectionId;
pub use table::Table;
pub use tls_sessiond_types::alert::Alert;

use crate::cache::PendingPut;
use daemon_engine::Engine;
use exchange::Asking;
use family::Family;
use outlook::Retried;
use unanswered::Lease;

/// The side that runs the TLS protocol for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// This daemon.
    Daemon,
    /// The worker's own library.
    Worker,
}

/// The session that a call to SetSession names.
#[derive(Debug)]
pub enum Named {
    /// No session: the call detaches the attached one.
    Nothing,
    /// A session that is unknown, or that can no longer be resumed.
    Gone,
    /// A session that the shared store may have, although it could not be asked.
    Unreached(Unreached),
    /// A session of this scope that left the cache, but that a lookup may have returned before.
    Departed(Tombstone),
    /// A session of this scope.
    Session(Found),
}

/// The state of the handshake (SSL_get_state(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No handshake has begun since New or Clear.
    Before,
    /// SSL_in_init(3).
    Handshaking,
    /// SSL_is_init_finished(3).
    Established,
    /// A fatal error ended the connection.
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

/// Evidence that this side closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// SENT is not set.
    None,
    /// SENT was set without a close_notify, by SetShutdown or under `quiet-shutdown`.
    Asserted,
    /// A close_notify was made.
    Written,
}

/// The sessions that the next handshake of a client may offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// The attached session, or else the newest that the cache offers by itself.
    Free,
    /// Only the attached session, because SetSession chose it. Without one, no session is offered.
    Named,
}

/// The results of a handshake.
#[derive(Clone, Debug, Default)]
struct Agreed {
    version: Option<Version>,
    cipher_suite: Cow<'static, str>,
    alpn: String,
    /// Server: the SNI.
    server_name: Option<ServerName<'static>>,
    /// Whether the SNI had a trailing dot.
    dotted: bool,
    reused: bool,
    peer: Option<Arc<PeerIdentity>>,
    authenticated: Timestamp,
}

/// The parameters of a new connection.
#[derive(Debug)]
pub struct ConnectionPlan {
    /// The context whose configuration the connection inherits.
    pub context: Arc<Context>,
    /// Whether the connection is a client or a server.
    pub role: Role,
    /// The side that runs its TLS.
    pub engine: EngineKind,
    /// Client: the server that it connects to. A server ignores it.
    pub server_name: String,
    /// The worker that owns the connection.
    pub owner: Arc<str>,
    /// The idle time-out. `None`: that of the context.
    pub idle_timeout: Option<Duration>,
    /// The peer's address as the worker reported it, or empty. No decision depends on it.
    pub peer_address: String,
}

/// Why a connection failed.
#[derive(Debug)]
struct Failure {
    why: String,
    /// Whether it failed before the handshake was finished.
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
    /// Client: the name of the server, in the canonical form and in the form of rustls.
    target: Option<(ServerName<'static>, pki_types::ServerName<'static>)>,

    state: State,
    shutdown: Shutdown,
    /// Whether SENT is set and a close_notify was made.
    written: bool,
    pin: Option<Version>,
    choice: Choice,
    attached: Option<Found>,
    family: Family,
    agreed: Agreed,
    failure: Option<Failure>,

    /// When the handshake began.
    begun: Timestamp,
    /// Server: the received bytes, until the ClientHello is complete.
    first_flight: Option<FirstFlight>,
    engine: Option<Engine>,
    /// Server: the values of the first ClientHello that the one after a HelloRetryRequest must
    /// repeat.
    retry: Option<Retried>,
    /// Whether a HelloRetryRequest was sent in this handshake.
    retried: bool,
    /// The session that the handshake was given to resume.
    offered: Option<Found>,
    /// Server: what waits for the shared store's answer to a lookup.
    asking: Option<Box<Asking>>,
    /// Puts into the shared store that this step has made.
    puts: Vec<PendingPut>,
    /// Counts the bytes that an unfinished handshake holds. `None`: the connection is in no table,
    /// so its bytes are not counted.
    unanswered: Option<Lease>,
}

impl Connection {
    /// Makes a connection (SSL_new(3)).
    ///
    /// # Errors
    /// The context cannot play this role, a client's server name is missing or malformed, or the
    /// system has no random numbers.
    pub fn new(plan: ConnectionPlan, now: Timestamp) -> Result<Self, Error> {
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
            begun: now,
            first_flight: None,
            engine: None,
            retry: None,
            retried: false,
            offered: None,
            asking: None,
            puts: Vec::new(),
            unanswered: None,
        })
    }

    /// Sets the session that the next handshake offers, and pins that handshake to the version of
    /// the session (SSL_set_session(3)). If the connection is open, its family is removed first.
    /// Returns the removed sessions.
    ///
    /// On a connection with the worker's engine, naming a session reports that a handshake is
    /// finished and has resumed it.
    ///
    /// # Errors
    /// The session was made with another server, a handshake is running, or the connection has failed.
    pub fn set_session(&mut self, named: Named) -> Result<Vec<Removed>, Error> {
        let resumed = self.engine_kind == EngineKind::Worker && !matches!(named, Named::Nothing);
        let (session, departed, unreached) = match named {
            Named::Session(session) => (Some(session), None, None),
            Named::Departed(departure) => (None, Some(departure), None),
            Named::Unreached(unreached) => (None, None, Some(unreached)),
            Named::Nothing | Named::Gone => (None, None, None),
        };
        match self.state {
            State::Handshaking => return Err(Error::HandshakeRunning),
            State::Failed => return Err(self.has_failed()),
            State::Before | State::Established => {}
        }
        if let (Some(Found { session, .. }), Some((name, _))) = (&session, &self.target)
            && session.kind().server_name != *name
        {
            return Err(Error::SessionOutOfScope);
        }
        // Naming the session that is already attached replaces nothing, so the family stays.
        let same = matches!((&session, &self.attached), (Some(new), Some(old)) if new.is_same(old));
        let stays = same && self.state == State::Established;
        let removed = if stays {
            Vec::new()
        } else {
            self.leave_family()
        };
        // Contexts that share a cache may speak different versions. A session of a version that
        // this context does not speak cannot be offered. A worker that says that it resumed such a
        // session is believed.
        let session = session.filter(|found| {
            resumed
                || self
                    .context
                    .versions
                    .contains(&found.session.kind().version)
        });
        // The named session may belong to the family that was just removed. Then it is not
        // attached.
        let session = session.filter(|found| {
            let id = found.session.id();
            !removed.iter().any(|removed| removed.id == *id)
        });
        if resumed {
            let held = session
                .as_ref()
                .map(|found| (found.session.kind(), found.session.authenticated()));
            let gone = departed
                .as_ref()
                .map(|departure| (&departure.kind, departure.authenticated));
            self.resumed_by_worker(held.or(gone));
            // The worker has resumed it, whether the store has answered or not. So it is bad if this
            // connection ends unclosed.
            if let Some(unreached) = unreached {
                self.family.join_unreached(unreached);
            }
        } else {
            self.pin = session.as_ref().map(|found| found.session.kind().version);
            self.choice = Choice::Named;
        }
        if self.state == State::Established
            && let Some(session) = &session
        {
            self.family.join(session);
        }
        // The hold on a session that is attached already stays the one that its family has.
        if !stays {
            self.attached = session;
        }
        Ok(removed)
    }

    /// Returns the attached session (SSL_get_session(3)).
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.attached.as_ref().map(|found| &found.session)
    }

    /// Returns the attached session, and the hold on it.
    pub(super) fn attached(&self) -> Option<&Found> {
        self.attached.as_ref()
    }

    /// Drops the sessions that the shared store does not have, after puts were answered.
    pub fn puts_answered(&mut self) {
        self.family.drop_unstored();
        self.attached
            .take_if(|found| found.hold.as_ref().is_some_and(|hold| hold.is_over()));
    }

    /// Goes on without a session, if the connection waits for the shared store: the call that has
    /// asked is gone. What the connection makes of it is lost, as if the call had ended later.
    pub fn stop_asking(&mut self, now: Now) {
        while self.is_asking() {
            // An error fails the connection, and it asks no more.
            let _ = self.given(Err(Miss::StoreUnavailable), now);
        }
    }

    /// Returns whether the connection waits for [`Self::given`].
    pub fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    fn has_failed(&self) -> Error {
        Error::Failed(
            self.failure
                .as_ref()
                .map(|failure| failure.why.clone())
                .unwrap_or_default(),
        )
    }

    /// Returns why the handshake failed, if one failed since New or Clear.
    pub fn handshake_failure(&self) -> Option<&str> {
        self.failure
            .as_ref()
            .filter(|failure| failure.in_handshake)
            .map(|failure| &*failure.why)
    }

    /// Returns the peer's address as the worker reported it, or an empty string.
    pub fn peer_address(&self) -> &str {
        &self.peer_address
    }

    /// Tells the cache the time, for the tombstones of the sessions that this connection removes
    /// next.
    pub(super) fn tell_time(&self, now: Timestamp) {
        self.context.cache(self.role).tell_time(now);
    }

    /// Returns the id of the connection.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Returns the context that the connection was made from.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Returns whether the connection is a client or a server.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Returns the side that runs its TLS.
    pub fn engine_kind(&self) -> EngineKind {
        self.engine_kind
    }

    /// Returns the worker that owns the connection.
    pub fn owner(&self) -> &Arc<str> {
        &self.owner
    }

    /// Returns when the connection was made.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// Returns the idle time-out.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Returns when the connection lapses if no call uses it from now on: at the end of its idle
    /// time-out, or earlier if its peer does not continue a handshake.
    pub fn lapses(&self, now: Timestamp) -> Timestamp {
        let idle = now.after(self.idle_timeout);
        match self.unanswered.as_ref().and_then(Lease::ends) {
            Some(ends) => idle.min(ends),
            None => idle,
        }
    }

    /// Returns the state of the handshake.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns the shutdown flags (SSL_get_shutdown(3)).
    pub fn shutdown_flags(&self) -> Shutdown {
        self.shutdown
    }

    /// Returns the evidence that this side closed.
    pub fn evidence(&self) -> Evidence {
        match (self.shutdown.sent, self.written) {
            (false, _) => Evidence::None,
            (true, false) => Evidence::Asserted,
            (true, true) => Evidence::Written,
        }
    }

    /// Returns the negotiated version (SSL_version(3)). `None` until it is chosen.
    pub fn version(&self) -> Option<Version> {
        self.agreed.version
    }

    /// Returns the only version that the next handshake may use. `None`: it may use any of the
    /// context.
    pub fn pinned_version(&self) -> Option<Version> {
        self.pin
    }

    /// Returns the IANA name of the negotiated cipher suite. Empty until it is chosen.
    pub fn cipher_suite(&self) -> &str {
        &self.agreed.cipher_suite
    }

    /// Returns the negotiated application protocol, or an empty string.
    pub fn alpn(&self) -> &str {
        &self.agreed.alpn
    }

    /// Returns the name of the server. Client: the name that it connects to. Server: the SNI, or
    /// [`ServerName::NONE`].
    pub fn server_name(&self) -> &ServerName<'static> {
        match (&self.target, &self.agreed.server_name) {
            (Some((name, _)), _) | (None, Some(name)) => name,
            (None, None) => &ServerName::NONE,
        }
    }

    /// Returns whether the handshake resumed a session (SSL_session_reused(3)).
    pub fn session_reused(&self) -> bool {
        self.agreed.reused
    }

    /// Returns the identity that the peer proved.
    pub fn peer(&self) -> Option<&Arc<PeerIdentity>> {
        self.agreed.peer.as_ref()
    }

    /// Returns whether the connection is open. If an open connection ends, its family is removed.
    pub fn is_open(&self) -> bool {
        self.state == State::Established
            && self.context.close_policy != ClosePolicy::ErrorsOnly
            && !self.is_closed()
            && (self.attached.is_some() || !self.family.is_empty())
    }

    /// Returns whether this side has closed as the `close_policy` of the context requires.
    fn is_closed(&self) -> bool {
        match self.context.close_policy {
            ClosePolicy::Flag | ClosePolicy::ErrorsOnly => self.shutdown.sent,
            ClosePolicy::Written => self.evidence() == Evidence::Written,
        }
    }
}

/// Omits keys and names.
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
