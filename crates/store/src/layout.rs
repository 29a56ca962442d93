//! The names of sessions, and the keys under which the store has them.
//!
//! A name is a keyed hash, so the store shows neither ids nor scopes. The sessions are divided into
//! 64 buckets by their names. All keys of a bucket have the same hash tag, so one script may use
//! them together, in a cluster too.

use std::fmt;

use aws_lc_rs::hmac;
use tls_sessiond_types::{Role, hex};
use zeroize::Zeroizing;

/// The number of buckets.
pub const BUCKETS: usize = COUNT as usize;
const COUNT: u8 = 64;

/// The hash tag of each bucket. The slot of the tag of bucket `i` is 256 `i` + 128, so any division
/// of the slots into ranges of equal length divides the buckets evenly. Other tags would be another
/// layout.
const TAGS: [&str; BUCKETS] = [
    "19d48", "1e89", "232e", "2113", "574", "74b", "8518", "baa9", "96a", "1a44", "2b48", "39599",
    "e7c8", "40602", "48aa", "59ae", "12d5", "2020", "40912", "21d9", "41fca", "ed39", "447",
    "67a", "7d09", "197d9", "85b", "3ca6", "ddc", "58bf", "78a8", "8fa9", "712", "52d", "df68",
    "29899", "1079", "4087a", "11a0", "13bf", "9dd8", "d49", "59d5", "eb0", "1a1d", "931", "9859",
    "8e8", "7d8", "9749", "621", "85ab", "10b3", "12ae", "4638", "18f19", "fbe", "da3", "4076a",
    "d5f9", "29789", "1edc9", "1587", "802",
];

/// The longest prefix, in bytes.
const PREFIX_MAX: usize = 32;

/// One of the 64 parts of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u8);

impl Bucket {
    /// Returns all buckets.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT).map(Self)
    }

    /// Returns the number of the bucket, from 0.
    pub fn index(self) -> usize {
        self.0.into()
    }

    fn tag(self) -> &'static str {
        TAGS[self.index() % BUCKETS]
    }
}

/// The name of a session in the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name([u8; 16]);

impl Name {
    /// The name of no session.
    pub const ZERO: Self = Self([0; 16]);

    /// Reads the bytes of a name.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// Returns the bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bucket of the session.
    pub fn bucket(&self) -> Bucket {
        Bucket(self.0[0] % COUNT)
    }
}

/// Shows the first four bytes, as logs show ids.
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0[..4], f)?;
        f.write_str("…")
    }
}

/// The newest client sessions with one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool([u8; 16]);

impl Pool {
    /// Returns a pool of the bucket of this name.
    pub fn beside(name: Name) -> Self {
        Self(name.0)
    }

    /// Returns the bucket of the pool and of its sessions.
    pub fn bucket(&self) -> Bucket {
        Bucket(self.0[0] % COUNT)
    }

    /// Marks the id of a new session as one of this pool.
    pub fn mark(&self, id: &mut [u8]) {
        if let Some(first) = id.first_mut() {
            *first = *first / COUNT * COUNT + self.0[0] % COUNT;
        }
    }
}

/// The name of a ring of ticket keys in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingName(pub [u8; 16]);

/// A keyed hash of what a lookup must repeat: format, binding and server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fit(pub [u8; 8]);

/// The key of names. All daemons of one store have the same.
pub struct NameKey(hmac::Key);

impl NameKey {
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Returns the key that seals revocations. Every daemon has it, also while sealing keys are
    /// replaced.
    pub(crate) fn revocations(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.digest(&[b"revocations"]))
    }

    /// Returns the key that seals rings of ticket keys. Every daemon has it, also while sealing keys are
    /// replaced.
    pub(crate) fn rings(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.digest(&[b"rings"]))
    }

    /// Returns the name of a ring of ticket keys.
    pub fn ring(&self, ring: &str) -> RingName {
        RingName(self.digest(&[b"ring", ring.as_bytes()]))
    }

    /// Returns eight hex digits that differ for other keys.
    pub fn fingerprint(&self) -> String {
        hex::string(&self.digest::<4>(&[b"fingerprint"]))
    }

    /// Returns the id of a revocation of this content.
    pub fn revocation(&self, content: &[u8]) -> [u8; 16] {
        self.digest(&[b"revocation", content])
    }

    /// Returns the name of the session with this id in a scope, for one side of the handshake.
    ///
    /// The daemons make the ids of client sessions, with the bucket of their pool in the first byte
    /// ([`Pool::mark`]). So such a session lies in the bucket of its pool.
    pub fn name(&self, scope: &[u8], role: Role, id: &[u8]) -> Name {
        let word = match role {
            Role::Client => b"client",
            Role::Server => b"server",
        };
        let mut name: [u8; 16] = self.digest(&[b"name", scope, word, id]);
        if role == Role::Client
            && let Some(first) = id.first()
        {
            name[0] = *first;
        }
        Name(name)
    }

    /// Returns the pool of the client sessions with one server, which one library can read.
    pub fn pool(&self, scope: &[u8], format: &str, binding: &[u8], server_name: &str) -> Pool {
        Pool(self.digest(&[
            b"pool",
            scope,
            format.as_bytes(),
            binding,
            server_name.as_bytes(),
        ]))
    }

    /// Returns the hash of what a lookup must repeat.
    pub fn fit(&self, format: &str, binding: &[u8], server_name: &str) -> Fit {
        Fit(self.digest(&[b"fit", format.as_bytes(), binding, server_name.as_bytes()]))
    }

    /// Returns the first bytes of the HMAC over a list of fields, each behind its length.
    fn digest<const N: usize>(&self, fields: &[&[u8]]) -> [u8; N] {
        let mut context = hmac::Context::with_key(&self.0);
        for field in fields {
            context.update(&(field.len() as u64).to_be_bytes());
            context.update(field);
        }
        let tag = context.sign();
        let mut first = [0; N];
        first.copy_from_slice(&tag.as_ref()[..N]);
        first
    }
}

impl fmt::Debug for NameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NameKey(…)")
    }
}

/// The prefix is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid prefix `{0}`: expected 1 to {PREFIX_MAX} characters of a-z, A-Z, 0-9, `-`, `_` and `.`"
)]
pub struct InvalidPrefix(String);

/// The keys of one fleet. Fleets with different prefixes can share a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    prefix: Box<str>,
}

impl Layout {
    /// Takes the prefix of all keys.
    ///
    /// # Errors
    /// The prefix is empty or too long, or has a character that could be part of a hash tag.
    pub fn new(prefix: &str) -> Result<Self, InvalidPrefix> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !(1..=PREFIX_MAX).contains(&prefix.len()) || !prefix.chars().all(plain) {
            return Err(InvalidPrefix(prefix.chars().take(2 * PREFIX_MAX).collect()));
        }
        Ok(Self {
            prefix: prefix.into(),
        })
    }

    /// Returns the key of a session.
    pub fn entry(&self, name: Name) -> Vec<u8> {
        let (tag, name_text) = (name.bucket().tag(), hex::string(name.as_bytes()));
        format!("{}:{{{tag}}}:s:{name_text}", self.prefix).into_bytes()
    }

    /// Returns the key of a pool: a sorted set of names by the time of their put.
    pub fn pool(&self, pool: &Pool) -> Vec<u8> {
        let (tag, digits) = (pool.bucket().tag(), hex::string(&pool.0));
        format!("{}:{{{tag}}}:p:{digits}", self.prefix).into_bytes()
    }

    /// Returns the key of the revocations: a hash of sealed revocations by id, and their version.
    pub fn revocations(&self) -> Vec<u8> {
        format!("{}:{{{}}}:r", self.prefix, TAGS[0]).into_bytes()
    }

    /// Returns the key of a ring of ticket keys: a hash of its sealed state, its version, the daemon
    /// that rotates it, and those that are alive.
    pub fn ring(&self, ring: RingName) -> Vec<u8> {
        let digits = hex::string(&ring.0);
        format!("{}:{{{}}}:k:{digits}", self.prefix, TAGS[0]).into_bytes()
    }

    /// Returns the key of the spent tickets of a ring. It has the tag of [`Self::ring`].
    pub fn spent(&self, ring: RingName) -> Vec<u8> {
        let digits = hex::string(&ring.0);
        format!("{}:{{{}}}:t:{digits}", self.prefix, TAGS[0]).into_bytes()
    }

    /// Returns the key of a bucket's list: the sessions of tickets that are not good any more, and the holders
    /// that have ended with everything delivered.
    pub fn tickets(&self, bucket: Bucket) -> Vec<u8> {
        format!("{}:{{{}}}:l", self.prefix, bucket.tag()).into_bytes()
    }

    /// Returns the key of a bucket's heartbeats: a hash of deadlines by holder.
    pub fn beats(&self, bucket: Bucket) -> Vec<u8> {
        format!("{}:{{{}}}:b", self.prefix, bucket.tag()).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Returns the slot of a hash tag: CRC-16/XMODEM, modulo 16384.
    fn slot(tag: &str) -> u16 {
        let crc = tag.bytes().fold(0_u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
                crc << 1 ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
            })
        });
        crc % 16384
    }

    #[test]
    fn slots_of_the_buckets_are_evenly_spread() {
        // From the specification of Redis Cluster.
        assert_eq!(slot("123456789"), 0x31c3);
        for (place, bucket) in Bucket::all().enumerate() {
            assert_eq!(usize::from(slot(bucket.tag())), 256 * place + 128);
        }
    }

    #[test]
    fn names_differ_by_every_field_and_by_the_key() {
        let key = NameKey::new(&[1; 32]);
        let all = [
            key.name(b"a", Role::Server, b"bc"),
            key.name(b"ab", Role::Server, b"c"),
            key.name(b"a", Role::Client, b"bc"),
            key.name(b"a", Role::Server, b"bd"),
            NameKey::new(&[2; 32]).name(b"a", Role::Server, b"bc"),
        ];
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        assert_eq!(all[0], key.name(b"a", Role::Server, b"bc"));
        assert_ne!(key.fit("a", b"bc", "d"), key.fit("ab", b"c", "d"));
        assert_ne!(key.fit("a", b"b", "c"), key.fit("a", b"b", "d"));
        // Known answers: another layout would make every stored session unknown.
        assert_eq!(
            hex::string(key.name(b"scope", Role::Server, b"id").as_bytes()),
            "ce0ec398d8e0b2da2c352cf849076281"
        );
    }

    #[test]
    fn keys_have_the_tag_of_their_bucket() {
        let layout = Layout::new("tsd1").unwrap();
        let name = NameKey::new(&[1; 32]).name(b"scope", Role::Server, b"id");
        let entry = String::from_utf8(layout.entry(name)).unwrap();
        let tag = format!("tsd1:{{{}}}:", name.bucket().tag());
        assert_eq!(entry, format!("{tag}s:{}", hex::string(name.as_bytes())));
        let beats = String::from_utf8(layout.beats(name.bucket())).unwrap();
        assert_eq!(beats, format!("{tag}b"));
        let key = NameKey::new(&[1; 32]);
        let pool = key.pool(b"scope", "openssl", b"", "a.test");
        let mut id = [0xff; 16];
        pool.mark(&mut id);
        assert_eq!(
            key.name(b"scope", Role::Client, &id).bucket(),
            pool.bucket()
        );
        assert!(id[0] >= 0xc0, "the other bits stay random");
        for bad in ["", "a:b", "a{b", "a b", "ä", &"a".repeat(33)] {
            assert!(Layout::new(bad).is_err(), "{bad}");
        }
    }
}
