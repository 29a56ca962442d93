//! The memory store: a dashmap, bounded in entries and bytes, that evicts what was put first.
//!
//! Invariants:
//!   - what [`Memory::take`] returns, nobody gets again
//!   - after every call there are at most `entries_max` values, of at most `bytes_max` bytes in all
//!   - a value that was removed is not kept alive here

use std::{
    collections::VecDeque,
    hash::Hash,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use dashmap::{DashMap, Entry};
use parking_lot::Mutex;

/// How much a store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most values.
    pub entries_max: usize,
    /// Most bytes, as [`Memory::new`]'s weight counts them.
    pub bytes_max: usize,
    /// Most bytes of one value.
    pub value_bytes_max: usize,
}

/// Why a value was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is over a limit by itself.
    TooLarge,
    /// Another value has its key.
    Taken,
}

/// Values by key. A value knows its key.
pub struct Memory<K, V> {
    map: DashMap<K, Arc<V>>,
    /// In the order of their puts. A removed value stays here as a dead or stale pointer until it comes to the front,
    /// or until there are too many of those.
    order: Mutex<VecDeque<Weak<V>>>,
    entries: AtomicUsize,
    bytes: AtomicUsize,
    limits: Limits,
    weight: fn(&V) -> usize,
}

impl<K, V> Memory<K, V>
where
    K: Clone + Eq + Hash,
    V: AsRef<K>,
{
    /// An empty store. `weight` tells the size of a value in bytes and must not change for a value.
    pub fn new(limits: Limits, weight: fn(&V) -> usize) -> Self {
        Self {
            map: DashMap::new(),
            order: Mutex::default(),
            entries: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            limits,
            weight,
        }
    }

    /// Stores a value where its key is free, and returns how many others had to go for it.
    ///
    /// # Errors
    /// The key is taken, or the value alone is over a limit. Nothing has changed then.
    pub fn put(&self, value: Arc<V>) -> Result<usize, Refused> {
        let weight = (self.weight)(&value);
        if weight > self.limits.bytes_max.min(self.limits.value_bytes_max) || self.limits.entries_max == 0 {
            return Err(Refused::TooLarge);
        }
        let place = Arc::downgrade(&value);
        match self.map.entry(AsRef::<K>::as_ref(&*value).clone()) {
            Entry::Vacant(free) => {
                // Counted before it can be removed by others, so that the counters never go below zero.
                self.entries.fetch_add(1, Ordering::AcqRel);
                self.bytes.fetch_add(weight, Ordering::AcqRel);
                drop(free.insert(value));
            }
            Entry::Occupied(_) => return Err(Refused::Taken),
        }
        let mut order = self.order.lock();
        order.push_back(place);
        let mut evicted = 0;
        while self.len() > self.limits.entries_max || self.bytes() > self.limits.bytes_max {
            let Some(oldest) = order.pop_front() else { break };
            evicted += usize::from(self.remove_at(&oldest));
        }
        if order.len() > 2 * self.len() + 64 {
            order.retain(|place| self.is_current(place));
        }
        Ok(evicted)
    }

    /// The value, which stays.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.map.get(key).map(|value| Arc::clone(&value))
    }

    /// The value, which is gone for everybody else: of any number of takes, one succeeds.
    pub fn take(&self, key: &K) -> Option<Arc<V>> {
        let (_, value) = self.map.remove(key)?;
        self.discount(&value);
        Some(value)
    }

    /// Removes this very value, not another that took its key since; says whether it was there.
    pub fn remove(&self, value: &Arc<V>) -> bool {
        let removed = self.map.remove_if(AsRef::<K>::as_ref(&**value), |_, held| Arc::ptr_eq(held, value));
        if removed.is_some() {
            self.discount(value);
        }
        removed.is_some()
    }

    /// Drops the oldest values for as long as `over` says so of them.
    pub fn reap(&self, over: impl Fn(&V) -> bool) {
        let mut order = self.order.lock();
        while let Some(place) = order.front() {
            if place.upgrade().is_some_and(|value| self.is_current(place) && !over(&value)) {
                break;
            }
            self.remove_at(place);
            order.pop_front();
        }
    }

    /// Shows every value to `visit`, in no order. What is put or removed meanwhile may be seen or not.
    pub fn scan(&self, mut visit: impl FnMut(&Arc<V>)) {
        self.map.iter().for_each(|entry| visit(entry.value()));
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Acquire)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum of their weights.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    fn is_current(&self, place: &Weak<V>) -> bool {
        place.upgrade().is_some_and(|value| {
            self.map.get(AsRef::<K>::as_ref(&*value)).is_some_and(|held| Arc::ptr_eq(&held, &value))
        })
    }

    fn remove_at(&self, place: &Weak<V>) -> bool {
        place.upgrade().is_some_and(|value| self.remove(&value))
    }

    fn discount(&self, value: &V) {
        self.entries.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub((self.weight)(value), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Value(u32, usize);

    impl AsRef<u32> for Value {
        fn as_ref(&self) -> &u32 {
            &self.0
        }
    }

    fn store(entries_max: usize, bytes_max: usize) -> Memory<u32, Value> {
        Memory::new(Limits { entries_max, bytes_max, value_bytes_max: 100 }, |value| value.1)
    }

    fn keys(store: &Memory<u32, Value>) -> Vec<u32> {
        let mut keys = Vec::new();
        store.scan(|value| keys.push(value.0));
        keys.sort_unstable();
        keys
    }

    #[test]
    fn full_store_evicts_what_was_put_first() {
        let store = store(2, 100);
        assert_eq!(store.put(Arc::new(Value(1, 10))), Ok(0));
        assert_eq!(store.put(Arc::new(Value(2, 10))), Ok(0));
        assert_eq!(store.put(Arc::new(Value(3, 10))), Ok(1));
        assert_eq!(keys(&store), [2, 3]);
        assert_eq!(store.put(Arc::new(Value(4, 95))), Ok(2), "bytes count as well");
        assert_eq!((keys(&store), store.len(), store.bytes()), (vec![4], 1, 95));
    }

    #[test]
    fn value_over_the_limit_is_refused_and_evicts_nothing() {
        let store = store(2, 100);
        store.put(Arc::new(Value(1, 10))).unwrap();
        assert_eq!(store.put(Arc::new(Value(2, 101))), Err(Refused::TooLarge));
        let store = self::store(2, 1000);
        store.put(Arc::new(Value(1, 10))).unwrap();
        assert_eq!(store.put(Arc::new(Value(2, 101))), Err(Refused::TooLarge), "over that of one value");
        assert_eq!(keys(&store), [1]);
    }

    #[test]
    fn taken_key_stays_with_its_value_and_a_stale_place_evicts_nothing() {
        let store = store(2, 100);
        store.put(Arc::new(Value(1, 60))).unwrap();
        assert_eq!(store.put(Arc::new(Value(1, 30))), Err(Refused::Taken));
        assert_eq!((store.len(), store.bytes()), (1, 60));
        store.take(&1);
        store.put(Arc::new(Value(1, 30))).unwrap();
        store.put(Arc::new(Value(2, 10))).unwrap();
        assert_eq!(store.put(Arc::new(Value(3, 10))), Ok(1), "the new 1 goes, and it alone");
        assert_eq!(keys(&store), [2, 3]);
    }

    #[test]
    fn removed_values_are_not_kept_alive_and_their_places_are_bounded() {
        let store = store(1_000, 1_000_000);
        for round in 0..10_000 {
            let value = Arc::new(Value(round, 1));
            let watch = Arc::downgrade(&value);
            store.put(value).unwrap();
            assert_eq!(store.take(&round).map(|value| value.0), Some(round));
            assert!(watch.upgrade().is_none());
        }
        assert!(store.is_empty() && store.bytes() == 0);
        assert!(store.order.lock().len() <= 66, "{} places", store.order.lock().len());
    }

    #[test]
    fn one_of_many_takes_succeeds() {
        let store = Arc::new(store(1_000, 1_000_000));
        for key in 0..200 {
            store.put(Arc::new(Value(key, 1))).unwrap();
            let takers: Vec<_> = (0..4)
                .map(|_| {
                    let store = Arc::clone(&store);
                    std::thread::spawn(move || usize::from(store.take(&key).is_some()))
                })
                .collect();
            let taken: usize = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
            assert_eq!(taken, 1);
        }
        assert_eq!((store.len(), store.bytes()), (0, 0));
    }

    #[test]
    fn reap_stops_at_the_first_that_is_not_over() {
        let store = store(10, 100);
        for key in 1..=5 {
            store.put(Arc::new(Value(key, 1))).unwrap();
        }
        store.take(&1);
        store.reap(|value| value.0 < 4);
        assert_eq!(keys(&store), [4, 5]);
    }
}
