//! The meaning of the scripts, as a store in memory. The contract suite compares it with real
//! servers, and the simulation runs daemons on it.

use std::collections::BTreeMap;

use tls_sessiond_store::{
    layout::{Bucket, Name, Pool},
    script::{
        Answer, Claim, Criteria, Expected, Head, Holder, Mode, NEWEST_MAX, Note, Reason, Refused,
        Request, Revocation, Token,
    },
};

const POOL_MAX: usize = 64;

const HOLDS_MAX: usize = 255;

#[derive(Clone, Debug)]
enum Entry {
    Session {
        head: Head,
        holds: Vec<(Holder, Token)>,
        sealed: Vec<u8>,
    },
    Note {
        reason: Reason,
        at: u64,
    },
}

/// Faults that the simulation must find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// A release ends the first hold of its holder, whatever its token is.
    pub(crate) release_without_token: bool,
    /// A single-use session is deleted before its criteria are checked.
    pub(crate) deletion_before_scope_check: bool,
    /// A heartbeat counts if it is there, whatever its value is.
    pub(crate) presence_instead_of_value: bool,
    /// A ticket is good although the daemon that sealed it is not alive.
    pub(crate) tickets_of_the_dead: bool,
}

/// A store in memory. Its clock stands still until a test moves it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) now: u64,
    pub(crate) faults: Faults,
    entries: BTreeMap<Name, (Entry, u64)>,
    beats: BTreeMap<(Bucket, Holder), u64>,
    resigned: BTreeMap<(Bucket, Holder), Box<str>>,
    /// Sessions of tickets that are not good, each with the end of its ticket.
    list: BTreeMap<Name, (Reason, u64)>,
    revisions: BTreeMap<Bucket, u64>,
    /// Names by the time and the order of their put.
    pools: BTreeMap<Pool, Vec<(u64, Name)>>,
    revocations: BTreeMap<[u8; 16], Revocation>,
    revocations_version: u64,
}

impl Model {
    /// Returns an empty store whose clock shows `now`.
    pub(crate) fn new(now: u64, faults: Faults) -> Self {
        Self {
            now,
            faults,
            ..Self::default()
        }
    }

    /// Runs a request.
    pub(crate) fn run(&mut self, request: &Request) -> Answer {
        let now = self.now;
        self.entries.retain(|_, (_, expires)| *expires > now);
        match request {
            Request::Find {
                name,
                claim,
                token,
                mode,
                valid_until,
            } => match self.refused(name.bucket(), claim) {
                Some(refused) => Answer::Refused(refused),
                None if self.now > *valid_until => Answer::Overdue {
                    now: None,
                    revision: None,
                },
                None => self.find(*name, claim, *token, mode),
            },
            Request::Put {
                name,
                claim,
                token,
                head,
                sealed,
                valid_until,
                life,
                pool,
            } => {
                if let Some(refused) = self.refused(name.bucket(), claim) {
                    return Answer::Refused(refused);
                }
                if self.now > *valid_until {
                    return Answer::Overdue {
                        now: None,
                        revision: None,
                    };
                }
                let hold = (claim.holder, *token);
                match self.entries.get(name) {
                    None => {
                        let entry = Entry::Session {
                            head: *head,
                            holds: vec![hold],
                            sealed: sealed.clone(),
                        };
                        self.entries.insert(*name, (entry, self.now + life));
                        if let Some(pool) = pool {
                            let members = self.pools.entry(*pool).or_default();
                            members.retain(|(_, member)| member != name);
                            members.push((self.now, *name));
                            // As a sorted set: by time, then by name.
                            members.sort();
                            let over = members.len().saturating_sub(POOL_MAX);
                            members.drain(..over);
                        }
                        Answer::Stored
                    }
                    Some((Entry::Note { reason, at }, _)) => Answer::Gone {
                        reason: Some(*reason),
                        at: *at,
                    },
                    Some((
                        Entry::Session {
                            head: held, holds, ..
                        },
                        _,
                    )) if held == head && holds.contains(&hold) => Answer::Stored,
                    Some(_) => Answer::Taken,
                }
            }
            Request::Release { holder, holds } => {
                let mut done = 0;
                for (name, token) in holds {
                    let any = self.faults.release_without_token;
                    if let Some((Entry::Session { holds, .. }, _)) = self.entries.get_mut(name)
                        && let Some(place) = holds
                            .iter()
                            .position(|hold| hold.0 == *holder && (any || hold.1 == *token))
                    {
                        holds.remove(place);
                        done += 1;
                    }
                }
                Answer::Done(done)
            }
            Request::Remove { entries } => {
                let mut done = 0;
                for (name, note) in entries {
                    if let Some(note) = note.filter(|note| note.ticket_life.is_some()) {
                        done += u64::from(self.put_on_list(*name, note));
                        continue;
                    }
                    let is_note = matches!(self.entries.get(name), Some((Entry::Note { .. }, _)));
                    if is_note {
                        continue;
                    }
                    done += u64::from(self.entries.remove(name).is_some());
                    if let Some(note) = note {
                        self.note(*name, *note);
                    }
                }
                Answer::Done(done)
            }
            Request::Beat {
                bucket,
                holder,
                life,
                expected,
                valid_until,
            } => {
                let revision = self.revision(*bucket);
                if self.now > *valid_until {
                    return Answer::Overdue {
                        now: Some(self.now),
                        revision: Some(revision),
                    };
                }
                let own = self.beats.get(&(*bucket, *holder)).copied();
                let is_there = match expected {
                    Expected::Any => true,
                    Expected::Deadline(_) if self.faults.presence_instead_of_value => own.is_some(),
                    Expected::Deadline(deadline) => own == Some(*deadline),
                };
                if !is_there {
                    return Answer::BeatLost {
                        now: self.now,
                        revision,
                    };
                }
                if *expected == Expected::Any {
                    let now = self.now;
                    self.beats
                        .retain(|(of, _), deadline| of != bucket || *deadline + 3_600_000 >= now);
                }
                let deadline = self.now + life;
                self.beats.insert((*bucket, *holder), deadline);
                Answer::Beaten {
                    now: self.now,
                    deadline,
                    revision,
                }
            }
            Request::Resign {
                bucket,
                holder,
                server,
            } => {
                let resigned = self.beats.remove(&(*bucket, *holder)).is_some();
                if resigned {
                    self.resigned.insert((*bucket, *holder), server.clone());
                }
                Answer::Done(resigned.into())
            }
            Request::Ticket {
                name,
                claim,
                sealer,
                server,
                spends,
                life,
                valid_until,
            } => match self.refused(name.bucket(), claim) {
                Some(refused) => Answer::Refused(refused),
                None if self.now > *valid_until => Answer::Overdue {
                    now: None,
                    revision: None,
                },
                None => self.ticket(*name, *sealer, server, spends.then_some(*life)),
            },
            Request::Newest { pool, gone } => {
                let members = self.pools.entry(*pool).or_default();
                members.retain(|(_, member)| !gone.contains(member));
                let newest = members.iter().rev().take(NEWEST_MAX);
                Answer::Names(newest.map(|(_, name)| *name).collect())
            }
            Request::Revoke {
                entries,
                known,
                most,
            } => {
                self.revocations.retain(|_, held| held.ends >= now);
                let new = entries
                    .iter()
                    .filter(|entry| !self.revocations.contains_key(&entry.id))
                    .count() as u64;
                if self.revocations.len() as u64 + new > *most {
                    return Answer::TooMany;
                }
                let mut later = false;
                for entry in entries {
                    let ends = self.revocations.get(&entry.id).map_or(0, |held| held.ends);
                    if ends < entry.ends {
                        later = true;
                        self.revocations.insert(entry.id, entry.clone());
                    }
                }
                if later {
                    self.revocations_version = (self.revocations_version + 1).max(now);
                }
                self.revocations_version = self.revocations_version.max(*known);
                Answer::Revocations {
                    revision: self.revocations_version,
                    entries: Vec::new(),
                }
            }
            Request::Revocations => Answer::Revocations {
                revision: self.revocations_version,
                entries: self.revocations.values().cloned().collect(),
            },
            // Rings have no sessions, and the simulation of sessions has no rings.
            Request::Ring { .. } | Request::Spend { .. } => Answer::Malformed,
            Request::Revise { bucket, revision } => {
                let higher = *revision > self.revision(*bucket);
                if higher {
                    self.revisions.insert(*bucket, *revision);
                }
                Answer::Done(higher.into())
            }
        }
    }

    fn note(&mut self, name: Name, note: Note) {
        let entry = Entry::Note {
            reason: note.reason,
            at: self.now,
        };
        self.entries.insert(name, (entry, self.now + note.life()));
    }

    /// Returns whether the session was not on the list.
    fn put_on_list(&mut self, name: Name, note: Note) -> bool {
        let (now, until) = (self.now, self.now + note.life());
        self.list.retain(|_, (_, until)| *until > now);
        let is_new = !self.list.contains_key(&name);
        let (_, held) = self.list.entry(name).or_insert((note.reason, until));
        *held = until.max(*held);
        is_new
    }

    fn ticket(
        &mut self,
        name: Name,
        sealer: Holder,
        server: &str,
        spent_for: Option<u64>,
    ) -> Answer {
        let held = self.list.get(&name).filter(|(_, until)| *until > self.now);
        if let Some((reason, _)) = held {
            return Answer::Gone {
                reason: Some(*reason),
                at: 0,
            };
        }
        let sealer = (name.bucket(), sealer);
        let lives = self
            .beats
            .get(&sealer)
            .is_some_and(|deadline| *deadline > self.now);
        let lives = lives || self.faults.tickets_of_the_dead;
        if !lives && self.resigned.get(&sealer).is_none_or(|of| **of != *server) {
            return Answer::HolderLost;
        }
        if spent_for.is_some() {
            let note = Note {
                reason: Reason::Spent,
                ticket_life: spent_for,
            };
            self.put_on_list(name, note);
        }
        Answer::Good
    }

    fn find(&mut self, name: Name, claim: &Claim, token: Token, mode: &Mode) -> Answer {
        if let Some(refused) = self.refused(name.bucket(), claim) {
            return Answer::Refused(refused);
        }
        let (head, holds, sealed) = match self.entries.get(&name) {
            None => return Answer::None,
            Some((Entry::Note { reason, at }, _)) => {
                return Answer::Gone {
                    reason: Some(*reason),
                    at: *at,
                };
            }
            Some((
                Entry::Session {
                    head,
                    holds,
                    sealed,
                },
                _,
            )) => (*head, holds.clone(), sealed.clone()),
        };
        let takes = head.single_use && matches!(mode, Mode::Lookup(_) | Mode::Resume(_));
        if takes && self.faults.deletion_before_scope_check {
            self.entries.remove(&name);
        }
        if let Mode::Lookup(criteria) | Mode::Resume(criteria) = mode
            && !fits(&head, criteria)
        {
            return Answer::Scope;
        }
        let lives = |holder: Holder| {
            self.beats
                .get(&(name.bucket(), holder))
                .is_some_and(|deadline| *deadline > self.now)
        };
        if !holds.iter().all(|(holder, _)| lives(*holder)) {
            return Answer::HolderLost;
        }
        let answer = Answer::Found {
            head,
            holds: holds.len().try_into().unwrap(),
            sealed,
        };
        if takes {
            self.entries.remove(&name);
            return answer;
        }
        let hold = (claim.holder, token);
        if matches!(mode, Mode::Join | Mode::Resume(_)) && !holds.contains(&hold) {
            if holds.len() == HOLDS_MAX {
                return Answer::Full;
            }
            if let Some((Entry::Session { holds, .. }, _)) = self.entries.get_mut(&name) {
                holds.push(hold);
            }
        }
        answer
    }

    fn refused(&self, bucket: Bucket, claim: &Claim) -> Option<Refused> {
        let own = self.beats.get(&(bucket, claim.holder)).copied();
        let is_lost = match self.faults.presence_instead_of_value {
            true => own.is_none(),
            false => own.unwrap_or(0) < claim.deadline,
        };
        if is_lost {
            return Some(Refused::Lost);
        }
        if own.unwrap_or(0) <= self.now {
            return Some(Refused::Late);
        }
        let revision = self.revision(bucket);
        (revision != claim.revision).then_some(Refused::Revised(revision))
    }

    fn revision(&self, bucket: Bucket) -> u64 {
        self.revisions.get(&bucket).copied().unwrap_or(0)
    }

    /// Ends a heartbeat, as time does.
    pub(crate) fn lapse(&mut self, bucket: Bucket, holder: Holder) {
        if let Some(deadline) = self.beats.get_mut(&(bucket, holder)) {
            *deadline = 1;
        }
    }

    /// Loses a heartbeat, as a restart or an eviction does.
    pub(crate) fn lose_beat(&mut self, bucket: Bucket, holder: Holder) {
        self.beats.remove(&(bucket, holder));
    }

    /// Loses an entry, as its expiry or an eviction does.
    pub(crate) fn lose_entry(&mut self, name: Name) {
        self.entries.remove(&name);
    }

    /// Loses the list of tickets, and with it what vouches for them.
    pub(crate) fn lose_list(&mut self, bucket: Bucket) {
        self.list.retain(|name, _| name.bucket() != bucket);
        self.resigned.retain(|(of, _), _| *of != bucket);
        self.beats.retain(|(of, _), _| *of != bucket);
    }

    /// Loses every heartbeat.
    pub(crate) fn lose_all_beats(&mut self) {
        self.beats.clear();
    }

    /// Moves a heartbeat, as the clock of another machine would have it.
    pub(crate) fn skew(&mut self, bucket: Bucket, holder: Holder, by: i64) {
        if let Some(deadline) = self.beats.get_mut(&(bucket, holder)) {
            *deadline = deadline.saturating_add_signed(by);
        }
    }

    /// Returns whether a session is stored.
    pub(crate) fn has(&self, name: Name) -> bool {
        matches!(self.entries.get(&name), Some((Entry::Session { .. }, expires)) if *expires > self.now)
    }

    /// Returns the notes.
    pub(crate) fn notes(&self) -> Vec<Name> {
        let notes = self
            .entries
            .iter()
            .filter(|(_, (entry, _))| matches!(entry, Entry::Note { .. }));
        notes.map(|(name, _)| *name).collect()
    }
}

fn fits(head: &Head, criteria: &Criteria) -> bool {
    head.fit == criteria.fit
        && criteria.versions.contains(&head.version)
        && criteria
            .cipher_suite
            .is_none_or(|suite| suite == head.cipher_suite)
}
