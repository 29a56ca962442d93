//! The sessions that one connection made or uses. The close rule keeps or removes them as a whole.

use std::{
    ptr,
    sync::{Arc, Weak},
};

use crate::{
    cache::Cache,
    session::{RemovalReason, Session, SessionId},
};

/// A session that was removed from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The id of the session.
    pub id: SessionId,
    /// Why it was removed.
    pub reason: RemovalReason,
}

/// The family of a connection. It counts as one connection on each of its sessions.
///
/// A family does not keep a session alive that the cache has dropped. Otherwise a worker could make
/// a connection hold any number of bytes of sessions, and no limit would count them.
#[derive(Debug, Default)]
pub(super) struct Family(Vec<Weak<Session>>);

impl Family {
    /// Adds a session, unless it is in the family already.
    pub(super) fn join(&mut self, session: &Arc<Session>) {
        if !self.contains(session) {
            session.hold();
            self.0.push(Arc::downgrade(session));
        }
    }

    pub(super) fn contains(&self, session: &Arc<Session>) -> bool {
        self.0
            .iter()
            .any(|member| ptr::eq(member.as_ptr(), Arc::as_ptr(session)))
    }

    /// Returns how many sessions have joined, including those that the cache has dropped.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Empties the family. The sessions stay in the cache.
    pub(super) fn release(&mut self) {
        self.0
            .drain(..)
            .filter_map(|session| session.upgrade())
            .for_each(|session| session.release());
    }

    /// Empties the family and removes its sessions from the cache. Returns those that were still
    /// there.
    pub(super) fn remove(&mut self, cache: &Cache, reason: RemovalReason) -> Vec<Removed> {
        let mut removed = Vec::new();
        for session in self.0.drain(..).filter_map(|session| session.upgrade()) {
            session.release();
            if cache.withdraw(&session, reason) {
                removed.push(Removed {
                    id: session.id().clone(),
                    reason,
                });
            }
        }
        removed
    }
}
