//! All live connections.
//!
//! A call locks its connection and nothing else, and never waits while it does. A connection that is freed while a call
//! waits for its lock is gone for that call.

mod driver;
mod held;
mod order;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use arc_swap::{ArcSwap, Guard};
use dashmap::DashMap;
use parking_lot::Mutex;

pub use self::{
    driver::{Driver, Ending},
    held::Lapse,
};
use self::{held::Held, order::Order};
use super::{
    Connection, ConnectionId, Error, Named, Plan, Removed, State,
    unanswered::{Unanswered, UnansweredOfOne},
};
use tls_sessiond_types::Role;

use crate::{
    cache::Known,
    clock::{Clock, Now, Timestamp},
    context::{Context, Dropped, Registry},
    session::{RemovalReason, Session, SessionId},
};

/// Connections by id.
#[derive(Debug)]
pub struct Table {
    live: DashMap<ConnectionId, Arc<Held>>,
    /// The same, in the order of lists.
    order: Mutex<Order>,
    /// How many connections there have been.
    made: AtomicU64,
    count: AtomicUsize,
    owners: DashMap<Arc<str>, Owner>,
    unanswered: Unanswered,
    most: LiveMost,
    registry: ArcSwap<Registry>,
    clock: Clock,
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// In all.
    pub all: usize,
    /// Of one owner.
    pub of_one: usize,
}

impl Most {
    /// So many, whoever owns them.
    pub fn all(count: usize) -> Self {
        Self { all: count, of_one: count }
    }
}

/// The same, which a reload may change.
#[derive(Debug)]
struct LiveMost {
    all: AtomicUsize,
    of_one: AtomicUsize,
}

/// What the connections of one owner hold.
#[derive(Debug)]
struct Owner {
    connections: usize,
    unanswered: UnansweredOfOne,
}

/// A connection of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where the list goes on after it: how many connections were made before it.
    pub number: u64,
    /// Its id.
    pub id: ConnectionId,
}

/// How many connections one step of a list looks at, under one hold of a lock: some microseconds.
pub const LISTED_AT_ONCE: usize = 128;

/// A session that a caller names, and the contexts whose sessions that caller may know of.
#[derive(Clone, Copy)]
pub struct Wanted<'w> {
    /// Its id.
    pub id: &'w SessionId,
    /// The contexts as they are for the call.
    pub registry: &'w Registry,
    /// Whether a context of this name is one of them.
    pub within: &'w dyn Fn(&str) -> bool,
}

impl Table {
    /// An empty table.
    pub fn new(registry: Arc<Registry>, clock: Clock, most: Most) -> Self {
        let registry = ArcSwap::new(registry);
        Self {
            live: DashMap::new(),
            order: Mutex::default(),
            made: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            owners: DashMap::new(),
            unanswered: Unanswered::default(),
            most: LiveMost { all: most.all.into(), of_one: most.of_one.into() },
            registry,
            clock,
        }
    }

    /// SSL_new(3), and SSL_set_session(3) where a session is named. `see` reads the new connection.
    ///
    /// # Errors
    /// Those of [`Connection::new`] and [`Self::set_session`], and the table being full.
    pub fn create<R>(
        &self,
        plan: Plan,
        session: Option<Wanted<'_>>,
        see: impl FnOnce(&Connection, Lapse) -> R,
    ) -> Result<R, Error> {
        let now = self.clock.now();
        let mut connection = Connection::new(plan, now.at)?;
        // First of all, for a session that a worker has resumed is lost with a connection that is dropped.
        let unanswered = self.count(connection.owner())?;
        connection.unanswered = Some(unanswered.lease());
        let named = session.map_or(Ok(None), |wanted| {
            let named = self.resolve(connection.context(), connection.role(), wanted, now)?;
            connection.set_session(named).map(Some)
        });
        if let Err(err) = named {
            self.discount(connection.owner());
            return Err(err);
        }
        let lapse = Lapse::of(&connection, now);
        let seen = see(&connection, lapse);
        let held = Held {
            id: connection.id(),
            number: self.made.fetch_add(1, Ordering::Relaxed),
            context: Arc::clone(&connection.context().name),
            owner: Arc::clone(connection.owner()),
            expires: AtomicU64::new(lapse.at.as_millis()),
            connection: Mutex::new(Some(connection)),
            driven: AtomicBool::new(false),
            driver: Mutex::default(),
        };
        let held = Arc::new(held);
        // Nothing frees it before it is in both.
        self.order.lock().insert(&held);
        self.live.insert(held.id, held);
        Ok(seen)
    }

    /// Looks at a connection, which is no use of it. `see` is told when it lapses.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn look<R>(&self, id: ConnectionId, see: impl FnOnce(&Connection, Lapse) -> R) -> Result<R, Error> {
        let held = self.held(id)?;
        let connection = held.connection.lock();
        let connection = connection.as_ref().ok_or(Error::NotFound(id))?;
        Ok(see(connection, self.lapse(&held)))
    }

    /// Uses a connection.
    ///
    /// # Errors
    /// [`Error::NotFound`], and what the use refuses.
    pub fn apply<R>(
        &self,
        id: ConnectionId,
        call: impl FnOnce(&mut Connection, Now) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.apply_held(&*self.held(id)?, call)
    }

    /// Uses a connection that no Drive runs.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Busy`], and what the use refuses.
    pub fn apply_alone<R>(
        &self,
        id: ConnectionId,
        call: impl FnOnce(&mut Connection, Now) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let held = self.held(id)?;
        self.apply_held(&held, |connection, now| {
            // Asked under the connection's lock, which a Drive holds when it takes over.
            if held.driven.load(Ordering::Acquire) { Err(Error::Busy) } else { call(connection, now) }
        })
    }

    /// SSL_set_session(3), by id; none detaches. An id of no session is accepted, and the next handshake is full. The id of
    /// the attached session replaces nothing on an established connection, also where that session has left the cache since.
    ///
    /// # Errors
    /// Those of [`Self::apply_alone`]; the session is another context's, role's or server's.
    pub fn set_session<R>(
        &self,
        id: ConnectionId,
        session: Option<Wanted<'_>>,
        see: impl FnOnce(&Connection, Vec<Removed>) -> R,
    ) -> Result<R, Error> {
        self.apply_alone(id, |connection, now| {
            let named = match session {
                Some(wanted) => {
                    let resolved = self.resolve(connection.context(), connection.role(), wanted, now);
                    match (resolved, attached(connection, wanted.id)) {
                        (Ok(Named::Session(session)), _) => Named::Session(session),
                        (_, Some(attached)) => Named::Session(attached),
                        (resolved, None) => resolved?,
                    }
                }
                None => Named::Nothing,
            };
            let removed = connection.set_session(named)?;
            Ok(see(connection, removed))
        })
    }

    /// SSL_free(3). A Drive that runs it ends.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn free(&self, id: ConnectionId) -> Result<Vec<Removed>, Error> {
        let removed = self.held(id)?.free(self.clock.now().at).ok_or(Error::NotFound(id))?;
        self.forget(id);
        Ok(removed)
    }

    /// Lends a connection to a stream that runs it. With `frees`, the connection is freed when the stream ends.
    ///
    /// # Errors
    /// [`Error::NotFound`], and [`Error::Busy`] where another stream runs it.
    pub fn drive(self: &Arc<Self>, id: ConnectionId, ending: Ending) -> Result<Driver, Error> {
        let held = self.held(id)?;
        let connection = held.connection.lock();
        if held.driven.swap(true, Ordering::AcqRel) {
            return Err(Error::Busy);
        }
        drop(connection);
        Ok(Driver { table: Arc::clone(self), held, ending })
    }

    /// Frees what lay unused for longer than its idle time-out. Tells how many.
    pub fn sweep(&self) -> usize {
        let now = self.clock.now().at;
        let mut lapsed = Vec::new();
        self.live.iter().filter(|held| held.expires() <= now).for_each(|held| lapsed.push(Arc::clone(&held)));
        lapsed.into_iter().filter(|held| self.free_if_lapsed(held, now)).count()
    }

    fn free_if_lapsed(&self, held: &Held, now: Timestamp) -> bool {
        // The time is asked again under the lock that every use holds when it moves it.
        let mut connection = held.connection.lock();
        if held.expires() > now {
            return false;
        }
        let Some(lapsed) = connection.take() else { return false };
        drop(connection);
        if let Some(driver) = held.driver.lock().take() {
            driver.wake();
        }
        lapsed.tell_time(now);
        lapsed.free();
        self.forget(held.id);
        true
    }

    /// Frees every connection: the daemon stops.
    pub fn free_all(&self) {
        let mut all = Vec::new();
        self.live.iter().for_each(|held| all.push(Arc::clone(&held)));
        let now = self.clock.now().at;
        for held in all {
            if held.free(now).is_some() {
                self.forget(held.id);
            }
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes of unfinished handshakes all connections hold.
    pub fn unanswered(&self) -> usize {
        self.unanswered.bytes()
    }

    /// Whether a connection has this id.
    pub fn holds(&self, id: ConnectionId) -> bool {
        self.live.contains_key(&id)
    }

    /// Asks for a connection's owner and context, which never change.
    ///
    /// # Errors
    /// [`Error::NotFound`], also where the answer is no: as if it were not there.
    pub fn belongs(&self, id: ConnectionId, to: impl FnOnce(&str, &str) -> bool) -> Result<(), Error> {
        let held = self.live.get(&id).ok_or(Error::NotFound(id))?;
        if to(&held.owner, &held.context) { Ok(()) } else { Err(Error::NotFound(id)) }
    }

    /// Looks at up to [`LISTED_AT_ONCE`] connections after a place, oldest first, and appends up to `count` of those whose owner
    /// and context are wanted to `found`. Returns where to go on; `None`: there are no more.
    pub fn page(
        &self,
        wanted: impl Fn(&str, &str) -> bool,
        after: Option<u64>,
        count: usize,
        found: &mut Vec<Listed>,
    ) -> Option<u64> {
        let slice: Vec<_> = self.order.lock().after(after).take(LISTED_AT_ONCE).map(Arc::clone).collect();
        let mut last = None;
        let mut left = count;
        for held in &slice {
            if left == 0 {
                return last;
            }
            if wanted(&held.owner, &held.context) {
                found.push(Listed { number: held.number, id: held.id });
                left -= 1;
            }
            last = Some(held.number);
        }
        last.filter(|_| slice.len() == LISTED_AT_ONCE)
    }

    /// The contexts it makes connections from and the rules of access to them, as they are now. A call asks once, and takes
    /// its rights and its context from the answer.
    pub fn registry(&self) -> Guard<Arc<Registry>> {
        self.registry.load()
    }

    /// Makes connections from other contexts, by other rules, from now on. Running connections keep what they began with.
    /// Returns how many sessions that dropped.
    pub fn swap(&self, registry: Arc<Registry>) -> Dropped {
        let since = self.clock.now().at;
        self.registry.load().ledger().tell_time(since);
        // Nobody finds the new ones before they are what they shall be.
        registry.follow(&self.registry.load(), since);
        let before = self.registry.swap(Arc::clone(&registry));
        // Whoever revoked meanwhile did it in the old ones, or sees the new ones and does it again.
        registry.follow(&before, since);
        before.retire(&registry)
    }

    /// Changes how many connections there may be. Those that there are stay.
    pub fn resize(&self, most: Most) {
        self.most.all.store(most.all, Ordering::Relaxed);
        self.most.of_one.store(most.of_one, Ordering::Relaxed);
    }

    /// Reads its clock.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    fn lapse(&self, held: &Held) -> Lapse {
        Lapse { at: held.expires(), offset: self.clock.offset() }
    }

    fn held(&self, id: ConnectionId) -> Result<Arc<Held>, Error> {
        self.live.get(&id).map(|held| Arc::clone(&held)).ok_or(Error::NotFound(id))
    }

    fn forget(&self, id: ConnectionId) {
        if let Some((_, held)) = self.live.remove(&id) {
            let last = self.order.lock().remove(held.number);
            // Its memory is given back after the lock is let go of.
            drop(last);
            self.discount(&held.owner);
        }
    }

    fn count(&self, owner: &Arc<str>) -> Result<UnansweredOfOne, Error> {
        let all = self.count.fetch_add(1, Ordering::AcqRel);
        let mut held = self
            .owners
            .entry(Arc::clone(owner))
            .or_insert_with(|| Owner { connections: 0, unanswered: self.unanswered.of_one() });
        held.connections += 1;
        let most = &self.most;
        let (most, most_of_one) = (most.all.load(Ordering::Relaxed), most.of_one.load(Ordering::Relaxed));
        let too_many = if all >= most {
            Error::TooManyConnections(most)
        } else if held.connections > most_of_one {
            Error::TooManyOfOwner(most_of_one)
        } else {
            return Ok(held.unanswered.clone());
        };
        drop(held);
        self.discount(owner);
        Err(too_many)
    }

    fn discount(&self, owner: &Arc<str>) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.owners.remove_if_mut(owner, |_, held| {
            held.connections -= 1;
            held.connections == 0
        });
    }

    fn apply_held<R>(
        &self,
        held: &Held,
        call: impl FnOnce(&mut Connection, Now) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut connection = held.connection.lock();
        let connection = connection.as_mut().ok_or(Error::NotFound(held.id))?;
        let now = self.clock.now();
        connection.tell_time(now.at);
        let result = call(connection, now);
        // Afterwards: what the call has left of a handshake decides as well.
        held.touch(connection, now);
        result
    }

    fn resolve(&self, context: &Context, role: Role, wanted: Wanted<'_>, now: Now) -> Result<Named, Error> {
        let id = wanted.id;
        match context.cache(role).explain(id, now) {
            Known::Held(session, None) => return Ok(Named::Session(session)),
            Known::Departed(departure) if may_be_on_its_way(departure.reason) => {
                return Ok(Named::Departed(departure));
            }
            Known::Held(_, Some(_)) | Known::Departed(_) | Known::Nothing => {}
        }
        // One of contexts that the caller does not know is as if it were not there.
        let mut known = wanted.registry.all().iter().filter(|context| (wanted.within)(&context.name));
        let mut held = |context: &Arc<Context>| {
            [Role::Client, Role::Server].iter().any(|role| context.cache(*role).peek(id, now).is_some())
        };
        match known.any(&mut held) {
            true => Err(Error::SessionOutOfScope),
            false => Ok(Named::Gone),
        }
    }
}

/// Whether a handshake may have what left for this reason and go on with it, so that the record of it counts. What it makes
/// is not stored if the session was revoked. A session that is bad or was removed leaves no record to go on with, and
/// nothing that it makes is stored.
fn may_be_on_its_way(reason: RemovalReason) -> bool {
    match reason {
        RemovalReason::Taken
        | RemovalReason::CacheFull
        | RemovalReason::Revoked
        | RemovalReason::ScopeChanged => true,
        RemovalReason::Unclosed
        | RemovalReason::FatalAlert
        | RemovalReason::Expired
        | RemovalReason::Removed => false,
    }
}

/// The session that an established connection shows as attached, where it has this id.
fn attached(connection: &Connection, id: &SessionId) -> Option<Arc<Session>> {
    let attached = connection.session().filter(|attached| attached.id() == id);
    attached.filter(|_| connection.state() == State::Established).cloned()
}
