//! Encryption of the values in the store.
//!
//! A sealed value is
//!
//! ```text
//! version (1 byte) ‖ key id (4) ‖ nonce (12) ‖ AES-256-GCM(plaintext) ‖ tag (16)
//! ```
//!
//! Each name has a key of its own: HKDF-SHA256 of the sealing key and the name. So the number of
//! random nonces under one key stays small. The associated data is the key of the entry and its
//! head, so a value that was moved to another entry, or whose head was changed, does not open.

use std::{fmt, ops::Deref};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{self, SHA256},
    hkdf::{HKDF_SHA256, Prk, Salt},
    rand,
};
use tls_sessiond_types::{hex, secret::wipe};
use zeroize::Zeroizing;

use crate::{
    layout::{Name, NameKey, RingName},
    script::Head,
};

/// The version of the sealed form.
const VERSION: u8 = 1;
/// Bytes before the ciphertext.
const PREAMBLE: usize = 1 + KEY_ID + NONCE_LEN;
const KEY_ID: usize = 4;
/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Most sealing keys in a file.
const KEYS_MAX: usize = 16;
/// The id of the line that has the key of names.
const NAMES: &str = "names";

/// Why a file of sealing keys is refused. No text has key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// A line is not a key.
    #[error("line {0}: expected 64 hex digits, or an id, a colon and 64 hex digits")]
    Malformed(usize),
    /// The id of a key is not valid.
    #[error("line {0}: expected an id of 1 to 32 characters of a-z, A-Z, 0-9, `-`, `_` and `.`")]
    IdMalformed(usize),
    /// The same key, or the same id, is there twice.
    #[error("line {0}: this key, or its id, is on an earlier line too")]
    Repeated(usize),
    /// There are more keys than allowed.
    #[error("line {0}: there are more than {KEYS_MAX} keys")]
    TooMany(usize),
    /// There is no sealing key.
    #[error(
        "there is no sealing key: write one line of 64 hex digits, for example from `openssl rand -hex 32`"
    )]
    Empty,
}

/// Why a value does not open. Each is a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// The value has another form.
    #[error("the value is not sealed in the form of this version")]
    Malformed,
    /// The value was sealed with a key that this daemon does not have.
    #[error("the value was sealed with a key that the file does not have")]
    UnknownKey,
    /// The value, its head or its place was changed.
    #[error("the value is not what was sealed for this entry")]
    Changed,
}

/// The system has no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system has no random numbers")]
pub struct NoRandomness;

/// A value that was opened. It is overwritten when it is dropped, all at once: `Zeroizing` goes byte by
/// byte.
pub struct Opened(Vec<u8>);

impl Deref for Opened {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened(…)")
    }
}

struct SealingKey {
    id: [u8; KEY_ID],
    prk: Prk,
}

impl SealingKey {
    fn new(key: &[u8]) -> Self {
        let mut hasher = digest::Context::new(&SHA256);
        hasher.update(b"tls.sessiond.v1 store key id");
        hasher.update(key);
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&hasher.finish().as_ref()[..KEY_ID]);
        Self {
            id,
            prk: Salt::new(HKDF_SHA256, b"tls.sessiond.v1 store seal").extract(key),
        }
    }

    /// Returns the key of one name.
    fn for_name(&self, name: Name) -> Option<LessSafeKey> {
        let info = [name.as_bytes()];
        let okm = self.prk.expand(&info, &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(okm)))
    }
}

/// The keys of a store: the first seals, and all open.
pub struct SealingKeys {
    keys: Vec<SealingKey>,
    names: NameKey,
}

impl SealingKeys {
    /// Reads a file of keys: one on each line, as 64 hex digits, with an id and a colon before them
    /// if wanted. Empty lines, and lines that begin with `#`, are skipped.
    ///
    /// The key with the id `names` makes the names of sessions. Without one, the last key of the
    /// file does: so a key that is added above it changes no name. Another key of names is an empty
    /// cache.
    ///
    /// # Errors
    /// Names the line and the fault.
    pub fn read(text: &str) -> Result<Self, KeyFileError> {
        let (mut keys, mut ids, mut names, mut last) =
            (Vec::<SealingKey>::new(), Vec::new(), None, None);
        for (place, line) in text.lines().enumerate() {
            let (place, line) = (place + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (id, digits) = match line.split_once(':') {
                Some((id, digits)) => (Some(id.trim()), digits.trim()),
                None => (None, line),
            };
            if let Some(id) = id {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if !(1..=32).contains(&id.len()) || !id.chars().all(plain) {
                    return Err(KeyFileError::IdMalformed(place));
                }
                if ids.contains(&id) {
                    return Err(KeyFileError::Repeated(place));
                }
                ids.push(id);
            }
            let key = (digits.len() == 2 * KEY_BYTES)
                .then(|| hex::read(digits.as_bytes()))
                .flatten()
                .map(Zeroizing::new)
                .ok_or(KeyFileError::Malformed(place))?;
            if id == Some(NAMES) {
                names = Some(NameKey::new(&key));
                continue;
            }
            let sealing = SealingKey::new(&key);
            if keys.iter().any(|held| held.id == sealing.id) {
                return Err(KeyFileError::Repeated(place));
            }
            if keys.len() == KEYS_MAX {
                return Err(KeyFileError::TooMany(place));
            }
            keys.push(sealing);
            last = Some(key);
        }
        let last = last.ok_or(KeyFileError::Empty)?;
        Ok(Self {
            keys,
            names: names.unwrap_or_else(|| NameKey::new(&last)),
        })
    }

    /// Returns whether both make the same names of sessions.
    pub fn names_as(&self, other: &Self) -> bool {
        let name = |keys: &Self| keys.names.name(b"", tls_sessiond_types::Role::Server, b"");
        name(self) == name(other)
    }

    /// Returns the key of names.
    pub fn names(&self) -> &NameKey {
        &self.names
    }

    /// Seals a revocation. All daemons can open it, whatever their sealing keys are.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn seal_revocation(
        &self,
        id: &[u8; 16],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, NoRandomness> {
        seal_for(&self.names.revocations(), id, plaintext)
    }

    /// Opens a revocation.
    ///
    /// # Errors
    /// It was not sealed with this key of names and for this id.
    pub fn open_revocation(&self, id: &[u8; 16], sealed: &[u8]) -> Result<Opened, Unopened> {
        open_for(&self.names.revocations(), id, sealed)
    }

    /// Seals a version of a ring of ticket keys. All daemons can open it, whatever their sealing keys are.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn seal_ring(
        &self,
        ring: RingName,
        version: u64,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, NoRandomness> {
        seal_for(&self.names.rings(), &of_version(ring, version), plaintext)
    }

    /// Opens a ring of ticket keys.
    ///
    /// # Errors
    /// It was not sealed with this key of names, for this ring and this version.
    pub fn open_ring(
        &self,
        ring: RingName,
        version: u64,
        sealed: &[u8],
    ) -> Result<Opened, Unopened> {
        open_for(&self.names.rings(), &of_version(ring, version), sealed)
    }

    /// Seals a value for one entry.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn seal(
        &self,
        entry: &[u8],
        name: Name,
        head: &Head,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, NoRandomness> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| NoRandomness)?;
        let first = self.keys.first().ok_or(NoRandomness)?;
        let key = first.for_name(name).ok_or(NoRandomness)?;
        let mut sealed = Vec::with_capacity(PREAMBLE + plaintext.len() + AES_256_GCM.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&first.id);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let tag = key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated(entry, head)),
                &mut sealed[PREAMBLE..],
            )
            .map_err(|_| NoRandomness)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens the value of one entry.
    ///
    /// # Errors
    /// The value was not sealed for this entry and this head, by a key of the file.
    pub fn open(
        &self,
        entry: &[u8],
        name: Name,
        head: &Head,
        sealed: &[u8],
    ) -> Result<Opened, Unopened> {
        let (preamble, secret) = sealed
            .split_at_checked(PREAMBLE)
            .ok_or(Unopened::Malformed)?;
        let (&[version], rest) = preamble.split_at(1) else {
            return Err(Unopened::Malformed);
        };
        if version != VERSION {
            return Err(Unopened::Malformed);
        }
        let (id, nonce) = rest.split_at(KEY_ID);
        let key = self
            .keys
            .iter()
            .find(|key| key.id == *id)
            .ok_or(Unopened::UnknownKey)?
            .for_name(name)
            .ok_or(Unopened::Changed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unopened::Malformed)?;
        let mut plaintext = Opened(secret.to_vec());
        let length = key
            .open_in_place(nonce, Aad::from(associated(entry, head)), &mut plaintext.0)
            .map_err(|_| Unopened::Changed)?
            .len();
        plaintext.0.truncate(length);
        Ok(plaintext)
    }
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKeys({})", self.keys.len())
    }
}

/// Returns what a sealed ring is bound to: the store cannot show it as another version.
fn of_version(ring: RingName, version: u64) -> [u8; 24] {
    let mut bound = [0; 24];
    bound[..16].copy_from_slice(&ring.0);
    bound[16..].copy_from_slice(&version.to_be_bytes());
    bound
}

/// Seals what all daemons of a store can open: version (1 byte) ‖ nonce (12) ‖ ciphertext ‖ tag (16).
fn seal_for(key: &[u8; 32], id: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, NoRandomness> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| NoRandomness)?;
    // Room for all, so that no copy of the plaintext is left behind.
    let mut sealed = Vec::with_capacity(1 + NONCE_LEN + plaintext.len() + AES_256_GCM.tag_len());
    sealed.push(VERSION);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plaintext);
    let tag = shared_key(key)
        .ok_or(NoRandomness)?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(id),
            &mut sealed[1 + NONCE_LEN..],
        )
        .map_err(|_| NoRandomness)?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

fn open_for(key: &[u8; 32], id: &[u8], sealed: &[u8]) -> Result<Opened, Unopened> {
    let (&[VERSION], rest) = sealed.split_first_chunk::<1>().ok_or(Unopened::Malformed)? else {
        return Err(Unopened::Malformed);
    };
    let (nonce, rest) = rest
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(Unopened::Malformed)?;
    let mut bytes = Opened(rest.to_vec());
    let length = shared_key(key)
        .ok_or(Unopened::UnknownKey)?
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(id),
            &mut bytes.0,
        )
        .map_err(|_| Unopened::Changed)?
        .len();
    bytes.0.truncate(length);
    Ok(bytes)
}

fn shared_key(key: &[u8; 32]) -> Option<LessSafeKey> {
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?))
}

fn associated(entry: &[u8], head: &Head) -> Vec<u8> {
    [entry, &head.to_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use tls_sessiond_types::{Role, Version};

    use super::*;
    use crate::layout::Layout;

    const ONE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    const TWO: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

    fn place(keys: &SealingKeys, id: &[u8]) -> (Vec<u8>, Name, Head) {
        let name = keys.names().name(b"scope", Role::Server, id);
        let head = Head {
            single_use: true,
            version: Version::Tls13,
            cipher_suite: 0x1301,
            fit: keys.names().fit("rustls", b"", "a.test"),
        };
        (Layout::new("tsd1").unwrap().entry(name), name, head)
    }

    #[test]
    fn sealed_values_open_for_their_entry_and_head_alone() {
        let keys = SealingKeys::read(ONE).unwrap();
        let (entry, name, head) = place(&keys, b"one");
        let sealed = keys.seal(&entry, name, &head, b"the secret").unwrap();
        assert_eq!(
            *keys.open(&entry, name, &head, &sealed).unwrap(),
            *b"the secret"
        );
        assert!(!sealed.windows(10).any(|part| part == b"the secret"));
        let (other, other_name, _) = place(&keys, b"two");
        let changed = Some(Unopened::Changed);
        assert_eq!(keys.open(&other, other_name, &head, &sealed).err(), changed);
        assert_eq!(keys.open(&other, name, &head, &sealed).err(), changed);
        let multiple = Head {
            single_use: false,
            ..head
        };
        assert_eq!(keys.open(&entry, name, &multiple, &sealed).err(), changed);
        for bit in 0..8 * sealed.len() {
            let mut bytes = sealed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.open(&entry, name, &head, &bytes).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(keys.open(&entry, name, &head, &sealed[..length]).is_err());
        }
        let again = keys.seal(&entry, name, &head, b"the secret").unwrap();
        assert_ne!(again, sealed, "each has a nonce of its own");
    }

    #[test]
    fn revocations_open_under_other_sealing_keys_and_for_their_id_alone() {
        let old = SealingKeys::read(ONE).unwrap();
        let new = SealingKeys::read(&format!("{TWO}\nnames:{ONE}")).unwrap();
        let sealed = old.seal_revocation(&[1; 16], b"revoked").unwrap();
        assert_eq!(
            *new.open_revocation(&[1; 16], &sealed).unwrap(),
            *b"revoked"
        );
        assert!(new.open_revocation(&[2; 16], &sealed).is_err());
        let other = SealingKeys::read(TWO).unwrap();
        assert!(other.open_revocation(&[1; 16], &sealed).is_err());
        for length in 0..sealed.len() {
            assert!(new.open_revocation(&[1; 16], &sealed[..length]).is_err());
        }
    }

    #[test]
    fn rotated_keys_open_what_the_earlier_ones_sealed() {
        let old = SealingKeys::read(ONE).unwrap();
        let (entry, name, head) = place(&old, b"one");
        let sealed = old.seal(&entry, name, &head, b"secret").unwrap();
        let both = SealingKeys::read(&format!("# the new one\nnew: {TWO}\n\n{ONE}\n")).unwrap();
        assert_eq!(
            both.names().name(b"scope", Role::Server, b"one"),
            name,
            "the last key of the file makes the names"
        );
        assert!(both.open(&entry, name, &head, &sealed).is_ok());
        let new = both.seal(&entry, name, &head, b"secret").unwrap();
        assert_eq!(
            old.open(&entry, name, &head, &new).err(),
            Some(Unopened::UnknownKey)
        );
        let only = SealingKeys::read(&format!("{TWO}\nnames:{ONE}")).unwrap();
        assert_eq!(only.names().name(b"scope", Role::Server, b"one"), name);
        assert!(only.open(&entry, name, &head, &new).is_ok());
        assert_eq!(
            only.open(&entry, name, &head, &sealed).err(),
            Some(Unopened::UnknownKey)
        );
    }

    #[test]
    fn files_of_keys_are_refused_with_their_line_and_without_key_material() {
        for (text, error) in [
            (String::new(), KeyFileError::Empty),
            (format!("names:{ONE}"), KeyFileError::Empty),
            (format!("\n{}", &ONE[1..]), KeyFileError::Malformed(2)),
            (format!("{ONE}00"), KeyFileError::Malformed(1)),
            (ONE.replace('0', "g"), KeyFileError::Malformed(1)),
            (format!("a b:{ONE}"), KeyFileError::IdMalformed(1)),
            (format!(":{ONE}"), KeyFileError::IdMalformed(1)),
            (format!("{ONE}\n{ONE}"), KeyFileError::Repeated(2)),
            (format!("a:{ONE}\na:{TWO}"), KeyFileError::Repeated(2)),
        ] {
            let refused = SealingKeys::read(&text).err();
            assert_eq!(refused.as_ref(), Some(&error), "{text}");
            assert!(!error.to_string().contains(&ONE[1..9]), "{error}");
        }
        let many: String = (0..=KEYS_MAX).map(|key| format!("{key:064x}\n")).collect();
        assert_eq!(
            SealingKeys::read(&many).err(),
            Some(KeyFileError::TooMany(KEYS_MAX + 1))
        );
    }
}
