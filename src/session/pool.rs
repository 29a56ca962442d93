//! Client sessions by server name, newest last.

use std::sync::{Arc, Weak};

use dashmap::DashMap;

use super::{Session, Terms};
use crate::{
    store::memory::Memory,
    sync::{AtomicUsize, Ordering},
};

/// Sessions that have left the store stay until they are met, as empty shells: their secrets are gone.
///
/// Here and nowhere else one map is asked while a guard of another is held: always pool first, store second.
#[derive(Default)]
pub(super) struct Pool {
    by_name: DashMap<Arc<str>, Vec<Weak<Session>>>,
    /// How many sessions there are in all, nearly.
    sessions: AtomicUsize,
}

/// How many sessions that do not fit are looked past.
const LOOK_PAST_MAX: usize = 64;

impl Pool {
    pub(super) fn push(&self, session: &Arc<Session>, store: &Memory<Session>) {
        let mut sessions = self.by_name.entry(Arc::clone(&session.kind().server_name)).or_default();
        if sessions.len() >= 16 && sessions.len() == sessions.capacity() {
            self.retain(&mut sessions, store);
            // Where most of them live there is more room now, so that the next search is far away.
            if sessions.len() > sessions.capacity() / 2 {
                let more = sessions.capacity();
                sessions.reserve(more);
            }
        }
        sessions.push(Arc::downgrade(session));
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn newest(&self, terms: &Terms<'_>, store: &Memory<Session>) -> Option<Arc<Session>> {
        let mut sessions = self.by_name.get_mut(terms.server_name)?;
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

    fn retain(&self, sessions: &mut Vec<Weak<Session>>, store: &Memory<Session>) {
        let before = sessions.len();
        sessions.retain(|session| session.upgrade().is_some_and(|session| store.holds(&session)));
        self.sessions.fetch_sub(before - sessions.len(), Ordering::Relaxed);
    }
}
