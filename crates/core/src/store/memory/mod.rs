//! The memory store: a map in parts, each behind one lock, bounded in entries and bytes.
//!
//! An operation locks the one part that its key belongs to, for a time that does not grow with the number of values.
//! A part holds the map and all that goes with it - whose turn it is to be evicted, and what is over when - so that
//! there is no moment at which they disagree (decision 18).
//!
//! Invariants:
//!   - what [`Memory::take`] returns, nobody gets again
//!   - after every put there are at most `entries_max` values, of at most `bytes_max` bytes in all
//!   - a value that was removed is not kept alive here

use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use super::keyed::{Keyed, keyed};
use crate::{
    clock::Timestamp,
    sync::{AtomicUsize, Ordering, RwLock},
};

mod index;
mod queues;
mod shard;

pub use shard::Mark;
use shard::{Newest, Shard};

/// What a store holds. Nothing that it tells may change while it is held.
pub trait Entry {
    /// What it is found by.
    fn key(&self) -> &[u8];
    /// What it counts against the limits, in bytes.
    fn weight(&self) -> usize;
    /// When it is over.
    fn expires(&self) -> Timestamp;
    /// Room for the store's own notes.
    fn mark(&self) -> &Mark;
    /// Reads a little of all memory that who finds it will read, and its end read or write. Nothing comes of it but that this
    /// memory is near by then.
    fn touch(&self) {}
}

/// How much a store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most values.
    pub entries_max: usize,
    /// Most bytes, as [`Entry::weight`] counts them.
    pub bytes_max: usize,
}

/// Why a value was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is over a limit by itself.
    TooLarge,
    /// Another value has its key.
    Taken,
}

/// How much is held, in one store or in several. Apart from what is only read: every put and removal may write it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Amount {
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

impl Amount {
    /// How many values.
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::SeqCst)
    }

    /// The sum of their weights.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Whether it is more than that.
    pub fn exceeds(&self, limits: &Limits) -> bool {
        self.entries() > limits.entries_max || self.bytes() > limits.bytes_max
    }

    fn add(&self, weight: usize) {
        self.entries.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(weight, Ordering::SeqCst);
    }

    /// One value in the place of another. Where they weigh the same, which is so nearly always, nothing is written that
    /// all threads share.
    fn exchange(&self, old: usize, new: usize) {
        if new > old {
            self.bytes.fetch_add(new - old, Ordering::SeqCst);
        } else if new < old {
            self.bytes.fetch_sub(old - new, Ordering::SeqCst);
        }
    }

    fn subtract(&self, weight: usize) {
        self.entries.fetch_sub(1, Ordering::SeqCst);
        self.bytes.fetch_sub(weight, Ordering::SeqCst);
    }
}

/// Values by key.
pub struct Memory<V> {
    shards: Box<[Part<V>]>,
    /// Its seeds are random, so a caller that chooses keys cannot choose where they lie. A caller that measures many answers
    /// closely might learn something of the seeds; a collision would cost it a longer search among its own keys.
    hasher: Keyed,
    amount: Amount,
    /// What this store holds together with others.
    total: Arc<Amount>,
    entries_max: AtomicUsize,
    bytes_max: AtomicUsize,
}

/// A lock and what is behind it, apart from its neighbours: whoever locks one does not slow down who locks the next.
#[repr(align(128))]
struct Part<V>(RwLock<Shard<V>>);

/// A part has room for this many values at least, before there are more parts.
const SHARD_ENTRIES: usize = 64;
const SHARDS_MAX: usize = 256;
/// How many keys are looked for at once before they are asked for.
pub const TOUCHED_MAX: usize = 16;
/// How many values leave under one hold of a lock when their time is over.
const SLICE: usize = 256;

impl<V: Entry> Memory<V> {
    /// An empty store, whose values count in `total` as well.
    pub fn new(limits: Limits, total: Arc<Amount>) -> Self {
        let shards = (limits.entries_max / SHARD_ENTRIES).clamp(1, SHARDS_MAX).next_power_of_two();
        Self {
            shards: (0..shards).map(|_| Part(RwLock::new(Shard::new()))).collect(),
            hasher: keyed(),
            amount: Amount::default(),
            total,
            entries_max: AtomicUsize::new(limits.entries_max),
            bytes_max: AtomicUsize::new(limits.bytes_max),
        }
    }

    /// How much it may hold.
    pub fn limits(&self) -> Limits {
        Limits {
            entries_max: self.entries_max.load(Ordering::SeqCst),
            bytes_max: self.bytes_max.load(Ordering::SeqCst),
        }
    }

    /// Changes how much it may hold. What has to go for it is handed to `evicted`.
    pub fn resize(&self, limits: Limits, mut evicted: impl FnMut(Arc<V>)) {
        self.entries_max.store(limits.entries_max, Ordering::SeqCst);
        self.bytes_max.store(limits.bytes_max, Ordering::SeqCst);
        while self.amount.exceeds(&limits)
            && let Some(other) = self.evict(None)
        {
            evicted(other);
        }
    }

    /// Stores a value where its key is free. What has to go for it is handed to `evicted`.
    ///
    /// # Errors
    /// The key is taken, or the value alone is over a limit. Nothing has changed then.
    pub fn put(&self, value: Arc<V>, mut evicted: impl FnMut(Arc<V>)) -> Result<(), Refused> {
        let (weight, limits) = (value.weight(), self.limits());
        if weight > limits.bytes_max || limits.entries_max == 0 {
            return Err(Refused::TooLarge);
        }
        // Asked anew once the value counts: who made them smaller meanwhile has seen it count, or is seen here.
        let exceeded = || self.amount.exceeds(&self.limits());
        let (place, hash) = self.place(value.key());
        let full =
            self.amount.entries() >= limits.entries_max || self.amount.bytes() + weight > limits.bytes_max;
        let first = {
            let mut shard = self.shards[place].0.write();
            shard.insert(hash, value)?;
            let first = if full { shard.evict(Newest::Stays) } else { None };
            match &first {
                Some(first) => {
                    self.amount.exchange(first.weight(), weight);
                    self.total.exchange(first.weight(), weight);
                }
                None => {
                    self.amount.add(weight);
                    self.total.add(weight);
                }
            }
            first
        };
        if let Some(first) = first {
            evicted(first);
        }
        while exceeded()
            && let Some(other) = self.evict_near(place, Some(place))
        {
            evicted(other);
        }
        Ok(())
    }

    /// The value, which stays. It counts as a use, which keeps a value longer.
    pub fn get(&self, key: &[u8]) -> Option<Arc<V>> {
        let (place, hash) = self.place(key);
        self.shards[place].0.read().ask(hash, key).map(Arc::clone)
    }

    /// Reads a little of all memory that lookups of these keys, which come next, will read: of up to [`TOUCHED_MAX`] of them
    /// at once, where one after the other each would wait for its own. Nothing else comes of it, so what cannot be read at
    /// once is passed over: a part in which somebody writes, and all but one key of a part.
    pub fn touch<K: AsRef<[u8]>>(&self, keys: impl Iterator<Item = K>) {
        let mut held: [Option<(usize, u32, _)>; TOUCHED_MAX] = [const { None }; TOUCHED_MAX];
        // All locks before all else: at a lock a processor waits for what it has yet to read. And none is waited for, or two
        // who hold what the other wants would wait forever.
        for (next, key) in keys.take(TOUCHED_MAX).enumerate() {
            let (place, hash) = self.place(key.as_ref());
            let (before, free) = held.split_at_mut(next);
            if !before.iter().flatten().any(|(other, ..)| *other == place) {
                free[0] = self.shards[place].0.try_read().map(|shard| (place, hash, shard));
            }
        }
        let held = || held.iter().flatten();
        held().for_each(|(_, hash, shard)| shard.touch_line(*hash));
        held().for_each(|(_, hash, shard)| shard.touch_value(*hash));
    }

    /// The value, which stays, and is none the wiser.
    pub fn peek(&self, key: &[u8]) -> Option<Arc<V>> {
        let (place, hash) = self.place(key);
        self.shards[place].0.read().get(hash, key).map(Arc::clone)
    }

    /// The value, which is gone for everybody else: of any number of takes, one succeeds.
    pub fn take(&self, key: &[u8]) -> Option<Arc<V>> {
        self.take_if(key, |_| true)
    }

    /// Removes this very value, not another that took its key since; says whether it was there.
    pub fn remove(&self, value: &Arc<V>) -> bool {
        self.take_if(value.key(), |held| Arc::ptr_eq(held, value)).is_some()
    }

    /// Whether this very value is there.
    pub fn holds(&self, value: &Arc<V>) -> bool {
        let (place, hash) = self.place(value.key());
        self.shards[place].0.read().get(hash, value.key()).is_some_and(|held| Arc::ptr_eq(held, value))
    }

    /// Makes room: takes out one value that is of little use, and not `newest`, which was put last. `None`: there is none.
    pub fn evict(&self, newest: Option<&V>) -> Option<Arc<V>> {
        // A key nobody has says where to begin, so that no part is worse off than another.
        self.evict_near(self.amount.entries(), newest.map(|newest| self.place(newest.key()).0))
    }

    /// Takes out what is over by `now`, four seconds late at most.
    pub fn expire(&self, now: Timestamp, mut over: impl FnMut(Arc<V>)) {
        for shard in &self.shards {
            loop {
                // Let go of between slices, and before anything is dropped.
                let slice = {
                    let mut shard = shard.0.write();
                    let slice = shard.expire(now, SLICE);
                    slice.iter().for_each(|value| self.discount(value));
                    slice
                };
                let last = slice.len() < SLICE;
                slice.into_iter().for_each(&mut over);
                if last {
                    break;
                }
            }
        }
    }

    /// Takes everything out.
    pub fn drain(&self, mut out: impl FnMut(Arc<V>)) {
        for shard in &self.shards {
            let all = {
                let mut shard = shard.0.write();
                let all = shard.drain();
                all.iter().for_each(|value| self.discount(value));
                all
            };
            all.into_iter().for_each(&mut out);
        }
    }

    /// In how many parts it can be looked through; see [`Self::scan`].
    pub fn parts(&self) -> usize {
        self.shards.len()
    }

    /// Shows every value of one part to `visit`, in no order. Nothing is put into that part or leaves it meanwhile.
    pub fn scan(&self, part: usize, visit: impl FnMut(&Arc<V>)) {
        if let Some(shard) = self.shards.get(part) {
            shard.0.read().values().for_each(visit);
        }
    }

    /// How much there is.
    pub fn amount(&self) -> &Amount {
        &self.amount
    }

    fn place(&self, key: &[u8]) -> (usize, u32) {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        let [a, b, c, d, e, f, g, h] = hasher.finish().to_le_bytes();
        let part = u32::from_le_bytes([a, b, c, d]) as usize & (self.shards.len() - 1);
        (part, u32::from_le_bytes([e, f, g, h]))
    }

    fn take_if(&self, key: &[u8], wanted: impl FnOnce(&Arc<V>) -> bool) -> Option<Arc<V>> {
        let (place, hash) = self.place(key);
        let mut shard = self.shards[place].0.write();
        let value = shard.remove(hash, key, wanted)?;
        self.discount(&value);
        Some(value)
    }

    /// From this part, or from the next one that has something; in the part where the newest is, it stays. One part is
    /// locked at a time: two that look on from different parts would wait for each other.
    fn evict_near(&self, first: usize, newest: Option<usize>) -> Option<Arc<V>> {
        (0..self.shards.len()).find_map(|step| {
            let place = (first + step) & (self.shards.len() - 1);
            let stays = if newest == Some(place) { Newest::Stays } else { Newest::MayGo };
            self.evict_from(&mut self.shards[place].0.write(), stays)
        })
    }

    fn evict_from(&self, shard: &mut Shard<V>, newest: Newest) -> Option<Arc<V>> {
        let value = shard.evict(newest)?;
        self.discount(&value);
        Some(value)
    }

    /// Under the lock of its part, so that no sum ever lacks what a put has yet to add.
    fn discount(&self, value: &Arc<V>) {
        let weight = value.weight();
        self.amount.subtract(weight);
        self.total.subtract(weight);
    }
}

/// What is left counts in the total no more.
impl<V> Drop for Memory<V> {
    fn drop(&mut self) {
        let (entries, bytes) = (self.amount.entries(), self.amount.bytes());
        self.total.entries.fetch_sub(entries, Ordering::AcqRel);
        self.total.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
