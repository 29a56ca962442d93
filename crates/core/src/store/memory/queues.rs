//! Numbered slots, one for each value, and two queues through them: by order of eviction, and by
//! time of expiry.
//!
//! A slot takes 28 bytes on a 64-bit machine. Adding, removing and moving take constant time. A
//! lookup reads none of it. An eviction finds its value here: values stored together lie together.

use std::sync::Arc;

/// Number of a slot.
pub(super) type Slot = u32;

/// The highest slot number. An entry's state has 29 bits for it.
pub(super) const SLOT_MAX: Slot = (1 << 29) - 1;
/// The number that stands for no slot.
const NONE: Slot = Slot::MAX;

/// The queue that a link belongs to.
#[derive(Clone, Copy)]
enum Chain {
    /// The order of eviction.
    Eviction,
    /// The values that expire within the same bucket of time.
    Expiry,
}

#[derive(Clone, Copy)]
struct Links {
    before: Slot,
    after: Slot,
}

const LOOSE: Links = Links {
    before: NONE,
    after: NONE,
};

#[derive(Clone, Copy)]
struct Place {
    links: [Links; 2],
    /// Hash of the value's key.
    hash: u32,
}

/// Slots, numbered from 0.
pub(super) struct Slots<V> {
    /// In a free slot, `links[0].after` is the next free slot.
    places: Vec<Place>,
    /// `None` in a free slot.
    values: Vec<Option<Arc<V>>>,
    free: Slot,
}

/// An ordered list. Its links are in the slots.
#[derive(Clone, Copy)]
pub(super) struct List {
    first: Slot,
    last: Slot,
    len: u32,
}

impl List {
    pub(super) const fn new() -> Self {
        Self {
            first: NONE,
            last: NONE,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn first(&self) -> Option<Slot> {
        (self.first != NONE).then_some(self.first)
    }
}

impl<V> Slots<V> {
    pub(super) const fn new() -> Self {
        Self {
            places: Vec::new(),
            values: Vec::new(),
            free: NONE,
        }
    }

    /// Allocates a slot for a value, in no list. Returns `None` if the numbers are exhausted.
    pub(super) fn add(&mut self, hash: u32, value: &Arc<V>) -> Option<Slot> {
        let fresh = Place {
            links: [LOOSE; 2],
            hash,
        };
        let value = Some(Arc::clone(value));
        if self.free != NONE {
            let slot = self.free;
            let place = &mut self.places[slot as usize];
            self.free = place.links[0].after;
            *place = fresh;
            self.values[slot as usize] = value;
            return Some(slot);
        }
        let slot = Slot::try_from(self.places.len())
            .ok()
            .filter(|&slot| slot <= SLOT_MAX)?;
        push(&mut self.places, fresh);
        push(&mut self.values, value);
        Some(slot)
    }

    /// Frees a slot, which must be in no list any more.
    pub(super) fn release(&mut self, slot: Slot) {
        self.values[slot as usize] = None;
        self.places[slot as usize].links[0].after = self.free;
        self.free = slot;
    }

    /// Returns the number of slots, free ones included.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns the next slot in the order of eviction.
    pub(super) fn after(&self, slot: Slot) -> Option<Slot> {
        let after = self.places[slot as usize].links[Chain::Eviction as usize].after;
        (after != NONE).then_some(after)
    }

    /// Returns the value of a slot, if it has one.
    pub(super) fn get(&self, slot: Slot) -> Option<&Arc<V>> {
        self.values.get(slot as usize)?.as_ref()
    }

    /// Returns the hash of the value's key.
    pub(super) fn hash(&self, slot: Slot) -> u32 {
        self.places[slot as usize].hash
    }

    /// Appends a slot to a list.
    pub(super) fn push(&mut self, list: &mut List, slot: Slot) {
        *self.ends(slot, Chain::Eviction) = Links {
            before: list.last,
            after: NONE,
        };
        match list.last {
            NONE => list.first = slot,
            last => self.ends(last, Chain::Eviction).after = slot,
        }
        list.last = slot;
        list.len += 1;
    }

    /// Removes a slot from the list that it is in.
    pub(super) fn unlink(&mut self, list: &mut List, slot: Slot) {
        let Links { before, after } = self.cut(slot, Chain::Eviction);
        if before == NONE {
            list.first = after;
        }
        if after == NONE {
            list.last = before;
        }
        list.len -= 1;
    }

    /// Puts a slot in front of `first`, the first slot that expires in the same bucket.
    pub(super) fn join(&mut self, first: Option<Slot>, slot: Slot) {
        let after = first.unwrap_or(NONE);
        *self.ends(slot, Chain::Expiry) = Links {
            before: NONE,
            after,
        };
        if after != NONE {
            self.ends(after, Chain::Expiry).before = slot;
        }
    }

    /// Removes a slot from its expiry bucket. Returns the first slot that remains there.
    pub(super) fn part(&mut self, first: Slot, slot: Slot) -> Option<Slot> {
        let Links { after, .. } = self.cut(slot, Chain::Expiry);
        let first = if first == slot { after } else { first };
        (first != NONE).then_some(first)
    }

    /// Links the slots before and after this one to each other.
    fn cut(&mut self, slot: Slot, chain: Chain) -> Links {
        let Links { before, after } = std::mem::replace(self.ends(slot, chain), LOOSE);
        if before != NONE {
            self.ends(before, chain).after = after;
        }
        if after != NONE {
            self.ends(after, chain).before = before;
        }
        Links { before, after }
    }

    fn ends(&mut self, slot: Slot, chain: Chain) -> &mut Links {
        &mut self.places[slot as usize].links[chain as usize]
    }
}

fn push<T>(all: &mut Vec<T>, one: T) {
    if all.len() == all.capacity() {
        // Grows by a sixteenth, where a Vec would double: most of a session's overhead lies here.
        all.reserve_exact((all.len() / 16).max(8));
    }
    all.push(one);
}
