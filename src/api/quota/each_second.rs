//! A rate limit per second for each owner, over all of its connections, those that have closed
//! included.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use dashmap::DashMap;

/// The events of the current second, counted by owner.
#[derive(Debug)]
pub(crate) struct EachSecond {
    most: AtomicU32,
    /// The second that the counts belong to.
    second: AtomicU64,
    /// Events of all owners in this second. While it is below the limit of one owner, no owner is
    /// over it.
    all: AtomicU32,
    by_owner: DashMap<Arc<str>, u32>,
}

impl EachSecond {
    pub(crate) fn new(most: u32) -> Self {
        Self {
            most: AtomicU32::new(most),
            second: AtomicU64::new(0),
            all: AtomicU32::new(0),
            by_owner: DashMap::new(),
        }
    }

    /// Returns the limit of one owner, in events per second.
    pub(crate) fn most(&self) -> u32 {
        self.most.load(Ordering::Relaxed)
    }

    /// Changes the limit of one owner, in events per second.
    pub(crate) fn resize(&self, most: u32) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Returns whether this owner is below the limit. `second` counts from any fixed moment.
    pub(crate) fn admits(&self, owner: &Arc<str>, second: u64) -> bool {
        // Read before the swap: every lookup comes here, and only one in a second has to write.
        if self.second.load(Ordering::Relaxed) != second
            && self.second.swap(second, Ordering::Relaxed) != second
        {
            self.all.store(0, Ordering::Relaxed);
            self.by_owner.clear();
        }
        let most = self.most();
        self.all.load(Ordering::Relaxed) < most
            || self.by_owner.get(owner).is_none_or(|times| *times < most)
    }

    /// Counts one event of this owner.
    pub(crate) fn count(&self, owner: &Arc<str>) {
        self.all.fetch_add(1, Ordering::Relaxed);
        match self.by_owner.get_mut(owner) {
            Some(mut times) => *times = times.saturating_add(1),
            None => drop(self.by_owner.insert(Arc::clone(owner), 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_that_did_it_too_often_waits_for_the_next_second_and_others_do_not() {
        let times = EachSecond::new(3);
        let [one, two]: [Arc<str>; 2] = ["uid:1".into(), "uid:2".into()];
        for _ in 0..3 {
            assert!(times.admits(&one, 5));
            times.count(&one);
        }
        assert!(!times.admits(&one, 5));
        assert!(times.admits(&two, 5) && times.admits(&one, 6));
    }
}
