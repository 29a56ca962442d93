//! The admin address: metrics, probes and the status page, over HTTP. Nothing can be changed here.
//!
//! * `listener`: the socket, and the connections to it
//! * `places`: the places of these connections
//! * `routes`: the answers
//! * `metrics`: every metric
//! * `history`: handshakes and lookups of the last hour and day
//! * `feed`: the events of the status page

mod feed;
mod history;
mod listener;
pub(crate) mod metrics;
mod places;
mod routes;

pub use listener::AdminListener;
pub(crate) use listener::Routes;
pub(crate) use routes::guarded;
