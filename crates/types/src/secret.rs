//! Bytes that are overwritten when they are dropped, and the reuse of their memory.
//!
//! In a full cache each insert evicts a session, and most secrets have the same size. So each
//! thread keeps the memory of the last secret that it dropped, overwritten, for the next one.
//! Otherwise each put would free memory, often in another thread's part of the allocator, and get
//! memory that is in no processor's cache.

use std::{cell::Cell, ops::Deref};

use zeroize::optimization_barrier;

/// Overwrites bytes with zeros, in a way that the compiler keeps. The `zeroize` crate's own types go byte by byte, which took a
/// sixth of a lookup.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Without the barrier the compiler removes writes that no code reads.
    optimization_barrier(bytes);
}

thread_local! {
    /// Zeroed memory, at most as long as the longest secret.
    static SPARE: Cell<Box<[u8]>> = Cell::default();
}

/// Bytes that are overwritten when they are dropped, all at once: `Zeroizing` goes byte by byte.
pub struct SecretBytes(Box<[u8]>);

impl SecretBytes {
    /// Copies the bytes.
    pub fn copied(bytes: &[u8]) -> Self {
        match SPARE.try_with(Cell::take) {
            Ok(mut spare) if spare.len() == bytes.len() => {
                spare.copy_from_slice(bytes);
                Self(spare)
            }
            // The thread is exiting, or the spare memory has another length.
            _ => Self(bytes.into()),
        }
    }
}

impl From<Box<[u8]>> for SecretBytes {
    fn from(bytes: Box<[u8]>) -> Self {
        Self(bytes)
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        if self.0.is_empty() {
            return;
        }
        wipe(&mut self.0);
        // Keeps nothing if the thread is exiting.
        _ = SPARE.try_with(|spare| spare.set(std::mem::take(&mut self.0)));
    }
}

/// A buffer that grows, for messages that hold secrets. Memory that it gives back is overwritten before.
#[derive(Default)]
pub struct SecretBuffer(Vec<u8>);

impl SecretBuffer {
    /// Returns an empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Returns a buffer that holds a copy of `bytes`.
    pub fn copied(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Appends `more` zero bytes, and returns them to be written.
    pub fn grow(&mut self, more: usize) -> &mut [u8] {
        if self.0.capacity() - self.0.len() < more {
            let mut larger = Vec::with_capacity((self.0.len() + more).max(2 * self.0.capacity()));
            larger.extend_from_slice(&self.0);
            wipe(&mut self.0);
            self.0 = larger;
        }
        let start = self.0.len();
        self.0.resize(start + more, 0);
        &mut self.0[start..]
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes, to be changed in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Copies `length` bytes from `from` to the earlier place `to`.
    pub fn pull(&mut self, from: usize, length: usize, to: usize) {
        self.0.copy_within(from..from + length, to);
    }

    /// Cuts the buffer to `length` bytes and overwrites the rest.
    pub fn truncate(&mut self, length: usize) {
        wipe(self.0.get_mut(length..).unwrap_or_default());
        self.0.truncate(length);
    }
}

impl Drop for SecretBuffer {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_keeps_its_bytes_while_it_grows_and_is_cut() {
        let mut buffer = SecretBuffer::with_capacity(1);
        for byte in 0..100 {
            buffer.grow(2).fill(byte);
        }
        assert_eq!(buffer.bytes().len(), 200);
        assert_eq!(buffer.bytes()[198..], [99, 99]);
        buffer.pull(198, 2, 2);
        buffer.truncate(4);
        assert_eq!(buffer.bytes(), [0, 0, 99, 99]);
    }

    #[test]
    fn memory_is_reused_for_secrets_of_equal_length() {
        let first = SecretBytes::copied(&[1; 40]);
        let other = SecretBytes::copied(&[2; 40]);
        let place = first.as_ptr();
        assert_ne!(place, other.as_ptr(), "two live secrets share no memory");
        drop(first);
        let spare = SPARE.take();
        assert_eq!(
            (spare.as_ptr(), &*spare),
            (place, &[0; 40][..]),
            "the spare memory is overwritten"
        );
        SPARE.set(spare);
        let next = SecretBytes::copied(&[3; 40]);
        assert_eq!((next.as_ptr(), &*next), (place, &[3; 40][..]));
        assert_eq!(*other, [2; 40]);
        drop(next);
        for len in [0, 1, 39, 41, 16 * 1024] {
            assert_eq!(*SecretBytes::copied(&vec![4; len]), vec![4; len]);
        }
    }

    #[test]
    fn empty_secrets_keep_no_memory() {
        drop(SecretBytes::copied(&[1; 40]));
        drop(SecretBytes::from(Box::default()));
        assert_eq!(SPARE.take().len(), 40);
    }
}
