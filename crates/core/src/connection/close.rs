//! Shutdown, SetShutdown, Clear and Free, and the rule of SSL_clear(3) that they stand on:
//!
//! > If a session is still open, it is considered bad and will be removed from the session cache, as required by
//! > RFC2246. A session is considered open, if SSL_shutdown(3) was not called for the connection or at least
//! > SSL_set_shutdown(3) was used to set the SSL_SENT_SHUTDOWN state.

use super::{Agreed, Choice, Connection, EngineKind, Error, Lease, Removed, Shutdown, State};
use crate::session::RemovalReason;

/// What SSL_shutdown(3) returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownStatus {
    /// 0: this side has closed.
    Sent,
    /// 1: both sides have.
    Complete,
    /// -1, SSL_ERROR_WANT_READ: this side had closed before.
    WantRead,
}

impl Connection {
    /// SSL_shutdown(3). Appends the close_notify, if one is made here, to `ciphertext`.
    ///
    /// # Errors
    /// [`Error::ShutdownInInit`] unless the connection is established. Of a handshake in the worker's library the daemon learns
    /// by a session only; one that has none is closed on the worker's word.
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

    /// Closes this side of an established connection, unless SENT is set already. Appends the close_notify to
    /// `ciphertext`; with `quiet-shutdown` both flags are set and none is made.
    pub(super) fn close_side(&mut self, ciphertext: &mut Vec<u8>) {
        if self.context.options.quiet_shutdown {
            self.shutdown = Shutdown { sent: true, received: true };
            return;
        }
        if self.shutdown.sent {
            return;
        }
        // The library of a worker's own engine has made the alert.
        if let Some(engine) = &mut self.engine {
            engine.close_notify();
            engine.flush(ciphertext);
        }
        self.written = true;
        self.shutdown.sent = true;
    }

    /// SSL_set_shutdown(3): assigns both flags in any state. Where it sets SENT, that is an assertion.
    pub fn set_shutdown(&mut self, flags: Shutdown) {
        self.written &= self.shutdown.sent && flags.sent;
        self.shutdown = flags;
    }

    /// SSL_clear(3). Tells what the close rule removed.
    pub fn clear(&mut self) -> Vec<Removed> {
        let established = self.state == State::Established;
        let removed = self.leave_family();
        if established || self.attached.is_none() {
            self.pin = self.attached.as_ref().map(|session| session.kind().version);
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
        self.unanswered.iter_mut().for_each(Lease::release);
        removed
    }

    /// SSL_free(3), also for a connection that was lost. Tells what the close rule removed.
    pub fn free(mut self) -> Vec<Removed> {
        self.leave_family()
    }

    /// The close rule: the family of an open connection is removed, any other's is released.
    pub(super) fn leave_family(&mut self) -> Vec<Removed> {
        if !self.is_open() {
            self.family.release();
            return Vec::new();
        }
        self.condemn(RemovalReason::Unclosed)
    }

    /// Removes the family and what is attached, whatever the flags say.
    pub(super) fn condemn(&mut self, reason: RemovalReason) -> Vec<Removed> {
        if let Some(attached) = self.attached.take() {
            self.family.join(&attached);
        }
        let cache = self.context.cache(self.role);
        self.family.remove(cache, reason)
    }
}

/// A connection that is dropped was lost.
impl Drop for Connection {
    fn drop(&mut self) {
        self.leave_family();
    }
}
