//! Tombstones: why sessions were removed, found by id.
//!
//! Frequent removals (consumed tickets, expired and evicted sessions) have tombstones of their own
//! class. So they do not displace the tombstones that operators will ask for.

use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use tls_sessiond_types::Role;

use crate::{
    clock::Timestamp,
    session::{Attributes, Miss, RemovalReason, SessionId, SessionInfo},
    store::keyed::{Keyed, keyed},
    sync::{AtomicU64, Mutex, Ordering},
};

/// The tombstone of a session that was removed from the cache.
#[derive(Clone, Debug)]
pub struct Tombstone {
    /// Time of the removal.
    pub at: Timestamp,
    /// Reason of the removal.
    pub reason: RemovalReason,
    /// The attributes that the session shared with others.
    pub kind: Arc<Attributes>,
    /// When the session's peers had authenticated.
    pub authenticated: Timestamp,
}

impl Tombstone {
    /// Returns the answer to a lookup of the session.
    pub fn miss(&self) -> Miss {
        match self.reason {
            RemovalReason::Expired => Miss::Expired,
            RemovalReason::Revoked => Miss::Revoked,
            RemovalReason::ScopeChanged => Miss::Scope,
            RemovalReason::Unclosed
            | RemovalReason::FatalAlert
            | RemovalReason::CacheFull
            | RemovalReason::Taken
            | RemovalReason::Removed => Miss::Removed,
        }
    }
}

/// The key of one cache's tombstones.
///
/// No two caches have the same group, even if their scopes are equal. So a scope that one reload
/// removed and a later reload restores does not find its old tombstones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group(u64);

/// Maximum number of tombstones of each class, for all caches together. A tombstone takes 52 bytes
/// and keeps its [`Attributes`] alive.
pub const TOMBSTONES_MAX: usize = 1 << 15;
/// Maximum size in bytes of all [`Attributes`]s that tombstones keep alive.
///
/// A [`Attributes`] counts once for every tombstone that has it. With ordinary names it takes a few
/// hundred bytes, and [`TOMBSTONES_MAX`] is reached first.
pub const KINDS_BYTES_MAX: usize = 32 << 20;

const PARTS: usize = 64;
/// Number of tags compared at once.
const AT_ONCE: usize = 32;

/// The latest tombstones of all caches.
///
/// Every session is removed some day, and few of them are asked for afterwards. So writing is
/// cheap: a tombstone is appended to the last one of its part, in memory that is already in the
/// cache of the processor. Finding one scans the whole part.
#[derive(Debug)]
pub struct Tombstones {
    /// Hashes ids with a secret key. The ids themselves are not kept.
    hasher: Keyed,
    shards: Box<[Mutex<TombstoneShard>]>,
    /// The group of the next cache.
    next_group: AtomicU64,
}

#[derive(Debug, Default)]
struct TombstoneShard {
    /// Tombstones of expired, evicted and consumed sessions.
    usual: Ring,
    /// All other tombstones.
    notable: Ring,
    /// Sequence number of the next tombstone.
    number: u32,
}

/// The latest [`RING`] tombstones, or fewer if their attributes take more than [`RING_BYTES`]. The
/// oldest are dropped first.
#[derive(Debug, Default)]
struct Ring {
    /// Half of each id's hash. Kept apart from the entries because a search scans these.
    tags: Vec<u32>,
    /// `None`: dropped to keep [`RING_BYTES`].
    all: Vec<Option<StoredTombstone>>,
    /// Index of the next entry.
    next: usize,
    /// Index of the oldest entry that is left.
    oldest: usize,
    /// Size of the attributes of all entries.
    bytes: usize,
}

#[derive(Debug)]
struct StoredTombstone {
    /// The other half of the id's hash.
    check: u32,
    /// Orders entries of the same millisecond.
    number: u32,
    /// Size of the entry's attributes, which lie elsewhere.
    bytes: u32,
    departure: Tombstone,
}

impl StoredTombstone {
    /// Sequence numbers wrap around, but not within a millisecond.
    fn is_before(&self, other: &Self) -> bool {
        let (one, two) = (self.departure.at, other.departure.at);
        one < two || (one == two && self.number.wrapping_sub(other.number).cast_signed() < 0)
    }
}

/// The entries that one new tombstone displaces: nearly always one.
#[derive(Default)]
struct Displaced {
    first: Option<StoredTombstone>,
    more: Vec<StoredTombstone>,
}

/// The hash of an id.
#[derive(Clone, Copy)]
struct Key {
    tag: u32,
    check: u32,
}

const RING: usize = TOMBSTONES_MAX / PARTS;
/// Each part has two rings.
const RING_BYTES: usize = KINDS_BYTES_MAX / PARTS / 2;

impl Default for Tombstones {
    fn default() -> Self {
        Self {
            hasher: keyed(),
            shards: (0..PARTS).map(|_| Mutex::default()).collect(),
            next_group: AtomicU64::new(0),
        }
    }
}

impl Tombstones {
    /// Returns the group of a new cache.
    pub fn new_group(&self) -> Group {
        Group(self.next_group.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn record(
        &self,
        group: Group,
        session: &SessionInfo,
        reason: RemovalReason,
        at: Timestamp,
    ) {
        let key = self.key(group, session.kind.role, &session.id);
        let kind = Arc::clone(&session.kind);
        let bytes = u32::try_from(kind.size()).unwrap_or(u32::MAX);
        let departure = Tombstone {
            at,
            reason,
            kind,
            authenticated: session.authenticated,
        };
        let mut before = Displaced::default();
        {
            let mut part = self.part(key).lock();
            let number = part.number;
            part.number = number.wrapping_add(1);
            let ring = match reason {
                RemovalReason::Expired | RemovalReason::CacheFull | RemovalReason::Taken => {
                    &mut part.usual
                }
                RemovalReason::Unclosed
                | RemovalReason::FatalAlert
                | RemovalReason::Removed
                | RemovalReason::Revoked
                | RemovalReason::ScopeChanged => &mut part.notable,
            };
            ring.push(
                key.tag,
                StoredTombstone {
                    check: key.check,
                    number,
                    bytes,
                    departure,
                },
                &mut before,
            );
        }
        // Dropped after the lock was released: these may be the last references to their
        // attributes.
        drop(before);
    }

    /// Returns the latest tombstone of a session with this id, if it is still kept.
    pub fn find(&self, group: Group, role: Role, id: &SessionId) -> Option<Tombstone> {
        let key = self.key(group, role, id);
        let part = self.part(key).lock();
        let found = match (part.usual.newest(key), part.notable.newest(key)) {
            (Some(one), Some(other)) if one.is_before(other) => other,
            (Some(one), _) | (None, Some(one)) => one,
            (None, None) => return None,
        };
        Some(found.departure.clone())
    }

    fn key(&self, group: Group, role: Role, id: &SessionId) -> Key {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(group.0.wrapping_mul(2).wrapping_add(role as u64));
        hasher.write(id.as_bytes());
        let [a, b, c, d, e, f, g, h] = hasher.finish().to_le_bytes();
        Key {
            tag: u32::from_le_bytes([a, b, c, d]),
            check: u32::from_le_bytes([e, f, g, h]),
        }
    }

    fn part(&self, key: Key) -> &Mutex<TombstoneShard> {
        &self.shards[key.check as usize % PARTS]
    }
}

impl Ring {
    /// Adds an entry. Moves the entries that it displaces to `before`.
    fn push(&mut self, tag: u32, entry: StoredTombstone, before: &mut Displaced) {
        self.bytes += entry.bytes as usize;
        let place = self.next;
        self.next = (place + 1) % RING;
        match (self.tags.get_mut(place), self.all.get_mut(place)) {
            (Some(held), Some(oldest)) => {
                *held = tag;
                if let Some(oldest) = oldest.replace(entry) {
                    self.bytes -= oldest.bytes as usize;
                    self.oldest = self.next;
                    before.first = Some(oldest);
                }
            }
            _ => {
                self.tags.push(tag);
                self.all.push(Some(entry));
            }
        }
        while self.bytes > RING_BYTES && self.oldest != place {
            if let Some(oldest) = self.all.get_mut(self.oldest).and_then(Option::take) {
                self.bytes -= oldest.bytes as usize;
                before.more.push(oldest);
            }
            self.oldest = (self.oldest + 1) % RING;
        }
    }

    fn newest(&self, key: Key) -> Option<&StoredTombstone> {
        // First the entries written since the ring last wrapped around, then those of the round
        // before.
        let (new, old) = self.tags.split_at(self.next.min(self.tags.len()));
        let among = |tags: &[u32], first: usize| {
            let mut end = tags.len();
            while end > 0 {
                let start = end.saturating_sub(AT_ONCE);
                let tags = &tags[start..end];
                if tags.iter().fold(false, |any, &tag| any | (tag == key.tag)) {
                    let mut places = (first + start..first + end).rev();
                    let found = places.find_map(|place| {
                        let entry = self.all[place].as_ref()?;
                        (self.tags[place] == key.tag && entry.check == key.check).then_some(entry)
                    });
                    if found.is_some() {
                        return found;
                    }
                }
                end = start;
            }
            None
        };
        among(new, 0).or_else(|| among(old, new.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Format, PeerIdentity, stats::Account};
    use tls_sessiond_types::Version;

    fn facts(id: u32) -> SessionInfo {
        SessionInfo {
            id: SessionId::new(&id.to_be_bytes()).unwrap(),
            kind: Arc::new(Attributes {
                role: Role::Server,
                version: Version::Tls12,
                cipher_suite: "".into(),
                server_name: "".into(),
                format: Format::Rustls,
                binding: [].into(),
                single_use: false,
                account: Arc::new(Account::new("default")),
                peer: None,
            }),
            authenticated: Timestamp::from_millis(1),
            created_after: 0,
            lives: 1,
        }
    }

    fn reason(journal: &Tombstones, group: Group, id: u32) -> Option<RemovalReason> {
        journal
            .find(group, Role::Server, &facts(id).id)
            .map(|departure| departure.reason)
    }

    #[test]
    fn latest_tombstone_is_found_by_id_group_and_role() {
        let journal = Tombstones::default();
        let group = journal.new_group();
        let at = Timestamp::from_millis;
        journal.record(group, &facts(1), RemovalReason::Unclosed, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Unclosed));
        // At the same time, because only the order counts, and twice in one class.
        journal.record(group, &facts(1), RemovalReason::Taken, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Taken));
        journal.record(group, &facts(1), RemovalReason::CacheFull, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::CacheFull));
        journal.record(group, &facts(1), RemovalReason::Revoked, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Revoked));
        // Later, with any number of removals in between: the sequence numbers wrap around.
        for number in [1 << 31, u32::MAX] {
            journal
                .shards
                .iter()
                .for_each(|part| part.lock().number = number);
            journal.record(group, &facts(1), RemovalReason::Taken, at(6));
            assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Taken));
        }
        journal.record(group, &facts(1), RemovalReason::Unclosed, at(6));
        assert_eq!(
            reason(&journal, group, 1),
            Some(RemovalReason::Unclosed),
            "0 comes after the last sequence number"
        );
        assert_eq!(reason(&journal, group, 2), None);
        assert_eq!(reason(&journal, journal.new_group(), 1), None);
        assert!(journal.find(group, Role::Client, &facts(1).id).is_none());
    }

    #[test]
    fn long_names_reduce_the_number_of_tombstones() {
        let journal = Tombstones::default();
        let group = journal.new_group();
        let named = |id: u32, length: usize| {
            let facts = facts(id);
            let peer = PeerIdentity {
                subject: "n".repeat(length),
                ..PeerIdentity::default()
            };
            let plain = Arc::into_inner(facts.kind).unwrap();
            SessionInfo {
                kind: Arc::new(Attributes {
                    peer: Some(Arc::new(peer)),
                    ..plain
                }),
                ..facts
            }
        };
        let held = || {
            let shards = journal.shards.iter().map(|part| {
                let part = part.lock();
                let kinds = part
                    .usual
                    .all
                    .iter()
                    .flatten()
                    .map(|entry| entry.departure.kind.size());
                let (count, bytes) =
                    kinds.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size));
                assert_eq!(part.usual.bytes, bytes);
                (count, bytes)
            });
            shards.fold((0, 0), |(count, bytes), part| {
                (count + part.0, bytes + part.1)
            })
        };
        let at = Timestamp::from_millis(6);
        for round in 0..3 {
            for id in 0..20_000 {
                journal.record(group, &named(id, 9_000), RemovalReason::Taken, at);
            }
            let (count, bytes) = held();
            assert!(
                bytes <= KINDS_BYTES_MAX / 2 && bytes > KINDS_BYTES_MAX / 3,
                "{count} of {bytes} bytes"
            );
            for id in 19_990..20_000 {
                assert_eq!(
                    reason(&journal, group, id),
                    Some(RemovalReason::Taken),
                    "{id} in round {round}"
                );
            }
            for id in 100_000..200_000 {
                journal.record(group, &named(id, 20), RemovalReason::Taken, at);
            }
            assert_eq!(
                held().0,
                TOMBSTONES_MAX,
                "names of ordinary length displace no tombstones"
            );
            assert_eq!(reason(&journal, group, 19_999), None);
        }
    }

    #[test]
    fn frequent_removals_displace_no_other_tombstones() {
        let journal = Tombstones::default();
        let group = journal.new_group();
        journal.record(
            group,
            &facts(0),
            RemovalReason::Revoked,
            Timestamp::from_millis(5),
        );
        for id in 1..200_000 {
            journal.record(
                group,
                &facts(id),
                RemovalReason::Taken,
                Timestamp::from_millis(6),
            );
            // At any position of the rings.
            let other = id.saturating_sub(id % 97 * 100).max(1);
            if id % 1009 == 0 {
                assert_eq!(
                    reason(&journal, group, other),
                    Some(RemovalReason::Taken),
                    "{other} of {id}"
                );
            }
        }
        let held: usize = journal
            .shards
            .iter()
            .map(|part| part.lock().usual.all.len())
            .sum();
        assert!(held <= TOMBSTONES_MAX, "{held}");
        assert_eq!(reason(&journal, group, 0), Some(RemovalReason::Revoked));
        assert_eq!(
            reason(&journal, group, 199_999),
            Some(RemovalReason::Taken),
            "the last is kept"
        );
        assert_eq!(reason(&journal, group, 1), None, "the first was dropped");
    }
}
