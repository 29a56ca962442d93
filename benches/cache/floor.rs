//! What memory itself takes of a get: these need not search.

use std::{
    hint::black_box,
    sync::{Arc, OnceLock},
};

use crate::{
    contenders::{Contender, Data, Id, Uses},
    turns::number,
};

/// What these are called.
pub(crate) const NAMES: [&str; 2] = ["array", "chain"];

/// An array of `Arc`s. Where one lies is known before the clock runs, so a get is two reads of memory of which the second
/// waits for the first: the place, and the count of references. No lock, no hash, no comparison.
pub(crate) struct Array(Box<[OnceLock<Arc<Data>>]>);

impl Array {
    pub(crate) fn new(size: usize) -> Self {
        Self((0..size).map(|_| OnceLock::new()).collect())
    }
}

impl Contender for Array {
    type Key = usize;
    type Hand = ();

    fn key(id: &Id) -> usize {
        usize::try_from(number(id)).unwrap()
    }

    fn hand(&self) {}

    fn get(&self, (): &mut (), &key: &usize) -> bool {
        black_box(self.0[key].get().cloned()).is_some()
    }

    fn put(&self, (): &mut (), &key: &usize, data: &Data, _: Uses) {
        self.0[key].set(Arc::new(*data)).unwrap();
    }

    fn take(&self, (): &mut (), _: &usize) -> bool {
        unreachable!("nothing is taken from an array")
    }
}

/// A table that says where values are, and values: two reads of memory, the second where the first says, as in any map that
/// keeps its values apart. And a get begins where the one before it ended, so that none overlaps with another, as it is
/// where something else is done between two gets.
pub(crate) struct Chain {
    table: Box<[Line]>,
}

/// One line of a processor's cache.
#[repr(align(64))]
struct Line(OnceLock<Box<Value>>);

struct Value {
    /// Added to the next place. Nobody knows before it is read.
    zero: usize,
    _data: Data,
}

impl Chain {
    pub(crate) fn new(size: usize) -> Self {
        Self { table: (0..size).map(|_| Line(OnceLock::new())).collect() }
    }
}

impl Contender for Chain {
    type Key = usize;
    /// What the last get has read.
    type Hand = usize;

    fn key(id: &Id) -> usize {
        usize::try_from(number(id)).unwrap()
    }

    fn hand(&self) -> usize {
        0
    }

    fn get(&self, last: &mut usize, &key: &usize) -> bool {
        let Some(value) = self.table[key + *last].0.get() else { return false };
        *last = black_box(value.zero);
        true
    }

    fn put(&self, _: &mut usize, &key: &usize, &data: &Data, _: Uses) {
        let value = Value { zero: black_box(0), _data: data };
        assert!(self.table[key].0.set(Box::new(value)).is_ok(), "it has been put before");
    }

    fn take(&self, _: &mut usize, _: &usize) -> bool {
        unreachable!("nothing is taken from a chain")
    }
}
