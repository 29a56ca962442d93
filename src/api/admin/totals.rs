//! Counters over all contexts.

use tls_sessiond_core::{
    context::Registry,
    session::{Miss, stats::HandshakeKind},
};

use super::Admin;

/// Counters since the start, over all contexts of the running configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Handshakes that finished without a session.
    pub(crate) full: u64,
    /// Handshakes that resumed a session.
    pub(crate) resumed: u64,
    /// Handshakes that failed.
    pub(crate) failed: u64,
    /// Sessions that were resumed.
    pub(crate) hits: u64,
    /// Lookups that missed.
    pub(crate) misses: u64,
}

impl Totals {
    fn of(registry: &Registry) -> Self {
        let mut totals = Self::default();
        for context in registry.all() {
            let stats = &context.stats;
            for kind in HandshakeKind::all() {
                let count = stats.finished.get(kind);
                match kind.resumed {
                    true => totals.resumed += count,
                    false => totals.full += count,
                }
            }
            totals.failed += stats.failures.all().map(|(_, count)| count).sum::<u64>();
            totals.hits += stats.hits.get();
            totals.misses += Miss::ALL
                .into_iter()
                .map(|why| stats.misses.get(why))
                .sum::<u64>();
        }
        totals
    }

    /// Returns what was counted since `before`. A reload that removes a context removes its counts,
    /// so a counter may be smaller than before; nothing was counted then.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            full: self.full.saturating_sub(before.full),
            resumed: self.resumed.saturating_sub(before.resumed),
            failed: self.failed.saturating_sub(before.failed),
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
        }
    }

    /// Adds other counts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.full += other.full;
        self.resumed += other.resumed;
        self.failed += other.failed;
        self.hits += other.hits;
        self.misses += other.misses;
    }

    /// Returns the share of finished handshakes that resumed a session. `None`: none finished.
    pub(crate) fn resumption(&self) -> Option<f64> {
        let finished = self.full + self.resumed;
        (finished > 0).then(|| self.resumed as f64 / finished as f64)
    }
}

impl Admin {
    /// Returns the version of the contexts and the rules. Every reload makes a new one.
    pub(crate) fn rules_version(&self) -> u64 {
        self.state.registry().version()
    }

    /// Returns the wall clock, in seconds since the Unix epoch.
    pub(crate) fn unix_time(&self) -> u64 {
        self.state.now().wall().as_secs()
    }

    /// Returns the counters now.
    pub(crate) fn totals(&self) -> Totals {
        Totals::of(&self.state.registry())
    }
}
