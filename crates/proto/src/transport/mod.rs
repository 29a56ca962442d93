//! Transport pieces that the daemon and its clients share.
//!
//! * [`Unix`]: a Unix stream that waits for writability only after a write would block
//! * [`KeepAlive`]: detects a dead peer of an HTTP/2 connection
//! * [`PollBackoff`]: decides when an idle thread busy-polls
//! * [`wake`]: futures and parts of tasks that are polled only after their own waker fired

mod keepalive;
mod poll_backoff;
mod unix;
pub mod wake;

pub use keepalive::KeepAlive;
pub use poll_backoff::PollBackoff;
pub use unix::Unix;
