//! How many lookups of one caller may find nothing: who guesses ids does not get far.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use dashmap::DashMap;

use super::status::Refusal;
use crate::clock::Timestamp;

/// Misses of each owner in this second.
pub(super) struct Misses {
    most: u32,
    /// Which second.
    second: AtomicU64,
    /// Of all owners in this second: while it is less than one may have, nobody has more.
    all: AtomicU32,
    by_owner: DashMap<Arc<str>, u32>,
}

impl Misses {
    pub(super) fn new(most: u32) -> Self {
        Self { most, second: AtomicU64::new(0), all: AtomicU32::new(0), by_owner: DashMap::new() }
    }

    /// Whether this owner may look up.
    ///
    /// # Errors
    /// It has missed too often in this second.
    pub(super) fn admit(&self, owner: &Arc<str>, now: Timestamp) -> Result<(), Refusal> {
        let second = now.as_secs();
        // Read first: every lookup passes here, and one in a second has something to write.
        if self.second.load(Ordering::Relaxed) != second
            && self.second.swap(second, Ordering::Relaxed) != second
        {
            self.all.store(0, Ordering::Relaxed);
            self.by_owner.clear();
        }
        if self.all.load(Ordering::Relaxed) < self.most {
            return Ok(());
        }
        match self.by_owner.get(owner).is_some_and(|misses| *misses >= self.most) {
            true => Err(Refusal::MissLimit(self.most)),
            false => Ok(()),
        }
    }

    /// One more that found nothing.
    pub(super) fn count(&self, owner: &Arc<str>) {
        self.all.fetch_add(1, Ordering::Relaxed);
        match self.by_owner.get_mut(owner) {
            Some(mut misses) => *misses = misses.saturating_add(1),
            None => drop(self.by_owner.insert(Arc::clone(owner), 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_that_missed_too_often_waits_for_the_next_second_and_others_do_not() {
        let misses = Misses::new(3);
        let [one, two]: [Arc<str>; 2] = ["uid:1".into(), "uid:2".into()];
        let now = Timestamp::from_millis(5_000);
        for _ in 0..3 {
            misses.admit(&one, now).unwrap();
            misses.count(&one);
        }
        assert!(misses.admit(&one, Timestamp::from_millis(5_999)).is_err());
        misses.admit(&two, now).unwrap();
        misses.admit(&one, Timestamp::from_millis(6_000)).unwrap();
    }
}
