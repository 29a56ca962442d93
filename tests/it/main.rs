//! The daemon as a whole, through its API and with real peers.

// Always so here; clippy allows unwrap where it is said.
#![cfg(test)]

mod answers;
mod binary;
mod calls;
mod client_hello;
mod closing;
mod command;
mod documents;
mod foreign_client;
mod fuzzed;
mod harness;
mod incidents;
mod interop;
mod lifecycle;
mod model;
mod openssl_worker;
mod pki;
mod process;
mod races;
mod reflection;
mod refusals;
mod reload;
mod returning;
mod revocation;
mod rustls_worker;
mod scenarios;
mod scope;
mod script;
mod seed;
mod stop;
mod tidy;
mod tour;
mod worker_client;
mod worker_engine;
mod worker_model;
mod worker_process;
mod worker_scenarios;
mod worker_tls;
