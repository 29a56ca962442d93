//! The daemon as a whole, through its API and with real peers.

mod documents;
mod harness;
mod lifecycle;
mod reflection;
mod tidy;
mod tour;
