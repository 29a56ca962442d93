//! `tls-sessiond proxy` as a process, between clients and backends of the test: the ends of
//! connections and the fate of their sessions, bad input, overload, outages, reloads and stops.

mod bad_peers;
mod bad_settings;
mod crowds;
mod early_answers;
mod fates;
mod headers;
mod manager;
mod originator;
mod outages;
mod own;
mod reloads;
mod remote;
mod sites;
mod stops;
mod unix_backends;
mod world;
