//! Bytes that are overwritten when they are dropped, and what becomes of their memory.
//!
//! In a full cache each session that comes makes another leave, and most have secrets of one size. So each thread keeps the
//! memory of the last secret that it dropped, overwritten, for the next one. Else each put would give memory back, often
//! to the part of the allocator that is another thread's, and be given some that no processor has near.

use std::{cell::Cell, ops::Deref};

use zeroize::optimization_barrier;

thread_local! {
    /// Zeroed. At most as long as the longest secret.
    static SPARE: Cell<Box<[u8]>> = Cell::default();
}

/// Overwritten when they are dropped, and at once: Zeroizing goes byte by byte.
pub struct SecretBytes(Box<[u8]>);

impl SecretBytes {
    /// A copy of them.
    pub(super) fn copied(bytes: &[u8]) -> Self {
        match SPARE.try_with(Cell::take) {
            Ok(mut spare) if spare.len() == bytes.len() => {
                spare.copy_from_slice(bytes);
                Self(spare)
            }
            // The thread ends, or this one would not fit.
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
        self.0.fill(0);
        // Or the compiler would leave it out.
        optimization_barrier(&*self.0);
        // Where the thread ends nothing is kept.
        _ = SPARE.try_with(|spare| spare.set(std::mem::take(&mut self.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_for_as_many_bytes_and_no_others() {
        let first = SecretBytes::copied(&[1; 40]);
        let other = SecretBytes::copied(&[2; 40]);
        let place = first.as_ptr();
        assert_ne!(place, other.as_ptr(), "two that live share nothing");
        drop(first);
        let spare = SPARE.take();
        assert_eq!((spare.as_ptr(), &*spare), (place, &[0; 40][..]), "it is kept overwritten");
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
    fn nothing_is_kept_of_nothing() {
        drop(SecretBytes::copied(&[1; 40]));
        drop(SecretBytes::from(Box::default()));
        assert_eq!(SPARE.take().len(), 40);
    }
}
