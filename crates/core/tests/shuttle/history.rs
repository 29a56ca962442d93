//! Histories of calls, and whether they are those of a map: whether the calls can be put into one order, none before
//! another that had returned when it began, in which a map would have answered the same (Herlihy and Wing, 1990).

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

/// What is called, with the key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// Puts this value.
    Put(u8, u32),
    /// What is there stays.
    Get(u8),
    /// What is there goes.
    Take(u8),
    /// This value goes, if it is there.
    Remove(u8, u32),
}

/// What is answered: whether it was done, or which value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Answer {
    Done(bool),
    Found(Option<u32>),
}

#[derive(Clone, Copy, Debug)]
struct Event {
    begun: u32,
    ended: u32,
    call: Call,
    answer: Answer,
}

/// The calls of all threads. The scheduler runs one thread at a time, so a number is a moment.
#[derive(Default)]
pub(crate) struct History {
    moment: AtomicU32,
    events: Mutex<Vec<Event>>,
}

impl History {
    pub(crate) fn record(&self, call: Call, run: impl FnOnce() -> Answer) {
        let begun = self.moment.fetch_add(1, Ordering::SeqCst);
        let answer = run();
        let ended = self.moment.fetch_add(1, Ordering::SeqCst);
        self.events.lock().unwrap().push(Event { begun, ended, call, answer });
    }

    /// Fails unless it is a history of a map that is empty at first.
    pub(crate) fn assert_of_a_map(&self) {
        let events = self.events.lock().unwrap();
        assert!(explains(&events, &BTreeMap::new()), "no order of these calls is that of a map: {events:#?}");
    }
}

/// Whether a map that holds this answers these calls in some order.
fn explains(events: &[Event], map: &BTreeMap<u8, u32>) -> bool {
    let Some(first_end) = events.iter().map(|event| event.ended).min() else { return true };
    (0..events.len()).filter(|&place| events[place].begun < first_end).any(|place| {
        let mut map = map.clone();
        let Event { call, answer, .. } = events[place];
        apply(&mut map, call) == answer && explains(&[&events[..place], &events[place + 1..]].concat(), &map)
    })
}

fn apply(map: &mut BTreeMap<u8, u32>, call: Call) -> Answer {
    match call {
        Call::Put(key, value) => {
            let free = !map.contains_key(&key);
            if free {
                map.insert(key, value);
            }
            Answer::Done(free)
        }
        Call::Get(key) => Answer::Found(map.get(&key).copied()),
        Call::Take(key) => Answer::Found(map.remove(&key)),
        Call::Remove(key, value) => {
            let there = map.get(&key) == Some(&value);
            if there {
                map.remove(&key);
            }
            Answer::Done(there)
        }
    }
}
