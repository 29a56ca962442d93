//! What all caches of a daemon have in common, and keep when a new configuration brings new caches.

use std::sync::Arc;

use super::{
    budget::Budget,
    tombstones::{Group, Journal},
};
use crate::{
    clock::Timestamp,
    session::{
        Kinds, RemovalReason, Session,
        events::{Watchers, What},
    },
    store::memory::Limits,
    sync::{AtomicU64, Ordering},
};

/// Held by every cache.
pub struct Ledger {
    /// What they may hold together.
    pub budget: Budget,
    /// Why sessions left.
    pub journal: Journal,
    /// Who watches.
    pub watchers: Arc<Watchers>,
    pub(super) kinds: Kinds,
    /// The latest time that a cache was told, in milliseconds: whatever makes a session leave tells it first.
    latest: AtomicU64,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("budget", &self.budget).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Empty, for caches that hold so much together.
    pub fn new(total: Limits) -> Self {
        Self {
            budget: Budget::new(total),
            journal: Journal::default(),
            watchers: Arc::default(),
            kinds: Kinds::default(),
            latest: AtomicU64::new(0),
        }
    }

    /// Gives back a bounded number of places of kinds that no session has any more. Called at every sweep.
    pub fn reap(&self) {
        self.kinds.reap();
    }

    /// Tells the time of what comes next.
    pub fn tell_time(&self, now: Timestamp) {
        if now.as_millis() > self.latest.load(Ordering::Relaxed) {
            self.latest.store(now.as_millis(), Ordering::Relaxed);
        }
    }

    pub(super) fn departed(&self, group: Group, session: &Session, reason: RemovalReason) {
        session.kind().account.removals.count(reason);
        let at = Timestamp::from_millis(self.latest.load(Ordering::Relaxed));
        self.journal.record(group, session.facts(), reason, at);
        self.watchers.tell(session, What::Removed(reason), at);
    }
}
