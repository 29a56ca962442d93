use super::*;

struct Value {
    key: [u8; 4],
    weight: usize,
    expires: Timestamp,
    mark: EntryState,
}

impl Entry for Value {
    fn key(&self) -> &[u8] {
        &self.key
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn expires(&self) -> Timestamp {
        self.expires
    }

    fn mark(&self) -> &EntryState {
        &self.mark
    }
}

const FOUR_SECONDS: u64 = 4096;

fn value(key: u32, weight: usize) -> Arc<Value> {
    lives(key, weight, u64::MAX)
}

fn lives(key: u32, weight: usize, millis: u64) -> Arc<Value> {
    let expires = Timestamp::from_millis(millis);
    Arc::new(Value {
        key: key.to_be_bytes(),
        weight,
        expires,
        mark: EntryState::default(),
    })
}

fn store(entries_max: usize, bytes_max: usize) -> Memory<Value> {
    Memory::new(
        Limits {
            entries_max,
            bytes_max,
        },
        Arc::default(),
    )
}

/// Puts a value. Returns the keys that were evicted.
fn put(store: &Memory<Value>, value: Arc<Value>) -> Result<Vec<u32>, Refused> {
    let mut evicted = Vec::new();
    store.put(value, |value| evicted.push(u32::from_be_bytes(value.key)))?;
    Ok(evicted)
}

fn keys(store: &Memory<Value>) -> Vec<u32> {
    let mut keys = Vec::new();
    (0..store.shards())
        .for_each(|part| store.scan(part, |value| keys.push(u32::from_be_bytes(value.key))));
    keys.sort_unstable();
    keys
}

fn amount(store: &Memory<Value>) -> (usize, usize) {
    (store.amount().entries(), store.amount().bytes())
}

// Invariant 4.
#[test]
fn full_store_evicts_the_oldest_unused_value() {
    let store = store(2, 100);
    assert_eq!(put(&store, value(1, 10)), Ok(vec![]));
    assert_eq!(put(&store, value(2, 10)), Ok(vec![]));
    assert_eq!(put(&store, value(3, 10)), Ok(vec![1]));
    assert_eq!(put(&store, value(4, 95)), Ok(vec![2, 3]), "bytes count too");
    assert_eq!((keys(&store), amount(&store)), (vec![4], (1, 95)));
}

// Invariant 4.
#[test]
fn value_over_the_limit_is_refused_and_evicts_nothing() {
    let store = store(2, 100);
    put(&store, value(1, 10)).unwrap();
    assert_eq!(put(&store, value(2, 101)), Err(Refused::TooLarge));
    assert_eq!(keys(&store), [1]);
}

#[test]
fn taken_key_stays_with_its_value() {
    let store = store(2, 100);
    put(&store, value(1, 60)).unwrap();
    assert_eq!(put(&store, value(1, 30)), Err(Refused::Taken));
    assert_eq!(amount(&store), (1, 60));
    let first = store.get(&1_u32.to_be_bytes()).unwrap();
    assert!(store.take(&first.key).is_some());
    put(&store, value(1, 30)).unwrap();
    assert!(
        !store.holds(&first) && !store.remove(&first),
        "the key belongs to the new value"
    );
    put(&store, value(2, 10)).unwrap();
    assert_eq!(
        put(&store, value(3, 10)),
        Ok(vec![1]),
        "only the new value 1 is evicted"
    );
    assert_eq!(keys(&store), [2, 3]);
}

// Invariant 4.
#[test]
fn flood_of_unused_values_evicts_no_used_value() {
    let store = store(10_000, usize::MAX);
    for key in 0..5_000 {
        put(&store, value(key, 1)).unwrap();
        store.get(&key.to_be_bytes());
    }
    for key in 10_000..1_000_000 {
        put(&store, value(key, 1)).unwrap();
    }
    let left = keys(&store).into_iter().filter(|&key| key < 5_000).count();
    assert_eq!((left, store.amount().entries()), (5_000, 10_000));
}

#[test]
fn limits_hold_with_one_value_per_shard() {
    let store = store(100_000, 10);
    for key in 0..1_000 {
        put(&store, value(key, 4)).unwrap();
        assert!(amount(&store).1 <= 10);
        assert!(
            store.get(&key.to_be_bytes()).is_some(),
            "the newest is not evicted"
        );
    }
    store.resize(
        Limits {
            entries_max: 1,
            bytes_max: 10,
        },
        drop,
    );
    assert_eq!(amount(&store), (1, 4));
    assert!(store.evict(None).is_some() && store.evict(None).is_none());
}

// Invariant 7.
#[test]
fn removed_values_are_not_kept_alive() {
    let store = store(1_000, 1_000_000);
    for round in 0..10_000 {
        let value = value(round, 1);
        let watch = Arc::downgrade(&value);
        put(&store, value).unwrap();
        assert!(store.take(&round.to_be_bytes()).is_some());
        assert!(watch.upgrade().is_none());
    }
    assert_eq!(amount(&store), (0, 0));
}

// Invariant 2.
#[test]
fn one_of_many_takes_succeeds() {
    let store = Arc::new(store(1_000, 1_000_000));
    for key in 0..200_u32 {
        put(&store, value(key, 1)).unwrap();
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let store = Arc::clone(&store);
                std::thread::spawn(move || usize::from(store.take(&key.to_be_bytes()).is_some()))
            })
            .collect();
        let taken: usize = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
        assert_eq!(taken, 1);
    }
    assert_eq!(amount(&store), (0, 0));
}

#[test]
fn expired_values_are_removed_in_any_insertion_order() {
    let store = store(10_000, 1_000_000);
    // Later values have shorter lifetimes.
    for key in 0..5_000 {
        put(
            &store,
            lives(key, 1, (5_000 - u64::from(key)) * FOUR_SECONDS),
        )
        .unwrap();
    }
    let mut over = 0;
    store.expire(Timestamp::from_millis(1_000 * FOUR_SECONDS), |value| {
        assert!(value.expires.as_millis() < 1_000 * FOUR_SECONDS);
        over += 1;
    });
    assert_eq!((over, store.amount().entries()), (999, 4_001));
    store.expire(Timestamp::from_millis(6_000 * FOUR_SECONDS), |_| over += 1);
    assert_eq!((over, amount(&store)), (5_000, (0, 0)));
}

#[test]
fn emptied_store_frees_slots_and_keeps_remaining_values() {
    let store = store(100, usize::MAX);
    for round in 0..3 {
        for key in 0..95_u32 {
            let millis = if key < 5 {
                u64::MAX
            } else {
                (round + 1) * FOUR_SECONDS
            };
            drop(put(&store, lives(key, 1, millis)));
            store.get(&key.to_be_bytes());
        }
        store.expire(Timestamp::from_millis((round + 2) * FOUR_SECONDS), drop);
        assert_eq!(keys(&store), [0, 1, 2, 3, 4]);
        assert!(
            store.shards[0].0.read().slots() <= 16,
            "{} slots",
            store.shards[0].0.read().slots()
        );
    }
}

#[test]
fn smaller_limits_apply_at_once_and_the_total_sums_all_stores() {
    let total = Arc::new(Usage::default());
    let limits = Limits {
        entries_max: 100,
        bytes_max: 1_000,
    };
    let [one, two] = [(); 2].map(|()| Memory::<Value>::new(limits, Arc::clone(&total)));
    for key in 0..50 {
        put(&one, value(key, 2)).unwrap();
        put(&two, value(key, 3)).unwrap();
    }
    assert_eq!((total.entries(), total.bytes()), (100, 250));
    let mut evicted = 0;
    one.resize(
        Limits {
            entries_max: 10,
            bytes_max: 1_000,
        },
        |_| evicted += 1,
    );
    assert_eq!((evicted, amount(&one), total.entries()), (40, (10, 20), 60));
    drop(two);
    assert_eq!((total.entries(), total.bytes()), (10, 20));
    one.drain(drop);
    assert_eq!((total.entries(), total.bytes()), (0, 0));
}

#[test]
fn table_finds_values_with_equal_hashes_and_leaves_no_markers() {
    let mut table = index::Index::<(u32, u32)>::new();
    let mut held: Vec<Arc<(u32, u32)>> = Vec::new();
    let mut random = 1_u32;
    for round in 0..20_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Few hashes, so that lines fill up and many values pass them. Waves, so that the table
        // empties.
        let hash = (random >> 28) << 24;
        let wave = if round / 500 % 2 == 0 { 3 } else { 1 };
        if random % 4 < wave {
            let value = Arc::new((hash, round));
            table.insert(hash, Arc::clone(&value), |&(hash, _)| hash);
            held.push(value);
        } else if !held.is_empty() {
            let gone = held.swap_remove(random as usize % held.len());
            assert_eq!(
                table.remove(gone.0, |other| Arc::ptr_eq(other, &gone)),
                Some(Arc::clone(&gone))
            );
            assert_eq!(table.find(gone.0, |other| Arc::ptr_eq(other, &gone)), None);
        }
        assert_eq!(
            (table.len(), table.values().count()),
            (held.len(), held.len())
        );
        if let Some(last) = held.last() {
            assert_eq!(
                table.find(last.0, |other| Arc::ptr_eq(other, last)),
                Some(last)
            );
        }
    }
    for gone in &held {
        assert!(
            table
                .remove(gone.0, |other| Arc::ptr_eq(other, gone))
                .is_some()
        );
    }
    assert!(
        table.len() == 0 && !table.is_passed(),
        "no line counts a removed value"
    );
}

#[test]
fn table_finds_values_when_a_line_counter_saturates() {
    let mut table = index::Index::<u32>::new();
    for value in 0..2_000 {
        table.insert(0, Arc::new(value), |_| 0);
    }
    for value in (0..2_000).rev() {
        assert!(table.find(0, |held| **held == value).is_some(), "{value}");
        assert_eq!(
            table.remove(0, |held| **held == value).as_deref(),
            Some(&value)
        );
        assert!(table.find(0, |held| **held == value).is_none());
    }
    assert_eq!(table.len(), 0);
}

#[test]
fn prefetch_changes_nothing() {
    // One shard, and several.
    for entries_max in [20, 2000] {
        let store = store(entries_max, usize::MAX);
        let keys = |range: std::ops::Range<u32>| range.map(u32::to_be_bytes);
        store.prefetch(keys(0..3));
        (0..20).for_each(|key| drop(put(&store, value(key, 1)).unwrap()));
        // More keys than are prefetched at once, some twice, and some that are not stored.
        store.prefetch(keys(0..40).chain(keys(0..4)));
        store.prefetch(keys(18..22).chain(keys(18..22)));
        assert_eq!(
            (self::keys(&store), amount(&store)),
            ((0..20).collect(), (20, 20))
        );
        assert!((0..20_u32).all(|key| store.peek(&key.to_be_bytes()).unwrap().mark.uses() == 0));
    }
    let store = store(2000, usize::MAX);
    put(&store, value(1, 1)).unwrap();
    let (part, _) = store.place(&1_u32.to_be_bytes());
    let writer = store.shards[part].0.write();
    store.prefetch([1_u32.to_be_bytes()].iter());
    drop(writer);
}
