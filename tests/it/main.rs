//! Tests of the daemon as a whole, through its API. Those with feature `peers` need OpenSSL's library
//! and programs that `tests/peers.sh` installs.

// Always true here. Clippy allows `unwrap` in tests only where `cfg(test)` is written.
#![cfg(test)]

mod admin;
mod admin_http;
mod answers;
mod binary;
mod cache_model;
mod calls;
#[cfg(feature = "peers")]
mod certificates;
mod cli;
mod client_hello;
#[cfg(feature = "peers")]
mod clients;
mod clocks;
mod closing;
mod command;
mod contract;
mod demo;
#[cfg(feature = "peers")]
mod deploy;
mod documents;
mod doors;
mod drive_close;
mod engine_client;
#[cfg(feature = "peers")]
mod envoy;
mod explaining;
#[cfg(feature = "peers")]
mod fleet;
mod foreign_client;
#[path = "../load/frames.rs"]
#[allow(dead_code, reason = "shared with the load tests")]
mod frames;
mod fuzzed;
#[cfg(feature = "peers")]
mod generators;
mod grpc_corners;
mod hammer;
mod harness;
mod hit_ratio;
mod hostile_callers;
mod hostile_sessions;
mod hygiene;
mod identity;
mod incidents;
#[cfg(feature = "peers")]
mod interop;
#[cfg(feature = "peers")]
mod key_files;
#[cfg(feature = "peers")]
mod keys_agent;
mod language;
mod lifecycle;
mod live_reload;
mod log_faults;
mod log_lines;
mod model;
mod mutual_tls;
mod open_files;
#[cfg(feature = "peers")]
mod openssl_worker;
#[cfg(feature = "peers")]
mod otlp;
mod ownership;
mod pki;
mod process;
#[cfg(feature = "peers")]
mod proxy;
mod proxy_ends;
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
mod runbook;
mod rustls_worker;
#[cfg(feature = "peers")]
mod rustls_worker_peers;
mod scenarios;
mod scope;
mod script;
mod sealed_tickets;
mod seed;
mod service_manager;
mod shrunk;
#[cfg(feature = "peers")]
mod sockets;
mod start;
mod stop;
mod stream_limit;
#[cfg(feature = "peers")]
mod subjects;
mod ticket_keys;
mod tidy;
mod tls_corners;
#[cfg(feature = "peers")]
mod tour;
mod user_documents;
mod void_scopes;
#[cfg(feature = "peers")]
mod watching;
mod worker_client;
mod worker_engine;
mod worker_model;
#[cfg(feature = "peers")]
mod worker_process;
mod worker_scenarios;
mod worker_tls;
