//! The memory store: a map in shards, each behind one lock, with limits on entries and bytes.
//!
//! An operation locks the shard of its key, for a time that does not grow with the number of
//! values. A shard holds its part of the map together with its order of eviction and its expiry
//! buckets, so these always agree (decision 18).
//!
//! Invariants:
//!   - a value that [`Memory::take`] returned is never returned again
//!   - after every put there are at most `entries_max` values, of at most `bytes_max` bytes in all
//!   - the store does not keep a removed value alive

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

pub use shard::EntryState;
use shard::{Newest, Shard};

/// A value in the store. The results of its methods must not change while it is stored.
pub trait Entry {
    /// Returns the key by which the value is found.
    fn key(&self) -> &[u8];
    /// Returns the weight that counts against the limits, in bytes.
    fn weight(&self) -> usize;
    /// Returns when the value expires.
    fn expires(&self) -> Timestamp;
    /// Returns the state that the store keeps in the value.
    fn mark(&self) -> &EntryState;
    /// Prefetches the cache lines that a lookup or removal of this value will touch. Has no other
    /// effect.
    fn prefetch(&self) {}
}

/// The limits of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of values.
    pub entries_max: usize,
    /// Maximum number of bytes, as [`Entry::weight`] counts them.
    pub bytes_max: usize,
}

/// Why a value was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The value alone is over a limit.
    TooLarge,
    /// Another value has its key.
    Taken,
}

/// The usage of one store or of several.
///
/// It has cache lines of its own because nearly every put and removal writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Usage {
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

impl Usage {
    /// Returns the number of values.
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::SeqCst)
    }

    /// Returns the sum of the values' weights.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Returns whether the usage exceeds `limits`.
    pub fn exceeds(&self, limits: &Limits) -> bool {
        self.entries() > limits.entries_max || self.bytes() > limits.bytes_max
    }

    fn add(&self, weight: usize) {
        self.entries.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(weight, Ordering::SeqCst);
    }

    /// Counts one value in place of another. Where both weigh the same, as nearly always, nothing
    /// is written that all threads share.
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
    shards: Box<[LockedShard<V>]>,
    /// Its seeds are random, so a caller that chooses keys cannot choose their shards. A caller
    /// that times many answers closely might learn something of the seeds. A collision would only
    /// make the searches among its own keys longer.
    hasher: Keyed,
    amount: Usage,
    /// Usage of this store together with others.
    total: Arc<Usage>,
    entries_max: AtomicUsize,
    bytes_max: AtomicUsize,
}

/// A lock and its content, in cache lines of its own, so that locking one shard does not slow down
/// threads that lock its neighbour.
#[repr(align(128))]
struct LockedShard<V>(RwLock<Shard<V>>);

/// Each shard is sized for at least this number of values before there are more shards.
const SHARD_ENTRIES: usize = 64;
const SHARDS_MAX: usize = 256;
/// Maximum number of keys that one [`Memory::prefetch`] prefetches for.
pub const TOUCHED_MAX: usize = 16;
/// Maximum number of expired values removed under one hold of a lock.
const SLICE: usize = 256;

impl<V: Entry> Memory<V> {
    /// Creates an empty store. Its values count in `total` as well.
    pub fn new(limits: Limits, total: Arc<Usage>) -> Self {
        let shards = (limits.entries_max / SHARD_ENTRIES)
            .clamp(1, SHARDS_MAX)
            .next_power_of_two();
        Self {
            shards: (0..shards)
                .map(|_| LockedShard(RwLock::new(Shard::new())))
                .collect(),
            hasher: keyed(),
            amount: Usage::default(),
            total,
            entries_max: AtomicUsize::new(limits.entries_max),
            bytes_max: AtomicUsize::new(limits.bytes_max),
        }
    }

    /// Returns the limits.
    pub fn limits(&self) -> Limits {
        Limits {
            entries_max: self.entries_max.load(Ordering::SeqCst),
            bytes_max: self.bytes_max.load(Ordering::SeqCst),
        }
    }

    /// Changes the limits. Passes the values that must be evicted for them to `evicted`.
    pub fn resize(&self, limits: Limits, mut evicted: impl FnMut(Arc<V>)) {
        self.entries_max.store(limits.entries_max, Ordering::SeqCst);
        self.bytes_max.store(limits.bytes_max, Ordering::SeqCst);
        while self.amount.exceeds(&limits)
            && let Some(other) = self.evict(None)
        {
            evicted(other);
        }
    }

    /// Stores a value if its key is free. Passes the values that must be evicted for it to
    /// `evicted`.
    ///
    /// # Errors
    /// The key is taken, or the value alone is over a limit. The store is unchanged then.
    pub fn put(&self, value: Arc<V>, mut evicted: impl FnMut(Arc<V>)) -> Result<(), Refused> {
        let (weight, limits) = (value.weight(), self.limits());
        if weight > limits.bytes_max || limits.entries_max == 0 {
            return Err(Refused::TooLarge);
        }
        // Reads the limits again after the value was counted. A concurrent `resize` to smaller
        // limits either saw the value counted, or its limits are seen here.
        let exceeded = || self.amount.exceeds(&self.limits());
        let (place, hash) = self.place(value.key());
        let full = self.amount.entries() >= limits.entries_max
            || self.amount.bytes() + weight > limits.bytes_max;
        let first = {
            let mut shard = self.shards[place].0.write();
            shard.insert(hash, value)?;
            let first = if full {
                shard.evict(Newest::Stays)
            } else {
                None
            };
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

    /// Returns the value without removing it. Counts a use, which keeps a value longer.
    pub fn get(&self, key: &[u8]) -> Option<Arc<V>> {
        let (place, hash) = self.place(key);
        self.shards[place].0.read().ask(hash, key).map(Arc::clone)
    }

    /// Prefetches the memory that lookups of these keys, which come next, will read: for up to
    /// [`TOUCHED_MAX`] keys at once, so that the waits for memory overlap.
    ///
    /// Has no other effect. It skips shards that a writer has locked, and takes one key of each
    /// shard.
    pub fn prefetch<K: AsRef<[u8]>>(&self, keys: impl Iterator<Item = K>) {
        let mut held: [Option<(usize, u32, _)>; TOUCHED_MAX] = [const { None }; TOUCHED_MAX];
        // Takes all locks first, because at a lock a processor waits for pending reads. Waits for
        // no lock: two threads that each hold a lock that the other wants would wait forever.
        for (next, key) in keys.take(TOUCHED_MAX).enumerate() {
            let (place, hash) = self.place(key.as_ref());
            let (before, free) = held.split_at_mut(next);
            if !before.iter().flatten().any(|(other, ..)| *other == place) {
                free[0] = self.shards[place]
                    .0
                    .try_read()
                    .map(|shard| (place, hash, shard));
            }
        }
        let held = || held.iter().flatten();
        held().for_each(|(_, hash, shard)| shard.touch_line(*hash));
        held().for_each(|(_, hash, shard)| shard.touch_value(*hash));
    }

    /// Returns the value without counting a use.
    pub fn peek(&self, key: &[u8]) -> Option<Arc<V>> {
        let (place, hash) = self.place(key);
        self.shards[place].0.read().get(hash, key).map(Arc::clone)
    }

    /// Removes the value and returns it. Of several concurrent takes, one succeeds.
    pub fn take(&self, key: &[u8]) -> Option<Arc<V>> {
        self.take_if(key, |_| true)
    }

    /// Removes this value, not another that has its key by now. Returns whether it was stored.
    pub fn remove(&self, value: &Arc<V>) -> bool {
        self.take_if(value.key(), |held| Arc::ptr_eq(held, value))
            .is_some()
    }

    /// Returns whether this value is stored.
    pub fn holds(&self, value: &Arc<V>) -> bool {
        let (place, hash) = self.place(value.key());
        self.shards[place]
            .0
            .read()
            .get(hash, value.key())
            .is_some_and(|held| Arc::ptr_eq(held, value))
    }

    /// Evicts one value of little use, but not `newest`, which was put last. Returns `None` if
    /// there is none.
    pub fn evict(&self, newest: Option<&V>) -> Option<Arc<V>> {
        // The number of values selects the first shard. It varies, so no shard is evicted from more
        // than others.
        self.evict_near(
            self.amount.entries(),
            newest.map(|newest| self.place(newest.key()).0),
        )
    }

    /// Removes the values that have expired by `now`, and passes them to `over`. A value leaves
    /// about four seconds after its expiry at the latest, if this is called often enough.
    pub fn expire(&self, now: Timestamp, mut over: impl FnMut(Arc<V>)) {
        for shard in &self.shards {
            loop {
                // The lock is released between slices, and before a value is dropped.
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

    /// Removes all values, and passes them to `out`.
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

    /// Returns the number of parts, one for each shard; see [`Self::scan`].
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Passes every value of one part to `visit`, in no order. No value is added to that part or
    /// removed from it in the meantime.
    pub fn scan(&self, part: usize, visit: impl FnMut(&Arc<V>)) {
        if let Some(shard) = self.shards.get(part) {
            shard.0.read().values().for_each(visit);
        }
    }

    /// Returns the usage.
    pub fn amount(&self) -> &Usage {
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

    /// Evicts from this shard, or from the next one that has a value to evict. The newest value of
    /// the shard `newest` is not evicted.
    ///
    /// Locks one shard at a time: two threads that search on from different shards would otherwise
    /// wait for each other.
    fn evict_near(&self, first: usize, newest: Option<usize>) -> Option<Arc<V>> {
        (0..self.shards.len()).find_map(|step| {
            let place = (first + step) & (self.shards.len() - 1);
            let stays = if newest == Some(place) {
                Newest::Stays
            } else {
                Newest::MayGo
            };
            self.evict_from(&mut self.shards[place].0.write(), stays)
        })
    }

    fn evict_from(&self, shard: &mut Shard<V>, newest: Newest) -> Option<Arc<V>> {
        let value = shard.evict(newest)?;
        self.discount(&value);
        Some(value)
    }

    /// Called under the lock of the value's shard, so that no value is subtracted before it was
    /// added.
    fn discount(&self, value: &Arc<V>) {
        let weight = value.weight();
        self.amount.subtract(weight);
        self.total.subtract(weight);
    }
}

/// Subtracts the remaining values from the total.
impl<V> Drop for Memory<V> {
    fn drop(&mut self) {
        let (entries, bytes) = (self.amount.entries(), self.amount.bytes());
        self.total.entries.fetch_sub(entries, Ordering::AcqRel);
        self.total.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
