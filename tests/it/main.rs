//! The daemon as a whole, through its API and with real peers.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report, in its helpers too")]

mod binary;
mod client_hello;
mod command;
mod documents;
mod foreign_client;
mod harness;
mod lifecycle;
mod model;
mod pki;
mod races;
mod reflection;
mod refusals;
mod scenarios;
mod stop;
mod tidy;
mod tour;
