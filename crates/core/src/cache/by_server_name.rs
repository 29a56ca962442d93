//! Client sessions by server name, newest last.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use dashmap::DashMap;
use tls_sessiond_types::server_name::ServerName;

use crate::{
    session::{ResumeCriteria, Session},
    store::memory::Memory,
    sync::{AtomicUsize, Ordering},
};

/// Client sessions by server name.
///
/// A session that was removed from the store stays here until it is noticed. Its entry is a weak
/// reference, so its secret has been overwritten.
///
/// Only here is one map locked while a guard of another is held. The order is always index first,
/// store second.
#[derive(Default)]
pub(super) struct ServerNameIndex {
    by_name: DashMap<ServerName<'static>, VecDeque<Weak<Session>>>,
    /// Approximate number of sessions in all lists.
    sessions: AtomicUsize,
}

/// Number of the oldest sessions of a name that a push checks. Two, so that removed ones do not
/// pile up.
const LOOKED_AT: usize = 2;
/// Maximum number of sessions that a lookup examines.
const LOOK_PAST_MAX: usize = 64;

impl ServerNameIndex {
    pub(super) fn push(&self, session: &Arc<Session>, store: &Memory<Session>) {
        let mut sessions = self
            .by_name
            .entry(session.kind().server_name.clone())
            .or_default();
        // Checking all of them would hold up other threads with this name. A removed session behind
        // one that is still stored is left to `shrink`.
        for _ in 0..LOOKED_AT {
            if sessions.front().is_some_and(|oldest| !held(oldest, store)) {
                sessions.pop_front();
                self.sessions.fetch_sub(1, Ordering::Relaxed);
            }
        }
        sessions.push_back(Arc::downgrade(session));
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn newest(
        &self,
        terms: &ResumeCriteria<'_>,
        store: &Memory<Session>,
    ) -> Option<Arc<Session>> {
        let mut sessions = self.by_name.get_mut(&**terms.server_name)?;
        let mut place = sessions.len();
        for _ in 0..LOOK_PAST_MAX {
            place = place.checked_sub(1)?;
            match sessions[place]
                .upgrade()
                .filter(|session| store.holds(session))
            {
                Some(session) if session.kind().fits(terms) => return Some(session),
                Some(_) => {}
                None => {
                    sessions.remove(place);
                    self.sessions.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        None
    }

    /// Drops entries of removed sessions, and names without sessions, once there are many of them.
    pub(super) fn shrink(&self, store: &Memory<Session>) {
        let most = 2 * store.amount().entries() + 64;
        if self.sessions.load(Ordering::Relaxed) > most || self.by_name.len() > most {
            self.by_name.retain(|_, sessions| {
                self.retain(sessions, store);
                !sessions.is_empty()
            });
            self.by_name.shrink_to_fit();
        }
    }

    fn retain(&self, sessions: &mut VecDeque<Weak<Session>>, store: &Memory<Session>) {
        let before = sessions.len();
        sessions.retain(|session| held(session, store));
        self.sessions
            .fetch_sub(before - sessions.len(), Ordering::Relaxed);
    }
}

fn held(session: &Weak<Session>, store: &Memory<Session>) -> bool {
    session
        .upgrade()
        .is_some_and(|session| store.holds(&session))
}
