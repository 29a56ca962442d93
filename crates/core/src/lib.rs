//! The core of tls-sessiond: connection objects, contexts, and the session cache, with the close rule of SSL_clear(3).
//!
//! The core is synchronous and deterministic. It does no network I/O and reads no clock but the [`clock::Clock`] that it is given. It
//! reads files only to build contexts.
//!
//! Rooms from left to right. Each imports only rooms to its right, and `clock`, `pem` and `sync`:
//!
//! `state` → `connection` → `context` → `cache` → `fleet` → `session` → `store`; `context` → `access`
//!
//! * [`state`]: clock, contexts and connections of one daemon
//! * [`connection`]: SSL objects, their life cycle and the close rule
//! * [`context`]: SSL_CTX: certificates, trust, versions, and the sessions that its connections may resume
//! * [`access`]: rules of access, and the names in certificates that they match
//! * [`cache`]: the sessions of one scope and role: the policy over a store
//! * [`fleet`]: sessions in a store that several daemons share, without I/O
//! * [`session`]: SSL_SESSION: one session, its attributes, and the events about it
//! * [`store`]: the memory that holds sessions
//! * [`clock`]: the one source of time
//! * [`pem`]: keys, certificates and trust anchors out of files

pub mod access;
pub mod cache;
pub mod clock;
pub mod connection;
pub mod context;
pub mod fleet;
pub mod pem;
pub mod session;
pub mod state;
pub mod store;
mod sync;
