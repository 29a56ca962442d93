//! The floor: contenders that need not search, which show the time that memory alone takes for a
//! get.

use std::{
    hint::black_box,
    sync::{Arc, OnceLock},
};

use crate::{
    contenders::{Contender, Data, Id, Uses},
    turns::number,
};

/// The names of these contenders.
pub(crate) const NAMES: [&str; 2] = ["array", "chain"];

/// An array of `Arc`s. The index is known before the clock starts, so a get is two reads of memory:
/// the slot, and then the reference count. It needs no lock, no hash and no comparison.
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

/// A table of pointers to values. A get is two reads of memory that depend on each other, as in any
/// map that keeps its values apart. In addition, a get depends on the result of the one before it.
/// So gets do not overlap, as when a program does other work between two gets.
pub(crate) struct Chain {
    table: Box<[Line]>,
}

/// One cache line of the processor.
#[repr(align(64))]
struct Line(OnceLock<Box<Value>>);

struct Value {
    /// Zero, added to the next index. Neither the compiler nor the processor knows the value before
    /// it is read.
    zero: usize,
    _data: Data,
}

impl Chain {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            table: (0..size).map(|_| Line(OnceLock::new())).collect(),
        }
    }
}

impl Contender for Chain {
    type Key = usize;
    /// The value that the last get has read.
    type Hand = usize;

    fn key(id: &Id) -> usize {
        usize::try_from(number(id)).unwrap()
    }

    fn hand(&self) -> usize {
        0
    }

    fn get(&self, last: &mut usize, &key: &usize) -> bool {
        let Some(value) = self.table[key + *last].0.get() else {
            return false;
        };
        *last = black_box(value.zero);
        true
    }

    fn put(&self, _: &mut usize, &key: &usize, &data: &Data, _: Uses) {
        let value = Value {
            zero: black_box(0),
            _data: data,
        };
        assert!(
            self.table[key].0.set(Box::new(value)).is_ok(),
            "the index has a value already"
        );
    }

    fn take(&self, _: &mut usize, _: &usize) -> bool {
        unreachable!("nothing is taken from a chain")
    }
}
