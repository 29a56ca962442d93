//! Attributes that many sessions have in common, held once.
//!
//! The sessions of one virtual host agree in nearly everything except id, secret and times. So a
//! session takes memory only for these, and shares the rest. The limits count the shared attributes
//! for each session all the same: an upper bound that no order of puts and removals can get around
//! (decision 37).

use std::{
    borrow::Cow,
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    mem::size_of,
    sync::{Arc, Weak},
};

use tls_sessiond_types::{Role, Version, server_name::ServerName};

use super::{Format, PeerIdentity, ResumeCriteria, SessionId, stats::Account};
use crate::{
    store::keyed::{Keyed, keyed},
    sync::RwLock,
};

/// The attributes that several sessions may have in common.
#[derive(Debug)]
pub struct Attributes {
    /// The side of the handshake that the session is for.
    pub role: Role,
    /// The only version that can resume the session.
    pub version: Version,
    /// IANA name of the cipher suite.
    pub cipher_suite: Cow<'static, str>,
    /// Client: the name of the server. Server: the SNI of the handshake, or empty.
    pub server_name: ServerName<'static>,
    /// The library that can read the secret part.
    pub format: Format,
    /// The binding that a lookup must equal.
    pub binding: Box<[u8]>,
    /// Handed out at most once (RFC 8446 appendix C.4).
    pub single_use: bool,
    /// The counters of the context that made the session.
    pub account: Arc<Account>,
    /// The identity that the peer proved.
    pub peer: Option<Arc<PeerIdentity>>,
}

impl Attributes {
    /// Returns whether a lookup with these terms may resume the session.
    pub fn fits(&self, terms: &ResumeCriteria<'_>) -> bool {
        self.format == *terms.format
            && same(&self.binding, terms.binding)
            && terms.versions.contains(&self.version)
            && self.server_name == *terms.server_name
            && terms
                .cipher_suite
                .is_none_or(|suite| *self.cipher_suite == *suite)
    }

    /// Returns the number of bytes that a worker or a peer decides: binding and names.
    ///
    /// `session_bytes_max` limits them.
    pub fn told(&self) -> usize {
        let names = self.peer.as_deref().map_or(0, |peer| {
            peer.dns_names
                .iter()
                .chain(&peer.uris)
                .chain([&peer.subject])
                .map(String::len)
                .sum()
        });
        self.binding.len() + self.server_name.len() + names
    }

    /// Returns an upper bound of the heap memory in bytes, including the entry in [`SharedAttributes`].
    /// `tests/overhead.rs` measures it.
    pub fn size(&self) -> usize {
        let cipher_suite = match &self.cipher_suite {
            Cow::Borrowed(_) => 0,
            Cow::Owned(name) => heap(name.capacity()),
        };
        let format = match &self.format {
            Format::Rustls => 0,
            Format::Worker(name) => shared(name.len()),
        };
        let peer = self.peer.as_deref().map_or(0, |peer| {
            let list = |names: &Vec<String>| {
                let texts: usize = names.iter().map(|name| heap(name.capacity())).sum();
                heap(names.capacity() * size_of::<String>()) + texts
            };
            shared(size_of::<PeerIdentity>())
                + heap(peer.subject.capacity())
                + list(&peer.dns_names)
                + list(&peer.uris)
        });
        PLACE
            + shared(size_of::<Self>())
            + shared(self.server_name.len())
            + heap(self.binding.len())
            + cipher_suite
            + format
            + peer
    }
}

/// Upper bound in bytes of an entry in [`SharedAttributes`]: table and ring, each at most half empty.
const PLACE: usize = 64;

/// Returns an upper bound of the size of one allocation: allocators round up to size classes and to
/// 16 bytes.
pub(super) const fn heap(bytes: usize) -> usize {
    if bytes == 0 {
        0
    } else {
        bytes + bytes / 8 + 16
    }
}

/// Returns an upper bound of the size of one allocation behind an [`Arc`].
const fn shared(bytes: usize) -> usize {
    heap(bytes + 2 * size_of::<usize>())
}

impl PartialEq for Attributes {
    fn eq(&self, other: &Self) -> bool {
        self.role == other.role
            && self.version == other.version
            && self.single_use == other.single_use
            && self.server_name == other.server_name
            && self.cipher_suite == other.cipher_suite
            && self.format == other.format
            && same(&self.binding, &other.binding)
            && self.account == other.account
            && self.peer == other.peer
    }
}

impl Eq for Attributes {}

/// Covers every field. A caller could make any number of attributes collide by a field that is left
/// out.
impl Hash for Attributes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            role,
            version,
            cipher_suite,
            server_name,
            format,
            binding,
            single_use,
            account,
            peer,
        } = self;
        (
            role,
            version,
            cipher_suite,
            server_name,
            format,
            binding,
            single_use,
            account,
            peer,
        )
            .hash(state);
    }
}

// An empty slice has a dangling pointer. The C library compares with masked loads, and some
// processors are slow to find that a masked load reads none of its bytes.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && (one.is_empty() || one == other)
}

/// The attributes in use, interned.
///
/// Sessions are divided into parts, each with a set of its own. So equal attributes may be held
/// once in each part. Each insert and removal of a session changes a reference count, and a single
/// count would make all threads wait for each other.
pub struct SharedAttributes {
    hasher: Keyed,
    shards: Box<[AttributesShard]>,
}

/// A lock and its content, in cache lines of its own.
#[repr(align(128))]
struct AttributesShard(RwLock<Set>);

/// Attributes by their hash.
///
/// Sessions own their attributes, and the names are freed with the last session. The entry here and
/// the object itself (about a hundred bytes) are freed by later inserts, or by [`SharedAttributes::reap`].
#[derive(Default)]
struct Set {
    by_hash: HashMap<u64, Weak<Attributes>, BuildHasherDefault<AsItIs>>,
    /// The same hashes. `hand` goes round them and removes those of unused attributes.
    ring: Vec<u64>,
    hand: usize,
}

/// Uses a `u64` as its own hash.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

const PARTS: usize = 32;
/// Number of entries checked at each insert. Two, so that unused entries never outnumber those in
/// use.
const LOOKED_AT: usize = 2;
/// Number of entries of each part that [`SharedAttributes::reap`] checks.
const REAPED: usize = 64;
/// Smaller tables are not shrunk.
const SMALL: usize = 64;

impl Default for SharedAttributes {
    fn default() -> Self {
        Self {
            hasher: keyed(),
            shards: (0..PARTS)
                .map(|_| AttributesShard(RwLock::default()))
                .collect(),
        }
    }
}

impl SharedAttributes {
    /// Returns shared attributes equal to `kind`, for the session with this id.
    ///
    /// The cost depends on the size of `kind` alone. It is compared with at most one other:
    /// attributes whose hash equals that of different attributes are not shared.
    pub fn intern(&self, kind: Attributes, id: &SessionId) -> Arc<Attributes> {
        // The last byte selects the part. Libraries make random ids, and where an id has a fixed
        // prefix, its end still differs.
        let last = id.as_bytes().last().copied().unwrap_or_default();
        let part = &self.shards[usize::from(last) % PARTS].0;
        let hash = self.hasher.hash_one(&kind);
        // A variable, so that the lock is released before the drop: this may be the last reference.
        let held = part.read().by_hash.get(&hash).and_then(Weak::upgrade);
        if let Some(held) = held {
            return if *held == kind { held } else { Arc::new(kind) };
        }
        let kind = Arc::new(kind);
        let mut set = part.write();
        match set.by_hash.insert(hash, Arc::downgrade(&kind)) {
            // Another thread has inserted them in the meantime, or an unused entry is replaced.
            Some(_) => {}
            None => set.ring.push(hash),
        }
        set.look_at(LOOKED_AT);
        kind
    }

    /// Removes entries of unused attributes. Checks a bounded number of them, so it is called
    /// repeatedly.
    pub fn reap(&self) {
        for part in &self.shards {
            let mut set = part.0.write();
            set.look_at(REAPED);
            set.shrink();
        }
    }

    /// Returns the number of entries, including unused ones that have yet to be removed.
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|part| part.0.read().by_hash.len())
            .sum()
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Set {
    fn look_at(&mut self, places: usize) {
        for _ in 0..places.min(self.ring.len()) {
            self.hand = if self.hand < self.ring.len() {
                self.hand
            } else {
                0
            };
            let Some(&hash) = self.ring.get(self.hand) else {
                return;
            };
            if self
                .by_hash
                .get(&hash)
                .is_some_and(|kind| kind.strong_count() > 0)
            {
                self.hand += 1;
            } else {
                self.by_hash.remove(&hash);
                self.ring.swap_remove(self.hand);
            }
        }
    }

    fn shrink(&mut self) {
        let wanted = 2 * self.ring.len().max(SMALL);
        if self.ring.capacity() > 2 * wanted {
            self.ring.shrink_to(wanted);
            self.by_hash.shrink_to(wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(binding: u32) -> Attributes {
        Attributes {
            role: Role::Server,
            version: Version::Tls12,
            cipher_suite: "".into(),
            server_name: "a.test".into(),
            format: Format::Rustls,
            binding: binding.to_be_bytes().into(),
            single_use: false,
            account: Arc::new(Account::new("default")),
            peer: None,
        }
    }

    /// Attributes that each differ from the first in one field.
    fn variants() -> Vec<Attributes> {
        let peer = |change: fn(&mut PeerIdentity)| {
            let mut peer = PeerIdentity {
                subject: "CN=a".into(),
                ..PeerIdentity::default()
            };
            change(&mut peer);
            Some(Arc::new(peer))
        };
        let like = || Attributes {
            peer: peer(|_| ()),
            ..kind(1)
        };
        vec![
            like(),
            Attributes {
                role: Role::Client,
                ..like()
            },
            Attributes {
                version: Version::Tls13,
                ..like()
            },
            Attributes {
                cipher_suite: "other".into(),
                ..like()
            },
            Attributes {
                server_name: "b.test".into(),
                ..like()
            },
            Attributes {
                format: Format::Worker("openssl".into()),
                ..like()
            },
            Attributes {
                binding: [1].into(),
                ..like()
            },
            Attributes {
                single_use: true,
                ..like()
            },
            Attributes {
                account: Arc::new(Account::new("other")),
                ..like()
            },
            Attributes {
                peer: None,
                ..like()
            },
            Attributes {
                peer: peer(|peer| peer.certificate_sha256[31] = 1),
                ..like()
            },
            Attributes {
                peer: peer(|peer| peer.subject = "CN=b".into()),
                ..like()
            },
            Attributes {
                peer: peer(|peer| peer.dns_names = vec!["a".into()]),
                ..like()
            },
            Attributes {
                peer: peer(|peer| peer.uris = vec!["a".into()]),
                ..like()
            },
            Attributes {
                peer: peer(|peer| peer.not_after = crate::clock::WallTime::MAX),
                ..like()
            },
        ]
    }

    #[test]
    fn hash_and_equality_cover_every_attribute() {
        let hasher = keyed();
        for (place, one) in variants().iter().enumerate() {
            for (other_place, other) in variants().iter().enumerate() {
                assert_eq!(one == other, place == other_place, "{place} {other_place}");
                assert_eq!(
                    hasher.hash_one(one) == hasher.hash_one(other),
                    place == other_place
                );
            }
        }
    }

    #[test]
    fn equal_attributes_are_shared_per_part_and_unused_ones_removed() {
        let kinds = SharedAttributes::default();
        let id = |last: u8| SessionId::new(&[7, last]).unwrap();
        let kept = kinds.intern(kind(1), &id(1));
        for other in 2..100_000_u32 {
            let [last, ..] = other.to_le_bytes();
            kinds.intern(kind(other), &id(last));
            assert!(
                kinds.len() <= 2 * PARTS * LOOKED_AT,
                "{} kinds",
                kinds.len()
            );
        }
        assert!(Arc::ptr_eq(&kept, &kinds.intern(kind(1), &id(1))));
        assert!(
            !Arc::ptr_eq(&kept, &kinds.intern(kind(1), &id(2))),
            "each part has its own attributes"
        );
    }

    #[test]
    fn unused_attributes_free_their_entries() {
        let kinds = SharedAttributes::default();
        let id = SessionId::new(&[7]).unwrap();
        let used: Vec<_> = (0..10_000)
            .map(|number| kinds.intern(kind(number), &id))
            .collect();
        assert_eq!(kinds.len(), used.len(), "entries in use stay");
        drop(used);
        // Each call checks 64 entries of a part.
        (0..=10_000 / REAPED).for_each(|_| kinds.reap());
        assert!(kinds.is_empty(), "{} kinds", kinds.len());
        let part = kinds.shards[7].0.read();
        assert!(part.ring.capacity() <= 4 * SMALL && part.by_hash.capacity() <= 8 * SMALL);
    }
}
