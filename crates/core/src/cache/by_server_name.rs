//! Client sessions by server name, newest last.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use dashmap::DashMap;
use tls_sessiond_types::server_name::ServerName;

use crate::{
    session::{Session, Terms},
    store::memory::Memory,
    sync::{AtomicUsize, Ordering},
};

/// Sessions that have left the store stay until they are met, as empty shells: their secrets are gone.
///
/// Here and nowhere else one map is asked while a guard of another is held: always pool first, store second.
#[derive(Default)]
pub(super) struct Pool {
    by_name: DashMap<ServerName<'static>, VecDeque<Weak<Session>>>,
    /// How many sessions there are in all, nearly.
    sessions: AtomicUsize,
}

/// How many of the oldest sessions of a name a push looks at: two, so that those that are gone do not become many.
const LOOKED_AT: usize = 2;
/// How many sessions that do not fit are looked past.
const LOOK_PAST_MAX: usize = 64;

impl Pool {
    pub(super) fn push(&self, session: &Arc<Session>, store: &Memory<Session>) {
        let mut sessions = self.by_name.entry(session.kind().server_name.clone()).or_default();
        // Looking through all of them would hold up the others of this name. What is gone behind one that stays waits for
        // `shrink`.
        for _ in 0..LOOKED_AT {
            if sessions.front().is_some_and(|oldest| !held(oldest, store)) {
                sessions.pop_front();
                self.sessions.fetch_sub(1, Ordering::Relaxed);
            }
        }
        sessions.push_back(Arc::downgrade(session));
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn newest(&self, terms: &Terms<'_>, store: &Memory<Session>) -> Option<Arc<Session>> {
        let mut sessions = self.by_name.get_mut(&**terms.server_name)?;
        let mut place = sessions.len();
        for _ in 0..LOOK_PAST_MAX {
            place = place.checked_sub(1)?;
            match sessions[place].upgrade().filter(|session| store.holds(session)) {
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

    /// Forgets shells, and names without sessions, once they are many.
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
        self.sessions.fetch_sub(before - sessions.len(), Ordering::Relaxed);
    }
}

fn held(session: &Weak<Session>, store: &Memory<Session>) -> bool {
    session.upgrade().is_some_and(|session| store.holds(&session))
}
