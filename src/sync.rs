//! What the core locks and counts with. A test that runs the core's code under a scheduler of its own puts the
//! scheduler's in their place.

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub(crate) use parking_lot::{Mutex, RwLock};
