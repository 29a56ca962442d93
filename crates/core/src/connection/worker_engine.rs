//! Connections whose TLS runs in the worker's own library. The daemon sees no bytes of them. The
//! worker reports the events, and the same rules apply as with the daemon's engine.
//!
//! Such a connection stays in [`State::Before`] until the worker reports a session: one that the
//! handshake made, or one that it resumed. The report means that the handshake is finished.

use std::{sync::Arc, time::Duration};

use tls_sessiond_types::{Role, Version, server_name::ServerName};

use super::{Agreed, Alert, Connection, EngineKind, Error, Removed, Shutdown, State};
use crate::{
    cache::{NotStored, PendingPut},
    clock::{Now, Timestamp},
    session::{
        Attributes, Format, NewSession, PeerIdentity, RemovalReason, Secret, Session, SessionId,
        stats::HandshakeKind,
    },
};

/// A session that a worker's library made.
pub struct Put {
    /// Server: the id that a peer will offer. Client: none, because the cache makes one.
    pub id: Option<SessionId>,
    /// The session, in the encoding of the worker's library.
    pub secret: Secret,
    /// The name of that encoding. A lookup must name the same one to find the session.
    pub format: Format,
    /// Bytes that a lookup must repeat to find the session.
    pub binding: Box<[u8]>,
    /// Whether the session is handed out at most once.
    pub single_use: bool,
    /// The version that the handshake negotiated.
    pub version: Version,
    /// IANA name of the cipher suite, or empty.
    pub cipher_suite: String,
    /// Client: the server name of the connection, or empty. Server: the SNI.
    pub server_name: ServerName<'static>,
    /// The identity that the peer proved. Only the first session of a full handshake sets it.
    pub peer: Option<PeerIdentity>,
    /// The lifetime of the session. At most the session timeout of the context.
    pub timeout: Option<Duration>,
    /// When the peers authenticated. `None`: during the handshake of the connection, as far as that
    /// time is known, or else now.
    pub authenticated: Option<Timestamp>,
}

/// Why a worker's session was not stored. Its handshake goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// The context keeps no sessions.
    CacheOff,
    /// The connection resumed a TLS 1.2 session. Such a resumption neither makes a session nor
    /// restores a removed one.
    Resumed,
    /// The connection has made as many sessions as it may.
    TooMany,
    /// The connection resumed a session that the daemon does not know. So the daemon knows neither
    /// the peer's identity nor the time of the authentication, and cannot check for a revocation.
    AuthenticationUnknown,
    /// The cache refused the session.
    Cache(NotStored),
}

/// The outcome of [`Connection::put_session`].
#[derive(Debug)]
pub enum PutOutcome {
    /// The session is in the cache, or will be there once the shared store has answered the put.
    Stored(Arc<Session>, Option<Box<PendingPut>>),
    /// The session was not stored. The handshake goes on.
    NotKept(NotKept),
}

/// Most sessions in the family of one connection. Each counts until the connection ends, even if
/// the cache has removed it.
const FAMILY_MAX: usize = 64;

impl Connection {
    /// Stores a session that a finished handshake made (SSL_CTX_sess_set_new_cb(3)). The session
    /// joins the family and is attached.
    ///
    /// A handshake authenticates once. Its first session sets the peer's identity and the time of
    /// the authentication. A later session of that handshake can only move the time back. After a
    /// resumption, the identity, the time and a server's SNI are those of the resumed session, as
    /// far as the daemon knows it.
    ///
    /// # Errors
    /// The daemon runs this connection, it has failed, or a client's session names another server.
    pub fn put_session(&mut self, put: Put, now: Now) -> Result<PutOutcome, Error> {
        self.worker_engine()?;
        let server_name = match &self.target {
            // A client offers a session to the server that it is stored under (CVE-2021-22890).
            Some((name, _)) if !put.server_name.is_empty() && put.server_name != *name => {
                return Err(Error::ServerNameOther(name.clone()));
            }
            Some((name, _)) => name.clone(),
            None => put.server_name,
        };
        self.establish(HandshakeKind {
            role: self.role,
            version: Some(put.version),
            resumed: false,
        });
        let resumed = self.agreed.reused;
        let known = Some(self.agreed.authenticated).filter(|&known| known != Timestamp::default());
        let authenticated = match (put.authenticated, known) {
            (Some(told), Some(known)) => Some(told.min(known)),
            (None, Some(known)) => Some(known),
            // A resumption authenticates no peer, so a time that the worker reports for it does not
            // count.
            (_, None) if resumed => None,
            (told, None) => Some(told.unwrap_or(now.at)),
        };
        let server_name = match (self.role, &self.agreed.server_name) {
            (Role::Server, Some(carried)) if resumed => carried.clone(),
            _ => server_name,
        };
        // A resumption never changes the version.
        let version = self
            .agreed
            .version
            .filter(|_| resumed)
            .unwrap_or(put.version);
        let resumed_tls12 = resumed && [version, put.version].contains(&Version::Tls12);
        self.agreed.version = Some(version);
        self.agreed.cipher_suite = put.cipher_suite.into();
        self.agreed.authenticated = authenticated.unwrap_or_default();
        if self.agreed.peer.is_none() && !resumed {
            self.agreed.peer = put.peer.map(Arc::new);
        }
        if self.role == Role::Server {
            self.agreed.server_name = Some(server_name.clone());
        }
        if self.context.options.no_session_cache {
            return Ok(PutOutcome::NotKept(NotKept::CacheOff));
        }
        if resumed_tls12 {
            return Ok(PutOutcome::NotKept(NotKept::Resumed));
        }
        if self.family.len() >= FAMILY_MAX {
            return Ok(PutOutcome::NotKept(NotKept::TooMany));
        }
        let Some(authenticated) = authenticated else {
            return Ok(PutOutcome::NotKept(NotKept::AuthenticationUnknown));
        };
        let stored = self.context.cache(self.role).keep(
            NewSession {
                id: put.id,
                version: put.version,
                cipher_suite: self.agreed.cipher_suite.clone(),
                server_name,
                format: put.format,
                binding: put.binding,
                single_use: put.single_use,
                account: Arc::clone(&self.context.stats),
                peer: self.agreed.peer.clone(),
                authenticated,
                timeout: put.timeout.map_or(self.context.session_timeout, |t| {
                    t.min(self.context.session_timeout)
                }),
                secret: put.secret,
            },
            now,
        );
        Ok(match stored {
            Ok(kept) => {
                let ledger = self.context.cache(self.role).ledger();
                ledger
                    .owners
                    .count(&self.owner, |totals| totals.stored.count());
                self.family.join(&kept.found);
                let session = Arc::clone(&kept.found.session);
                self.attached = Some(kept.found);
                PutOutcome::Stored(session, kept.put.map(Box::new))
            }
            Err(why) => PutOutcome::NotKept(NotKept::Cache(why)),
        })
    }

    /// Records that a finished handshake resumed a session. The connection takes its properties
    /// from that session alone. Those of an earlier handshake no longer apply.
    pub(super) fn resumed_by_worker(&mut self, session: Option<(&Arc<Attributes>, Timestamp)>) {
        self.establish(HandshakeKind {
            role: self.role,
            version: session.map(|(kind, _)| kind.version),
            resumed: true,
        });
        self.context.stats.hits.count();
        self.agreed = Agreed {
            reused: true,
            ..Agreed::default()
        };
        if let Some((kind, authenticated)) = session {
            self.agreed.version = Some(kind.version);
            self.agreed.cipher_suite = kind.cipher_suite.clone();
            self.agreed.peer.clone_from(&kind.peer);
            self.agreed.authenticated = authenticated;
            if self.role == Role::Server {
                self.agreed.server_name = Some(kind.server_name.clone());
            }
        }
    }

    /// Records that a fatal alert ended the connection or its handshake, and returns the sessions
    /// that were removed. An alert that this side sent after it had closed removes none.
    ///
    /// # Errors
    /// The daemon runs this connection, or it has failed before.
    pub fn report_alert(&mut self, alert: Alert) -> Result<Vec<Removed>, Error> {
        self.worker_engine()?;
        let removed = if alert.received || !self.is_closed() {
            self.condemn(RemovalReason::FatalAlert)
        } else {
            Vec::new()
        };
        self.shutdown.received |= alert.received;
        self.fail(alert.to_string(), Some(alert));
        Ok(removed)
    }

    fn worker_engine(&self) -> Result<(), Error> {
        match (self.engine_kind, self.state) {
            (EngineKind::Daemon, _) => Err(Error::WrongEngine(EngineKind::Worker)),
            (EngineKind::Worker, State::Failed) => Err(self.has_failed()),
            (EngineKind::Worker, _) => Ok(()),
        }
    }

    /// Establishes the connection at the first report of a session. Resets the shutdown flags, as
    /// the daemon's engine does at the beginning of a handshake.
    fn establish(&mut self, kind: HandshakeKind) {
        if self.state != State::Before {
            return;
        }
        let stats = &self.context.stats;
        let (begun, finished) = match self.role {
            Role::Server => (&stats.accept, &stats.accept_good),
            Role::Client => (&stats.connect, &stats.connect_good),
        };
        begun.count();
        finished.count();
        stats.finished.count(kind);
        self.shutdown = Shutdown::default();
        self.written = false;
        self.state = State::Established;
        // A session that SetSession attached for this handshake is attached again only if it was
        // resumed.
        self.attached = None;
    }
}
