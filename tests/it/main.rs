//! The daemon as a whole, through its API and with real peers.

mod client_hello;
mod harness;
mod lifecycle;
mod model;
mod pki;
mod refusals;
mod scenarios;
