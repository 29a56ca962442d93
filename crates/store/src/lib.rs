//! The protocol by which several daemons share their sessions over one Redis or Valkey.
//!
//! The crate does no I/O and reads no clock. It makes requests, reads answers, and is told the time.
//!
//! * [`layout`]: the names of sessions, and the keys under which the store has them
//! * [`seal`]: encryption of the values
//! * [`script`]: requests and answers as data, and the scripts that the store runs
//! * [`keeper`]: the heartbeats of a daemon, and the removals that must come before them
//!
//! Rules:
//!   - A session is found only while every daemon that holds it open is alive.
//!   - A daemon is alive only if the store has every removal that it decided before its last
//!     heartbeat. So the sessions of a daemon that died, hangs or is cut off are not found, and a
//!     session that ended unclosed is not found later than [`keeper::UNCLOSED_MAX`].
//!   - A single-use session is taken by one script, which checks everything else first.

pub mod keeper;
pub mod layout;
pub mod script;
pub mod seal;
