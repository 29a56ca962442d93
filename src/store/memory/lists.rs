//! Values in numbered slots, and two lists through each: one for its turn to be evicted, one for the time it is over.
//!
//! A slot is 24 bytes on a machine of 64 bits. Adding, removing and moving take the same time however many there are.

use std::sync::Arc;

/// Number of a slot.
pub(super) type Slot = u32;

/// No slot.
const NONE: Slot = Slot::MAX;

/// Which of the two lists.
#[derive(Clone, Copy)]
pub(super) enum Chain {
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

struct Held<V> {
    /// `None` in a free slot; the next free one is `links[0].after` then.
    value: Option<Arc<V>>,
    links: [Links; 2],
}

/// Slots, numbered from 0.
pub(super) struct Slots<V> {
    all: Vec<Held<V>>,
    free: Slot,
}

/// One list. Its links are in the slots.
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

    pub(super) fn last(&self) -> Option<Slot> {
        (self.last != NONE).then_some(self.last)
    }
}

impl<V> Slots<V> {
    pub(super) const fn new() -> Self {
        Self { all: Vec::new(), free: NONE }
    }

    /// A slot for the value, in no list. `None`: there are no more numbers.
    pub(super) fn add(&mut self, value: Arc<V>) -> Option<Slot> {
        if self.free != NONE {
            let slot = self.free;
            let held = &mut self.all[slot as usize];
            self.free = held.links[0].after;
            *held = Held { value: Some(value), links: [LOOSE; 2] };
            return Some(slot);
        }
        let slot = Slot::try_from(self.all.len()).ok().filter(|&slot| slot != NONE)?;
        if self.all.len() == self.all.capacity() {
            // A quarter more, where a Vec would double: this is most of what a session costs besides itself.
            self.all.reserve_exact((self.all.len() / 4).max(8));
        }
        self.all.push(Held { value: Some(value), links: [LOOSE; 2] });
        Some(slot)
    }

    /// Empties a slot, which must be in no list any more.
    pub(super) fn take(&mut self, slot: Slot) -> Option<Arc<V>> {
        let held = &mut self.all[slot as usize];
        let value = held.value.take();
        held.links[0].after = self.free;
        self.free = slot;
        value
    }

    /// How many slots there are, free ones included.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The slot after this one in its list.
    pub(super) fn after(&self, chain: Chain, slot: Slot) -> Option<Slot> {
        let after = self.all[slot as usize].links[chain as usize].after;
        (after != NONE).then_some(after)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Arc<V>> {
        self.all.get(slot as usize)?.value.as_ref()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.all.iter().filter_map(|held| held.value.as_ref())
    }

    /// Appends to a list.
    pub(super) fn push(&mut self, list: &mut List, chain: Chain, slot: Slot) {
        *self.links(slot, chain) = Links { before: list.last, after: NONE };
        match list.last {
            NONE => list.first = slot,
            last => self.links(last, chain).after = slot,
        }
        list.last = slot;
        list.len += 1;
    }

    /// Takes out of the list that it is in.
    pub(super) fn unlink(&mut self, list: &mut List, chain: Chain, slot: Slot) {
        let Links { before, after } = std::mem::replace(self.links(slot, chain), LOOSE);
        match before {
            NONE => list.first = after,
            before => self.links(before, chain).after = after,
        }
        match after {
            NONE => list.last = before,
            after => self.links(after, chain).before = before,
        }
        list.len -= 1;
    }

    fn links(&mut self, slot: Slot, chain: Chain) -> &mut Links {
        &mut self.all[slot as usize].links[chain as usize]
    }
}
