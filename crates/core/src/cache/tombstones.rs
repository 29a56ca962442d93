//! Why a session left: the last departures, found by id.
//!
//! Two kinds of departure are remembered apart, so that what happens all the time - tickets that are handed out, sessions
//! that expire - does not drive out what somebody will ask for.

use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use tls_sessiond_types::Role;

use crate::{
    clock::Timestamp,
    session::{Facts, Kind, Miss, RemovalReason, SessionId},
    store::keyed::{Keyed, keyed},
    sync::{AtomicU64, Mutex, Ordering},
};

/// A session that left the cache.
#[derive(Clone, Debug)]
pub struct Departure {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: RemovalReason,
    /// What it had in common with others.
    pub kind: Arc<Kind>,
    /// When its peers had authenticated.
    pub authenticated: Timestamp,
}

impl Departure {
    /// What a lookup answers now.
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

/// Names one cache in the journal. No two caches have the same group, also if their scopes agree: a scope that a reload
/// ended and a later reload brings back does not find what departed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group(u64);

/// How many departures of each kind are remembered in all. One takes 52 bytes, and keeps its [`Kind`].
pub const DEPARTURES_MAX: usize = 1 << 15;
/// Most bytes of all [`Kind`]s that the journal keeps, each counted for every departure that has it. Ordinary names take some
/// hundreds of bytes, and then [`DEPARTURES_MAX`] counts.
pub const KINDS_BYTES_MAX: usize = 32 << 20;

const PARTS: usize = 64;
/// Tags that are compared at once.
const AT_ONCE: usize = 32;

/// The last departures of all caches.
///
/// Every session departs, and few are asked for then: a departure is written behind the last one of its part, where memory
/// is at hand, and found by looking through all of the part.
#[derive(Debug)]
pub struct Journal {
    /// Ids are not kept, but what they hash to with a key that nobody knows.
    hasher: Keyed,
    parts: Box<[Mutex<Part>]>,
    /// Of the next cache.
    next_group: AtomicU64,
}

#[derive(Debug, Default)]
struct Part {
    /// Expired, taken, pushed out.
    usual: Ring,
    /// All else.
    notable: Ring,
    /// Of the next departure.
    number: u32,
}

/// The last [`RING`] departures, or fewer where their kinds take more than [`RING_BYTES`]. The oldest leave first.
#[derive(Debug, Default)]
struct Ring {
    /// Half of each id's hash, apart from the rest: these are looked through.
    tags: Vec<u32>,
    /// `None`: dropped for its bytes.
    all: Vec<Option<Entry>>,
    /// Where the next one goes.
    next: usize,
    /// The oldest of those that are left.
    oldest: usize,
    /// Sizes of their kinds.
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// The other half.
    check: u32,
    /// Which of two came later.
    number: u32,
    /// Of its kind, which lies elsewhere.
    bytes: u32,
    departure: Departure,
}

impl Entry {
    /// Numbers begin anew some day, but not within a millisecond.
    fn is_before(&self, other: &Self) -> bool {
        let (one, two) = (self.departure.at, other.departure.at);
        one < two || (one == two && self.number.wrapping_sub(other.number).cast_signed() < 0)
    }
}

/// What leaves the journal for one departure: one, nearly always.
#[derive(Default)]
struct Dropped {
    first: Option<Entry>,
    more: Vec<Entry>,
}

/// What an id hashes to.
#[derive(Clone, Copy)]
struct Key {
    tag: u32,
    check: u32,
}

const RING: usize = DEPARTURES_MAX / PARTS;
/// There are two rings in each part.
const RING_BYTES: usize = KINDS_BYTES_MAX / PARTS / 2;

impl Default for Journal {
    fn default() -> Self {
        Self {
            hasher: keyed(),
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            next_group: AtomicU64::new(0),
        }
    }
}

impl Journal {
    /// Returns the group of a new cache.
    pub fn new_group(&self) -> Group {
        Group(self.next_group.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn record(&self, group: Group, session: &Facts, reason: RemovalReason, at: Timestamp) {
        let key = self.key(group, session.kind.role, &session.id);
        let kind = Arc::clone(&session.kind);
        let bytes = u32::try_from(kind.size()).unwrap_or(u32::MAX);
        let departure = Departure { at, reason, kind, authenticated: session.authenticated };
        let mut before = Dropped::default();
        {
            let mut part = self.part(key).lock();
            let number = part.number;
            part.number = number.wrapping_add(1);
            let ring = match reason {
                RemovalReason::Expired | RemovalReason::CacheFull | RemovalReason::Taken => &mut part.usual,
                RemovalReason::Unclosed
                | RemovalReason::FatalAlert
                | RemovalReason::Removed
                | RemovalReason::Revoked
                | RemovalReason::ScopeChanged => &mut part.notable,
            };
            ring.push(key.tag, Entry { check: key.check, number, bytes, departure }, &mut before);
        }
        // They may be the last of their kinds.
        drop(before);
    }

    /// The last departure of a session with this id, if it is remembered.
    pub fn find(&self, group: Group, role: Role, id: &SessionId) -> Option<Departure> {
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
        Key { tag: u32::from_le_bytes([a, b, c, d]), check: u32::from_le_bytes([e, f, g, h]) }
    }

    fn part(&self, key: Key) -> &Mutex<Part> {
        &self.parts[key.check as usize % PARTS]
    }
}

impl Ring {
    /// Moves what it drops for this entry to `before`.
    fn push(&mut self, tag: u32, entry: Entry, before: &mut Dropped) {
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

    fn newest(&self, key: Key) -> Option<&Entry> {
        // Those that were written since the first place was, and before them those that are left of the last round.
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

    fn facts(id: u32) -> Facts {
        Facts {
            id: SessionId::new(&id.to_be_bytes()).unwrap(),
            kind: Arc::new(Kind {
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

    fn reason(journal: &Journal, group: Group, id: u32) -> Option<RemovalReason> {
        journal.find(group, Role::Server, &facts(id).id).map(|departure| departure.reason)
    }

    #[test]
    fn last_departure_of_an_id_is_found_in_its_own_group_and_role() {
        let journal = Journal::default();
        let group = journal.new_group();
        let at = Timestamp::from_millis;
        journal.record(group, &facts(1), RemovalReason::Unclosed, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Unclosed));
        // At the same time, for it is which came later that counts; and of one kind twice.
        journal.record(group, &facts(1), RemovalReason::Taken, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Taken));
        journal.record(group, &facts(1), RemovalReason::CacheFull, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::CacheFull));
        journal.record(group, &facts(1), RemovalReason::Revoked, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Revoked));
        // Later, however many departed in between: their numbers begin anew.
        for number in [1 << 31, u32::MAX] {
            journal.parts.iter().for_each(|part| part.lock().number = number);
            journal.record(group, &facts(1), RemovalReason::Taken, at(6));
            assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Taken));
        }
        journal.record(group, &facts(1), RemovalReason::Unclosed, at(6));
        assert_eq!(
            reason(&journal, group, 1),
            Some(RemovalReason::Unclosed),
            "0 comes after the last number"
        );
        assert_eq!(reason(&journal, group, 2), None);
        assert_eq!(reason(&journal, journal.new_group(), 1), None);
        assert!(journal.find(group, Role::Client, &facts(1).id).is_none());
    }

    #[test]
    fn long_names_are_forgotten_sooner_and_short_ones_as_before() {
        let journal = Journal::default();
        let group = journal.new_group();
        let named = |id: u32, length: usize| {
            let facts = facts(id);
            let peer = PeerIdentity { subject: "n".repeat(length), ..PeerIdentity::default() };
            let plain = Arc::into_inner(facts.kind).unwrap();
            Facts { kind: Arc::new(Kind { peer: Some(Arc::new(peer)), ..plain }), ..facts }
        };
        let held = || {
            let parts = journal.parts.iter().map(|part| {
                let part = part.lock();
                let kinds = part.usual.all.iter().flatten().map(|entry| entry.departure.kind.size());
                let (count, bytes) = kinds.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size));
                assert_eq!(part.usual.bytes, bytes);
                (count, bytes)
            });
            parts.fold((0, 0), |(count, bytes), part| (count + part.0, bytes + part.1))
        };
        let at = Timestamp::from_millis(6);
        for round in 0..3 {
            for id in 0..20_000 {
                journal.record(group, &named(id, 9_000), RemovalReason::Taken, at);
            }
            let (count, bytes) = held();
            assert!(bytes <= KINDS_BYTES_MAX / 2 && bytes > KINDS_BYTES_MAX / 3, "{count} of {bytes} bytes");
            for id in 19_990..20_000 {
                assert_eq!(reason(&journal, group, id), Some(RemovalReason::Taken), "{id} in round {round}");
            }
            for id in 100_000..200_000 {
                journal.record(group, &named(id, 20), RemovalReason::Taken, at);
            }
            assert_eq!(held().0, DEPARTURES_MAX, "names of ordinary length take no room of others");
            assert_eq!(reason(&journal, group, 19_999), None);
        }
    }

    #[test]
    fn it_is_bounded_and_what_is_usual_drives_out_nothing_else() {
        let journal = Journal::default();
        let group = journal.new_group();
        journal.record(group, &facts(0), RemovalReason::Revoked, Timestamp::from_millis(5));
        for id in 1..200_000 {
            journal.record(group, &facts(id), RemovalReason::Taken, Timestamp::from_millis(6));
            // Wherever the rings stand.
            let other = id.saturating_sub(id % 97 * 100).max(1);
            if id % 1009 == 0 {
                assert_eq!(reason(&journal, group, other), Some(RemovalReason::Taken), "{other} of {id}");
            }
        }
        let held: usize = journal.parts.iter().map(|part| part.lock().usual.all.len()).sum();
        assert!(held <= DEPARTURES_MAX, "{held}");
        assert_eq!(reason(&journal, group, 0), Some(RemovalReason::Revoked));
        assert_eq!(reason(&journal, group, 199_999), Some(RemovalReason::Taken), "the last is there");
        assert_eq!(reason(&journal, group, 1), None, "the first is not");
    }
}
