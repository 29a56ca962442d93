//! The sessions that one connection made or uses. They are kept or lost together.

use std::{
    ptr,
    sync::{Arc, Weak},
};

use crate::{
    cache::Cache,
    session::{RemovalReason, Session, SessionId},
};

/// A session that left the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Which.
    pub id: SessionId,
    /// Why.
    pub reason: RemovalReason,
}

/// Counts as one open connection on each of its sessions.
///
/// A session that the cache has let go of is not kept alive: a connection would else hold as many bytes of sessions as its worker
/// puts, and no limit would count them.
#[derive(Debug, Default)]
pub(super) struct Family(Vec<Weak<Session>>);

impl Family {
    /// A session joins.
    pub(super) fn join(&mut self, session: &Arc<Session>) {
        if !self.contains(session) {
            session.hold();
            self.0.push(Arc::downgrade(session));
        }
    }

    pub(super) fn contains(&self, session: &Arc<Session>) -> bool {
        self.0.iter().any(|member| ptr::eq(member.as_ptr(), Arc::as_ptr(session)))
    }

    /// How many have joined, those included that are gone.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The connection is over and all is well: the sessions stay.
    pub(super) fn release(&mut self) {
        self.0.drain(..).filter_map(|session| session.upgrade()).for_each(|session| session.release());
    }

    /// The connection is over and it is not: the sessions leave the cache. Tells those that were still there.
    pub(super) fn remove(&mut self, cache: &Cache, reason: RemovalReason) -> Vec<Removed> {
        let mut removed = Vec::new();
        for session in self.0.drain(..).filter_map(|session| session.upgrade()) {
            session.release();
            if cache.withdraw(&session, reason) {
                removed.push(Removed { id: session.id().clone(), reason });
            }
        }
        removed
    }
}
