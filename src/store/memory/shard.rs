//! One part of the store: what is behind one lock.
//!
//! Eviction is S3-FIFO (Yang et al., SOSP 2023): a value begins in the *trial* queue, a tenth of all. What was used by the
//! time it comes to the front moves to the *main* queue, and what was not leaves. So a flood of values that nobody
//! asks for passes through the trial queue and leaves the others alone.

use std::{
    collections::{BTreeMap, btree_map::Entry as BTreeEntry},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::{
    Entry, Refused,
    lists::{List, Slot, Slots},
    table::Table,
};
use crate::clock::Timestamp;

/// How often a value was used lately, at most 3, and whether it is in the main queue. The store writes it, and only it.
#[derive(Debug, Default)]
pub struct Mark(AtomicU8);

const USES_MAX: u8 = 3;
const IN_MAIN: u8 = 0x80;

impl Mark {
    fn uses(&self) -> u8 {
        self.0.load(Ordering::Relaxed) & !IN_MAIN
    }

    fn in_main(&self) -> bool {
        self.0.load(Ordering::Relaxed) & IN_MAIN != 0
    }

    /// Uses that meet may count once: it only orders evictions. Where a value lies changes under the writer's lock alone.
    fn used(&self) {
        let mark = self.0.load(Ordering::Relaxed);
        if mark & !IN_MAIN < USES_MAX {
            self.0.store(mark + 1, Ordering::Relaxed);
        }
    }

    fn set(&self, in_main: bool, uses: u8) {
        self.0.store(uses | if in_main { IN_MAIN } else { 0 }, Ordering::Relaxed);
    }
}

/// The trial queue's part of all.
const TRIAL: usize = 10;
/// How many used values an eviction passes over, where all of them are in use.
const ROUNDS: usize = 1024;
/// A part with fewer slots is not worth making smaller.
const SPARSE: usize = 64;

/// Values that are over within the same four seconds lie together.
fn due(expires: Timestamp) -> u32 {
    u32::try_from(expires.as_millis() >> 12).unwrap_or(u32::MAX)
}

/// What becomes of the value that was put last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Newest {
    /// Others make room for it.
    Stays,
    /// It is like any other.
    MayGo,
}

pub(super) struct Shard<V> {
    table: Table,
    slots: Slots<V>,
    trial: List,
    main: List,
    /// By when they are over the first of those; the others are linked to it.
    due: BTreeMap<u32, Slot>,
}

impl<V: Entry> Shard<V> {
    pub(super) const fn new() -> Self {
        Self {
            table: Table::new(),
            slots: Slots::new(),
            trial: List::new(),
            main: List::new(),
            due: BTreeMap::new(),
        }
    }

    pub(super) fn get(&self, hash: u32, key: &[u8]) -> Option<&Arc<V>> {
        self.slots.get(self.find(hash, key)?)
    }

    /// The same, as a use.
    pub(super) fn ask(&self, hash: u32, key: &[u8]) -> Option<&Arc<V>> {
        let value = self.get(hash, key)?;
        value.mark().used();
        Some(value)
    }

    fn find(&self, hash: u32, key: &[u8]) -> Option<Slot> {
        // A key is a capability: how much of it was right shows in no time that it takes.
        let same = |value: &Arc<V>| verify_slices_are_equal(value.key(), key).is_ok();
        self.table.find(hash, |slot| self.slots.get(slot).is_some_and(same))
    }

    pub(super) fn insert(&mut self, hash: u32, value: Arc<V>) -> Result<(), Refused> {
        if self.find(hash, value.key()).is_some() {
            return Err(Refused::Taken);
        }
        value.mark().set(false, 0);
        let due = due(value.expires());
        let slot = self.slots.add(hash, value).ok_or(Refused::TooLarge)?;
        let slots = &self.slots;
        self.table.insert(hash, slot, || slots.hashes().filter(|&(_, other)| other != slot));
        self.slots.push(&mut self.trial, slot);
        let first = self.due.insert(due, slot);
        self.slots.join(first, slot);
        Ok(())
    }

    /// Takes out the value of this key, if it is the one that is `wanted`.
    pub(super) fn remove(
        &mut self,
        hash: u32,
        key: &[u8],
        wanted: impl FnOnce(&Arc<V>) -> bool,
    ) -> Option<Arc<V>> {
        let slot = self.find(hash, key)?;
        self.slots.get(slot).is_some_and(wanted).then(|| self.forget(slot))?
    }

    fn forget(&mut self, slot: Slot) -> Option<Arc<V>> {
        let value = self.slots.get(slot)?;
        let (in_main, due) = (value.mark().in_main(), due(value.expires()));
        self.table.remove(self.slots.hash(slot), slot);
        let turn = if in_main { &mut self.main } else { &mut self.trial };
        self.slots.unlink(turn, slot);
        if let BTreeEntry::Occupied(mut first) = self.due.entry(due) {
            match self.slots.part(*first.get(), slot) {
                Some(other) => *first.get_mut() = other,
                None => _ = first.remove(),
            }
        }
        self.slots.take(slot)
    }

    /// Takes out what is of least use. Where the `newest` stays there may be nothing.
    pub(super) fn evict(&mut self, newest: Newest) -> Option<Arc<V>> {
        let mut rounds = 0;
        loop {
            let trial_max = (self.table.len() / TRIAL).max(usize::from(newest == Newest::Stays));
            let from_trial = self.trial.len() > trial_max;
            let slot = if from_trial { self.trial.first() } else { self.main.first() }?;
            let mark = self.slots.get(slot)?.mark();
            let uses = mark.uses();
            if uses == 0 || rounds == ROUNDS {
                return self.forget(slot);
            }
            rounds += 1;
            mark.set(true, if from_trial { 0 } else { uses - 1 });
            let from = if from_trial { &mut self.trial } else { &mut self.main };
            self.slots.unlink(from, slot);
            self.slots.push(&mut self.main, slot);
        }
    }

    /// Takes out up to `most` values that were over before the four seconds that `now` is in.
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

    /// After a flood, or a night, the memory goes back.
    fn compact(&mut self) {
        let mut fresh = Self::new();
        for (list, in_main) in [(&self.trial, false), (&self.main, true)] {
            let mut next = list.first();
            while let Some(slot) = next {
                next = self.slots.after(slot);
                let Some(value) = self.slots.get(slot) else { continue };
                let uses = value.mark().uses();
                // Into the trial queue first, like any other.
                if fresh.insert(self.slots.hash(slot), Arc::clone(value)).is_ok()
                    && in_main
                    && let Some(last) = fresh.trial.last()
                {
                    fresh.slots.unlink(&mut fresh.trial, last);
                    fresh.slots.push(&mut fresh.main, last);
                }
                value.mark().set(in_main, uses);
            }
        }
        *self = fresh;
    }

    /// How many slots it has, free ones included.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.slots.values()
    }

    pub(super) fn drain(&mut self) -> Vec<Arc<V>> {
        let all = self.slots.values().map(Arc::clone).collect();
        *self = Self::new();
        all
    }
}
