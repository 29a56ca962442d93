//! The connections to a Redis or Valkey that several daemons share.
//!
//! The core decides what to ask, and what an answer means. This room sends requests and waits for
//! answers, never longer than the deadline of the configuration.
//!
//! * `target`: where the store is, and how a connection to it is opened
//! * `link`: one connection, opened again after a failure
//! * `command`: requests and answers as commands of Redis
//! * `check`: the check of a store before it is used
//! * `door`: what the API asks
//! * `revisions`: revocations that all daemons know
//! * `keepers`: the task that sends heartbeats, removals and releases

#[cfg(not(feature = "redis"))]
mod absent;
#[cfg(feature = "redis")]
mod check;
#[cfg(feature = "redis")]
mod command;
#[cfg(feature = "redis")]
mod door;
#[cfg(feature = "redis")]
mod keepers;
#[cfg(feature = "redis")]
mod link;
#[cfg(feature = "redis")]
mod revisions;
#[cfg(feature = "redis")]
mod target;

#[cfg(feature = "redis")]
pub use self::{
    check::CheckError,
    door::{NotRevoked, Store},
    keepers::Keepers,
    target::Target,
};
#[cfg(not(feature = "redis"))]
pub use absent::{
    NoCheckError as CheckError, NoKeepers as Keepers, NoStore as Store, NoTarget as Target,
    NotRevokedHere as NotRevoked,
};
