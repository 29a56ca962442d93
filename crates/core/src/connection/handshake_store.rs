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
    server::StoresServerSessions,
    time_provider::TimeProvider,
};

use crate::{
    clock::WallTime,
    session::{ClientSession, Secret, Session, SessionId},
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
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    found: Option<Arc<Session>>,
    made: Vec<NewTicket>,
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
            inner: Mutex::default(),
        }
    }

    /// Sets the time of the next step. rustls verifies certificates with it, so it is the wall
    /// clock's.
    pub fn set_now(&self, now: WallTime) {
        self.now_millis.store(now.as_millis(), Ordering::Relaxed);
    }

    /// Sets the session that the handshake may resume. A single-use session must have been removed
    /// from the cache before.
    pub fn offer(&self, session: Option<Arc<Session>>) {
        self.inner.lock().found = session;
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

    fn can_cache(&self) -> bool {
        self.caching
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
