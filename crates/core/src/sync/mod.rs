//! The locks and counters of the core. With feature `shuttle` they are those of a scheduler that tries the interleavings of
//! threads.

#[cfg(feature = "shuttle")]
mod scheduled;

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[cfg(not(feature = "shuttle"))]
pub(crate) use parking_lot::{Mutex, RwLock};
#[cfg(feature = "shuttle")]
pub(crate) use scheduled::{AtomicU64, AtomicUsize, Mutex, Ordering, RwLock};
