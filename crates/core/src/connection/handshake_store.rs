//! rustls' storage traits, answered for one connection at a time.
//!
//! rustls asks for sessions and hands out new ones in the middle of a handshake step, by calls that
//! cannot wait. So each connection has a [`HandshakeStore`]. The session that the handshake may need is
//! put there before the step, and the sessions that rustls wants stored are taken from there after
//! it. It also is rustls' clock for the connection.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::{ServerName, UnixTime},
    server::{ProducesTickets, StoresServerSessions},
    time_provider::TimeProvider,
};

use super::sealing::{Handed, TicketSealer};
use crate::{
    clock::{Now, Timestamp},
    session::{ClientSession, Secret, Session, SessionId, SessionInfo},
};

/// A session that rustls wants stored.
pub struct NewTicket {
    /// Server: its id. Client: `None`.
    pub id: Option<SessionId>,
    /// Its secret part.
    pub secret: Secret,
    /// Client: how long from now on the server allows resumption. `None`: the server does not say.
    pub lifetime: Option<Duration>,
    /// Client: whether its ticket differs from the one that the handshake offered.
    pub renews: bool,
}

/// The session that one connection's handshake may resume, and the sessions that it made.
pub struct HandshakeStore {
    now_millis: AtomicU64,
    /// Whether a server keeps sessions at all (SSL_SESS_CACHE_OFF).
    caching: bool,
    /// Seals the sessions of a server in tickets. `None`: they are stored.
    sealer: Option<TicketSealer>,
    /// Whether the client takes tickets in TLS 1.2.
    takes_tickets: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    now: Now,
    found: Option<Arc<Session>>,
    /// `found` is sealed in tickets: when the last of them expires.
    sealed_until: Option<Timestamp>,
    /// The session that a ticket of the client has opened.
    handed: Option<Handed>,
    made: Vec<NewTicket>,
    sealed: Vec<(SessionInfo, Timestamp)>,
    /// How long the client may use the last ticket.
    lifetime: Duration,
    group: Option<NamedGroup>,
    /// Server: how many more sessions it may make. `None`: no limit.
    room: Option<usize>,
}

impl HandshakeStore {
    /// Creates the store of one connection. If `caching` is false, a server gives its peers no
    /// sessions.
    pub fn new(caching: bool) -> Self {
        Self {
            now_millis: AtomicU64::new(0),
            caching,
            sealer: None,
            takes_tickets: false,
            inner: Mutex::default(),
        }
    }

    /// Makes the store seal the sessions of a server in tickets. In TLS 1.2, only a client that
    /// `takes_tickets` gets one.
    #[must_use]
    pub(super) fn sealing(self, sealer: Option<TicketSealer>, takes_tickets: bool) -> Self {
        Self {
            sealer,
            takes_tickets,
            ..self
        }
    }

    /// Sets the time of the next step. rustls verifies certificates with that of the wall clock.
    pub fn set_now(&self, now: Now) {
        let wall = now.wall().as_millis();
        self.now_millis.store(wall, Ordering::Relaxed);
        self.inner.lock().now = now;
    }

    /// Sets the session that the handshake may resume. A single-use session must have been removed
    /// from the cache before.
    pub fn offer(&self, session: Option<Arc<Session>>) {
        let mut inner = self.inner.lock();
        inner.found = session;
        inner.sealed_until = None;
    }

    /// Sets the session of a ticket that the client offers, like [`Self::offer`]. `until`: when the last of
    /// its tickets expires.
    pub(super) fn offer_sealed(&self, session: Arc<Session>, until: Timestamp) {
        let mut inner = self.inner.lock();
        inner.found = Some(session);
        inner.sealed_until = Some(until);
    }

    /// Returns the sessions that were sealed in tickets since the last call, oldest first.
    pub(super) fn take_sealed(&self) -> Vec<(SessionInfo, Timestamp)> {
        std::mem::take(&mut self.inner.lock().sealed)
    }

    /// Limits the number of tickets that a server makes from now on.
    pub fn limit_tickets(&self, most: usize) {
        self.inner.lock().room = Some(most);
    }

    /// Returns the sessions that rustls wanted stored since the last call, oldest first.
    pub fn take_made(&self) -> Vec<NewTicket> {
        std::mem::take(&mut self.inner.lock().made)
    }

    fn server_secret(&self, key: &[u8]) -> Option<Vec<u8>> {
        let inner = self.inner.lock();
        let session = inner.found.as_ref()?;
        if session.id().as_bytes() != key {
            return None;
        }
        session.secret().as_bytes().map(<[u8]>::to_vec)
    }
}

impl fmt::Debug for HandshakeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resumption")
    }
}

impl TimeProvider for HandshakeStore {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(
            self.now_millis.load(Ordering::Relaxed),
        )))
    }
}

impl StoresServerSessions for HandshakeStore {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let secret = Secret::bytes(value);
        let Some(id) = SessionId::new(&key) else {
            return false;
        };
        let mut inner = self.inner.lock();
        if !self.caching || inner.room == Some(0) {
            return false;
        }
        inner.room = inner.room.map(|room| room - 1);
        inner.made.push(NewTicket {
            id: Some(id),
            secret,
            lifetime: None,
            renews: true,
        });
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.server_secret(key)
    }

    /// Returns the session's secret and removes the session from the connection. The cache removed
    /// it before rustls asked.
    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let bytes = self.server_secret(key)?;
        self.inner.lock().found = None;
        Some(bytes)
    }

    /// Returns whether a server of TLS 1.2 gives its client a session id. A client that gets a ticket
    /// has no use for one.
    fn can_cache(&self) -> bool {
        self.caching && !(self.sealer.is_some() && self.takes_tickets)
    }
}

impl ProducesTickets for HandshakeStore {
    fn enabled(&self) -> bool {
        self.sealer.is_some()
    }

    /// Returns the lifetime of the last ticket, in seconds.
    fn lifetime(&self) -> u32 {
        // In TLS 1.2, zero would mean that the server does not specify one.
        let seconds = self.inner.lock().lifetime.as_secs().max(1);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let sealer = self.sealer.as_ref()?;
        let (now, handed) = {
            let mut inner = self.inner.lock();
            if inner.room == Some(0) {
                return None;
            }
            inner.room = inner.room.map(|room| room - 1);
            (inner.now, inner.handed.clone())
        };
        let sealed = sealer.seal(plain, handed.as_ref(), now)?;
        let mut inner = self.inner.lock();
        inner.lifetime = sealed.lifetime;
        inner.sealed.extend(sealed.session);
        Some(sealed.ticket)
    }

    /// Returns the session that was opened and checked before the step, if this is its ticket. A ticket
    /// of TLS 1.3 may also be the id of a stored session.
    ///
    /// A ticket that was changed has the session of the handle that it names. Only its client has the
    /// secret that rustls then asks a proof of.
    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let sealer = self.sealer.as_ref()?;
        let mut inner = self.inner.lock();
        let session = Arc::clone(inner.found.as_ref()?);
        let is_asked = match inner.sealed_until.is_some() {
            true => sealer.named_handle(ticket).as_ref() == Some(session.id()),
            false => session.id().as_bytes() == ticket,
        };
        let plain = session.secret().as_bytes().filter(|_| is_asked)?.to_vec();
        if session.kind().single_use {
            inner.found = None;
        }
        inner.handed = Some(Handed {
            session,
            sealed_until: inner.sealed_until,
        });
        Some(plain)
    }
}

impl ClientSessionStore for HandshakeStore {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.inner.lock().group = Some(group);
    }

    /// Returns the group of the handshake that made the session. It saves a HelloRetryRequest.
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        match self.inner.lock().found.as_ref()?.secret().client()? {
            ClientSession::Tls12(_, group) | ClientSession::Tls13(_, group) => *group,
        }
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        let mut inner = self.inner.lock();
        let ticket = Ticket::of(&value);
        let offered = match inner
            .found
            .as_ref()
            .and_then(|found| found.secret().client())
        {
            Some(ClientSession::Tls12(offered, _)) => Ticket::of(offered),
            Some(ClientSession::Tls13(..)) | None => Ticket::default(),
        };
        let renews = ticket.digits != offered.digits;
        // RFC 5077 section 3.3: zero means that the server does not specify a lifetime.
        let lifetime = Some(ticket.lifetime).filter(|lifetime| !lifetime.is_zero());
        let secret = Secret::Client(Box::new(ClientSession::Tls12(value, inner.group)));
        inner.made.push(NewTicket {
            id: None,
            secret,
            lifetime,
            renews,
        });
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        match self.inner.lock().found.as_ref()?.secret().client()? {
            ClientSession::Tls12(value, _) => Some(value.clone()),
            ClientSession::Tls13(..) => None,
        }
    }

    /// Does nothing. rustls means all sessions with the server; only the close rule removes
    /// sessions.
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let Ticket { lifetime, .. } = Ticket::of(&value);
        // RFC 8446 section 4.6.1: a ticket of lifetime zero is discarded.
        if lifetime.is_zero() {
            return;
        }
        let mut inner = self.inner.lock();
        let value = Mutex::new(Some(value));
        let secret = Secret::Client(Box::new(ClientSession::Tls13(value, inner.group)));
        inner.made.push(NewTicket {
            id: None,
            secret,
            lifetime: Some(lifetime),
            renews: true,
        });
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        match self.inner.lock().found.as_ref()?.secret().client()? {
            ClientSession::Tls13(value, _) => value.lock().take(),
            ClientSession::Tls12(..) => None,
        }
    }
}

/// A client's ticket, as far as rustls shows it.
///
/// rustls shows it only in the `Debug` form of a session, which has no secret. A test fails if an
/// update of rustls changes that form.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ticket {
    /// The ticket in hex; empty for a session without one.
    digits: String,
    /// `lifetime` or `lifetime_hint`. Zero if the form cannot be read.
    lifetime: Duration,
}

impl Ticket {
    fn of(session: &impl fmt::Debug) -> Self {
        /// Takes text up to the end of `lifetime_secs`, and refuses the rest, so that no
        /// certificate is formatted.
        struct Head(String);

        const LIFETIME: &str = "lifetime_secs: ";

        impl fmt::Write for Head {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                let complete = self
                    .0
                    .split_once(LIFETIME)
                    .is_some_and(|(_, rest)| rest.contains(','));
                if complete {
                    return Err(fmt::Error);
                }
                self.0.push_str(text);
                Ok(())
            }
        }

        let mut head = Head(String::new());
        // An error means that the text is complete.
        let _complete = fmt::write(&mut head, format_args!("{session:?}"));
        let Head(text) = head;
        let value = |key: &str| {
            text.split_once(key)
                .and_then(|(_, rest)| rest.split_once(','))
        };
        Self {
            digits: value("ticket: ")
                .map(|(digits, _)| digits.to_owned())
                .unwrap_or_default(),
            lifetime: value(LIFETIME)
                .and_then(|(seconds, _)| seconds.parse().ok())
                .map(Duration::from_secs)
                .unwrap_or_default(),
        }
    }
}
