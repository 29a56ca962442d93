//! Types that the daemon and its clients share. This crate holds no state, waits for nothing and knows no service.
//!
//! * [`hex`]: session and connection ids as the API writes them
//! * [`server_name`]: server names in the one form in which they are compared
//! * [`Version`], [`Role`]: protocol version, and side of the handshake
//! * [`secret`]: bytes that are overwritten when they are dropped
//! * `alert`, `cipher_suite`: alerts and cipher suites by number and name (feature `tls`)
//! * `client_hello`: the sessions that a ClientHello offers to resume (feature `tls`)

#[cfg(feature = "tls")]
pub mod alert;
#[cfg(feature = "tls")]
pub mod cipher_suite;
#[cfg(feature = "tls")]
pub mod client_hello;
pub mod hex;
mod role;
pub mod secret;
pub mod server_name;
mod version;

pub use role::Role;
pub use version::Version;
