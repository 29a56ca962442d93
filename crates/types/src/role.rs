//! The side of a handshake.

/// The side of the handshake that a connection takes (SSL_set_connect_state(3), SSL_set_accept_state(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Begins handshakes.
    Client,
    /// Accepts handshakes.
    Server,
}
