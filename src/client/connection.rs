//! The handle of one connection object. All it does is tell; it never waits.

use std::sync::Arc;

use parking_lot::Mutex;
use tls_sessiond_types::hex;

use super::{
    counters::Tallies,
    link::{Link, NotTaken, Weight},
    message::Put,
};
use crate::{proto as pb, proto::call::Method};

/// A connection object in the daemon, freed when this is dropped: without [`Connection::shutdown`] before it,
/// the sessions that the connection made or resumed leave the cache.
///
/// It is bound to the stream that it was opened on. When that breaks, the daemon frees the object as
/// unclosed, and the handle tells nobody anything any more.
pub struct Connection {
    /// None: the daemon was away.
    object: Option<(Arc<Link>, String)>,
    format: String,
    tallies: Arc<Tallies>,
    told: Mutex<Told>,
}

/// What the daemon has been told, which limits what it must be told.
#[derive(Default)]
struct Told {
    /// The SENT flag.
    sent: bool,
    alert: bool,
    resumed: bool,
}

impl Connection {
    pub(super) fn new(object: Option<(Arc<Link>, String)>, format: String, tallies: Arc<Tallies>) -> Self {
        Self { object, format, tallies, told: Mutex::default() }
    }

    /// SSL_CTX_sess_set_new_cb(3): the handshake is finished and made this session.
    pub fn put(&self, put: Put) {
        self.tell(Weight::May, |alias| {
            Method::PutSession(put.into_request(alias, self.format.clone()).into())
        });
    }

    /// SSL_set_session(3): the handshake is finished and has resumed this session. For those that opened the
    /// connection before they knew. The first time it is told also when the queue is full.
    pub fn resumed(&self, session_id: &[u8]) {
        let mut told = self.told.lock();
        let weight = if told.resumed { Weight::May } else { Weight::Must };
        told.resumed |= self.tell(weight, |connection_id| {
            Method::SetSession(pb::SetSessionRequest { connection_id, session_id: hex::string(session_id) })
        });
    }

    /// SSL_shutdown(3): the worker has sent its close_notify. The sessions stay.
    pub fn shutdown(&self) {
        let mut told = self.told.lock();
        told.sent |=
            self.tell(Weight::May, |connection_id| Method::Shutdown(pb::ShutdownRequest { connection_id }));
    }

    /// [`Connection::shutdown`] and the end of the connection, which share a message.
    pub fn close(mut self) {
        if let Some((link, alias)) = self.object.take()
            && link.close_and_free(alias) == Err(NotTaken::Full)
        {
            self.tallies.reports_dropped.count();
        }
    }

    /// SSL_set_shutdown(3): assigns both flags. `sent` makes the close count as clean; without it the
    /// connection is open again.
    pub fn set_shutdown(&self, sent: bool, received: bool) {
        let mut told = self.told.lock();
        let weight = if told.sent && !sent { Weight::Must } else { Weight::May };
        let shutdown = Some(pb::ShutdownFlags { sent, received });
        let took = self.tell(weight, |connection_id| {
            Method::SetShutdown(pb::SetShutdownRequest { connection_id, shutdown })
        });
        if took {
            told.sent = sent;
        }
    }

    /// A fatal alert, received from the peer or sent to it, has ended the connection: its sessions leave the
    /// cache. The first one counts. A close_notify (0) is no such alert and is ignored.
    pub fn alert(&self, code: u8, received: bool) {
        let mut told = self.told.lock();
        if code == 0 || told.alert {
            return;
        }
        let alert = Some(pb::Alert { code: code.into(), received, ..pb::Alert::default() });
        told.alert = self.tell(Weight::Must, |connection_id| {
            Method::ReportAlert(pb::ReportAlertRequest { connection_id, alert })
        });
    }

    /// Whether it will be sent.
    fn tell(&self, weight: Weight, method: impl FnOnce(String) -> Method) -> bool {
        let Some((link, alias)) = &self.object else { return false };
        match link.tell(&method(alias.clone()), weight) {
            Ok(()) => true,
            Err(NotTaken::Full) => {
                self.tallies.reports_dropped.count();
                false
            }
            Err(NotTaken::Closed) => false,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some((link, alias)) = self.object.take() {
            link.free(alias);
        }
    }
}
