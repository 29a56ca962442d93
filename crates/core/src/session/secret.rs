//! The secret part of a session.

use std::fmt;

use parking_lot::Mutex;
use rustls::{
    NamedGroup,
    client::{Tls12ClientSessionValue, Tls13ClientSessionValue},
};
use tls_sessiond_types::secret::SecretBytes;
use zeroize::Zeroizing;

/// The secret part of a session, in its library's private form. Overwritten when dropped.
pub enum Secret {
    /// Bytes that rustls gave to its storage, or that a worker's library made. The daemon does not
    /// read them.
    Bytes(SecretBytes),
    /// Client side of the daemon's engine: rustls keeps these as objects and has no encoding for
    /// them.
    Client(Box<ClientSession>),
}

/// The object with which rustls resumes a client's session, and the group of its handshake.
pub enum ClientSession {
    /// TLS 1.2.
    Tls12(Tls12ClientSessionValue, Option<NamedGroup>),
    /// TLS 1.3. Can be used once, and is taken out when it is used.
    Tls13(Mutex<Option<Tls13ClientSessionValue>>, Option<NamedGroup>),
}

impl Secret {
    /// Takes ownership of `bytes`. A vector with spare capacity is copied and then zeroed.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        if bytes.len() == bytes.capacity() {
            return Self::Bytes(bytes.into_boxed_slice().into());
        }
        let bytes = Zeroizing::new(bytes);
        Self::copied(&bytes)
    }

    /// Copies the bytes.
    pub fn copied(bytes: &[u8]) -> Self {
        Self::Bytes(SecretBytes::copied(bytes))
    }

    /// Returns the bytes, or `None` for a client's object.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Client(_) => None,
        }
    }

    /// Returns the size in bytes. For a client's object this is an estimate of its memory.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Client(_) => CLIENT_OBJECT + size_of::<ClientSession>(),
        }
    }

    /// Returns whether the size is zero: the secret is in a ticket alone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn client(&self) -> Option<&ClientSession> {
        match self {
            Self::Bytes(_) => None,
            Self::Client(client) => Some(client),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Estimated size in bytes of ticket, secret and certificate chain behind a client's object. rustls
/// has no means to measure it.
const CLIENT_OBJECT: usize = 1024;
