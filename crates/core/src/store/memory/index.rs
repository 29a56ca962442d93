//! The index: finds values by the hash of their key.
//!
//! A line has the size of a cache line. It holds the tags of up to seven values, and pointers to
//! them. A value lies in the line that its hash selects or, if that is full, in one of the
//! following lines. Each line counts the values that passed it because it was full. A search ends
//! at the first line that no value has passed, so a removal leaves no marker behind. A search
//! nearly always reads one line and then the value itself, whatever the number of values.

use std::{array, hint::black_box, sync::Arc};

const WAYS: usize = 7;
/// The high bit of each byte that holds a tag.
const HIGH: u64 = u64::from_le_bytes([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0]);
const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
/// The counter is saturated: it no longer tells how many values have passed.
const MANY: u8 = u8::MAX;

#[repr(C, align(64))]
struct Bucket<V> {
    /// One byte of each hash; 0 in a free place.
    tags: [u8; WAYS],
    passed: u8,
    values: [Option<Arc<V>>; WAYS],
}

pub(super) struct Index<V> {
    lines: Vec<Bucket<V>>,
    len: usize,
}

/// Returns the tag of a hash, never 0. It comes from the other end of the hash than the line.
fn tag(hash: u32) -> u8 {
    let [low, ..] = hash.to_le_bytes();
    low.max(1)
}

impl<V> Bucket<V> {
    fn empty() -> Self {
        Self {
            tags: [0; WAYS],
            passed: 0,
            values: array::from_fn(|_| None),
        }
    }

    /// Returns the places that have this tag.
    fn tagged(&self, tag: u8) -> impl Iterator<Item = usize> + use<V> {
        let mut held = [0; 8];
        held[..WAYS].copy_from_slice(&self.tags);
        let differs = u64::from_le_bytes(held) ^ u64::from_le_bytes([tag; 8]);
        // The high bit of each byte that does not differ.
        let mut found = !(((differs & LOW) + LOW) | differs) & HIGH;
        std::iter::from_fn(move || {
            let way = found.trailing_zeros() as usize / 8;
            found &= found.wrapping_sub(1);
            (way < WAYS).then_some(way)
        })
    }

    fn way(&self, tag: u8, mut is: impl FnMut(&Arc<V>) -> bool) -> Option<usize> {
        self.tagged(tag)
            .find(|&way| self.values[way].as_ref().is_some_and(&mut is))
    }
}

impl<V> Index<V> {
    pub(super) const fn new() -> Self {
        Self {
            lines: Vec::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the value with this hash for which `is` returns true.
    pub(super) fn find(&self, hash: u32, is: impl FnMut(&Arc<V>) -> bool) -> Option<&Arc<V>> {
        let (at, way) = self.search(hash, is)?;
        self.lines[at].values[way].as_ref()
    }

    fn search(&self, hash: u32, mut is: impl FnMut(&Arc<V>) -> bool) -> Option<(usize, usize)> {
        let mut at = self.home(hash);
        for _ in 0..self.lines.len() {
            let line = &self.lines[at];
            if let Some(way) = line.way(tag(hash), &mut is) {
                return Some((at, way));
            }
            if line.passed == 0 {
                return None;
            }
            at = self.next(at);
        }
        None
    }

    /// Prefetches the line that a hash selects.
    pub(super) fn prefetch(&self, hash: u32) {
        black_box(self.lines.get(self.home(hash)).map(|line| line.passed));
    }

    /// Returns the most likely value for this hash, without comparing keys.
    pub(super) fn likely(&self, hash: u32) -> Option<&Arc<V>> {
        let line = self.lines.get(self.home(hash))?;
        line.values[line.tagged(tag(hash)).next()?].as_ref()
    }

    /// Adds a value. If the table must grow for it, the others move; `hash_of` returns their
    /// hashes.
    pub(super) fn insert(&mut self, hash: u32, value: Arc<V>, hash_of: impl Fn(&V) -> u32) {
        // At most four fifths full, so that few values have to pass a line.
        if (self.len + 1) * 5 > self.lines.len() * WAYS * 4 {
            let lines = self.lines.len() + self.lines.len() / 8 + 1;
            let old = std::mem::replace(
                &mut self.lines,
                (0..lines).map(|_| Bucket::empty()).collect(),
            );
            for value in old.into_iter().flat_map(|line| line.values).flatten() {
                self.place(hash_of(&value), value);
            }
        }
        self.place(hash, value);
        self.len += 1;
    }

    fn place(&mut self, hash: u32, value: Arc<V>) {
        let mut at = self.home(hash);
        while let Some(line) = self.lines.get_mut(at) {
            if let Some(way) = line.tagged(0).next() {
                line.tags[way] = tag(hash);
                line.values[way] = Some(value);
                return;
            }
            line.passed = line.passed.saturating_add(1);
            at = self.next(at);
        }
    }

    /// Removes the value with this hash for which `is` returns true.
    pub(super) fn remove(&mut self, hash: u32, is: impl FnMut(&Arc<V>) -> bool) -> Option<Arc<V>> {
        let (last, way) = self.search(hash, is)?;
        let mut at = self.home(hash);
        while at != last {
            let line = &mut self.lines[at];
            if line.passed < MANY {
                line.passed -= 1;
            }
            at = self.next(at);
        }
        let line = &mut self.lines[last];
        line.tags[way] = 0;
        self.len -= 1;
        line.values[way].take()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.lines.iter().flat_map(|line| &line.values).flatten()
    }

    /// Returns whether any line has been passed.
    #[cfg(test)]
    pub(super) fn is_passed(&self) -> bool {
        self.lines.iter().any(|line| line.passed > 0)
    }

    /// Returns the line that a hash selects: the hash divided by 2^32, as a fraction of all lines.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.lines.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 < self.lines.len() { at + 1 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::hash_map::RandomState, hash::BuildHasher};

    use super::*;

    /// Returns the average number of lines that a search reads, and of values that it compares.
    fn search(
        table: &Index<u32>,
        hash: &impl Fn(u32) -> u32,
        keys: impl ExactSizeIterator<Item = u32>,
    ) -> [f64; 2] {
        let count = keys.len() as f64;
        let (mut lines, mut compared) = (0, 0);
        for key in keys {
            let mut at = table.home(hash(key));
            lines += 1;
            while table.lines[at]
                .way(tag(hash(key)), |value| **value == key)
                .is_none()
                && table.lines[at].passed > 0
            {
                at = table.next(at);
                lines += 1;
            }
            table.find(hash(key), |value| {
                compared += 1;
                **value == key
            });
        }
        [f64::from(lines), f64::from(compared)].map(|sum| sum / count)
    }

    #[test]
    fn search_cost_does_not_grow_with_the_table() {
        let random = RandomState::new();
        let hash = |key: u32| u32::try_from(random.hash_one(key) >> 32).unwrap();
        let mut table = Index::new();
        // At several fill levels between two sizes; each size is an eighth larger than the last.
        let sizes = [500, 1_000, 10_000, 100_000, 105_000, 110_000, 300_000];
        for (from, to) in std::iter::once(0).chain(sizes).zip(sizes) {
            (from..to).for_each(|key| table.insert(hash(key), Arc::new(key), |key| hash(*key)));
            let step = usize::try_from(to / 500).unwrap();
            let found = search(&table, &hash, (0..to).step_by(step));
            let missed = search(&table, &hash, u32::MAX - 10_000..u32::MAX);
            assert!(found[0] < 1.5 && found[1] < 1.1, "{to}: {found:?}");
            assert!(missed[0] < 3.0 && missed[1] < 0.1, "{to}: {missed:?}");
        }
    }
}
