//! Bytes that wait for their reader, as the chunks in which they arrived.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// A queue of bytes.
#[derive(Default)]
pub(super) struct Chunks {
    /// No chunk is empty.
    chunks: VecDeque<Bytes>,
    length: usize,
}

impl Chunks {
    pub(super) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.length += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Returns the number of bytes.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the oldest chunk. It is empty only if there is no chunk.
    pub(super) fn first(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| chunk)
    }

    /// Removes `count` bytes of the oldest chunk, which must have as many.
    pub(super) fn advance(&mut self, count: usize) {
        let Some(chunk) = self.chunks.front_mut() else {
            return;
        };
        chunk.advance(count);
        self.length -= count;
        if chunk.is_empty() {
            self.chunks.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
