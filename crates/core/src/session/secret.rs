//! The secret part of a session.

use std::fmt;

use parking_lot::Mutex;
use rustls::{
    NamedGroup,
    client::{Tls12ClientSessionValue, Tls13ClientSessionValue},
};
use tls_sessiond_types::secret::SecretBytes;
use zeroize::Zeroizing;

/// The secret part of a session, in its library's private form. Zeroed when dropped.
pub enum Secret {
    /// Bytes: what rustls gave to its storage, or what a worker's library made, which the daemon does not read.
    Bytes(SecretBytes),
    /// Client side of the daemon's engine: rustls keeps these as objects and has no encoding for them.
    Client(Box<ClientSession>),
}

/// What rustls resumes a client's session with, and the group its handshake ended with.
pub enum ClientSession {
    /// TLS 1.2.
    Tls12(Tls12ClientSessionValue, Option<NamedGroup>),
    /// TLS 1.3: can be used once, and is taken out when it is.
    Tls13(Mutex<Option<Tls13ClientSessionValue>>, Option<NamedGroup>),
}

impl Secret {
    /// Bytes that are ours already. Copied once if they have room to spare, and the first copy is zeroed.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        if bytes.len() == bytes.capacity() {
            return Self::Bytes(bytes.into_boxed_slice().into());
        }
        let bytes = Zeroizing::new(bytes);
        Self::copied(&bytes)
    }

    /// A copy of bytes.
    pub fn copied(bytes: &[u8]) -> Self {
        Self::Bytes(SecretBytes::copied(bytes))
    }

    /// The bytes, where it is bytes.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Client(_) => None,
        }
    }

    /// Its size in bytes. For a client's object this is what it holds in memory, nearly.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Client(_) => CLIENT_OBJECT + size_of::<ClientSession>(),
        }
    }

    /// Never: a session has a secret.
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

/// Ticket, secret and certificate chain behind a client's object, which rustls does not let us measure.
const CLIENT_OBJECT: usize = 1024;
