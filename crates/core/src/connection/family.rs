//! The sessions that one connection made or uses. The close rule keeps or removes them as a whole.

use std::{
    ptr,
    sync::{Arc, Weak},
};

use crate::{
    cache::{Cache, Found, Unreached},
    clock::Timestamp,
    fleet::Hold,
    session::{RemovalReason, Session, SessionId, SessionInfo},
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
pub(super) struct Family(Vec<Member>);

#[derive(Debug)]
enum Member {
    /// A session in the memory of this process.
    Near(Weak<Session>),
    /// A session of the shared store.
    Shared(Arc<Hold>),
    /// A session that is sealed in tickets of its client, of which the last one expires at this time.
    Sealed(SessionInfo, Timestamp),
    /// A session that the shared store may have, and that it does not know to be held.
    Unreached(Unreached),
}

impl Family {
    /// Adds a session, unless it is in the family already.
    pub(super) fn join(&mut self, found: &Found) {
        if self.contains(found) {
            return;
        }
        self.0.push(match &found.hold {
            Some(hold) => Member::Shared(Arc::clone(hold)),
            None => match found.sealed_until {
                Some(until) => Member::Sealed(found.session.facts().clone(), until),
                None => {
                    found.session.hold();
                    Member::Near(Arc::downgrade(&found.session))
                }
            },
        });
    }

    /// Adds a session of which the shared store could not be asked.
    pub(super) fn join_unreached(&mut self, unreached: Unreached) {
        self.0.push(Member::Unreached(unreached));
    }

    pub(super) fn contains(&self, found: &Found) -> bool {
        self.0.iter().any(|member| match (member, &found.hold) {
            (Member::Shared(member), Some(hold)) => member.is_same_session(hold),
            (Member::Near(member), None) => ptr::eq(member.as_ptr(), Arc::as_ptr(&found.session)),
            (Member::Sealed(member, _), None) => {
                found.sealed_until.is_some() && member.id == *found.session.id()
            }
            (Member::Shared(_), None)
            | (Member::Near(_) | Member::Sealed(..), Some(_))
            | (Member::Unreached(_), _) => false,
        })
    }

    /// Returns how many sessions have joined, including those that the cache has dropped.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops the sessions whose holds are over: the shared store does not have them.
    pub(super) fn drop_unstored(&mut self) {
        self.0.retain(|member| match member {
            Member::Near(_) | Member::Sealed(..) | Member::Unreached(_) => true,
            Member::Shared(hold) => !hold.is_over(),
        });
    }

    /// Empties the family. The sessions stay in the cache.
    pub(super) fn release(&mut self) {
        for member in self.0.drain(..) {
            match member {
                Member::Near(session) => {
                    if let Some(session) = session.upgrade() {
                        session.release();
                    }
                }
                Member::Shared(hold) => hold.release(),
                Member::Sealed(..) | Member::Unreached(_) => {}
            }
        }
    }

    /// Empties the family and removes its sessions from the cache. Returns those that were still
    /// there, as far as this process knows.
    pub(super) fn remove(&mut self, cache: &Cache, reason: RemovalReason) -> Vec<Removed> {
        let mut removed = Vec::new();
        for member in self.0.drain(..) {
            let gone = match member {
                Member::Near(session) => session.upgrade().and_then(|session| {
                    session.release();
                    cache
                        .withdraw(&session, reason)
                        .then(|| session.id().clone())
                }),
                Member::Shared(hold) => cache
                    .withdraw_shared(&hold, reason)
                    .then(|| hold.id().clone()),
                Member::Sealed(session, until) => cache
                    .withdraw_sealed(&session, until, reason)
                    .then_some(session.id),
                Member::Unreached(unreached) => {
                    unreached.remove(reason);
                    Some(unreached.id().clone())
                }
            };
            removed.extend(gone.map(|id| Removed { id, reason }));
        }
        removed
    }
}
