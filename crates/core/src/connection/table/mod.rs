//! All live connections.
//!
//! A call locks only its own connection, and never waits while it holds that lock. If the
//! connection is freed while a call waits for its lock, that call fails with [`Error::NotFound`].

mod driver;
mod held;
mod order;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use dashmap::DashMap;
use parking_lot::Mutex;

pub use self::{
    driver::{Driver, Ending},
    held::Lapse,
};
use self::{held::LiveConnection, order::Order};
use super::{
    Connection, ConnectionId, ConnectionPlan, EngineKind, Error, Named, Removed, State, Step,
    unanswered::{Unanswered, UnansweredOfOne},
};
use tls_sessiond_types::Role;

use crate::{
    cache::{Found, Known, Look},
    clock::{Clock, Now, Timestamp},
    context::{Context, Registry},
    session::{Miss, RemovalReason, SessionId},
};

/// All live connections, by id.
#[derive(Debug)]
pub struct Table {
    live: DashMap<ConnectionId, Arc<LiveConnection>>,
    /// The connections of `live`, in the order in which they are listed.
    order: Mutex<Order>,
    /// How many connections were ever made.
    made: AtomicU64,
    count: AtomicUsize,
    owners: DashMap<Arc<str>, Owner>,
    unanswered: Unanswered,
    most: LiveMost,
    clock: Clock,
}

/// Limits on the number of connections.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Most connections in total.
    pub all: usize,
    /// Most connections of one owner.
    pub of_one: usize,
}

impl Most {
    /// Returns limits under which one owner may have all `count` connections.
    pub fn all(count: usize) -> Self {
        Self {
            all: count,
            of_one: count,
        }
    }
}

/// The limits in use, which a reload may change.
#[derive(Debug)]
struct LiveMost {
    all: AtomicUsize,
    of_one: AtomicUsize,
}

/// The number of connections of one owner, and the bytes of their unfinished handshakes.
#[derive(Debug)]
struct Owner {
    connections: usize,
    unanswered: UnansweredOfOne,
}

/// A connection in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// How many connections were made before this one. A list continues after this number.
    pub number: u64,
    /// The id of the connection.
    pub id: ConnectionId,
}

/// Most connections that one step of a list visits. It holds a lock for that, for some
/// microseconds.
pub const LISTED_AT_ONCE: usize = 128;

/// A session that a caller names, and the contexts whose sessions the caller may know of.
pub struct Wanted<'w> {
    /// The id of the session.
    pub id: &'w SessionId,
    /// The outcome of [`Table::join`], where the shared store was asked.
    pub joined: Option<Result<Found, Miss>>,
    /// The contexts that the call sees.
    pub registry: &'w Registry,
    /// Returns whether the caller may know of the sessions of the context with this name.
    pub within: &'w dyn Fn(&str) -> bool,
}

impl Table {
    /// Makes an empty table.
    pub fn new(clock: Clock, most: Most) -> Self {
        Self {
            live: DashMap::new(),
            order: Mutex::default(),
            made: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            owners: DashMap::new(),
            unanswered: Unanswered::default(),
            most: LiveMost {
                all: most.all.into(),
                of_one: most.of_one.into(),
            },
            clock,
        }
    }

    /// Makes a connection (SSL_new(3)), and sets its session if one is named (SSL_set_session(3)).
    /// `see` reads the new connection.
    ///
    /// # Errors
    /// Those of [`Connection::new`] and [`Self::set_session`]; or the table is full, or the owner
    /// has too many connections.
    pub fn create<R>(
        &self,
        plan: ConnectionPlan,
        session: Option<Wanted<'_>>,
        see: impl FnOnce(&Connection, Lapse) -> R,
    ) -> Result<R, Error> {
        let now = self.clock.now();
        let mut connection = Connection::new(plan, now.at)?;
        // The limits are checked before the session is set: dropping a connection removes the
        // session that its worker has resumed.
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
        let held = LiveConnection {
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
        // `live` comes last, because a connection can be freed as soon as it is found there.
        self.order.lock().insert(&held);
        self.live.insert(held.id, held);
        Ok(seen)
    }

    /// Reads a connection without restarting its idle time-out. `see` also gets the time at which
    /// the connection lapses.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn inspect<R>(
        &self,
        id: ConnectionId,
        see: impl FnOnce(&Connection, Lapse) -> R,
    ) -> Result<R, Error> {
        let held = self.held(id)?;
        let connection = held.connection.lock();
        let connection = connection.as_ref().ok_or(Error::NotFound(id))?;
        Ok(see(connection, self.lapse(&held)))
    }

    /// Runs `call` on a connection, and restarts its idle time-out.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of `call`.
    pub fn with<R>(
        &self,
        id: ConnectionId,
        call: impl FnOnce(&mut Connection, Now) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.apply_held(&*self.held(id)?, call)
    }

    /// Runs `call` on a connection that no Drive stream runs, and restarts its idle time-out.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Busy`], and those of `call`.
    pub fn with_exclusive<R>(
        &self,
        id: ConnectionId,
        call: impl FnOnce(&mut Connection, Now) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let held = self.held(id)?;
        self.apply_held(&held, |connection, now| {
            // Read under the connection's lock, which a Drive stream holds when it takes the
            // connection over.
            if held.driven.load(Ordering::Acquire) || connection.is_asking() {
                Err(Error::Busy)
            } else {
                call(connection, now)
            }
        })
    }

    /// Sets the session of a connection by id (SSL_set_session(3)). `None` detaches the session.
    ///
    /// An id without a session is accepted, and the next handshake is a full one. On an established
    /// connection, the id of the attached session changes nothing, even if that session has left
    /// the cache since.
    ///
    /// # Errors
    /// Those of [`Self::with_exclusive`], or the session is of another context, role or server.
    pub fn set_session<R>(
        &self,
        id: ConnectionId,
        session: Option<Wanted<'_>>,
        see: impl FnOnce(&Connection, Vec<Removed>) -> R,
    ) -> Result<R, Error> {
        self.with_exclusive(id, |connection, now| {
            let named = match session {
                Some(wanted) => {
                    let id = wanted.id;
                    let resolved =
                        self.resolve(connection.context(), connection.role(), wanted, now);
                    match (resolved, attached(connection, id)) {
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

    /// Frees a connection (SSL_free(3)) and returns the removed sessions. A Drive stream that runs
    /// it ends.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn free(&self, id: ConnectionId) -> Result<Vec<Removed>, Error> {
        let removed = self
            .held(id)?
            .free(self.clock.now().at)
            .ok_or(Error::NotFound(id))?;
        self.forget(id);
        Ok(removed)
    }

    /// Lends a connection to a stream that runs it. `ending` tells whether the connection is freed
    /// when the stream ends.
    ///
    /// # Errors
    /// [`Error::NotFound`], and [`Error::Busy`] if another stream runs it.
    pub fn drive(self: &Arc<Self>, id: ConnectionId, ending: Ending) -> Result<Driver, Error> {
        let held = self.held(id)?;
        let connection = held.connection.lock();
        if connection.as_ref().is_some_and(Connection::is_asking) {
            return Err(Error::Busy);
        }
        if held.driven.swap(true, Ordering::AcqRel) {
            return Err(Error::Busy);
        }
        drop(connection);
        Ok(Driver {
            table: Arc::clone(self),
            held,
            ending,
        })
    }

    /// Frees the connections that have lapsed. Returns their number.
    pub fn sweep(&self) -> usize {
        let now = self.clock.now().at;
        let mut lapsed = Vec::new();
        self.live
            .iter()
            .filter(|held| held.expires() <= now)
            .for_each(|held| lapsed.push(Arc::clone(&held)));
        lapsed
            .into_iter()
            .filter(|held| self.free_if_lapsed(held, now))
            .count()
    }

    fn free_if_lapsed(&self, held: &LiveConnection, now: Timestamp) -> bool {
        // The time is read again under the connection's lock, which every call holds when it moves
        // the time.
        let mut connection = held.connection.lock();
        if held.expires() > now {
            return false;
        }
        let Some(lapsed) = connection.take() else {
            return false;
        };
        drop(connection);
        if let Some(driver) = held.driver.lock().take() {
            driver.wake();
        }
        lapsed.tell_time(now);
        lapsed.free();
        self.forget(held.id);
        true
    }

    /// Frees every connection, because the daemon stops.
    pub fn free_all(&self) {
        let mut all = Vec::new();
        self.live
            .iter()
            .for_each(|held| all.push(Arc::clone(&held)));
        let now = self.clock.now().at;
        for held in all {
            if held.free(now).is_some() {
                self.forget(held.id);
            }
        }
    }

    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Returns whether the table has no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many bytes of unfinished handshakes all connections hold.
    pub fn unanswered(&self) -> usize {
        self.unanswered.bytes()
    }

    /// Returns whether a connection has this id.
    pub fn holds(&self, id: ConnectionId) -> bool {
        self.live.contains_key(&id)
    }

    /// Checks that `to` accepts the owner and the context of a connection, which never change.
    ///
    /// # Errors
    /// [`Error::NotFound`], also if `to` refuses: the caller cannot tell the two cases apart.
    pub fn authorize(
        &self,
        id: ConnectionId,
        to: impl FnOnce(&str, &str) -> bool,
    ) -> Result<(), Error> {
        let held = self.live.get(&id).ok_or(Error::NotFound(id))?;
        if to(&held.owner, &held.context) {
            Ok(())
        } else {
            Err(Error::NotFound(id))
        }
    }

    /// Lists connections, oldest first.
    ///
    /// Visits up to [`LISTED_AT_ONCE`] connections after the number `after`. Appends up to `count`
    /// of those whose owner and context `wanted` accepts to `found`. Returns the number after which
    /// to continue. `None`: there are no more.
    pub fn page(
        &self,
        wanted: impl Fn(&str, &str) -> bool,
        after: Option<u64>,
        count: usize,
        found: &mut Vec<Listed>,
    ) -> Option<u64> {
        let slice: Vec<_> = self
            .order
            .lock()
            .after(after)
            .take(LISTED_AT_ONCE)
            .map(Arc::clone)
            .collect();
        let mut last = None;
        let mut left = count;
        for held in &slice {
            if left == 0 {
                return last;
            }
            if wanted(&held.owner, &held.context) {
                found.push(Listed {
                    number: held.number,
                    id: held.id,
                });
                left -= 1;
            }
            last = Some(held.number);
        }
        last.filter(|_| slice.len() == LISTED_AT_ONCE)
    }

    /// Changes the limits on the number of connections. Existing connections stay.
    pub fn resize(&self, most: Most) {
        self.most.all.store(most.all, Ordering::Relaxed);
        self.most.of_one.store(most.of_one, Ordering::Relaxed);
    }

    /// Asks for the session that a connection of this context and role names, where the shared store
    /// has such sessions. `None`: it is not asked, and [`Wanted::joined`] is none.
    pub fn join(
        &self,
        context: &Context,
        role: Role,
        engine: EngineKind,
        id: &SessionId,
    ) -> Option<Look> {
        let now = self.clock.now();
        let cache = context.cache(role);
        match cache.explain(id, now) {
            // A lookup has returned it to the worker.
            Known::Departed(departure) if may_be_on_its_way(departure.reason) => None,
            Known::Held(..) | Known::Departed(_) | Known::Nothing => {
                cache.join(id, engine == EngineKind::Daemon, &context.stats, now)
            }
        }
    }

    /// Returns the context, the role and the engine of a connection.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn place(&self, id: ConnectionId) -> Result<(Arc<Context>, Role, EngineKind), Error> {
        self.inspect(id, |connection, _| {
            (
                Arc::clone(connection.context()),
                connection.role(),
                connection.engine_kind(),
            )
        })
    }

    /// Goes on with the step of a connection that has asked the shared store for a session; see
    /// [`Connection::given`].
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of [`Connection::given`].
    pub fn given<R>(
        &self,
        id: ConnectionId,
        found: Result<Found, Miss>,
        see: impl FnOnce(&Connection, Step, Lapse) -> R,
    ) -> Result<R, Error> {
        self.with(id, |connection, now| {
            let step = connection.given(found, now)?;
            Ok(see(connection, step, Lapse::of(connection, now)))
        })
    }

    fn lapse(&self, held: &LiveConnection) -> Lapse {
        Lapse {
            at: held.expires(),
            offset: self.clock.offset(),
        }
    }

    fn held(&self, id: ConnectionId) -> Result<Arc<LiveConnection>, Error> {
        self.live
            .get(&id)
            .map(|held| Arc::clone(&held))
            .ok_or(Error::NotFound(id))
    }

    fn forget(&self, id: ConnectionId) {
        if let Some((_, held)) = self.live.remove(&id) {
            let last = self.order.lock().remove(held.number);
            // The memory is freed after the lock of `order` was released.
            drop(last);
            self.discount(&held.owner);
        }
    }

    fn count(&self, owner: &Arc<str>) -> Result<UnansweredOfOne, Error> {
        let all = self.count.fetch_add(1, Ordering::AcqRel);
        let mut held = self
            .owners
            .entry(Arc::clone(owner))
            .or_insert_with(|| Owner {
                connections: 0,
                unanswered: self.unanswered.of_one(),
            });
        held.connections += 1;
        let most = &self.most;
        let (most, most_of_one) = (
            most.all.load(Ordering::Relaxed),
            most.of_one.load(Ordering::Relaxed),
        );
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
        held: &LiveConnection,
        call: impl FnOnce(&mut Connection, Now) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut connection = held.connection.lock();
        let connection = connection.as_mut().ok_or(Error::NotFound(held.id))?;
        let now = self.clock.now();
        connection.tell_time(now.at);
        let result = call(connection, now);
        // After the call, because an unfinished handshake that it leaves behind shortens the time.
        held.touch(connection, now);
        result
    }

    fn resolve(
        &self,
        context: &Context,
        role: Role,
        wanted: Wanted<'_>,
        now: Now,
    ) -> Result<Named, Error> {
        let id = wanted.id;
        match context.cache(role).explain(id, now) {
            Known::Held(session, None) => return Ok(Named::Session(Found::near(session))),
            Known::Departed(departure) if may_be_on_its_way(departure.reason) => {
                return Ok(Named::Departed(departure));
            }
            Known::Held(_, Some(_)) | Known::Departed(_) | Known::Nothing => {}
        }
        match wanted.joined {
            Some(Ok(found)) => return Ok(Named::Session(found)),
            // The store may have it: it was not asked, or a daemon that holds it is not alive.
            Some(Err(Miss::StoreUnavailable | Miss::HolderLost)) => {
                let unreached = context.cache(role).unreached(id);
                return Ok(unreached.map_or(Named::Gone, Named::Unreached));
            }
            // Whether another scope has it is not asked: a session of the shared store that is not
            // found counts as unknown.
            Some(Err(_)) => return Ok(Named::Gone),
            None => {}
        }
        // A session of a context that the caller may not know of counts as unknown.
        let mut known = wanted
            .registry
            .all()
            .iter()
            .filter(|context| (wanted.within)(&context.name));
        let mut held = |context: &Arc<Context>| {
            [Role::Client, Role::Server]
                .iter()
                .any(|role| context.cache(*role).peek(id, now).is_some())
        };
        match known.any(&mut held) {
            true => Err(Error::SessionOutOfScope),
            false => Ok(Named::Gone),
        }
    }
}

/// Returns whether a handshake may still resume a session that left the cache for this reason,
/// because a lookup had returned the session before.
///
/// If so, the tombstone identifies the resumed session. The sessions that the handshake makes are
/// stored unless the session was revoked. Otherwise the tombstone does not count, and none of them
/// is stored.
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

/// Returns the attached session of an established connection, if it has this id.
fn attached(connection: &Connection, id: &SessionId) -> Option<Found> {
    let attached = connection
        .attached()
        .filter(|attached| attached.session.id() == id);
    attached
        .filter(|_| connection.state() == State::Established)
        .cloned()
}
