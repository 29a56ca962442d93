//! The store: of concurrent calls for one value one succeeds, and the counters match the content.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use shuttle::rand::{Rng, thread_rng};
use tls_sessiond_core::{
    clock::Timestamp,
    store::memory::{Entry, EntryState, Limits, Memory, Refused, Usage},
};

use crate::{
    Check,
    history::{Answer, Call, History},
    together,
};

pub(crate) const CHECKS: &[Check] = &[
    (
        "one_of_two_takes_a_removal_and_an_eviction_succeeds",
        one_of_two_takes_a_removal_and_an_eviction_succeeds,
    ),
    (
        "one_of_two_puts_of_one_key_succeeds",
        one_of_two_puts_of_one_key_succeeds,
    ),
    ("store_calls_are_linearizable", store_calls_are_linearizable),
    (
        "store_counters_match_its_content_and_limits_hold",
        store_counters_match_its_content_and_limits_hold,
    ),
    (
        "reduced_limits_hold_during_concurrent_puts",
        reduced_limits_hold_during_concurrent_puts,
    ),
    (
        "evicted_value_is_not_handed_out",
        evicted_value_is_not_handed_out,
    ),
    (
        "prefetch_blocks_no_call_and_changes_nothing",
        prefetch_blocks_no_call_and_changes_nothing,
    ),
];

struct Value {
    key: [u8; 1],
    serial: u32,
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

fn value(key: u8, serial: u32) -> Arc<Value> {
    Arc::new(Value {
        key: [key],
        serial,
        weight: 10 + usize::from(key),
        expires: Timestamp::from_millis(u64::from(key) << 20),
        mark: EntryState::default(),
    })
}

/// Returns a store with one shard or with two.
fn store(entries_max: usize, bytes_max: usize, total: &Arc<Usage>) -> Arc<Memory<Value>> {
    Arc::new(Memory::new(
        Limits {
            entries_max,
            bytes_max,
        },
        Arc::clone(total),
    ))
}

const PARTS: [usize; 2] = [100, 1024];

fn any_parts() -> usize {
    PARTS[thread_rng().gen_range(0..PARTS.len())]
}

fn put(store: &Memory<Value>, value: Arc<Value>) -> Result<(), Refused> {
    store.put(value, drop)
}

/// Asserts that the counters of the store and the total match the content.
fn assert_counted(store: &Memory<Value>, total: &Usage) {
    let (mut entries, mut bytes) = (0, 0);
    (0..store.shards()).for_each(|part| {
        store.scan(part, |value| {
            entries += 1;
            bytes += value.weight;
        });
    });
    assert_eq!(
        (store.amount().entries(), store.amount().bytes()),
        (entries, bytes)
    );
    assert_eq!((total.entries(), total.bytes()), (entries, bytes));
}

/// A way to take a value exclusively. Returns whether it did.
type Way = fn(&Memory<Value>, Arc<Value>) -> bool;

fn one_of_two_takes_a_removal_and_an_eviction_succeeds() {
    let total = Arc::default();
    let store = store(any_parts(), 1_000, &total);
    let wanted = value(1, 1);
    let watch: Weak<Value> = Arc::downgrade(&wanted);
    put(&store, Arc::clone(&wanted)).unwrap();
    let got = Arc::new(AtomicU32::new(0));
    let count = |got: &AtomicU32, one: bool| got.fetch_add(u32::from(one), Ordering::SeqCst);
    let ways: [Way; 4] = [
        |store, _| store.take(&[1]).is_some(),
        |store, _| store.take(&[1]).is_some(),
        |store, wanted| store.remove(&wanted),
        |store, _| {
            // The last value put stays, so the other one is evicted.
            put(store, value(2, 2)).unwrap();
            let mut evicted = false;
            store.resize(
                Limits {
                    entries_max: 1,
                    bytes_max: 1_000,
                },
                |value| evicted |= value.serial == 1,
            );
            evicted
        },
    ];
    together(ways.map(|way| {
        let (store, wanted, got) = (Arc::clone(&store), Arc::clone(&wanted), Arc::clone(&got));
        Box::new(move || {
            count(&got, way(&store, wanted));
        }) as Box<dyn FnOnce() + Send>
    }));
    assert!(store.get(&[1]).is_none());
    assert_eq!(got.load(Ordering::SeqCst), 1);
    drop(wanted);
    assert!(watch.upgrade().is_none(), "the value is kept alive");
    assert_counted(&store, &total);
}

fn one_of_two_puts_of_one_key_succeeds() {
    let total = Arc::default();
    let store = store(any_parts(), 1_000, &total);
    let winner = Arc::new(AtomicU32::new(0));
    together([1, 2].map(|serial| {
        let (store, winner) = (Arc::clone(&store), Arc::clone(&winner));
        Box::new(move || match put(&store, value(1, serial)) {
            Ok(()) => assert_eq!(winner.swap(serial, Ordering::SeqCst), 0, "both succeed"),
            Err(refused) => assert_eq!(refused, Refused::Taken),
        }) as Box<dyn FnOnce() + Send>
    }));
    assert_eq!(
        store.get(&[1]).unwrap().serial,
        winner.load(Ordering::SeqCst)
    );
    assert_counted(&store, &total);
}

fn store_calls_are_linearizable() {
    let total = Arc::default();
    let store = store(any_parts(), 1_000, &total);
    let history = Arc::new(History::default());
    // Three threads with three calls each, on two keys. A thread removes only a value that it has
    // put.
    together([1, 2, 3].map(|thread| {
        let mut calls = Vec::new();
        for call in 0..3 {
            calls.push((
                thread_rng().gen_range(0..5_u8),
                thread_rng().gen_range(1..3_u8),
                10 * thread + call,
            ));
        }
        let (store, history) = (Arc::clone(&store), Arc::clone(&history));
        Box::new(move || {
            let mut own = None;
            for (what, key, serial) in calls {
                let found =
                    |value: Option<Arc<Value>>| Answer::Found(value.map(|value| value.serial));
                match what {
                    0 | 1 => {
                        let value = value(key, serial);
                        own = Some(Arc::clone(&value));
                        history.record(Call::Put(key, serial), || {
                            Answer::Done(put(&store, value).is_ok())
                        });
                    }
                    2 => history.record(Call::Get(key), || found(store.get(&[key]))),
                    3 => history.record(Call::Take(key), || found(store.take(&[key]))),
                    _ => {
                        let Some(own) = &own else { continue };
                        let call = Call::Remove(own.key[0], own.serial);
                        history.record(call, || Answer::Done(store.remove(own)));
                    }
                }
            }
        }) as Box<dyn FnOnce() + Send>
    }));
    history.assert_of_a_map();
    assert_counted(&store, &total);
}

fn prefetch_blocks_no_call_and_changes_nothing() {
    let total = Arc::default();
    let store = store(any_parts(), 1_000, &total);
    put(&store, value(1, 1)).unwrap();
    let threads: [fn(&Memory<Value>); 4] = [
        // In both orders, because each may hold the shard that the other wants next.
        |store| store.prefetch([[1], [2], [3]].iter()),
        |store| store.prefetch([[3], [2], [1], [1]].iter()),
        |store| {
            put(store, value(2, 2)).unwrap();
            assert_eq!(store.take(&[1]).map(|value| value.serial), Some(1));
        },
        |store| {
            put(store, value(3, 3)).unwrap();
            assert_eq!(store.get(&[3]).map(|value| value.serial), Some(3));
        },
    ];
    together(threads.map(|thread| {
        let store = Arc::clone(&store);
        Box::new(move || thread(&store)) as Box<dyn FnOnce() + Send>
    }));
    assert_eq!(
        [1, 2, 3].map(|key| store.get(&[key]).map(|value| value.serial)),
        [None, Some(2), Some(3)]
    );
    assert_counted(&store, &total);
}

// Invariant 6.
fn store_counters_match_its_content_and_limits_hold() {
    let total = Arc::default();
    // Limited by entries in one shard, or by bytes in two.
    let (entries_max, bytes_max) = [(2, 1_000), (1024, 30)][thread_rng().gen_range(0..2_usize)];
    let store = store(entries_max, bytes_max, &total);
    let threads: [fn(&Memory<Value>); 4] = [
        |store| (1..4).for_each(|key| put(store, value(key, 1)).unwrap()),
        |store| (4..7).for_each(|key| put(store, value(key, 2)).unwrap()),
        |store| {
            store.get(&[1]).inspect(|value| {
                store.remove(value);
            });
            store.take(&[4]);
            store.expire(Timestamp::from_millis(3 << 20), drop);
        },
        |store| {
            // The counters may include values that are about to be evicted, but a value is never
            // subtracted before it was added.
            for _ in 0..3 {
                assert!(store.amount().entries() <= 6 && store.amount().bytes() <= 6 * 16);
            }
        },
    ];
    together(threads.map(|thread| {
        let store = Arc::clone(&store);
        Box::new(move || thread(&store)) as Box<dyn FnOnce() + Send>
    }));
    assert_counted(&store, &total);
    assert!(
        !store.amount().exceeds(&store.limits()),
        "{:?}",
        store.amount()
    );
    store.drain(drop);
    assert_counted(&store, &total);
}

// Invariant 6.
fn reduced_limits_hold_during_concurrent_puts() {
    let total = Arc::default();
    let store = store(any_parts(), 1_000, &total);
    put(&store, value(1, 1)).unwrap();
    put(&store, value(2, 1)).unwrap();
    let smaller = Limits {
        entries_max: 1,
        bytes_max: 1_000,
    };
    let (one, two) = (Arc::clone(&store), Arc::clone(&store));
    together([
        Box::new(move || one.resize(smaller, drop)),
        Box::new(move || put(&two, value(3, 1)).unwrap()),
    ]);
    assert_counted(&store, &total);
    assert!(!store.amount().exceeds(&smaller), "{:?}", store.amount());
}

fn evicted_value_is_not_handed_out() {
    let total = Arc::default();
    let store = store(1, 1_000, &total);
    let gone = Arc::new([const { AtomicBool::new(false) }; 4]);
    put(&store, value(1, 1)).unwrap();
    let putter = {
        let (store, gone) = (Arc::clone(&store), Arc::clone(&gone));
        move || {
            for key in 2..4 {
                store
                    .put(value(key, 1), |out| {
                        gone[usize::from(out.key[0])].store(true, Ordering::SeqCst);
                    })
                    .unwrap();
            }
        }
    };
    let asker = {
        let (store, gone) = (Arc::clone(&store), Arc::clone(&gone));
        move || {
            for key in [1, 2, 1, 2] {
                let was_gone = gone[usize::from(key)].load(Ordering::SeqCst);
                assert!(
                    !(was_gone && store.get(&[key]).is_some()),
                    "{key} was evicted"
                );
            }
        }
    };
    together([Box::new(putter), Box::new(asker)]);
    assert_counted(&store, &total);
}
