//! The gRPC API: what a call means. Translates calls into operations on the connection table, the session caches and
//! the contexts. This is the only room that turns errors into gRPC statuses.
//!
//! Each service: `connections`, `sessions`, `workers`, `contexts`, `ticket_keys`, [`admin`], [`health`],
//! `reflection`.
//!
//! Shared by them:
//!
//! * [`access`]: identities, access rules, and the rights of each caller
//! * `quota`: limits on the resources that one identity holds at a time
//! * [`role`], [`error`], `methods`: roles, refusals and their statuses, and the methods that exist
//! * `call`: the caller, the deadline and the places of one call
//! * `convert`, `limits`: conversion to and from messages, and the lengths of their fields
//! * `page_token`, `idempotency`: pages of lists, and repeated requests
//! * [`reloads`]: the outcome of the last reload
//! * `durations`: how long calls take, and how many are refused

pub mod access;
pub mod admin;
pub(crate) mod call;
pub(crate) mod connections;
pub(crate) mod contexts;
mod convert;
pub(crate) mod durations;
pub mod error;
pub mod health;
pub(crate) mod idempotency;
mod limits;
mod methods;
pub(crate) mod page_token;
pub(crate) mod quota;
pub(crate) mod reflection;
pub mod reloads;
pub mod role;
pub(crate) mod sessions;
pub(crate) mod ticket_keys;
pub(crate) mod workers;
