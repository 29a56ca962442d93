//! The hold of a connection on a session of the shared store.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use tls_sessiond_store::{
    keeper::Removal,
    layout::Name,
    script::{Holder, Reason, Token},
};

use super::FleetStore;
use crate::session::{RemovalReason, SessionId, SessionInfo};

/// The hold of one connection on one session. While a daemon that holds the session is not alive, no
/// daemon finds it.
///
/// [`Self::release`] keeps the session, and [`Self::remove`] removes it. Dropping a hold releases it:
/// then no connection has used it.
pub struct Hold {
    store: Arc<FleetStore>,
    name: Name,
    holder: Holder,
    token: Token,
    facts: SessionInfo,
    state: Mutex<HoldState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HoldState {
    /// The put of the session has no answer yet.
    Pending,
    /// The put has no answer yet, and the connection has ended well.
    PendingRelease,
    /// The store has the session, with this hold.
    Held,
    /// The hold has ended.
    Over,
}

impl Hold {
    pub(super) fn new(
        store: &Arc<FleetStore>,
        name: Name,
        holder: Holder,
        token: Token,
        facts: SessionInfo,
        is_stored: bool,
    ) -> Self {
        let state = if is_stored {
            HoldState::Held
        } else {
            HoldState::Pending
        };
        Self {
            store: Arc::clone(store),
            name,
            holder,
            token,
            facts,
            state: Mutex::new(state),
        }
    }

    /// Returns the public part of the session.
    pub fn facts(&self) -> &SessionInfo {
        &self.facts
    }

    /// Returns the id of the session.
    pub fn id(&self) -> &SessionId {
        &self.facts.id
    }

    /// Returns whether this and another are holds on the same session.
    pub fn is_same_session(&self, other: &Self) -> bool {
        self.name == other.name && self.facts.authenticated == other.facts.authenticated
    }

    /// Returns whether the hold has ended: released, removed, or the session was not stored.
    pub fn is_over(&self) -> bool {
        *self.state.lock() == HoldState::Over
    }

    /// Ends the hold of a connection that was closed. The session stays.
    pub fn release(&self) {
        let mut state = self.state.lock();
        match *state {
            HoldState::Pending => *state = HoldState::PendingRelease,
            HoldState::Held => {
                *state = HoldState::Over;
                drop(state);
                self.queue_release();
            }
            HoldState::PendingRelease | HoldState::Over => {}
        }
    }

    /// Removes the session from the store: at once for this daemon, and for others at the latest when
    /// the last heartbeat of this one lapses. Returns whether the hold was not over.
    pub fn remove(&self, why: RemovalReason) -> bool {
        let mut state = self.state.lock();
        let was = std::mem::replace(&mut *state, HoldState::Over);
        drop(state);
        if was == HoldState::Over {
            return false;
        }
        self.queue_removal(reason(why));
        true
    }

    /// Records that the store has the session.
    pub(super) fn stored(&self) {
        let mut state = self.state.lock();
        match *state {
            HoldState::Pending => *state = HoldState::Held,
            HoldState::PendingRelease => {
                *state = HoldState::Over;
                drop(state);
                self.queue_release();
            }
            HoldState::Held | HoldState::Over => {}
        }
    }

    /// Records that the store does not have the session, or that this is not known.
    pub(super) fn not_stored(&self, is_known: bool) {
        let was = std::mem::replace(&mut *self.state.lock(), HoldState::Over);
        if was != HoldState::Over && !is_known {
            self.queue_removal(Some(Reason::Withdrawn));
        }
    }

    fn queue_release(&self) {
        let now = self.store.latest();
        let mut keeper = self.store.part(self.name.bucket()).keeper.lock();
        keeper.release(self.holder, self.name, self.token, now);
        drop(keeper);
        self.store.wake();
    }

    fn queue_removal(&self, reason: Option<Reason>) {
        self.store.remove(self.name, reason);
    }
}

impl FleetStore {
    /// Queues the removal of a session.
    pub(crate) fn remove(&self, name: Name, reason: Option<Reason>) {
        let removal = self.part(name.bucket()).keeper.lock().remove(name, reason);
        if removal == Removal::Abandoned {
            self.counters.abandoned.fetch_add(1, Ordering::Relaxed);
        }
        self.wake();
    }
}

/// Returns the reason as the note of a removal has it.
pub(crate) fn reason(why: RemovalReason) -> Option<Reason> {
    match why {
        RemovalReason::Unclosed => Some(Reason::Unclosed),
        RemovalReason::FatalAlert => Some(Reason::FatalAlert),
        RemovalReason::Removed => Some(Reason::Removed),
        RemovalReason::Revoked => Some(Reason::Revoked),
        RemovalReason::Expired
        | RemovalReason::CacheFull
        | RemovalReason::Taken
        | RemovalReason::ScopeChanged => None,
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("id", self.id())
            .field("state", &*self.state.lock())
            .finish_non_exhaustive()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}
