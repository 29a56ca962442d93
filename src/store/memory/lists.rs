//! Values in numbered slots, and two lists through each: one for its turn to be evicted, one for the time it is over.
//!
//! A slot is 28 bytes on a machine of 64 bits. Adding, removing and moving take the same time however many there are.
//! What a lookup reads, the value, lies apart from what it does not, so that more of it is near.

use std::sync::Arc;

/// Number of a slot.
pub(super) type Slot = u32;

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

/// Slots, numbered from 0.
pub(super) struct Slots<V> {
    /// `None` in a free slot; the next free one is `links[0].after` then.
    values: Vec<Option<Arc<V>>>,
    links: Vec<[Links; 2]>,
    hashes: Vec<u32>,
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

    pub(super) fn last(&self) -> Option<Slot> {
        (self.last != NONE).then_some(self.last)
    }
}

impl<V> Slots<V> {
    pub(super) const fn new() -> Self {
        Self { values: Vec::new(), links: Vec::new(), hashes: Vec::new(), free: NONE }
    }

    /// A slot for the value, in no list. `None`: there are no more numbers.
    pub(super) fn add(&mut self, hash: u32, value: Arc<V>) -> Option<Slot> {
        if self.free != NONE {
            let slot = self.free;
            let place = slot as usize;
            self.free = self.links[place][0].after;
            self.values[place] = Some(value);
            self.links[place] = [LOOSE; 2];
            self.hashes[place] = hash;
            return Some(slot);
        }
        let slot = Slot::try_from(self.values.len()).ok().filter(|&slot| slot != NONE)?;
        push(&mut self.values, Some(value));
        push(&mut self.links, [LOOSE; 2]);
        push(&mut self.hashes, hash);
        Some(slot)
    }

    /// Empties a slot, which must be in no list any more.
    pub(super) fn take(&mut self, slot: Slot) -> Option<Arc<V>> {
        let value = self.values[slot as usize].take();
        self.links[slot as usize][0].after = self.free;
        self.free = slot;
        value
    }

    /// How many slots there are, free ones included.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Whose turn it is after this one.
    pub(super) fn after(&self, slot: Slot) -> Option<Slot> {
        let after = self.links[slot as usize][Chain::Turn as usize].after;
        (after != NONE).then_some(after)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Arc<V>> {
        self.values.get(slot as usize)?.as_ref()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.values.iter().flatten()
    }

    /// The hash of the value's key.
    pub(super) fn hash(&self, slot: Slot) -> u32 {
        self.hashes[slot as usize]
    }

    /// The hashes of all values, and their slots.
    pub(super) fn hashes(&self) -> impl Iterator<Item = (u32, Slot)> {
        let held = self.values.iter().zip(&self.hashes).zip(0..);
        held.filter_map(|((value, hash), slot)| value.is_some().then_some((*hash, slot)))
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
        &mut self.links[slot as usize][chain as usize]
    }
}

fn push<T>(all: &mut Vec<T>, one: T) {
    if all.len() == all.capacity() {
        // An eighth more, where a Vec would double: this is most of what a session costs besides itself.
        all.reserve_exact((all.len() / 8).max(8));
    }
    all.push(one);
}
