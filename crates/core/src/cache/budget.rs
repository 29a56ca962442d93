//! The limit on all caches together.
//!
//! Each cache has a share of the total: its own limits, scaled down where the limits of all caches
//! add up to more than the total. A cache may hold more than its share while the total has room.
//! When the total is exceeded, sessions are evicted from the cache that is furthest above its
//! share. So no cache can push another below its share, and the total is kept.

use std::{
    ptr,
    sync::{Arc, Weak},
};

use super::Cache;
use crate::{
    session::Session,
    store::memory::{Limits, Usage},
    sync::{AtomicUsize, Mutex, Ordering, RwLock},
};

/// The total limit and the caches that share it.
#[derive(Debug)]
pub struct Budget {
    entries_max: AtomicUsize,
    bytes_max: AtomicUsize,
    held: Arc<Usage>,
    caches: RwLock<Vec<Member>>,
    settling: Mutex<()>,
}

#[derive(Debug)]
struct Member {
    cache: Weak<Cache>,
    share: Limits,
}

impl Budget {
    /// Creates a budget that no cache shares yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            entries_max: AtomicUsize::new(limits.entries_max),
            bytes_max: AtomicUsize::new(limits.bytes_max),
            held: Arc::default(),
            caches: RwLock::default(),
            settling: Mutex::default(),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            entries_max: self.entries_max.load(Ordering::Relaxed),
            bytes_max: self.bytes_max.load(Ordering::Relaxed),
        }
    }

    /// Changes the total. It applies from the next call of [`Self::share`] on.
    pub fn resize(&self, limits: Limits) {
        self.entries_max
            .store(limits.entries_max, Ordering::Relaxed);
        self.bytes_max.store(limits.bytes_max, Ordering::Relaxed);
    }

    /// Returns the usage of all caches together.
    pub fn held(&self) -> &Arc<Usage> {
        &self.held
    }

    /// Divides the total among these caches, and no others.
    pub fn share<'c>(&self, caches: impl Iterator<Item = &'c Arc<Cache>> + Clone) {
        let sum = |limit: fn(&Limits) -> usize| {
            caches
                .clone()
                .map(|cache| limit(&cache.limits()) as u128)
                .sum()
        };
        let (entries, bytes) = (
            sum(|limits| limits.entries_max),
            sum(|limits| limits.bytes_max),
        );
        let total = self.limits();
        let members = caches
            .map(|cache| Member {
                cache: Arc::downgrade(cache),
                share: Limits {
                    entries_max: scale(cache.limits().entries_max, total.entries_max, entries),
                    bytes_max: scale(cache.limits().bytes_max, total.bytes_max, bytes),
                },
            })
            .collect();
        *self.caches.write() = members;
        // The total may have become smaller.
        self.make_room(None);
    }

    /// Evicts sessions until the total is kept, each from the cache furthest above its share.
    ///
    /// `newest`, which `putter` has just stored, is not evicted. So a single session that is larger
    /// than its cache's share stays until the next one is stored.
    pub(super) fn settle(&self, putter: &Cache, newest: &Session) {
        self.make_room(Some((putter, newest)));
    }

    fn make_room(&self, newest: Option<(&Cache, &Session)>) {
        while self.held.exceeds(&self.limits()) {
            let (cache, gone) = {
                // One thread at a time: two threads that saw the same cache above its share would
                // both evict from it, and so push it below.
                let _alone = self.settling.lock();
                if !self.held.exceeds(&self.limits()) {
                    return;
                }
                let Some(cache) = self.furthest_above(newest.map(|(putter, _)| putter)) else {
                    return;
                };
                let kept = newest
                    .filter(|(putter, _)| ptr::eq(&*cache, *putter))
                    .map(|(_, newest)| newest);
                let gone = cache.make_room(kept);
                (cache, gone)
            };
            let Some(gone) = gone else { return };
            cache.made_room(gone);
        }
    }

    /// Returns the cache furthest above its share. `putter` counts only if it holds more than one
    /// session, because the session that it has just stored is not evicted.
    fn furthest_above(&self, putter: Option<&Cache>) -> Option<Arc<Cache>> {
        let entries = self.held.entries() > self.limits().entries_max;
        let caches = self.caches.read();
        let above = caches.iter().filter_map(|member| {
            let cache = member.cache.upgrade()?;
            let (held, share) = match entries {
                true => (cache.len(), member.share.entries_max),
                false => (cache.bytes(), member.share.bytes_max),
            };
            let puts = putter.is_some_and(|putter| ptr::eq(&*cache, putter));
            let others = cache.len() > usize::from(puts);
            held.checked_sub(share)
                .filter(|&above| above > 0 && others)
                .map(|above| (above, cache))
        });
        above
            .max_by_key(|(above, _)| *above)
            .map(|(_, cache)| cache)
    }
}

/// Returns `limit`, scaled to its part of `total` where `all`, the sum of all limits, exceeds it.
fn scale(limit: usize, total: usize, all: u128) -> usize {
    if all <= total as u128 {
        return limit;
    }
    let part = limit as u128 * total as u128 / all;
    usize::try_from(part).unwrap_or(limit)
}
