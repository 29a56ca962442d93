//! Shutdown, SetShutdown, Clear and Free, and the close rule of SSL_clear(3), which they implement:
//!
//! > If a session is still open, it is considered bad and will be removed from the session cache, as required by
//! > RFC2246. A session is considered open, if SSL_shutdown(3) was not called for the connection or at least
//! > SSL_set_shutdown(3) was used to set the SSL_SENT_SHUTDOWN state.

use super::{Agreed, Choice, Connection, EngineKind, Error, Lease, Removed, Shutdown, State};
use crate::session::RemovalReason;

/// The result of SSL_shutdown(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownStatus {
    /// 0: this side has closed.
    Sent,
    /// 1: both sides have closed.
    Complete,
    /// -1, SSL_ERROR_WANT_READ: this side had closed before, and the peer has not closed.
    WantRead,
}

impl Connection {
    /// Closes this side (SSL_shutdown(3)). Appends the close_notify to `ciphertext`, if the
    /// daemon's engine makes one.
    ///
    /// # Errors
    /// [`Error::ShutdownInInit`] unless the connection is established. A worker's connection
    /// without a session can be closed before that: the daemon learns of its handshake only by a
    /// session.
    pub fn shutdown(&mut self, ciphertext: &mut Vec<u8>) -> Result<ShutdownStatus, Error> {
        let unheard_of = self.state == State::Before && self.engine_kind() == EngineKind::Worker;
        if self.state != State::Established && !unheard_of {
            return Err(Error::ShutdownInInit);
        }
        let first = !self.shutdown.sent;
        self.close_side(ciphertext);
        Ok(match (self.shutdown.received, first) {
            (true, _) => ShutdownStatus::Complete,
            (false, true) => ShutdownStatus::Sent,
            (false, false) => ShutdownStatus::WantRead,
        })
    }

    /// Closes this side of an established connection, unless SENT is set already. Appends the
    /// close_notify to `ciphertext`. With `quiet-shutdown`, sets both flags and makes no
    /// close_notify.
    pub(super) fn close_side(&mut self, ciphertext: &mut Vec<u8>) {
        if self.context.options.quiet_shutdown {
            self.shutdown = Shutdown {
                sent: true,
                received: true,
            };
            return;
        }
        if self.shutdown.sent {
            return;
        }
        // With the worker's engine, the worker's library has made the close_notify.
        if let Some(engine) = &mut self.engine {
            engine.close_notify();
            engine.flush(ciphertext);
        }
        self.written = true;
        self.shutdown.sent = true;
    }

    /// Sets both flags, in any state (SSL_set_shutdown(3)). A SENT flag that this call sets is
    /// [`Evidence::Asserted`](super::Evidence::Asserted).
    pub fn set_shutdown(&mut self, flags: Shutdown) {
        self.written &= self.shutdown.sent && flags.sent;
        self.shutdown = flags;
    }

    /// Resets the connection for a new handshake (SSL_clear(3)). Returns the sessions that the
    /// close rule removed.
    pub fn clear(&mut self) -> Vec<Removed> {
        let established = self.state == State::Established;
        let removed = self.leave_family();
        if established || self.attached.is_none() {
            self.pin = self.session().map(|session| session.kind().version);
        }
        self.choice = Choice::Free;
        self.shutdown = Shutdown::default();
        self.written = false;
        self.state = State::Before;
        self.agreed = Agreed::default();
        self.failure = None;
        self.first_flight = None;
        self.retry = None;
        self.retried = false;
        self.engine = None;
        self.offered = None;
        self.asking = None;
        self.unanswered.iter_mut().for_each(Lease::release);
        removed
    }

    /// Ends the connection (SSL_free(3)), also one that was lost. Returns the sessions that the
    /// close rule removed.
    pub fn free(mut self) -> Vec<Removed> {
        self.leave_family()
    }

    /// Applies the close rule: removes the family of an open connection, and releases any other
    /// family.
    pub(super) fn leave_family(&mut self) -> Vec<Removed> {
        if !self.is_open() {
            self.family.release();
            return Vec::new();
        }
        let ledger = self.context.cache(self.role).ledger();
        ledger
            .owners
            .count(&self.owner, |totals| totals.unclosed.count());
        self.condemn(RemovalReason::Unclosed)
    }

    /// Removes the family and the attached session, whatever the shutdown flags are.
    pub(super) fn condemn(&mut self, reason: RemovalReason) -> Vec<Removed> {
        if let Some(attached) = self.attached.take() {
            self.family.join(&attached);
        }
        let cache = self.context.cache(self.role);
        self.family.remove(cache, reason)
    }
}

/// Applies the close rule to a connection that is dropped without Free.
impl Drop for Connection {
    fn drop(&mut self) {
        self.leave_family();
    }
}
