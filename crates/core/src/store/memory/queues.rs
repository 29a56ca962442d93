//! Numbered slots, one for each value, and two lists through them: one for its turn to be evicted, one for the time it is
//! over.
//!
//! A slot is 28 bytes on a machine of 64 bits. Adding, removing and moving take the same time however many there are. A
//! lookup reads none of it. An eviction finds its value here: those that came together lie together.

use std::sync::Arc;

/// Number of a slot.
pub(super) type Slot = u32;

/// The highest number: a mark has room for 29 bits of it.
pub(super) const SLOT_MAX: Slot = (1 << 29) - 1;
/// No slot.
const NONE: Slot = Slot::MAX;

/// Which of the two lists.
#[derive(Clone, Copy)]
enum Chain {
    /// In the order of eviction.
    Turn,
    /// With those that are over at the same time.
    Due,
}

#[derive(Clone, Copy)]
struct Links {
    before: Slot,
    after: Slot,
}

const LOOSE: Links = Links { before: NONE, after: NONE };

#[derive(Clone, Copy)]
struct Place {
    links: [Links; 2],
    /// Of the value's key.
    hash: u32,
}

/// Slots, numbered from 0.
pub(super) struct Slots<V> {
    /// The next free one after a free slot is `links[0].after`.
    places: Vec<Place>,
    /// `None` in a free slot.
    values: Vec<Option<Arc<V>>>,
    free: Slot,
}

/// One list that has an order. Its links are in the slots.
#[derive(Clone, Copy)]
pub(super) struct List {
    first: Slot,
    last: Slot,
    len: u32,
}

impl List {
    pub(super) const fn new() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
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
        Self { places: Vec::new(), values: Vec::new(), free: NONE }
    }

    /// A slot for a value, in no list. `None`: there are no more numbers.
    pub(super) fn add(&mut self, hash: u32, value: &Arc<V>) -> Option<Slot> {
        let fresh = Place { links: [LOOSE; 2], hash };
        let value = Some(Arc::clone(value));
        if self.free != NONE {
            let slot = self.free;
            let place = &mut self.places[slot as usize];
            self.free = place.links[0].after;
            *place = fresh;
            self.values[slot as usize] = value;
            return Some(slot);
        }
        let slot = Slot::try_from(self.places.len()).ok().filter(|&slot| slot <= SLOT_MAX)?;
        push(&mut self.places, fresh);
        push(&mut self.values, value);
        Some(slot)
    }

    /// Gives back a slot, which must be in no list any more.
    pub(super) fn release(&mut self, slot: Slot) {
        self.values[slot as usize] = None;
        self.places[slot as usize].links[0].after = self.free;
        self.free = slot;
    }

    /// How many slots there are, free ones included.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whose turn it is after this one.
    pub(super) fn after(&self, slot: Slot) -> Option<Slot> {
        let after = self.places[slot as usize].links[Chain::Turn as usize].after;
        (after != NONE).then_some(after)
    }

    /// The value of a slot that has one.
    pub(super) fn get(&self, slot: Slot) -> Option<&Arc<V>> {
        self.values.get(slot as usize)?.as_ref()
    }

    /// The hash of the value's key.
    pub(super) fn hash(&self, slot: Slot) -> u32 {
        self.places[slot as usize].hash
    }

    /// Appends to a list.
    pub(super) fn push(&mut self, list: &mut List, slot: Slot) {
        *self.ends(slot, Chain::Turn) = Links { before: list.last, after: NONE };
        match list.last {
            NONE => list.first = slot,
            last => self.ends(last, Chain::Turn).after = slot,
        }
        list.last = slot;
        list.len += 1;
    }

    /// Takes out of the list that it is in.
    pub(super) fn unlink(&mut self, list: &mut List, slot: Slot) {
        let Links { before, after } = self.cut(slot, Chain::Turn);
        if before == NONE {
            list.first = after;
        }
        if after == NONE {
            list.last = before;
        }
        list.len -= 1;
    }

    /// Puts it before those that are over when it is; `first` is the first of them.
    pub(super) fn join(&mut self, first: Option<Slot>, slot: Slot) {
        let after = first.unwrap_or(NONE);
        *self.ends(slot, Chain::Due) = Links { before: NONE, after };
        if after != NONE {
            self.ends(after, Chain::Due).before = slot;
        }
    }

    /// Takes it from those that are over when it is, and says who is the first of them now.
    pub(super) fn part(&mut self, first: Slot, slot: Slot) -> Option<Slot> {
        let Links { after, .. } = self.cut(slot, Chain::Due);
        let first = if first == slot { after } else { first };
        (first != NONE).then_some(first)
    }

    /// Ties together those before it and after it.
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
        // A sixteenth more, where a Vec would double: this is most of what a session costs besides itself.
        all.reserve_exact((all.len() / 16).max(8));
    }
    all.push(one);
}
