//! Clock, contexts and connections of one daemon.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::{
    clock::{Clock, Now},
    connection::{Table, table::Most},
    context::{Dropped, Registry},
};

/// The state that all calls of a daemon share.
#[derive(Debug)]
pub struct CoreState {
    clock: Clock,
    contexts: ArcSwap<Registry>,
    connections: Arc<Table>,
}

impl CoreState {
    /// Makes a state without connections.
    pub fn new(contexts: Arc<Registry>, clock: Clock, most: Most) -> Self {
        let connections = Arc::new(Table::new(clock.clone(), most));
        Self {
            clock,
            contexts: ArcSwap::new(contexts),
            connections,
        }
    }

    /// Returns the connections.
    pub fn connections(&self) -> &Arc<Table> {
        &self.connections
    }

    /// Returns the current contexts and the rules of access to them. A call loads the registry
    /// once, and takes both its rights and its context from it.
    pub fn registry(&self) -> Guard<Arc<Registry>> {
        self.contexts.load()
    }

    /// Replaces the contexts and the rules of access for new connections. Existing connections keep
    /// their contexts. Returns how many sessions were dropped.
    pub fn swap(&self, registry: Arc<Registry>) -> Dropped {
        let since = self.clock.now().at;
        self.contexts.load().ledger().tell_time(since);
        // The new caches get their sizes and revocations before any call can find them.
        registry.follow(&self.contexts.load(), since);
        let before = self.contexts.swap(Arc::clone(&registry));
        // A revocation that ran meanwhile either was made in the old caches, and is copied here, or
        // finds the new registry and runs again.
        registry.follow(&before, since);
        before.retire(&registry)
    }

    /// Reads the clock.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Returns the clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}
