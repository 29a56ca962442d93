//! Daemons that share one Redis or Valkey.
//!
//! * `server`: the servers that the tests start
//! * `sharing`: sessions resume at any daemon
//! * `lost`: what happens when a daemon or the store is lost

mod server;
mod sharing;

use server::{Kind, StoreServer};
