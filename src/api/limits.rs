//! Limits on the lengths of fields and batches.

/// The most bytes of ciphertext or plaintext in one message.
pub(crate) const BYTES_MAX: usize = 1 << 20;
/// The most calls of one message.
pub(crate) const BATCH_MAX: usize = 1000;
