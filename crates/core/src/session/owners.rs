//! Totals of each identity, so that operators see whose connections fail.

use std::sync::Arc;

use dashmap::DashMap;

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
pub struct Owners(DashMap<Arc<str>, Arc<OwnerTotals>>);

impl Owners {
    /// Returns the totals of an identity, to count in.
    pub(crate) fn of(&self, owner: &Arc<str>) -> Arc<OwnerTotals> {
        if let Some(totals) = self.0.get(owner) {
            return Arc::clone(&totals);
        }
        // Threads that add identities at the same moment may keep one more each.
        if self.0.len() >= OWNERS_MAX
            && let Some(least) = self.least()
        {
            self.0.remove(&least);
        }
        Arc::clone(&self.0.entry(Arc::clone(owner)).or_default())
    }

    fn least(&self) -> Option<Arc<str>> {
        let all = self.0.iter();
        let least = all.min_by_key(|entry| entry.value().sum());
        least.map(|entry| Arc::clone(entry.key()))
    }

    /// Returns all identities with their totals.
    pub fn all(&self) -> Vec<(Arc<str>, Arc<OwnerTotals>)> {
        let all = self.0.iter();
        all.map(|entry| (Arc::clone(entry.key()), Arc::clone(entry.value())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_with_the_smallest_totals_makes_room() {
        let owners = Owners::default();
        for number in 0..OWNERS_MAX {
            let totals = owners.of(&number.to_string().into());
            totals.misses.count();
            totals.unclosed.count();
        }
        let quiet: Arc<str> = "quiet".into();
        owners.of(&quiet).failures.count();
        assert_eq!(owners.all().len(), OWNERS_MAX);
        owners.of(&"loud".into());
        assert_eq!(owners.all().len(), OWNERS_MAX);
        assert!(owners.all().iter().all(|(owner, _)| *owner != quiet));
    }
}
