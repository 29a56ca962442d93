//! Where values are found: slots by the hash of their key.
//!
//! A line is what a processor fetches at once: the tags and slots of up to twelve values. A value lies in the line that its
//! hash names, or, where that is full, in one of those after it. Each line counts the values that had to pass it, so that
//! a search ends at the first line that none has passed, and nothing is left behind where a value was.

use super::lists::Slot;

const WAYS: usize = 12;
/// The high bit of each byte.
const HIGH: u128 = u128::from_le_bytes([0x80; 16]);

#[derive(Clone)]
#[repr(C, align(64))]
struct Line {
    /// A byte of each hash; 0 where there is none.
    tags: [u8; WAYS],
    passed: u32,
    slots: [Slot; WAYS],
}

const EMPTY: Line = Line { tags: [0; WAYS], passed: 0, slots: [0; WAYS] };

pub(super) struct Table {
    lines: Vec<Line>,
    len: usize,
}

/// Never 0. From the other end of the hash than what names the line.
fn tag(hash: u32) -> u8 {
    let [low, ..] = hash.to_le_bytes();
    low.max(1)
}

impl Line {
    /// Where something has this tag.
    fn tagged(&self, tag: u8) -> impl Iterator<Item = usize> + use<> {
        let mut held = [0; 16];
        held[..WAYS].copy_from_slice(&self.tags);
        let differs = u128::from_le_bytes(held) ^ u128::from_le_bytes([tag; 16]);
        // The high bit of each byte that does not differ. The last four are no ways.
        let mut found = !(((differs & !HIGH) + !HIGH) | differs) & HIGH;
        std::iter::from_fn(move || {
            let way = found.trailing_zeros() as usize / 8;
            found &= found.wrapping_sub(1);
            (way < WAYS).then_some(way)
        })
    }
}

impl Table {
    pub(super) const fn new() -> Self {
        Self { lines: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The slot with this hash that is the one.
    pub(super) fn find(&self, hash: u32, mut is: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let mut at = self.home(hash);
        for _ in 0..self.lines.len() {
            let line = &self.lines[at];
            if let Some(way) = line.tagged(tag(hash)).find(|&way| is(line.slots[way])) {
                return Some(line.slots[way]);
            }
            if line.passed == 0 {
                return None;
            }
            at = self.next(at);
        }
        None
    }

    /// Adds a slot. Where there is no room for it `all` tells what is in here already, with its hashes.
    pub(super) fn insert<I>(&mut self, hash: u32, slot: Slot, all: impl FnOnce() -> I)
    where
        I: Iterator<Item = (u32, Slot)>,
    {
        // Four in five at most: few have to pass a line then.
        if (self.len + 1) * 5 > self.lines.len() * WAYS * 4 {
            self.lines = vec![EMPTY; self.lines.len() + self.lines.len() / 4 + 1];
            all().for_each(|(hash, slot)| self.place(hash, slot));
        }
        self.place(hash, slot);
        self.len += 1;
    }

    fn place(&mut self, hash: u32, slot: Slot) {
        let mut at = self.home(hash);
        while let Some(line) = self.lines.get_mut(at) {
            if let Some(way) = line.tagged(0).next() {
                line.tags[way] = tag(hash);
                line.slots[way] = slot;
                return;
            }
            line.passed += 1;
            at = self.next(at);
        }
    }

    /// Takes out a slot that is in here.
    pub(super) fn remove(&mut self, hash: u32, slot: Slot) {
        let mut at = self.home(hash);
        while let Some(line) = self.lines.get_mut(at) {
            if let Some(way) = line.tagged(tag(hash)).find(|&way| line.slots[way] == slot) {
                line.tags[way] = 0;
                self.len -= 1;
                return;
            }
            line.passed -= 1;
            at = self.next(at);
        }
    }

    /// Whether a search goes on from any line.
    #[cfg(test)]
    pub(super) fn is_passed(&self) -> bool {
        self.lines.iter().any(|line| line.passed > 0)
    }

    /// The line that a hash names: its part of 2^32 is the line's part of all.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.lines.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 < self.lines.len() { at + 1 } else { 0 }
    }
}
