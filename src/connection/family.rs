//! The sessions that one connection made or uses. They are kept or lost together.

use std::sync::Arc;

use crate::session::{Cache, RemovalReason, Session, SessionId};

/// A session that left the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Which.
    pub id: SessionId,
    /// Why.
    pub reason: RemovalReason,
}

/// Counts as one open connection on each of its sessions.
#[derive(Debug, Default)]
pub(super) struct Family(Vec<Arc<Session>>);

impl Family {
    /// A session joins.
    pub(super) fn join(&mut self, session: Arc<Session>) {
        if !self.contains(&session) {
            session.hold();
            self.0.push(session);
        }
    }

    pub(super) fn contains(&self, session: &Arc<Session>) -> bool {
        self.0.iter().any(|member| Arc::ptr_eq(member, session))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The connection is over and all is well: the sessions stay.
    pub(super) fn release(&mut self) {
        self.0.drain(..).for_each(|session| session.release());
    }

    /// The connection is over and it is not: the sessions leave the cache. Tells those that were still there.
    pub(super) fn remove(&mut self, cache: &Cache, reason: RemovalReason) -> Vec<Removed> {
        let mut removed = Vec::new();
        for session in self.0.drain(..) {
            session.release();
            if cache.withdraw(&session, reason) {
                removed.push(Removed { id: session.id().clone(), reason });
            }
        }
        removed
    }
}
