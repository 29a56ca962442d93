//! The order in which connections are listed.

use std::{collections::BTreeMap, sync::Arc};

use super::LiveConnection;

/// Connections in the order in which they were made.
///
/// Neighbours lie together in blocks, and no block is empty. An insert at the end and a removal
/// each change one block.
#[derive(Debug, Default)]
pub(super) struct Order(BTreeMap<u64, Box<Block>>);

#[derive(Debug, Default)]
pub(super) struct Block {
    held: [Option<Arc<LiveConnection>>; BLOCK],
    count: usize,
}

/// Connections in a block. A connection that is alone in its block costs 300 bytes.
const BLOCK: usize = 32;

/// Returns the number of the block, and the place in it.
fn split(number: u64) -> (u64, usize) {
    let block = BLOCK as u64;
    (
        number / block,
        usize::try_from(number % block).unwrap_or_default(),
    )
}

impl Order {
    pub(super) fn insert(&mut self, held: &Arc<LiveConnection>) {
        let (block, place) = split(held.number);
        let block = self.0.entry(block).or_default();
        block.held[place] = Some(Arc::clone(held));
        block.count += 1;
    }

    pub(super) fn remove(
        &mut self,
        number: u64,
    ) -> Option<(Arc<LiveConnection>, Option<Box<Block>>)> {
        let (at, place) = split(number);
        let block = self.0.get_mut(&at)?;
        let held = block.held[place].take()?;
        block.count -= 1;
        let empty = block.count == 0;
        Some((held, if empty { self.0.remove(&at) } else { None }))
    }

    pub(super) fn after(&self, number: Option<u64>) -> impl Iterator<Item = &Arc<LiveConnection>> {
        let first = number.map_or(0, |number| number.saturating_add(1));
        let blocks = self
            .0
            .range(split(first).0..)
            .flat_map(|(_, block)| &block.held);
        blocks.flatten().skip_while(move |held| held.number < first)
    }
}
