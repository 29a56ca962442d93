//! Histories of calls, and a check that they are linearizable: that the calls can be put into one
//! order in which a map gives the same answers, and in which no call precedes another one that had
//! returned before it began (Herlihy and Wing, 1990).

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

/// A call with its key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// Puts this value.
    Put(u8, u32),
    /// Returns the value and keeps it.
    Get(u8),
    /// Returns the value and removes it.
    Take(u8),
    /// Removes this value, if it is there.
    Remove(u8, u32),
}

/// An answer: whether the call succeeded, or the value that it found.
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

/// The calls of all threads. The scheduler runs one thread at a time, so a counter gives each event
/// its moment.
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
        self.events.lock().unwrap().push(Event {
            begun,
            ended,
            call,
            answer,
        });
    }

    /// Fails unless this is a history of a map that is empty at first.
    pub(crate) fn assert_of_a_map(&self) {
        let events = self.events.lock().unwrap();
        assert!(
            explains(&events, &BTreeMap::new()),
            "these calls are not linearizable: {events:#?}"
        );
    }
}

/// Returns whether a map with this content gives these answers in some order of the calls.
fn explains(events: &[Event], map: &BTreeMap<u8, u32>) -> bool {
    let Some(first_end) = events.iter().map(|event| event.ended).min() else {
        return true;
    };
    (0..events.len())
        .filter(|&place| events[place].begun < first_end)
        .any(|place| {
            let mut map = map.clone();
            let Event { call, answer, .. } = events[place];
            apply(&mut map, call) == answer
                && explains(&[&events[..place], &events[place + 1..]].concat(), &map)
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
