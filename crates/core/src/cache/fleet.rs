//! Lookups and puts of a cache whose sessions a store shares with other daemons.
//!
//! The store has the sessions of servers, and those of clients whose TLS runs in a worker. The
//! sessions of clients of the daemon's own engine stay in the memory of this process: rustls has no
//! encoding of them. A lookup or a put in the store becomes a request for the caller to send; in
//! memory it is done at once.

use std::{collections::VecDeque, fmt, sync::Arc};

use aws_lc_rs::rand;
use tls_sessiond_store::{
    layout::Name,
    script::{Answer, Note, Reason, Request},
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

use super::{Cache, NotStored};
use crate::{
    clock::{Now, Timestamp},
    fleet::{
        Failure, Find, FindMiss, FleetStore, Hit, Hold, Purpose, Put, PutRefused, Refusal,
        TicketLook, reason,
    },
    session::{
        Attributes, Format, LIFETIME_MAX, Miss, NewSession, RemovalReason, ResumeCriteria, Session,
        SessionId, SessionInfo, events::EventKind, stats::Account,
    },
    sync::Ordering,
};

/// A session that a lookup found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The session.
    pub session: Arc<Session>,
    /// The hold on it, if it is of the shared store and the lookup has made one. Dropping it without
    /// a connection releases the session.
    pub hold: Option<Arc<Hold>>,
    /// It is sealed in tickets of its client, and stored nowhere: when the last of them expires. `None`: it is
    /// stored.
    pub sealed_until: Option<Timestamp>,
}

impl Found {
    /// A session in the memory of this process.
    pub fn near(session: Arc<Session>) -> Self {
        Self {
            session,
            hold: None,
            sealed_until: None,
        }
    }

    /// A session that is sealed in tickets of its client, of which the last one expires at this time.
    pub fn sealed(session: Arc<Session>, until: Timestamp) -> Self {
        Self {
            sealed_until: Some(until),
            ..Self::near(session)
        }
    }

    /// Returns whether both are the same session, not two that had the same id one after the other.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.hold, &other.hold) {
            (Some(one), Some(two)) => one.is_same_session(two),
            _ => Arc::ptr_eq(&self.session, &other.session),
        }
    }
}

/// A session that a worker has resumed while the shared store could not be asked for it.
#[derive(Debug)]
pub struct Unreached {
    fleet: Arc<FleetStore>,
    name: Name,
    id: SessionId,
}

impl Unreached {
    /// Returns the id of the session.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Removes the session, if the store has it.
    pub(crate) fn remove(&self, why: RemovalReason) {
        self.fleet.remove(self.name, reason(why));
    }
}

/// The outcome of [`Cache::look`].
#[derive(Debug)]
pub enum Look {
    /// The lookup is done.
    Done(Result<Found, Miss>),
    /// The shared store must be asked.
    Ask(Box<Ask>),
}

/// A lookup that waits for the shared store.
pub struct Ask {
    cache: Arc<Cache>,
    account: Arc<Account>,
    /// `None`: the lookup is by its place in a pool.
    id: Option<SessionId>,
    question: Question,
    is_event: bool,
}

/// What the store is asked.
enum Question {
    /// For a session that it has.
    Find(Find),
    /// Whether the session of a ticket is still good.
    Ticket(TicketLook, Session, Timestamp),
}

impl Ask {
    /// Asks whether the session of a ticket is still good.
    pub(super) fn of_ticket(
        cache: &Arc<Cache>,
        account: Arc<Account>,
        look: TicketLook,
        session: Session,
        until: Timestamp,
    ) -> Self {
        Self {
            cache: Arc::clone(cache),
            account,
            id: Some(session.id().clone()),
            question: Question::Ticket(look, session, until),
            is_event: true,
        }
    }
}

/// A session that [`Cache::keep`] has stored, or will have.
#[derive(Debug)]
pub struct Kept {
    /// The session. A connection holds it from now on.
    pub found: Found,
    /// The put into the shared store. Until its answer, no other daemon finds the session.
    pub put: Option<PendingPut>,
}

/// A put that waits for the shared store.
pub struct PendingPut {
    cache: Arc<Cache>,
    session: Arc<Session>,
    put: Put,
}

impl Cache {
    /// Returns the shared store, if it has sessions of this cache.
    pub fn fleet(&self) -> Option<&Arc<FleetStore>> {
        self.ledger.fleet.as_ref()
    }

    /// Returns the shared store, if it has the sessions of this cache in this format.
    fn fleet_of(&self, format: &Format) -> Option<&Arc<FleetStore>> {
        let is_near = self.role == Role::Client && *format == Format::Rustls;
        self.fleet().filter(|_| !is_near)
    }

    /// Returns the name of a session in the shared store.
    pub(super) fn name(&self, fleet: &FleetStore, id: &SessionId) -> Name {
        let keys = fleet.keys();
        keys.names().name(&self.scope, self.role, id.as_bytes())
    }

    /// Looks up the session with this id. A session must match `terms`.
    pub fn look(
        self: &Arc<Self>,
        id: &SessionId,
        terms: &ResumeCriteria<'_>,
        purpose: Purpose,
        account: &Arc<Account>,
        now: Now,
    ) -> Look {
        match self.fleet_of(terms.format) {
            None => Look::Done(self.find(id, terms, now).map(Found::near)),
            Some(fleet) => self.ask(fleet, id, Some(terms), purpose, account, now.at),
        }
    }

    /// Asks the shared store for a session that a connection names, to hold it. `is_here`: whether
    /// the daemon's engine runs the connection. `None`: no store shares such sessions.
    pub fn join(
        self: &Arc<Self>,
        id: &SessionId,
        is_here: bool,
        account: &Arc<Account>,
        now: Now,
    ) -> Option<Look> {
        let fleet = self
            .fleet()
            .filter(|_| self.role == Role::Server || !is_here)?;
        Some(self.ask(fleet, id, None, Purpose::Join, account, now.at))
    }

    /// Asks the shared store for a session, to explain it. `None`: no store shares the sessions of
    /// this cache.
    pub fn peek_shared(
        self: &Arc<Self>,
        id: &SessionId,
        account: &Arc<Account>,
        now: Now,
    ) -> Option<Look> {
        let fleet = self.fleet()?;
        Some(self.ask(fleet, id, None, Purpose::Peek, account, now.at))
    }

    fn ask(
        self: &Arc<Self>,
        fleet: &Arc<FleetStore>,
        id: &SessionId,
        terms: Option<&ResumeCriteria<'_>>,
        purpose: Purpose,
        account: &Arc<Account>,
        now: Timestamp,
    ) -> Look {
        self.tell_time(now);
        match fleet.find(self.name(fleet, id), purpose, terms, now) {
            Ok(find) => Look::Ask(Box::new(Ask {
                cache: Arc::clone(self),
                account: Arc::clone(account),
                id: Some(id.clone()),
                question: Question::Find(find),
                is_event: matches!(purpose, Purpose::Lookup | Purpose::Resume),
            })),
            Err(Refusal::Away) => Look::Done(Err(Miss::StoreUnavailable)),
            Err(Refusal::Removing) => Look::Done(Err(Miss::Removed)),
        }
    }

    /// Returns the request that removes a session of the shared store, and writes its note. `may_be_sealed`:
    /// whether the id may be that of a session in a ticket. `None`: no store shares the sessions of this
    /// cache.
    pub fn removal(&self, id: &SessionId, may_be_sealed: bool) -> Option<Request> {
        let fleet = self.fleet()?;
        let name = self.name(fleet, id);
        let notes = notes_of(id, may_be_sealed);
        let entries = notes.map(|note| (name, Some(note))).collect();
        Some(Request::Remove { entries })
    }

    /// Queues the removal of a session of the shared store: it is delivered as soon as the store
    /// answers.
    pub fn queue_removal(&self, id: &SessionId, may_be_sealed: bool) {
        if let Some(fleet) = self.fleet() {
            let name = self.name(fleet, id);
            notes_of(id, may_be_sealed).for_each(|note| fleet.remove_noted(name, note));
        }
    }

    /// Stores the session that a handshake made. The connection that made it holds it.
    ///
    /// # Errors
    /// Returns [`NotStored`] with the reason. The handshake goes on without the session.
    pub fn keep(self: &Arc<Self>, new: NewSession, now: Now) -> Result<Kept, NotStored> {
        let Some(fleet) = self.fleet_of(&new.format) else {
            let found = Found::near(self.put(new, now)?);
            return Ok(Kept { found, put: None });
        };
        self.ledger.tell_time(now.at);
        let pool = (self.role == Role::Client).then(|| {
            let keys = fleet.keys();
            let format = FleetStore::format(&new.format);
            keys.names()
                .pool(&self.scope, format, &new.binding, &new.server_name)
        });
        let mut new = new;
        if let Some(pool) = &pool {
            let mut id = [0; 16];
            rand::fill(&mut id).map_err(|_| NotStored::NoRandomness)?;
            pool.mark(&mut id);
            new.id = SessionId::new(&id);
        }
        let session = self.session(new, now)?;
        if session.told() > self.session_bytes_max.load(Ordering::Relaxed) {
            return Err(NotStored::TooLarge);
        }
        if self.revocations.cover(session.facts()) {
            return Err(NotStored::Revoked);
        }
        // Sessions of a client of the daemon's engine have no bytes, and stay in memory.
        let secret = session.secret().as_bytes().unwrap_or_default();
        let name = self.name(fleet, session.id());
        // `Explicit` contexts offer no session that its client did not name.
        let pool = pool.filter(|_| self.pool.is_some());
        let put = fleet.put(name, pool, session.facts(), secret, now)?;
        let session = Arc::new(session);
        let hold = Some(Arc::clone(put.hold()));
        Ok(Kept {
            found: Found {
                session: Arc::clone(&session),
                hold,
                sealed_until: None,
            },
            put: Some(PendingPut {
                cache: Arc::clone(self),
                session,
                put,
            }),
        })
    }

    /// Returns the name of a session that the shared store may have, although it could not be asked.
    /// The connection that uses the session removes it if it ends unclosed. `None`: no store shares the
    /// sessions of this cache.
    pub(crate) fn unreached(&self, id: &SessionId) -> Option<Unreached> {
        let fleet = self.fleet()?;
        Some(Unreached {
            fleet: Arc::clone(fleet),
            name: self.name(fleet, id),
            id: id.clone(),
        })
    }

    /// Ends a hold by removing its session. Returns whether the hold had not ended.
    pub(crate) fn withdraw_shared(&self, hold: &Hold, reason: RemovalReason) -> bool {
        let removed = hold.remove(reason);
        if removed {
            self.ledger
                .departed_from_fleet(self.group, hold.facts(), reason);
        }
        removed
    }

    /// Makes the session that the shared store has.
    fn take_hit(
        &self,
        mut hit: Hit,
        asked: Option<&SessionId>,
        account: &Arc<Account>,
        now: Now,
    ) -> Result<Found, Miss> {
        let secret = hit.value.secret.take();
        let Hit {
            name, value, head, ..
        } = &hit;
        let id = SessionId::new(&value.id).ok_or(Miss::StoreUnavailable)?;
        // A value opens only under its name, which is made of scope, role and id. The members of a pool
        // are names that the store gives, and may be of another scope.
        let is_ours = match asked {
            Some(asked) => *asked == id,
            None => self
                .fleet()
                .is_some_and(|fleet| self.name(fleet, &id) == *name),
        };
        if !is_ours {
            return Err(Miss::Scope);
        }
        let authenticated = now.offset.at(value.authenticated);
        let after = |moment| {
            let span = now.offset.at(moment).since(authenticated).min(LIFETIME_MAX);
            u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
        };
        let kind = Attributes {
            role: self.role,
            version: head.version,
            cipher_suite: value.cipher_suite.to_string().into(),
            server_name: value.server_name.clone(),
            format: value.format.clone(),
            binding: (&*value.binding).into(),
            single_use: head.single_use,
            account: Arc::clone(account),
            peer: value.peer.clone(),
        };
        let facts = SessionInfo {
            kind: self.ledger.kinds.intern(kind, &id),
            id,
            authenticated,
            created_after: after(value.created),
            lives: after(value.expires),
        };
        let secret = secret.ok_or(Miss::StoreUnavailable)?;
        let (open, is_taken) = (hit.holds, hit.is_taken());
        let session = Session::of_fleet(facts, secret, open.into());
        let hold = hit.into_hold(session.facts().clone()).map(Arc::new);
        // A session that is not resumed stays for the daemons that may resume it: a revocation that
        // this one made for a reload of its own does not concern them.
        if session.expired(now) {
            return Err(Miss::Expired);
        }
        if self.revocations.cover(session.facts()) {
            return Err(Miss::Revoked);
        }
        let found = Found {
            session: Arc::new(session),
            hold,
            sealed_until: None,
        };
        if is_taken {
            self.ledger.departed_from_fleet(
                self.group,
                found.session.facts(),
                RemovalReason::Taken,
            );
        }
        Ok(found)
    }
}

/// A search for the newest session of a client, in the shared store.
pub struct PoolSearch {
    cache: Arc<Cache>,
    account: Arc<Account>,
    format: Format,
    binding: Box<[u8]>,
    versions: Vec<Version>,
    server_name: ServerName<'static>,
    request: Request,
}

/// The sessions of a pool, newest first.
pub struct PoolMembers {
    search: PoolSearch,
    names: VecDeque<Name>,
    /// Sessions that the store does not have any more.
    gone: Vec<Name>,
}

impl Cache {
    /// Returns the search for the newest session with this server that matches `terms`. `None`: no
    /// store shares such sessions, or the cache offers none that clients did not name.
    pub fn search(
        self: &Arc<Self>,
        terms: &ResumeCriteria<'_>,
        account: &Arc<Account>,
    ) -> Option<PoolSearch> {
        let fleet = self.fleet_of(terms.format)?;
        self.pool.as_ref()?;
        let format = FleetStore::format(terms.format);
        let keys = fleet.keys();
        let pool = keys
            .names()
            .pool(&self.scope, format, terms.binding, terms.server_name);
        Some(PoolSearch {
            cache: Arc::clone(self),
            account: Arc::clone(account),
            format: terms.format.clone(),
            binding: terms.binding.into(),
            versions: terms.versions.to_vec(),
            server_name: terms.server_name.clone().into_owned(),
            request: Request::Newest {
                pool,
                gone: Vec::new(),
            },
        })
    }
}

impl PoolSearch {
    /// Returns the request to send.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Takes the answer.
    pub fn answered(self, answer: Result<Answer, Failure>) -> PoolMembers {
        let names = match answer {
            Ok(Answer::Names(names)) => names.into(),
            _ => VecDeque::new(),
        };
        PoolMembers {
            search: self,
            names,
            gone: Vec::new(),
        }
    }
}

impl PoolMembers {
    /// Returns the lookup of the next session. `None`: there is none left.
    pub fn next_lookup(&mut self, now: Now) -> Option<Ask> {
        let PoolSearch {
            cache,
            account,
            format,
            binding,
            versions,
            server_name,
            ..
        } = &self.search;
        let fleet = cache.fleet()?;
        let terms = ResumeCriteria {
            format,
            binding,
            versions,
            server_name,
            cipher_suite: None,
        };
        while let Some(name) = self.names.pop_front() {
            // A name that is away, or that this daemon has removed, is passed over.
            if let Ok(find) = fleet.find(name, Purpose::Lookup, Some(&terms), now.at) {
                self.gone.push(name);
                return Some(Ask {
                    cache: Arc::clone(cache),
                    account: Arc::clone(account),
                    id: None,
                    question: Question::Find(find),
                    is_event: true,
                });
            }
        }
        None
    }

    /// Takes the outcome of the last lookup. Returns the session, if it was found.
    pub fn looked_up(&mut self, found: Result<Found, Miss>) -> Option<Found> {
        match found {
            Ok(found) => {
                // One that is not single-use stays in the pool.
                if !found.session.kind().single_use {
                    self.gone.pop();
                }
                Some(found)
            }
            Err(Miss::Unknown | Miss::Removed) => None,
            Err(_) => {
                self.gone.pop();
                None
            }
        }
    }

    /// Returns the request that takes out of the pool what the store does not have any more.
    pub fn forget(self) -> Option<Request> {
        match self.search.request {
            Request::Newest { pool, .. } if !self.gone.is_empty() => Some(Request::Newest {
                pool,
                gone: self.gone,
            }),
            _ => None,
        }
    }
}

impl Ask {
    /// Returns the request to send.
    pub fn request(&self) -> &Request {
        match &self.question {
            Question::Find(find) => find.request(),
            Question::Ticket(look, ..) => look.request(),
        }
    }

    /// Takes the answer.
    ///
    /// # Errors
    /// The reason of the miss.
    pub fn answered(self, answer: Result<Answer, Failure>, now: Now) -> Result<Found, Miss> {
        self.explained(answer, now).map_err(|(miss, _)| miss)
    }

    /// Takes the answer, and tells why the session was removed, as far as its note has it.
    ///
    /// # Errors
    /// The reason of the miss.
    pub fn explained(
        self,
        answer: Result<Answer, Failure>,
        now: Now,
    ) -> Result<Found, (Miss, Option<RemovalReason>)> {
        let Self {
            cache,
            account,
            id,
            question,
            is_event,
        } = self;
        cache.tell_time(now.at);
        let missed = |why| match why {
            FindMiss::Away | FindMiss::Unopened => (Miss::StoreUnavailable, None),
            FindMiss::Unknown => {
                // This daemon may know more: that it has handed the session out, for example.
                let departure = id.as_ref().and_then(|id| {
                    let tombstones = &cache.ledger.tombstones;
                    tombstones.find(cache.group, cache.role, id)
                });
                departure.map_or((Miss::Unknown, None), |departure| {
                    (departure.miss(), Some(departure.reason))
                })
            }
            FindMiss::Gone(Some(Reason::Revoked)) => (Miss::Revoked, Some(RemovalReason::Revoked)),
            FindMiss::Gone(reason) => (Miss::Removed, reason.and_then(removal_reason)),
            FindMiss::Scope => (Miss::Scope, None),
            FindMiss::HolderLost => (Miss::HolderLost, None),
        };
        let find = match question {
            Question::Find(find) => find,
            Question::Ticket(look, session, until) => {
                look.answered(answer, now.at).map_err(missed)?;
                return cache
                    .admit_shared(session, until, now)
                    .map_err(|miss| (miss, None));
            }
        };
        let hit = find.answered(answer, now.at).map_err(missed)?;
        let found = cache
            .take_hit(hit, id.as_ref(), &account, now)
            .map_err(|miss| (miss, None))?;
        if is_event {
            cache
                .ledger
                .watchers
                .publish(&found.session, EventKind::Hit, now.at);
        }
        Ok(found)
    }
}

/// Returns the notes of a session that a caller removes: as a stored one, and as one in a ticket if it may be
/// that. The lifetime of a ticket that is elsewhere is not known.
fn notes_of(id: &SessionId, may_be_sealed: bool) -> impl Iterator<Item = Note> + use<> {
    let longest = u64::try_from(LIFETIME_MAX.as_millis()).unwrap_or(u64::MAX);
    let of_ticket = may_be_sealed && super::sealed::may_be_sealed(id);
    let lives = [None, Some(longest)]
        .into_iter()
        .take(1 + usize::from(of_ticket));
    lives.map(|ticket_life| Note {
        reason: Reason::Removed,
        ticket_life,
    })
}

/// Returns the reason that a note has. A session that was withdrawn has none: no client had it.
fn removal_reason(note: Reason) -> Option<RemovalReason> {
    match note {
        Reason::Unclosed => Some(RemovalReason::Unclosed),
        Reason::FatalAlert => Some(RemovalReason::FatalAlert),
        Reason::Removed => Some(RemovalReason::Removed),
        Reason::Revoked => Some(RemovalReason::Revoked),
        Reason::Spent => Some(RemovalReason::Taken),
        Reason::Withdrawn => None,
    }
}

impl PendingPut {
    /// Returns the request to send. `None`: the session was removed meanwhile, so the put is not to
    /// be sent.
    pub fn request(&self) -> Option<&Request> {
        self.put.is_wanted().then(|| self.put.request())
    }

    /// Takes the answer.
    ///
    /// # Errors
    /// Why the session is not stored. Its connection has to drop it.
    pub fn answered(self, answer: Result<Answer, Failure>, now: Now) -> Result<(), NotStored> {
        let Self {
            cache,
            session,
            put,
        } = self;
        put.answered(answer, now)?;
        cache
            .ledger
            .watchers
            .publish(&session, EventKind::Added, now.at);
        Ok(())
    }
}

impl From<PutRefused> for NotStored {
    fn from(why: PutRefused) -> Self {
        match why {
            PutRefused::Away => Self::StoreAway,
            PutRefused::IdTaken => Self::IdTaken,
            PutRefused::NoRandomness => Self::NoRandomness,
        }
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.question {
            Question::Find(find) => find.fmt(f),
            Question::Ticket(look, ..) => look.fmt(f),
        }
    }
}

impl fmt::Debug for PendingPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.put.fmt(f)
    }
}
