//! Daemons that share one Redis or Valkey.
//!
//! * `contract`: the contract of the cache, over every store
//! * `sharing`: sessions resume at any daemon
//! * `sealed`: so do sessions that are sealed in tickets
//! * `lost`: a daemon or the store is lost
//! * `faults`: connections to the store are cut, held back or mixed up, by a `proxy`
//! * `reach`: what reaches every daemon: revocations, removals, new keys
//! * `trouble`: a store that refuses, is full, or is configured wrongly
//! * `server`: the servers that the tests start

mod contract;
mod faults;
mod lost;
mod proxy;
mod reach;
mod sealed;
pub(crate) mod server;
mod sharing;
mod trouble;

use self::server::{Kind, StoreServer};
