//! Handles of sealed sessions that may not be resumed any more.
//!
//! A sealed session is in the ticket of its client. The cache has only the handles of those that are
//! not good any more, each until its ticket has expired. When there is no room for another one, no
//! ticket that exists is good: tickets are bound to a *run*, and the run changes.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use aws_lc_rs::rand;

use crate::{clock::Timestamp, session::sealing::Handle, sync::Mutex};

/// The memory of a handle, in bytes: its entry, its place among those of its second, and the room that
/// tables keep free.
const HANDLE_COST: usize = 48;
/// The least number of handles that there is room for: 3 MiB.
const HANDLES_MIN: usize = 1 << 16;

/// The random number that all tickets of a cache are bound to.
pub type Run = [u8; 16];

/// Why a ticket that opened is not resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAdmitted {
    /// Its handle is on the list.
    Listed,
    /// The list was full since it was opened.
    OtherRun,
}

/// The list of one cache.
#[derive(Debug, Default)]
pub(super) struct RefusedHandles {
    list: Mutex<RefusedList>,
}

#[derive(Debug, Default)]
struct RefusedList {
    /// `None`: nothing was sealed yet, or the system has no random numbers.
    run: Option<Run>,
    /// The first half of each handle, and the second at which its ticket has expired.
    until: HashMap<u64, u32>,
    /// The same by second.
    due: BTreeMap<u32, Vec<u64>>,
    most: usize,
    /// Whether it was full.
    has_overflowed: bool,
}

/// Returns the key of a handle: half of it is random enough, and a session that shares it with another
/// one is refused without need.
fn key(handle: &Handle) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *handle;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Returns the first whole second that is not before `at`.
fn second(at: Timestamp) -> u32 {
    u32::try_from(at.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

impl RefusedHandles {
    /// Gives the list room for this many bytes, and for [`HANDLES_MIN`] handles at least.
    pub(super) fn resize(&self, bytes_max: usize) {
        self.list.lock().most = HANDLES_MIN.max(bytes_max / HANDLE_COST);
    }

    /// Returns the run of tickets that are sealed now. `None`: the system has no random numbers.
    pub(super) fn run(&self) -> Option<Run> {
        let mut list = self.list.lock();
        if list.run.is_none() {
            list.run = random();
        }
        list.run
    }

    /// Puts a handle on the list, until its ticket has expired. Returns whether it was not there.
    ///
    /// A list without room is emptied, and a new run begins.
    pub(super) fn refuse(&self, handle: &Handle, until: Timestamp) -> bool {
        refuse(&mut self.list.lock(), handle, until)
    }

    /// Admits a session whose ticket has opened in this run. `spent_until`: it is single-use, so the
    /// list has it from now on.
    pub(super) fn admit(
        &self,
        run: &Run,
        handle: &Handle,
        spent_until: Option<Timestamp>,
    ) -> Result<(), NotAdmitted> {
        let mut list = self.list.lock();
        if list.run.as_ref() != Some(run) {
            return Err(NotAdmitted::OtherRun);
        }
        if list.until.contains_key(&key(handle)) {
            return Err(NotAdmitted::Listed);
        }
        if let Some(until) = spent_until {
            refuse(&mut list, handle, until);
        }
        Ok(())
    }

    /// Forgets the handles of tickets that have expired.
    pub(super) fn forget(&self, now: Timestamp) {
        // Rounded down: a ticket that expires within this second may still be good.
        let now = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let mut later = Vec::new();
        let mut list = self.list.lock();
        let list = &mut *list;
        while let Some(due) = list.due.first_entry()
            && *due.key() <= now
        {
            for key in due.remove() {
                if let Entry::Occupied(held) = list.until.entry(key) {
                    match *held.get() {
                        until if until <= now => drop(held.remove()),
                        until => later.push((until, key)),
                    }
                }
            }
        }
        for (until, key) in later {
            list.due.entry(until).or_default().push(key);
        }
        let (held, room) = (list.until.len(), list.until.capacity());
        if room > HANDLES_MIN && held < room / 4 {
            list.until.shrink_to(2 * held);
        }
    }

    /// Returns how many handles are on the list.
    pub(super) fn len(&self) -> usize {
        self.list.lock().until.len()
    }

    /// Returns how many handles there is room for.
    pub(super) fn most(&self) -> usize {
        self.list.lock().most.max(HANDLES_MIN)
    }

    /// Returns whether the list was full since the last call.
    pub(super) fn take_overflow(&self) -> bool {
        std::mem::take(&mut self.list.lock().has_overflowed)
    }
}

fn refuse(list: &mut RefusedList, handle: &Handle, until: Timestamp) -> bool {
    let (key, until) = (key(handle), second(until));
    let full = list.until.len() >= list.most.max(HANDLES_MIN);
    match list.until.entry(key) {
        // It stays for the longer of both times.
        Entry::Occupied(mut held) => {
            // Its place among the seconds is moved when its second comes.
            let longer = until.max(*held.get());
            held.insert(longer);
            return false;
        }
        Entry::Vacant(_) if full => {
            *list = RefusedList {
                run: random(),
                most: list.most,
                has_overflowed: true,
                ..RefusedList::default()
            };
            return true;
        }
        Entry::Vacant(place) => place.insert(until),
    };
    list.due.entry(until).or_default().push(key);
    true
}

fn random() -> Option<Run> {
    let mut run = Run::default();
    rand::fill(&mut run).ok()?;
    Some(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn handle(number: u64) -> Handle {
        let mut handle = [7; 16];
        handle[..8].copy_from_slice(&number.to_le_bytes());
        handle
    }

    #[test]
    fn listed_handle_is_refused_until_its_ticket_expires() {
        let list = RefusedHandles::default();
        let run = list.run().unwrap();
        assert_eq!(list.admit(&run, &handle(1), None), Ok(()));
        assert!(list.refuse(&handle(1), at(1_500)) && !list.refuse(&handle(1), at(2_500)));
        assert_eq!(list.admit(&run, &handle(1), None), Err(NotAdmitted::Listed));
        assert_eq!(list.admit(&run, &handle(2), Some(at(1_500))), Ok(()));
        assert_eq!(
            list.admit(&run, &handle(2), Some(at(1_500))),
            Err(NotAdmitted::Listed),
            "single use"
        );
        // 1500 is in a second that has not ended.
        list.forget(at(1_999));
        assert_eq!(list.len(), 2);
        list.forget(at(2_000));
        assert_eq!(
            list.admit(&run, &handle(1), None),
            Err(NotAdmitted::Listed),
            "the later time counts"
        );
        list.forget(at(3_000));
        assert_eq!(list.len(), 0);
        assert!(list.list.lock().due.is_empty());
    }

    #[test]
    fn full_list_refuses_every_earlier_ticket() {
        let list = RefusedHandles::default();
        list.resize(0);
        let run = list.run().unwrap();
        for number in 0..HANDLES_MIN as u64 {
            assert!(list.refuse(&handle(number), at(9_000)));
        }
        assert_eq!(list.run(), Some(run));
        assert!(!list.refuse(&handle(0), at(9_000)), "it is there already");
        assert!(!list.take_overflow());
        let more = handle(HANDLES_MIN as u64);
        assert!(list.refuse(&more, at(9_000)));
        assert_eq!(list.len(), 0);
        assert!(list.take_overflow() && !list.take_overflow());
        for number in [0, 1 << 40] {
            let admitted = list.admit(&run, &handle(number), None);
            assert_eq!(admitted, Err(NotAdmitted::OtherRun));
        }
        let next = list.run().unwrap();
        assert_eq!(list.admit(&next, &handle(0), None), Ok(()));
        // A ticket that is spent into a full list is resumed, and no other one after it.
        for number in 0..HANDLES_MIN as u64 {
            list.refuse(&handle(number), at(9_000));
        }
        assert_eq!(list.admit(&next, &more, Some(at(9_000))), Ok(()));
        assert_eq!(list.admit(&next, &more, None), Err(NotAdmitted::OtherRun));
    }
}
