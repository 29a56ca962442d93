//! Daemons that share one Redis or Valkey.
//!
//! * `sharing`: sessions resume at any daemon
//! * `lost`: a daemon or the store is lost
//! * `faults`: connections to the store are cut, held back or mixed up, by a `proxy`
//! * `server`: the servers that the tests start

mod faults;
mod lost;
mod proxy;
mod server;
mod sharing;

use server::{Kind, StoreServer};
