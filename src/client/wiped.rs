//! Bytes that leave nothing behind: what holds a secret is overwritten before its memory is given back.

use zeroize::optimization_barrier;

/// A buffer that grows. Also what it held before it grew is overwritten.
#[derive(Default)]
pub(super) struct Wiped(Vec<u8>);

impl Wiped {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(super) fn copied(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// `more` bytes at the end, to be written.
    pub(super) fn grow(&mut self, more: usize) -> &mut [u8] {
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

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Copies `length` bytes from one place to an earlier one.
    pub(super) fn pull(&mut self, from: usize, length: usize, to: usize) {
        self.0.copy_within(from..from + length, to);
    }

    pub(super) fn truncate(&mut self, length: usize) {
        wipe(self.0.get_mut(length..).unwrap_or_default());
        self.0.truncate(length);
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites at once: Zeroizing goes byte by byte, and took a sixth of a lookup.
pub(super) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Or the compiler would leave it out.
    optimization_barrier(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_keeps_what_is_written_while_it_grows_and_is_cut() {
        let mut buffer = Wiped::with_capacity(1);
        for byte in 0..100 {
            buffer.grow(2).fill(byte);
        }
        assert_eq!(buffer.bytes().len(), 200);
        assert_eq!(buffer.bytes()[198..], [99, 99]);
        buffer.pull(198, 2, 2);
        buffer.truncate(4);
        assert_eq!(buffer.bytes(), [0, 0, 99, 99]);
    }
}
