//! Wakers that record which future is ready, so that a task polls only those.

mod poll_on_wake;
mod set;

pub use poll_on_wake::PollOnWake;
pub use set::{Parts, WakeSet};
