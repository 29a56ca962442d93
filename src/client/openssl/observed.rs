//! What is seen of one SSL, and told of it.

use std::{sync::Arc, time::SystemTime};

use openssl::{
    ex_data::Index,
    ssl::{Ssl, SslRef, SslSession, SslVersion},
};

use super::{
    ffi,
    shared::{Shared, decode},
};
use crate::client::{Connection, Found, Put, Role, Version};

/// One SSL. Lives as long as it does.
pub(super) struct Observed {
    shared: Arc<Shared>,
    /// A client's peer.
    server_name: String,
    /// What its handshake was given to resume with.
    found: Option<Offered>,
    /// Opened with the first thing that there is to tell.
    connection: Option<Connection>,
    /// Whether a close_notify has gone out.
    close_notify: bool,
    /// Whether an alert has ended it, and the daemon knows.
    ended: bool,
}

/// A session that came from the daemon.
struct Offered {
    id: Vec<u8>,
    /// Until the handshake is done: after a HelloRetryRequest OpenSSL asks again, and a single-use session is there once.
    found: Option<Found>,
    authenticate_time: SystemTime,
}

/// SSL_get_shutdown(3).
#[derive(Clone, Copy)]
pub(super) struct Flags {
    pub(super) sent: bool,
    pub(super) received: bool,
}

/// What SSL_CTX_set_info_callback(3) tells.
pub(super) enum Event {
    HandshakeDone,
    Alert { level: u8, code: u8, received: bool },
}

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;
const FATAL: u8 = 2;

impl Observed {
    pub(super) fn new(shared: Arc<Shared>, server_name: &str) -> Self {
        let server_name = server_name.to_owned();
        Self { shared, server_name, found: None, connection: None, close_notify: false, ended: false }
    }

    /// The one of this SSL, made if there is none yet.
    pub(super) fn of(
        ssl: &mut SslRef,
        index: Index<Ssl, Self>,
        make: impl FnOnce() -> Self,
    ) -> Option<&mut Self> {
        if ssl.ex_data(index).is_none() {
            ssl.set_ex_data(index, make());
        }
        // None: OpenSSL had no memory for it.
        ssl.ex_data_mut(index)
    }

    /// The handshake has this session to resume with.
    pub(super) fn offer(&mut self, found: Found) {
        let (id, authenticate_time) = (found.session_id().to_vec(), found.authenticate_time());
        self.found = Some(Offered { id, found: Some(found), authenticate_time });
    }

    /// The session that this handshake was given before, under this id.
    pub(super) fn offered(&self, id: &[u8]) -> Option<SslSession> {
        let found = self.found.as_ref().filter(|found| found.id == id)?;
        decode(found.found.as_ref()?.data())
    }

    /// Something happened on an SSL. What nothing is observed of has nothing to tell.
    pub(super) fn see(ssl: &mut SslRef, index: Index<Ssl, Self>, event: Event) {
        let (server, reused, finished) = (ssl.is_server(), ssl.session_reused(), ssl.is_init_finished());
        let tls13 = ssl.version2() == Some(SslVersion::TLS1_3);
        let flags = ffi::shutdown_flags(ssl);
        let Some(observed) = ssl.ex_data_mut(index) else { return };
        match event {
            Event::HandshakeDone => observed.handshake_done(server, reused),
            Event::Alert { code: CLOSE_NOTIFY, received: false, .. } => observed.close_notify = true,
            Event::Alert { level, code, received } => {
                // RFC 8446 section 6: the level means nothing any more.
                let fatal = match code {
                    CLOSE_NOTIFY | USER_CANCELED => false,
                    NO_RENEGOTIATION => true,
                    _ => tls13 || level == FATAL,
                };
                if fatal {
                    // A client's offer may be what the peer could not bear; a server knows whether it took it.
                    let resuming = reused || (!server && !finished);
                    observed.alert(code, received, server, resuming, flags);
                }
            }
        }
    }

    fn handshake_done(&mut self, server: bool, reused: bool) {
        self.decided(reused);
        if self.found.is_some() {
            self.open(server);
        }
    }

    /// Nobody asks for the session any more.
    fn decided(&mut self, reused: bool) {
        self.found = self.found.take().filter(|_| reused);
        if let Some(found) = &mut self.found {
            found.found = None;
        }
    }

    /// A handshake is finished, and made this session.
    pub(super) fn put(&mut self, mut put: Put, server: bool, reused: bool) {
        self.decided(reused);
        if put.version == Version::Tls13 {
            // What came out of a single-use session does not authenticate anew.
            put.authenticate_time = self.found.as_ref().map(|found| found.authenticate_time);
        }
        self.open(server).put(put);
    }

    fn open(&mut self, server: bool) -> &Connection {
        let resumed = self.found.as_ref().map(|found| found.id.as_slice());
        let role = if server { Role::Server } else { Role::Client };
        self.connection.get_or_insert_with(|| self.shared.worker.open(role, &self.server_name, resumed))
    }

    fn alert(&mut self, code: u8, received: bool, server: bool, resuming: bool, flags: Flags) {
        if self.connection.is_none() && self.found.is_some() && resuming {
            self.open(server);
        }
        if let Some(connection) = &self.connection
            && !self.ended
        {
            // What an alert ends depends on whether this side had closed.
            match (flags.sent, self.close_notify) {
                (true, true) => connection.shutdown(),
                (true, false) => connection.set_shutdown(true, flags.received),
                (false, _) => {}
            }
            connection.alert(code, received);
            self.ended = true;
        }
    }

    /// The SSL is being freed with these flags. Until now the daemon was told nothing of its close: if the process had died
    /// before, it would have died with an open connection.
    pub(super) fn end(mut self, flags: Flags) {
        let Some(connection) = self.connection.take() else { return };
        match (self.ended, flags.sent, self.close_notify) {
            (false, true, true) => connection.close(),
            // SENT was set by hand.
            (false, true, false) => connection.set_shutdown(true, flags.received),
            _ => {}
        }
    }
}
