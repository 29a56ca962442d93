//! The handle of one connection object. It sends reports and never waits.

use std::sync::Arc;

use parking_lot::Mutex;
use tls_sessiond_proto::{self as pb, call::Method};
use tls_sessiond_types::hex;

use crate::{
    counters::Tallies,
    message::Put,
    outbox::{Delivery, NotTaken, Outbox},
};

/// A connection object in the daemon. Dropping the handle frees it. Without
/// [`Connection::shutdown`] before that, the daemon removes the sessions that the connection made
/// or resumed from the cache.
///
/// The object belongs to the stream that it was opened on. When that stream breaks, the daemon
/// frees the object as unclosed, and the handle sends no more reports.
pub struct Connection {
    /// `None`: there was no stream, or the queue was full, when the connection was opened.
    object: Option<(Arc<Outbox>, String)>,
    format: String,
    tallies: Arc<Tallies>,
    told: Mutex<Told>,
}

/// The reports that were queued. They decide whether a further report may be lost.
#[derive(Default)]
struct Told {
    /// The SENT flag.
    sent: bool,
    alert: bool,
    resumed: bool,
}

impl Connection {
    pub(super) fn new(
        object: Option<(Arc<Outbox>, String)>,
        format: String,
        tallies: Arc<Tallies>,
    ) -> Self {
        Self {
            object,
            format,
            tallies,
            told: Mutex::default(),
        }
    }

    /// Puts a session that the finished handshake made, as a callback of
    /// SSL_CTX_sess_set_new_cb(3) does.
    pub fn put(&self, put: Put) {
        self.tell(Delivery::BestEffort, |alias| {
            Method::PutSession(put.into_request(alias, self.format.clone()).into())
        });
    }

    /// Reports that the finished handshake resumed this session: SSL_set_session(3). Only needed if
    /// the connection was opened without it. The first report is queued even if the queue is full.
    pub fn resumed(&self, session_id: &[u8]) {
        let mut told = self.told.lock();
        let weight = if told.resumed {
            Delivery::BestEffort
        } else {
            Delivery::Required
        };
        told.resumed |= self.tell(weight, |connection_id| {
            Method::SetSession(pb::SetSessionRequest {
                connection_id,
                session_id: hex::string(session_id),
            })
        });
    }

    /// Reports that the worker has sent its close_notify: SSL_shutdown(3). The sessions stay in the
    /// cache.
    pub fn shutdown(&self) {
        let mut told = self.told.lock();
        told.sent |= self.tell(Delivery::BestEffort, |connection_id| {
            Method::Shutdown(pb::ShutdownRequest { connection_id })
        });
    }

    /// Does [`Connection::shutdown`] and frees the connection object, in one message.
    pub fn close(mut self) {
        if let Some((link, alias)) = self.object.take()
            && link.close_and_free(alias) == Err(NotTaken::Full)
        {
            self.tallies.reports_dropped.count();
        }
    }

    /// Assigns both shutdown flags: SSL_set_shutdown(3). With `sent` the close is clean; without it
    /// the connection is open again.
    pub fn set_shutdown(&self, sent: bool, received: bool) {
        let mut told = self.told.lock();
        let weight = if told.sent && !sent {
            Delivery::Required
        } else {
            Delivery::BestEffort
        };
        let shutdown = Some(pb::ShutdownFlags { sent, received });
        let took = self.tell(weight, |connection_id| {
            Method::SetShutdown(pb::SetShutdownRequest {
                connection_id,
                shutdown,
            })
        });
        if took {
            told.sent = sent;
        }
    }

    /// Reports a fatal alert that ended the connection, received from the peer or sent to it. The
    /// daemon removes the sessions from the cache. Only the first report counts. A close_notify (0)
    /// is not fatal and is ignored.
    pub fn alert(&self, code: u8, received: bool) {
        let mut told = self.told.lock();
        if code == 0 || told.alert {
            return;
        }
        let alert = Some(pb::Alert {
            code: code.into(),
            received,
            ..pb::Alert::default()
        });
        told.alert = self.tell(Delivery::Required, |connection_id| {
            Method::ReportAlert(pb::ReportAlertRequest {
                connection_id,
                alert,
            })
        });
    }

    /// Queues a report. Returns whether it will be sent.
    fn tell(&self, weight: Delivery, method: impl FnOnce(String) -> Method) -> bool {
        let Some((link, alias)) = &self.object else {
            return false;
        };
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
