//! The events of one SSL, and the reports about them.

use std::{sync::Arc, time::SystemTime};

use openssl::{
    ex_data::Index,
    ssl::{Ssl, SslRef, SslSession, SslVersion},
};

use super::{
    event::{Event, Flags},
    session::{SharedSessions, decode},
};
use crate::{Connection, Found, Put, Role, Version};

/// The observed state of one SSL. Freed with it.
pub(super) struct Observed {
    shared: Arc<SharedSessions>,
    /// The server that a client connects to. Empty on a server.
    server_name: String,
    /// The session that the handshake was given to resume.
    found: Option<Offered>,
    /// Opened with the first report.
    connection: Option<Connection>,
    /// Whether a close_notify was sent.
    close_notify: bool,
    /// Whether a fatal alert ended the SSL and was reported.
    ended: bool,
}

/// A session that came from the daemon.
struct Offered {
    id: Vec<u8>,
    /// Kept until the handshake is done: after a HelloRetryRequest OpenSSL asks again, and a second
    /// lookup would not find a single-use session.
    found: Option<Found>,
    authenticate_time: SystemTime,
}

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;
const FATAL: u8 = 2;

impl Observed {
    pub(super) fn new(shared: Arc<SharedSessions>, server_name: &str) -> Self {
        let server_name = server_name.to_owned();
        Self {
            shared,
            server_name,
            found: None,
            connection: None,
            close_notify: false,
            ended: false,
        }
    }

    /// Returns the observed state of this SSL, and makes it if there is none.
    pub(super) fn of(
        ssl: &mut SslRef,
        index: Index<Ssl, Self>,
        make: impl FnOnce() -> Self,
    ) -> Option<&mut Self> {
        if ssl.ex_data(index).is_none() {
            ssl.set_ex_data(index, make());
        }
        // None if OpenSSL had no memory for it.
        ssl.ex_data_mut(index)
    }

    /// Stores the session that the handshake was given to resume.
    pub(super) fn offer(&mut self, found: Found) {
        let (id, authenticate_time) = (found.session_id().to_vec(), found.authenticate_time());
        self.found = Some(Offered {
            id,
            found: Some(found),
            authenticate_time,
        });
    }

    /// Returns the session that this handshake was given before, if it has this id.
    pub(super) fn offered(&self, id: &[u8]) -> Option<SslSession> {
        let found = self.found.as_ref().filter(|found| found.id == id)?;
        decode(found.found.as_ref()?.data())
    }

    /// Handles an event of an SSL. An SSL without observed state has nothing to report.
    pub(super) fn see(ssl: &mut SslRef, index: Index<Ssl, Self>, event: Event, flags: Flags) {
        let (server, reused, finished) = (
            ssl.is_server(),
            ssl.session_reused(),
            ssl.is_init_finished(),
        );
        let tls13 = ssl.version2() == Some(SslVersion::TLS1_3);
        let Some(observed) = ssl.ex_data_mut(index) else {
            return;
        };
        match event {
            Event::HandshakeDone => observed.handshake_done(server, reused),
            Event::Alert {
                code: CLOSE_NOTIFY,
                received: false,
                ..
            } => observed.close_notify = true,
            Event::Alert {
                level,
                code,
                received,
            } => {
                // In TLS 1.3 the level has no meaning (RFC 8446 section 6).
                let fatal = match code {
                    CLOSE_NOTIFY | USER_CANCELED => false,
                    NO_RENEGOTIATION => true,
                    _ => tls13 || level == FATAL,
                };
                if fatal {
                    // The session that a client offers may be the reason for the alert. A server
                    // knows whether it resumed.
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

    /// The handshake has decided whether it resumes. OpenSSL will not ask for the session again.
    fn decided(&mut self, reused: bool) {
        self.found = self.found.take().filter(|_| reused);
        if let Some(found) = &mut self.found {
            found.found = None;
        }
    }

    /// Puts a session that a finished handshake made.
    pub(super) fn put(&mut self, mut put: Put, server: bool, reused: bool) {
        self.decided(reused);
        if put.version == Version::Tls13 {
            // A session that is made from a single-use one keeps the authentication time of that
            // one.
            put.authenticate_time = self.found.as_ref().map(|found| found.authenticate_time);
        }
        self.open(server).put(put);
    }

    fn open(&mut self, server: bool) -> &Connection {
        let resumed = self.found.as_ref().map(|found| found.id.as_slice());
        let role = if server { Role::Server } else { Role::Client };
        self.connection
            .get_or_insert_with(|| self.shared.worker.open(role, &self.server_name, resumed))
    }

    fn alert(&mut self, code: u8, received: bool, server: bool, resuming: bool, flags: Flags) {
        if self.connection.is_none() && self.found.is_some() && resuming {
            self.open(server);
        }
        if let Some(connection) = &self.connection
            && !self.ended
        {
            // Whether the alert removes sessions depends on whether this side had closed. So a
            // close is reported first.
            match (flags.sent, self.close_notify) {
                (true, true) => connection.shutdown(),
                (true, false) => connection.set_shutdown(true, flags.received),
                (false, _) => {}
            }
            connection.alert(code, received);
            self.ended = true;
        }
    }

    /// Reports the close of an SSL that is being freed with these flags. The close is not reported
    /// earlier: if the process dies before, its connection counts as open.
    pub(super) fn end(mut self, flags: Flags) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        match (self.ended, flags.sent, self.close_notify) {
            (false, true, true) => connection.close(),
            // The SENT flag was set without a close_notify, for example by SSL_set_shutdown(3).
            (false, true, false) => connection.set_shutdown(true, flags.received),
            _ => {}
        }
    }
}
