//! Totals of each identity, so that operators see whose connections fail.

use std::sync::Arc;

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::stats::Counter;

/// Maximum number of identities with totals. A further identity takes the place of the one with the
/// smallest totals.
pub const OWNERS_MAX: usize = 1024;

/// The totals of one identity since it was first counted.
#[derive(Debug, Default)]
pub struct OwnerTotals {
    /// Connections that ended unclosed.
    pub unclosed: Counter,
    /// Handshakes that failed.
    pub failures: Counter,
    /// Lookups that missed.
    pub misses: Counter,
    /// Sessions that were stored.
    pub stored: Counter,
}

impl OwnerTotals {
    fn sum(&self) -> u64 {
        self.unclosed.get() + self.failures.get() + self.misses.get() + self.stored.get()
    }
}

/// The totals of all identities.
#[derive(Debug, Default)]
pub struct Owners(DashMap<Arc<str>, OwnerTotals, RandomState>);

impl Owners {
    /// Counts for an identity. `count` counts in its totals.
    pub(crate) fn count(&self, owner: &Arc<str>, count: impl Fn(&OwnerTotals)) {
        if let Some(totals) = self.0.get(owner) {
            count(&totals);
            return;
        }
        // Threads that add identities at the same moment may keep one more each.
        if self.0.len() >= OWNERS_MAX
            && let Some(least) = self.least()
        {
            self.0.remove(&least);
        }
        count(self.0.entry(Arc::clone(owner)).or_default().value());
    }

    fn least(&self) -> Option<Arc<str>> {
        let all = self.0.iter();
        let least = all.min_by_key(|entry| entry.value().sum());
        least.map(|entry| Arc::clone(entry.key()))
    }

    /// Passes all identities on with their totals.
    pub fn each(&self, mut each: impl FnMut(&Arc<str>, &OwnerTotals)) {
        for entry in &self.0 {
            each(entry.key(), entry.value());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_with_the_smallest_totals_makes_room() {
        let owners = Owners::default();
        for number in 0..OWNERS_MAX {
            owners.count(&number.to_string().into(), |totals| {
                totals.misses.count();
                totals.unclosed.count();
            });
        }
        let quiet: Arc<str> = "quiet".into();
        owners.count(&quiet, |totals| totals.failures.count());
        assert_eq!(owners.0.len(), OWNERS_MAX);
        owners.count(&"loud".into(), |totals| totals.failures.count());
        assert_eq!(owners.0.len(), OWNERS_MAX);
        owners.each(|owner, _| assert_ne!(*owner, quiet));
    }
}
