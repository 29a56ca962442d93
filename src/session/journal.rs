//! Why a session left: the last departures, found by id.
//!
//! Two kinds of departure are remembered apart, so that what happens all the time - tickets that are handed out, sessions
//! that expire - does not drive out what somebody will ask for.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    sync::Arc,
};

use super::{Facts, Kind, RemovalReason, Role, SessionId, cache::Miss};
use crate::{clock::Timestamp, sync::Mutex};

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
            RemovalReason::Unclosed
            | RemovalReason::FatalAlert
            | RemovalReason::CacheFull
            | RemovalReason::Taken
            | RemovalReason::Removed => Miss::Removed,
        }
    }
}

/// Who shares a name for sessions: contexts of one session_id_context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group(u64);

/// How many departures of each kind are remembered in all. One takes about 90 bytes.
pub const DEPARTURES_MAX: usize = 1 << 15;

const PARTS: usize = 64;

/// The last departures of all caches.
#[derive(Debug)]
pub struct Journal {
    /// Ids are not kept, but what they hash to with a key that nobody knows.
    hasher: RandomState,
    parts: Box<[Mutex<Part>]>,
}

#[derive(Debug, Default)]
struct Part {
    /// Expired, taken, pushed out.
    usual: Ring,
    /// All else.
    notable: Ring,
}

/// The last so many, by number; a new one takes the place of the oldest.
#[derive(Debug, Default)]
struct Ring {
    all: Vec<Option<(u64, Departure)>>,
    oldest: usize,
    /// Where each is. The keys are hashes already.
    places: HashMap<u64, usize, BuildHasherDefault<AsItIs>>,
}

const RING: usize = DEPARTURES_MAX / PARTS;

/// Hashes what is a hash.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0 << 8 | u64::from(byte));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self { hasher: RandomState::new(), parts: (0..PARTS).map(|_| Mutex::default()).collect() }
    }
}

impl Journal {
    /// The group of a session_id_context.
    pub fn group(&self, session_id_context: &str) -> Group {
        Group(self.hasher.hash_one(session_id_context))
    }

    pub(super) fn record(&self, group: Group, session: &Facts, reason: RemovalReason, at: Timestamp) {
        let key = self.key(group, session.kind.role, &session.id);
        let kind = Arc::clone(&session.kind);
        let departure = Departure { at, reason, kind, authenticated: session.authenticated };
        let mut part = self.part(key).lock();
        let part = &mut *part;
        match reason {
            RemovalReason::Expired | RemovalReason::CacheFull | RemovalReason::Taken => {
                part.notable.remove(key);
                part.usual.push(key, departure);
            }
            RemovalReason::Unclosed
            | RemovalReason::FatalAlert
            | RemovalReason::Removed
            | RemovalReason::Revoked => {
                part.usual.remove(key);
                part.notable.push(key, departure);
            }
        }
    }

    /// The last departure of a session with this id, if it is remembered.
    pub fn find(&self, group: Group, role: Role, id: &SessionId) -> Option<Departure> {
        let key = self.key(group, role, id);
        let part = self.part(key).lock();
        part.usual.get(key).or_else(|| part.notable.get(key)).cloned()
    }

    fn key(&self, group: Group, role: Role, id: &SessionId) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(group.0.wrapping_add(role as u64));
        hasher.write(id.as_bytes());
        hasher.finish()
    }

    fn part(&self, key: u64) -> &Mutex<Part> {
        // Bits that the tables of a part do not go by.
        let [_, _, _, _, part, ..] = key.to_le_bytes();
        &self.parts[usize::from(part) % PARTS]
    }
}

impl Ring {
    fn get(&self, key: u64) -> Option<&Departure> {
        let place = *self.places.get(&key)?;
        self.all.get(place)?.as_ref().map(|(_, departure)| departure)
    }

    fn remove(&mut self, key: u64) {
        if let Some(place) = self.places.remove(&key) {
            self.all[place] = None;
        }
    }

    fn push(&mut self, key: u64, departure: Departure) {
        self.remove(key);
        let place = self.oldest;
        self.oldest = (place + 1) % RING;
        match self.all.get_mut(place) {
            None => self.all.push(Some((key, departure))),
            Some(held) => {
                if let Some((oldest, _)) = held.replace((key, departure)) {
                    self.places.remove(&oldest);
                }
            }
        }
        self.places.insert(key, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Format, Version, stats::Account};

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
        let group = journal.group("web");
        let at = Timestamp::from_millis;
        journal.record(group, &facts(1), RemovalReason::Unclosed, at(5));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Unclosed));
        journal.record(group, &facts(1), RemovalReason::Taken, at(6));
        assert_eq!(reason(&journal, group, 1), Some(RemovalReason::Taken));
        assert_eq!(reason(&journal, group, 2), None);
        assert_eq!(reason(&journal, journal.group("other"), 1), None);
        assert!(journal.find(group, Role::Client, &facts(1).id).is_none());
    }

    #[test]
    fn it_is_bounded_and_what_is_usual_drives_out_nothing_else() {
        let journal = Journal::default();
        let group = journal.group("web");
        journal.record(group, &facts(0), RemovalReason::Revoked, Timestamp::from_millis(5));
        for id in 1..200_000 {
            journal.record(group, &facts(id), RemovalReason::Taken, Timestamp::from_millis(6));
        }
        let held: usize = journal.parts.iter().map(|part| part.lock().usual.places.len()).sum();
        assert!(held <= DEPARTURES_MAX, "{held}");
        assert_eq!(reason(&journal, group, 0), Some(RemovalReason::Revoked));
        assert_eq!(reason(&journal, group, 199_999), Some(RemovalReason::Taken), "the last is there");
        assert_eq!(reason(&journal, group, 1), None, "the first is not");
    }
}
