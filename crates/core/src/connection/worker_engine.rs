//! Connections whose TLS runs in the worker's own library. The daemon sees no bytes: the worker tells what happened, and the
//! rules are the same.
//!
//! Such a connection is *before* until a session tells that a handshake is finished: one that it made, or one that it
//! resumed.

use std::{sync::Arc, time::Duration};

use tls_sessiond_types::{Role, Version, server_name::ServerName};

use super::{Agreed, Alert, Connection, EngineKind, Error, Removed, Shutdown, State};
use crate::{
    cache::NotStored,
    clock::{Now, Timestamp},
    session::{Format, Kind, NewSession, PeerIdentity, RemovalReason, Secret, Session, SessionId},
};

/// A session that a worker's library made.
pub struct Put {
    /// Server: what a peer will offer. Client: none, the cache gives one.
    pub id: Option<SessionId>,
    /// The library's encoding.
    pub secret: Secret,
    /// Who can read it.
    pub format: Format,
    /// Whatever else must agree to resume it.
    pub binding: Box<[u8]>,
    /// To be handed out at most once.
    pub single_use: bool,
    /// The version that the handshake agreed on.
    pub version: Version,
    /// IANA name, or empty.
    pub cipher_suite: String,
    /// Client: the connection's, or empty. Server: the SNI.
    pub server_name: ServerName<'static>,
    /// The identity that the peer proved. Counts for a full handshake alone.
    pub peer: Option<PeerIdentity>,
    /// How long it may live, if that is less than the context says.
    pub timeout: Option<Duration>,
    /// When the peers authenticated. None: when the connection's handshake did, as far as that is known, or else now.
    pub authenticated: Option<Timestamp>,
}

/// Why a worker's session was not stored. Its handshake goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// The context keeps none.
    CacheOff,
    /// TLS 1.2 resumes the session itself; a resumption adds none, and brings none back.
    Resumed,
    /// The connection has made as many as one may.
    TooMany,
    /// The connection resumed a session that the daemon knows nothing of. So it knows neither the peer's identity nor when the
    /// peers authenticated, and cannot tell whether that was revoked.
    AuthenticationUnknown,
    /// The cache did not take it.
    Cache(NotStored),
}

/// Sessions that one connection may have. Each is held until the connection ends, also when the cache has let go of it.
const FAMILY_MAX: usize = 64;

impl Connection {
    /// SSL_CTX_sess_set_new_cb(3): a handshake is finished, and made a session, which joins the family.
    ///
    /// One handshake authenticates once. Its first session tells the peer's identity and when the peers authenticated; later
    /// ones may tell an earlier time and replace nothing. After a resumption all of that, and the server name, is what the
    /// daemon knows of the resumed session.
    ///
    /// # Errors
    /// The daemon runs this connection, it has failed, or a client's session is said to be with another server. The inner
    /// error tells why the session is not kept.
    pub fn put_session(&mut self, put: Put, now: Now) -> Result<Result<Arc<Session>, NotKept>, Error> {
        self.worker_engine()?;
        let server_name = match &self.target {
            // A client offers it to whomever it is filed under (CVE-2021-22890).
            Some((name, _)) if !put.server_name.is_empty() && put.server_name != *name => {
                return Err(Error::ServerNameOther(name.clone()));
            }
            Some((name, _)) => name.clone(),
            None => put.server_name,
        };
        self.establish();
        let resumed = self.agreed.reused;
        let known = Some(self.agreed.authenticated).filter(|&known| known != Timestamp::default());
        let authenticated = match (put.authenticated, known) {
            (Some(told), Some(known)) => Some(told.min(known)),
            (None, Some(known)) => Some(known),
            // A resumption makes no authentication, whatever its worker says.
            (_, None) if resumed => None,
            (told, None) => Some(told.unwrap_or(now.at)),
        };
        let server_name = match (self.role, &self.agreed.server_name) {
            (Role::Server, Some(carried)) if resumed => carried.clone(),
            _ => server_name,
        };
        // A resumption never changes the version.
        let version = self.agreed.version.filter(|_| resumed).unwrap_or(put.version);
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
            return Ok(Err(NotKept::CacheOff));
        }
        if resumed_tls12 {
            return Ok(Err(NotKept::Resumed));
        }
        if self.family.len() >= FAMILY_MAX {
            return Ok(Err(NotKept::TooMany));
        }
        let Some(authenticated) = authenticated else {
            return Ok(Err(NotKept::AuthenticationUnknown));
        };
        let stored = self.context.cache(self.role).put(
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
                timeout: put
                    .timeout
                    .map_or(self.context.session_timeout, |t| t.min(self.context.session_timeout)),
                secret: put.secret,
            },
            now,
        );
        if let Ok(session) = &stored {
            self.family.join(session);
            self.attached = Some(Arc::clone(session));
        }
        Ok(stored.map_err(NotKept::Cache))
    }

    /// A handshake is finished, and resumed a session. What is known of that session holds for the connection, and nothing
    /// else does: not what an earlier handshake of the connection told.
    pub(super) fn resumed_by_worker(&mut self, session: Option<(&Arc<Kind>, Timestamp)>) {
        self.establish();
        self.context.stats.hits.count();
        self.agreed = Agreed { reused: true, ..Agreed::default() };
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

    /// A fatal alert ended the connection, or its handshake. One that this side sent after it closed removes nothing.
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

    /// The first word of a session ends the handshake. Flags that were set before it are lost, as in the daemon's engine.
    fn establish(&mut self) {
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
        self.shutdown = Shutdown::default();
        self.written = false;
        self.state = State::Established;
        // What SetSession attached for this handshake stays only if it turns out to be resumed.
        self.attached = None;
    }
}
