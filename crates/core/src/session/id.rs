//! Session ids.

use std::{
    cmp, fmt,
    hash::{Hash, Hasher},
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use tls_sessiond_types::{client_hello::SESSION_ID_MAX, hex};

use super::attributes::heap;

/// A TLS 1.2 session id, the identity of a stateful TLS 1.3 ticket, or a client session's id.
///
/// The daemon makes the ids of client sessions.
#[derive(Clone)]
pub struct SessionId(Bytes);

/// Maximum length of an id stored inline. Libraries make ids of 16 or 32 bytes.
const SHORT_MAX: usize = 38;

#[derive(Clone)]
enum Bytes {
    Short { len: u8, bytes: [u8; SHORT_MAX] },
    Long(Box<[u8]>),
}

impl SessionId {
    /// Takes 1 to [`SESSION_ID_MAX`] bytes as they are; nothing is padded or cut (CVE-2016-9244).
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if !(1..=SESSION_ID_MAX).contains(&bytes.len()) {
            return None;
        }
        let mut short = [0; SHORT_MAX];
        Some(Self(
            match (short.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
                (Some(place), Ok(len)) => {
                    place.copy_from_slice(bytes);
                    Bytes::Short { len, bytes: short }
                }
                _ => Bytes::Long(bytes.into()),
            },
        ))
    }

    /// Returns an upper bound of the heap memory of the id, in bytes.
    pub(super) fn heap(&self) -> usize {
        match &self.0 {
            Bytes::Short { .. } => 0,
            Bytes::Long(bytes) => heap(bytes.len()),
        }
    }

    /// Returns the first bytes, four at most. Logs and watchers show only these.
    pub fn prefix(&self) -> &[u8] {
        let bytes = self.as_bytes();
        bytes.get(..4).unwrap_or(bytes)
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short { len, bytes } => &bytes[..usize::from(*len)],
            Bytes::Long(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for SessionId {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Compares ids of equal length in constant time, because a caller that knows an id may resume its
/// session.
impl PartialEq for SessionId {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(self.as_bytes(), other.as_bytes()).is_ok()
    }
}

impl Eq for SessionId {}

impl PartialOrd for SessionId {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SessionId {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for SessionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(self.as_bytes(), f)
    }
}

/// Shows the first four bytes: enough to follow an id in a log, too few to offer it.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.as_bytes();
        hex::write(&bytes[..bytes.len().min(4)], f)?;
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_of_every_length_keep_their_bytes_and_differ() {
        let mut seen = HashSet::new();
        for len in 1..=SESSION_ID_MAX {
            let id = SessionId::new(&vec![7; len]).unwrap();
            assert_eq!(id.as_bytes(), vec![7; len]);
            assert!(seen.insert(id), "id of {len} bytes equals a shorter one");
            // An id that equals the one above if keys are padded with zeros.
            let mut padded = vec![7; len];
            padded[len - 1] = 0;
            assert!(seen.insert(SessionId::new(&padded).unwrap()));
        }
        assert!(
            SessionId::new(&[]).is_none() && SessionId::new(&[7; SESSION_ID_MAX + 1]).is_none()
        );
    }
}
