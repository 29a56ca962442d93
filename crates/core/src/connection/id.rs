//! Ids of connections.

use std::{
    cell::RefCell,
    fmt,
    hash::{Hash, Hasher},
};

use aws_lc_rs::rand;
use tls_sessiond_types::hex;
use zeroize::Zeroize;

use super::Error;

/// The id of a connection: 128 random bits, so that it cannot be guessed.
#[derive(Clone, Copy, Eq, PartialOrd, Ord)]
pub struct ConnectionId([u8; 16]);

/// Compares in constant time: each id is one number, so the time does not depend on which byte
/// differs.
impl PartialEq for ConnectionId {
    fn eq(&self, other: &Self) -> bool {
        u128::from_ne_bytes(self.0) ^ u128::from_ne_bytes(other.0) == 0
    }
}

impl Hash for ConnectionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl ConnectionId {
    /// Makes a new id.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> Result<Self, Error> {
        POOL.with_borrow_mut(RandomBytes::take).map(Self)
    }

    /// Parses 32 hex digits in upper or lower case, with or without colons between the bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let length = hex::read_into(text.as_bytes(), &mut bytes)?.len();
        (length == bytes.len()).then_some(Self(bytes))
    }

    /// Returns the id with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the id.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A thread's supply of random bytes. It is filled 4096 bytes at a time, because one request to the
/// generator costs as much as the table's work for a small handshake.
struct RandomBytes {
    bytes: [u8; 4096],
    left: usize,
}

thread_local! {
    static POOL: RefCell<RandomBytes> = const { RefCell::new(RandomBytes { bytes: [0; 4096], left: 0 }) };
}

impl RandomBytes {
    /// Takes 16 bytes, which are returned only once, and zeroes them in the pool.
    fn take(&mut self) -> Result<[u8; 16], Error> {
        if self.left == 0 {
            rand::fill(&mut self.bytes).map_err(|_| Error::NoRandomness)?;
            self.left = self.bytes.len();
        }
        self.left -= 16;
        let mut taken = [0; 16];
        let place = &mut self.bytes[self.left..self.left + 16];
        taken.copy_from_slice(place);
        place.zeroize();
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_differ_and_are_read_as_they_are_written() {
        let ids: HashSet<_> = (0..10_000)
            .map(|_| ConnectionId::random().unwrap())
            .collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids.into_iter().take(10) {
            assert_eq!(ConnectionId::parse(&id.to_string()), Some(id));
            assert_eq!(
                ConnectionId::parse(&id.to_string().to_uppercase()),
                Some(id)
            );
        }
        for bad in [
            "",
            "0",
            &"g".repeat(32),
            &"A".repeat(30),
            &"0".repeat(33),
            &"\u{e4}".repeat(16),
        ] {
            assert_eq!(ConnectionId::parse(bad), None, "{bad}");
        }
    }
}
