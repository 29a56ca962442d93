//! The daemon as a whole, through its API and with real peers.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report, in its helpers too")]

mod documents;
mod harness;
mod lifecycle;
mod reflection;
mod tidy;
mod tour;
