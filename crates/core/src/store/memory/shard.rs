//! One shard of the store: the content of one lock.
//!
//! Eviction is S3-FIFO (Yang et al., SOSP 2023). A value begins in the *small* queue, a tenth of
//! all. At the front of that queue, a value that was used moves to the *main* queue, and any other
//! is evicted. So a flood of values that no lookup asks for passes through the small queue and
//! leaves the others alone.

use std::{
    collections::{BTreeMap, btree_map::Entry as BTreeEntry},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::{
    Entry, Refused,
    index::Index,
    queues::{List, Slot, Slots},
};
use crate::clock::Timestamp;

/// The state that the store keeps in a value: the number of recent uses (at most 3), whether the
/// value is in the main queue, and its slot. Only the store writes it.
#[derive(Debug, Default)]
pub struct EntryState(AtomicU32);

/// The lowest two bits.
const USES: u32 = 3;
const IN_MAIN: u32 = 4;
/// The slot is in the bits above.
const SLOT_SHIFT: u32 = 3;

impl EntryState {
    pub(super) fn uses(&self) -> u32 {
        self.0.load(Ordering::Relaxed) & USES
    }

    fn in_main(&self) -> bool {
        self.0.load(Ordering::Relaxed) & IN_MAIN != 0
    }

    fn slot(&self) -> Slot {
        self.0.load(Ordering::Relaxed) >> SLOT_SHIFT
    }

    /// Counts a use. Concurrent uses may count once, because the count only orders evictions. All
    /// other bits change under the write lock alone.
    fn used(&self) {
        let mark = self.0.load(Ordering::Relaxed);
        if mark & USES < USES {
            self.0.store(mark + 1, Ordering::Relaxed);
        }
    }

    fn set(&self, slot: Slot, in_main: bool, uses: u32) {
        self.0.store(
            slot << SLOT_SHIFT | if in_main { IN_MAIN } else { 0 } | uses,
            Ordering::Relaxed,
        );
    }
}

/// The small queue holds one in this number of all values.
const TRIAL: usize = 10;
/// Maximum number of used values that an eviction passes over, in case all of them are in use.
const ROUNDS: usize = 1024;
/// Number of values at the front of a queue that are prefetched at once.
const AHEAD: u8 = 8;
/// Number of slots below which a shard is not compacted.
const SPARSE: usize = 64;

/// Returns the expiry bucket of a time: 4096 milliseconds each.
fn due(expires: Timestamp) -> u32 {
    u32::try_from(expires.as_millis() >> 12).unwrap_or(u32::MAX)
}

/// Whether an eviction may take the value that was put last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Newest {
    /// The value stays; others are evicted for it.
    Stays,
    /// The value may be evicted like any other.
    MayGo,
}

pub(super) struct Shard<V> {
    table: Index<V>,
    slots: Slots<V>,
    trial: List,
    main: List,
    /// The first slot of each expiry bucket. The others are linked to it.
    due: BTreeMap<u32, Slot>,
    /// Number of prefetched values that have yet to reach the front. Approximate, because there are
    /// two queues.
    ahead: u8,
}

impl<V: Entry> Shard<V> {
    pub(super) const fn new() -> Self {
        Self {
            table: Index::new(),
            slots: Slots::new(),
            trial: List::new(),
            main: List::new(),
            due: BTreeMap::new(),
            ahead: 0,
        }
    }

    pub(super) fn get(&self, hash: u32, key: &[u8]) -> Option<&Arc<V>> {
        // A key is a capability. The comparison takes constant time, so that its duration does not
        // show how much of a key was right.
        self.table.find(hash, |value| {
            verify_slices_are_equal(value.key(), key).is_ok()
        })
    }

    /// Prefetches the line of the table that a lookup will read.
    pub(super) fn touch_line(&self, hash: u32) {
        self.table.prefetch(hash);
    }

    /// Prefetches the memory of the value that a lookup and its caller will read.
    pub(super) fn touch_value(&self, hash: u32) {
        if let Some(value) = self.table.likely(hash) {
            value.prefetch();
        }
    }

    /// Returns the value like [`Self::get`], and counts a use.
    pub(super) fn ask(&self, hash: u32, key: &[u8]) -> Option<&Arc<V>> {
        let value = self.get(hash, key)?;
        value.mark().used();
        Some(value)
    }

    pub(super) fn insert(&mut self, hash: u32, value: Arc<V>) -> Result<(), Refused> {
        if self.get(hash, value.key()).is_some() {
            return Err(Refused::Taken);
        }
        let due = due(value.expires());
        let slot = self.slots.add(hash, &value).ok_or(Refused::TooLarge)?;
        value.mark().set(slot, false, 0);
        self.table
            .insert(hash, value, |other| self.slots.hash(other.mark().slot()));
        self.slots.push(&mut self.trial, slot);
        let first = self.due.insert(due, slot);
        self.slots.join(first, slot);
        Ok(())
    }

    /// Removes the value of this key, if it is the one that is `wanted`.
    pub(super) fn remove(
        &mut self,
        hash: u32,
        key: &[u8],
        wanted: impl FnOnce(&Arc<V>) -> bool,
    ) -> Option<Arc<V>> {
        let value = self.get(hash, key).filter(|value| wanted(value))?;
        self.forget(value.mark().slot())
    }

    fn forget(&mut self, slot: Slot) -> Option<Arc<V>> {
        let value = self
            .table
            .remove(self.slots.hash(slot), |value| value.mark().slot() == slot)?;
        let turn = if value.mark().in_main() {
            &mut self.main
        } else {
            &mut self.trial
        };
        self.slots.unlink(turn, slot);
        if let BTreeEntry::Occupied(mut first) = self.due.entry(due(value.expires())) {
            match self.slots.part(*first.get(), slot) {
                Some(other) => *first.get_mut() = other,
                None => _ = first.remove(),
            }
        }
        self.slots.release(slot);
        Some(value)
    }

    /// Evicts the value of least use. May return `None` where the `newest` stays.
    pub(super) fn evict(&mut self, newest: Newest) -> Option<Arc<V>> {
        let mut rounds = 0;
        loop {
            let trial_max = (self.table.len() / TRIAL).max(usize::from(newest == Newest::Stays));
            let from_trial = self.trial.len() > trial_max;
            let slot = if from_trial {
                self.trial.first()
            } else {
                self.main.first()
            }?;
            match self.ahead {
                0 => {
                    self.ask_ahead(slot);
                    self.ahead = AHEAD - 1;
                }
                _ => self.ahead -= 1,
            }
            let mark = self.slots.get(slot)?.mark();
            let uses = mark.uses();
            if uses == 0 || rounds == ROUNDS {
                return self.forget(slot);
            }
            rounds += 1;
            mark.set(slot, true, if from_trial { 0 } else { uses - 1 });
            let from = if from_trial {
                &mut self.trial
            } else {
                &mut self.main
            };
            self.slots.unlink(from, slot);
            self.slots.push(&mut self.main, slot);
        }
    }

    /// Prefetches the memory that evictions of the next values, from this slot on, will read. One
    /// after the other, each eviction would wait for memory where there are more values than fit
    /// into the caches of a processor.
    fn ask_ahead(&self, mut slot: Slot) {
        for _ in 0..AHEAD {
            if let Some(value) = self.slots.get(slot)
                && value.mark().uses() == 0
            {
                value.prefetch();
                self.table.prefetch(self.slots.hash(slot));
            }
            match self.slots.after(slot) {
                Some(after) => slot = after,
                None => return,
            }
        }
    }

    /// Removes up to `most` values whose expiry bucket is before that of `now`.
    pub(super) fn expire(&mut self, now: Timestamp, most: usize) -> Vec<Arc<V>> {
        let now = due(now);
        let mut over = Vec::new();
        while over.len() < most
            && let Some((&when, &slot)) = self.due.first_key_value()
            && when < now
        {
            over.extend(self.forget(slot));
        }
        if self.slots.len() > SPARSE + 4 * self.table.len() {
            self.compact();
        }
        over
    }

    /// Gives unused memory back, for example after a flood or a quiet night.
    fn compact(&mut self) {
        let mut fresh = Self::new();
        for (list, in_main) in [(&self.trial, false), (&self.main, true)] {
            let mut next = list.first();
            while let Some(slot) = next {
                next = self.slots.after(slot);
                let Some(value) = self.slots.get(slot) else {
                    continue;
                };
                let uses = value.mark().uses();
                if fresh
                    .insert(self.slots.hash(slot), Arc::clone(value))
                    .is_err()
                {
                    continue;
                }
                // `insert` has put it into the small queue.
                let slot = value.mark().slot();
                if in_main {
                    fresh.slots.unlink(&mut fresh.trial, slot);
                    fresh.slots.push(&mut fresh.main, slot);
                }
                value.mark().set(slot, in_main, uses);
            }
        }
        *self = fresh;
    }

    /// Returns the number of slots, free ones included.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.table.values()
    }

    pub(super) fn drain(&mut self) -> Vec<Arc<V>> {
        let all = self.table.values().map(Arc::clone).collect();
        *self = Self::new();
        all
    }
}
