//! The daemon as a whole, through its API and with real peers.

// Always so here; clippy allows unwrap where it is said.
#![cfg(test)]

mod answers;
mod binary;
mod cache_model;
mod calls;
mod client_hello;
mod clients;
mod clocks;
mod closing;
mod command;
mod contract;
mod documents;
mod doors;
mod drive_close;
mod explaining;
mod foreign_client;
#[path = "../load/frames.rs"]
#[allow(dead_code, reason = "shared with the tests of load")]
mod frames;
mod fuzzed;
mod grpc_corners;
mod hammer;
mod harness;
mod hit_ratio;
mod hostile_callers;
mod hostile_sessions;
mod hygiene;
mod identity;
mod incidents;
mod interop;
mod key_files;
mod lifecycle;
mod live_reload;
mod log_faults;
mod log_lines;
mod model;
mod mutual_tls;
mod open_files;
mod openssl_worker;
mod ownership;
mod pki;
mod process;
mod psk_hello;
mod races;
mod reflection;
mod refusals;
mod reload;
mod returning;
mod revocation;
mod revocation_ways;
mod revoked_access;
mod rights;
mod ruled;
mod rustls_worker;
mod scenarios;
mod scope;
mod script;
mod seed;
mod shrunk;
mod sockets;
mod start;
mod stop;
mod stream_limit;
mod subjects;
mod tidy;
mod tls_corners;
mod tour;
mod void_scopes;
mod worker_client;
mod worker_engine;
mod worker_model;
mod worker_process;
mod worker_scenarios;
mod worker_tls;
