//! State that all caches of a daemon share. It is kept when a reload makes new caches.

use std::sync::Arc;

use super::{
    SharedRevocations,
    budget::Budget,
    tombstones::{Group, Tombstones},
};
use crate::{
    clock::Timestamp,
    fleet::FleetStore,
    session::{
        RemovalReason, Session, SessionInfo, SharedAttributes,
        events::{EventKind, Watchers},
        owners::Owners,
        recent::RecentEvents,
    },
    store::memory::Limits,
    sync::{AtomicU64, Ordering},
};

/// The shared state. Every cache holds it.
pub struct SharedState {
    /// The limit on all caches together.
    pub budget: Budget,
    /// Why sessions were removed.
    pub tombstones: Tombstones,
    /// The watchers of sessions.
    pub watchers: Arc<Watchers>,
    /// The latest misses and failures.
    pub recent: RecentEvents,
    /// Totals of each identity.
    pub owners: Owners,
    /// The revocations of the shared store.
    pub revocations: SharedRevocations,
    /// The store that other daemons share. `None`: sessions are in the memory of this process alone.
    pub fleet: Option<Arc<FleetStore>>,
    pub(super) kinds: SharedAttributes,
    /// The latest time that a cache recorded, in milliseconds. Every operation that removes
    /// sessions records its time first.
    latest: AtomicU64,
}

impl std::fmt::Debug for SharedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedState")
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

impl SharedState {
    /// Creates empty state for caches whose total is `total`.
    pub fn new(total: Limits) -> Self {
        Self {
            budget: Budget::new(total),
            tombstones: Tombstones::default(),
            watchers: Arc::default(),
            recent: RecentEvents::default(),
            owners: Owners::default(),
            revocations: SharedRevocations::default(),
            fleet: None,
            kinds: SharedAttributes::default(),
            latest: AtomicU64::new(0),
        }
    }

    /// Makes all caches share their sessions over this store, as far as it can have them.
    #[must_use]
    pub fn over(self, fleet: Option<Arc<FleetStore>>) -> Self {
        Self { fleet, ..self }
    }

    /// Frees a bounded number of attributes that no session has any more. Called at every sweep.
    pub fn reap(&self) {
        self.kinds.reap();
    }

    /// Records the time of the next operation.
    pub fn tell_time(&self, now: Timestamp) {
        if now.as_millis() > self.latest.load(Ordering::Relaxed) {
            self.latest.store(now.as_millis(), Ordering::Relaxed);
        }
    }

    /// Returns the latest time that was recorded.
    pub fn latest(&self) -> Timestamp {
        Timestamp::from_millis(self.latest.load(Ordering::Relaxed))
    }

    pub(super) fn departed(&self, group: Group, session: &Session, reason: RemovalReason) {
        let at = self.removed(group, session.facts(), reason);
        self.watchers
            .publish(session, EventKind::Removed(reason), at);
    }

    /// Records that a session of the shared store was removed by this daemon, which does not have
    /// its secret.
    pub(super) fn departed_from_fleet(
        &self,
        group: Group,
        session: &SessionInfo,
        reason: RemovalReason,
    ) {
        let at = self.removed(group, session, reason);
        self.watchers
            .publish_facts(session, EventKind::Removed(reason), at);
    }

    fn removed(&self, group: Group, session: &SessionInfo, reason: RemovalReason) -> Timestamp {
        session.kind.account.removals.count(reason);
        let at = self.latest();
        self.tombstones.record(group, session, reason, at);
        at
    }
}
