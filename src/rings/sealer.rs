//! A ring that seals sessions of the daemon's engine.

use std::{fmt, sync::Arc, time::Duration};

use tls_sessiond_core::session::sealing::{Handle, OpenedState, SealsTickets};
use tls_sessiond_keys::ring::Ring;

use super::RingDesk;

/// Seals with the keys of a ring, and lets no key out.
pub(super) struct RingSealer(pub(super) Arc<RingDesk>);

impl fmt::Debug for RingSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SealsTickets for RingSealer {
    fn seal(&self, handle: &Handle, state: &[u8], bound: &[u8]) -> Option<Vec<u8>> {
        let sealed = self.0.read(|ring, _| {
            let ticket = ring.seal_as(handle, state, &of_engine(bound)).ok()?;
            Some((ticket, ring.epoch()))
        });
        let (ticket, epoch) = sealed??;
        self.0.tally.sealed(epoch);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], bound: &[u8]) -> Option<OpenedState> {
        let opened = self
            .0
            .read(|ring, _| ring.open(ticket, &of_engine(bound)))?
            .ok()?;
        self.0.tally.opened(opened.epoch);
        Some(OpenedState {
            handle: opened.handle,
            state: opened.state,
        })
    }

    fn named_handle(&self, ticket: &[u8]) -> Option<Handle> {
        Ring::named_handle(ticket)
    }

    fn lifetime(&self) -> Duration {
        self.0.settings().lifetime
    }
}

/// Returns what the tickets of the engine are bound to. No ticket of a caller is bound to that.
fn of_engine(bound: &[u8]) -> Vec<u8> {
    [b"engine\0", bound].concat()
}
