//! The caches of a registry and their model. Each call is made on both.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use proptest::sample::Index;
use tls_sessiond_core::{
    cache::{Cache, Known, NotStored},
    clock::{Clock, ManualClock, WallTime},
    connection::table::Most,
    context::Registry,
    session::{
        Format, Miss, NewSession, RemovalReason, Secret, Session,
        events::{Delivery, Event, EventKind, Watch},
        stats::Account,
    },
    state::CoreState,
    store::memory::Limits,
};
use tls_sessiond_types::Version;

use super::{
    At, BYTES, New, Op, ResumeCriteria as AskedOn, SESSIONS, Setup,
    model::{Held, Model, server_name},
    real::{
        START, at, id, identity, peer, reading, reason, seconds, selector, serial, terms, version,
    },
};

pub(super) const TOTAL: Limits = Limits {
    entries_max: SESSIONS,
    bytes_max: BYTES,
};
/// How long after its expiry a session may stay, in milliseconds.
const LATE: u64 = 4_096;

pub(super) struct World {
    pub(super) core: CoreState,
    clock: ManualClock,
    pub(super) folder: PathBuf,
    pub(super) setup: Setup,
    watch: Watch,
    pub(super) model: Model,
    /// In the model's order.
    pub(super) caches: Vec<Arc<Cache>>,
    /// Caches that no context has any more.
    pub(super) closed: Vec<Arc<Cache>>,
    /// In the model's order.
    pub(super) accounts: Vec<Arc<Account>>,
    /// All sessions ever stored, by serial, with the number of open connections that use each.
    sessions: BTreeMap<u32, (Arc<Session>, u32)>,
    serial: u32,
    /// The number of caches ever made.
    pub(super) caches_made: u32,
}

impl World {
    pub(super) fn new(setup: Setup, folder: &Path) -> Self {
        let clock = ManualClock::starting(WallTime::from_millis(START));
        let registry = Arc::new(Registry::build(&setup.config(folder).settings()).unwrap());
        let watch = registry.ledger().watchers.watch(|_| true).unwrap();
        let core = CoreState::new(registry, Clock::Manual(clock.clone()), Most::all(1));
        let mut world = Self {
            core,
            clock,
            folder: folder.to_owned(),
            setup,
            watch,
            model: Model::default(),
            caches: Vec::new(),
            closed: Vec::new(),
            accounts: Vec::new(),
            sessions: BTreeMap::new(),
            serial: 0,
            caches_made: 0,
        };
        world.adopt(setup);
        world
    }

    pub(super) fn now(&self) -> u64 {
        self.core.now().at.as_millis()
    }

    /// Returns the index of a cache, and the index of the selected context's account.
    fn place(&self, which: At) -> (usize, usize) {
        let contexts = self.setup.contexts();
        let plan = &contexts[which.context % contexts.len()];
        let cache = self
            .model
            .caches
            .iter()
            .position(|cache| cache.key == plan.key(which.server));
        let stats = &self.core.registry().get(plan.name).unwrap().stats.clone();
        let account = self
            .accounts
            .iter()
            .position(|account| Arc::ptr_eq(account, stats));
        (cache.unwrap(), account.unwrap())
    }

    pub(super) fn run(&mut self, op: Op) {
        match op {
            Op::Put(which, new) => self.put(which, new),
            Op::Find(which, id, name, on) => self.find(which, id, name, on),
            Op::Newest(which, name) => self.newest(which, name),
            Op::Remove(which, id) => self.remove(which, id),
            Op::Explain(which, id) => self.explain(which, id),
            Op::Withdraw(which, index, alert) => self.withdraw(which, index, alert),
            Op::Hold(index) => {
                if let Some((session, open)) = pick(&mut self.sessions, index) {
                    session.hold();
                    *open += 1;
                }
            }
            Op::Release(index) => {
                if let Some((session, open)) =
                    pick(&mut self.sessions, index).filter(|(_, open)| **open > 0)
                {
                    session.release();
                    *open -= 1;
                }
            }
            Op::Revoke(which, number, ago, purge) => self.revoke(which, number, ago, purge),
            Op::Reap => self.reap(),
            Op::Wait(span) => self.clock.advance(Duration::from_secs(span)),
            Op::Reload(setup) => self.reload(setup),
        }
        assert!(self.heard().is_empty(), "unexpected events after {op:?}");
        self.compare(op);
    }

    fn put(&mut self, which: At, new: New) {
        let (cache, account) = self.place(which);
        let now = self.now();
        self.serial += 1;
        let held = Held {
            serial: self.serial,
            id: new.id,
            single_use: new.single_use,
            name: new.name,
            peer: peer(new.peer),
            authenticated: now - seconds(new.ago),
            timeout: seconds(new.timeout),
            secret: new.secret,
            account,
        };
        self.model.told = self.model.told.max(now);
        let model = &self.model.caches[cache];
        let there = model.by_id(new.id).cloned();
        let refused = if held.expired(now) {
            Some(NotStored::Expired)
        } else if held.length() > model.session_bytes_max {
            Some(NotStored::TooLarge)
        } else if model.revoked(&held) {
            Some(NotStored::Revoked)
        } else if held.size() > model.limits.bytes_max {
            Some(NotStored::TooLarge)
        } else {
            there
                .as_ref()
                .filter(|there| !there.expired(now))
                .map(|_| NotStored::IdTaken)
        };
        let put = self.new_session(&held);
        let stored = self.caches[cache].put(put, reading(now));
        assert_eq!(stored.as_ref().err(), refused.as_ref(), "{held:?}");
        let Ok(session) = stored else { return };
        assert_eq!(
            (session.size(), session.expires()),
            (held.size(), at(held.expires()))
        );
        self.sessions.insert(held.serial, (session, 0));

        let mut heard = self.heard().into_iter().peekable();
        if there.is_some() {
            self.leaves(&heard.next().unwrap(), RemovalReason::Expired);
        }
        self.model.caches[cache].sessions.push(held.clone());
        while let Some(event) = heard.next_if(|event| event.what != EventKind::Added) {
            assert!(
                self.model.caches[cache].over_limits(),
                "an eviction was not necessary: {event:?}"
            );
            assert_ne!(
                serial(&event.facts),
                held.serial,
                "the session put last was evicted"
            );
            assert_eq!(self.leaves(&event, RemovalReason::CacheFull), cache);
        }
        assert!(!self.model.caches[cache].over_limits());
        let added = heard.next().unwrap();
        assert_eq!(
            (added.what, serial(&added.facts)),
            (EventKind::Added, held.serial)
        );
        for event in heard {
            assert!(
                self.model.exceeds(&TOTAL),
                "an eviction was not necessary: {event:?}"
            );
            assert_ne!(
                serial(&event.facts),
                held.serial,
                "the session put last was evicted"
            );
            let holder = self.model.holder(serial(&event.facts)).unwrap();
            assert!(
                self.model.gives_way(holder, &TOTAL, held.serial),
                "another cache is further above its share"
            );
            self.leaves(&event, RemovalReason::CacheFull);
        }
        let none =
            !(0..self.caches.len()).any(|cache| self.model.gives_way(cache, &TOTAL, held.serial));
        assert!(none || !self.model.exceeds(&TOTAL), "no room was made");
    }

    pub(super) fn new_session(&self, held: &Held) -> NewSession {
        NewSession {
            id: Some(id(held.id)),
            version: version(held.single_use),
            cipher_suite: held.serial.to_string().into(),
            server_name: server_name(held.name).clone(),
            format: Format::Rustls,
            binding: [].into(),
            single_use: held.single_use,
            account: Arc::clone(&self.accounts[held.account]),
            peer: identity(held.peer),
            authenticated: at(held.authenticated),
            timeout: Duration::from_millis(held.timeout),
            secret: Secret::bytes(vec![1; held.secret]),
        }
    }

    fn find(&mut self, which: At, session: u8, name: u8, on: AskedOn) {
        let (cache, _) = self.place(which);
        let now = self.now();
        self.model.told = self.model.told.max(now);
        let held = self.model.caches[cache].by_id(session).cloned();
        let other = Format::Worker("other".into());
        let terms = terms(
            on,
            name,
            version(held.as_ref().is_some_and(|held| held.single_use)),
            &other,
        );
        let found = self.caches[cache]
            .find(&id(session), &terms, reading(now))
            .map(|found| serial(found.facts()));
        let Some(held) = held else {
            assert_eq!(found, Err(self.model.miss(cache, session)));
            return;
        };
        if held.name != name || !matches!(on, AskedOn::Good) {
            assert_eq!(found, Err(Miss::Scope));
            return;
        }
        let mut heard = self.heard().into_iter();
        match self.model.caches[cache].miss(&held, now) {
            Some(miss) => {
                assert_eq!(found, Err(miss));
                self.leaves(&heard.next().unwrap(), reason(miss));
            }
            None => {
                assert_eq!(found, Ok(held.serial));
                self.hit(&held, &mut heard);
            }
        }
        assert!(heard.next().is_none());
    }

    /// Checks the events of a session that was handed out.
    fn hit(&mut self, held: &Held, heard: &mut impl Iterator<Item = Event>) {
        if held.single_use {
            self.leaves(&heard.next().unwrap(), RemovalReason::Taken);
        }
        let hit = heard.next().unwrap();
        assert_eq!(
            (hit.what, serial(&hit.facts)),
            (EventKind::Hit, held.serial)
        );
    }

    fn newest(&mut self, which: At, name: u8) {
        let (cache, _) = self.place(which);
        let now = self.now();
        let terms = terms(AskedOn::Good, name, Version::Tls12, &Format::Rustls);
        let found = self.caches[cache]
            .newest(&terms, reading(now))
            .map(|found| serial(found.facts()));
        if which.server {
            assert_eq!(found, None, "servers offer nothing");
            return;
        }
        let mut heard = self.heard().into_iter();
        let fit = self.model.caches[cache]
            .sessions
            .clone()
            .into_iter()
            .rev()
            .filter(|held| held.name == name);
        for held in fit {
            self.model.told = self.model.told.max(now);
            match self.model.caches[cache].miss(&held, now) {
                Some(miss) => {
                    self.leaves(&heard.next().unwrap(), reason(miss));
                }
                None => {
                    assert_eq!(found, Some(held.serial));
                    self.hit(&held, &mut heard);
                    assert!(heard.next().is_none());
                    return;
                }
            }
        }
        assert_eq!((found, heard.next().is_none()), (None, true));
    }

    fn remove(&mut self, which: At, session: u8) {
        let (cache, _) = self.place(which);
        let now = self.now();
        self.model.told = self.model.told.max(now);
        let removed = self.caches[cache].remove(&id(session), reading(now));
        let held = self.model.caches[cache].by_id(session).cloned();
        let miss = held
            .as_ref()
            .and_then(|held| self.model.caches[cache].miss(held, now));
        assert_eq!(removed, held.is_some() && miss.is_none());
        if held.is_some() {
            let [left] = self.heard().try_into().unwrap();
            self.leaves(&left, miss.map_or(RemovalReason::Removed, reason));
        }
    }

    fn explain(&mut self, which: At, session: u8) {
        let (cache, _) = self.place(which);
        let now = self.now();
        let model = &self.model.caches[cache];
        let known = self.caches[cache].explain(&id(session), reading(now));
        match (
            known,
            model.by_id(session),
            self.model.departures.get(&(model.number, session)),
        ) {
            (Known::Held(found, miss), Some(held), _) => {
                assert_eq!(
                    (serial(found.facts()), miss),
                    (held.serial, model.miss(held, now))
                );
            }
            (Known::Departed(found), None, Some(&(reason, when))) => {
                assert_eq!((found.reason, found.at), (reason, at(when)));
            }
            (Known::Nothing, None, None) => {}
            (known, held, left) => {
                panic!("explain says {known:?} of {held:?}, removed as {left:?}")
            }
        }
        let alive = model
            .by_id(session)
            .filter(|held| model.miss(held, now).is_none());
        let seen = self.caches[cache]
            .peek(&id(session), reading(now))
            .map(|seen| serial(seen.facts()));
        assert_eq!(seen, alive.map(|held| held.serial));
    }

    fn withdraw(&mut self, which: At, index: Index, alert: bool) {
        let (cache, _) = self.place(which);
        let reason = if alert {
            RemovalReason::FatalAlert
        } else {
            RemovalReason::Unclosed
        };
        let Some((session, _)) = pick(&mut self.sessions, index) else {
            return;
        };
        let session = Arc::clone(session);
        let there = self.model.holder(serial(session.facts())) == Some(cache);
        assert_eq!(
            self.caches[cache].withdraw(&session, reason),
            there,
            "it removes this one only"
        );
        if there {
            let [left] = self.heard().try_into().unwrap();
            self.leaves(&left, reason);
        }
    }

    fn revoke(&mut self, which: At, number: u8, ago: u64, purge: bool) {
        let (cache, _) = self.place(which);
        // A session authenticated in this millisecond is not before it. So a purge begins one
        // later.
        let before = self.now() - seconds(ago) + u64::from(purge);
        self.caches[cache].revoke(selector(number), at(before));
        self.model.caches[cache]
            .revocations
            .push((selector(number), before));
        if purge {
            let parts = 0..self.caches[cache].shards();
            let purged: usize = parts.map(|part| self.caches[cache].purge(part)).sum();
            let heard = self.heard();
            assert_eq!(purged, heard.len());
            for event in heard {
                assert_eq!(self.model.holder(serial(&event.facts)), Some(cache));
                let model = &self.model.caches[cache];
                let held = model
                    .sessions
                    .iter()
                    .find(|held| held.serial == serial(&event.facts))
                    .unwrap();
                assert!(model.revoked(held), "{held:?} is not revoked");
                self.leaves(&event, RemovalReason::Revoked);
            }
            let model = &self.model.caches[cache];
            assert!(
                !model.sessions.iter().any(|held| model.revoked(held)),
                "revoked sessions are left"
            );
        }
    }

    fn reap(&mut self) {
        let now = self.now();
        self.model.told = self.model.told.max(now);
        self.core.registry().reap(at(now));
        for event in self.heard() {
            assert!(event.facts.expired(reading(now)));
            self.leaves(&event, RemovalReason::Expired);
        }
        let mut left = self.model.caches.iter().flat_map(|cache| &cache.sessions);
        assert!(
            !left.any(|held| held.expires() + LATE <= now),
            "expired sessions are left"
        );
    }

    pub(super) fn heard(&self) -> Vec<Event> {
        let Poll::Ready(news) = self.watch.poll(Waker::noop()) else {
            return Vec::new();
        };
        let event = |news| match news {
            Delivery::Event(event) => *event,
            Delivery::Missed(miss) => {
                panic!("{miss:?} was published, but no call here publishes misses")
            }
            Delivery::Dropped(missed) => panic!("{missed} events were dropped"),
        };
        news.into_iter().map(event).collect()
    }

    /// Checks the event of a removal and removes the session from the model. Returns the index of
    /// its cache.
    pub(super) fn leaves(&mut self, event: &Event, reason: RemovalReason) -> usize {
        assert_eq!(event.what, EventKind::Removed(reason));
        let serial = serial(&event.facts);
        let cache = self
            .model
            .holder(serial)
            .unwrap_or_else(|| panic!("{event:?} reports an unknown session"));
        let held = self.model.leave(cache, serial, reason);
        let told = (
            &event.facts.id,
            event.facts.kind.role,
            event.facts.expires(),
            event.at,
        );
        let role = self.model.caches[cache].role();
        assert_eq!(
            told,
            (&id(held.id), role, at(held.expires()), at(self.model.told))
        );
        let open = self.sessions[&serial].1;
        assert_eq!(
            (event.data_bytes, event.open_connections),
            (held.secret, open)
        );
        cache
    }

    fn compare(&self, op: Op) {
        let now = self.now();
        for (model, cache) in self.model.caches.iter().zip(&self.caches) {
            let held = (cache.len(), cache.bytes(), cache.limits());
            let right = (model.sessions.len(), model.bytes(), model.limits);
            assert_eq!(held, right, "after {op:?} in {:?}", model.key);
            let mut alive = Vec::new();
            cache.scan(reading(now), |session| alive.push(serial(session.facts())));
            alive.sort_unstable();
            let right: Vec<_> = model
                .sessions
                .iter()
                .filter(|held| model.miss(held, now).is_none())
                .collect();
            let right: Vec<_> = right.into_iter().map(|held| held.serial).collect();
            assert_eq!(alive, right, "after {op:?} in {:?}", model.key);
        }
        let held = self.core.registry().ledger().budget.held().clone();
        assert_eq!(
            (held.entries(), held.bytes()),
            self.model.held(),
            "after {op:?}"
        );
        for (place, account) in self.accounts.iter().enumerate() {
            for reason in RemovalReason::ALL {
                let right = self
                    .model
                    .removals
                    .get(&(place, reason as usize))
                    .copied()
                    .unwrap_or(0);
                assert_eq!(
                    account.removals.get(reason),
                    right,
                    "{reason:?} after {op:?}"
                );
            }
        }
        for (session, open) in self.sessions.values() {
            assert_eq!(session.open_connections(), *open);
        }
    }
}

fn pick(
    sessions: &mut BTreeMap<u32, (Arc<Session>, u32)>,
    index: Index,
) -> Option<(&Arc<Session>, &mut u32)> {
    let place = (!sessions.is_empty()).then(|| index.index(sessions.len()))?;
    sessions
        .values_mut()
        .nth(place)
        .map(|(session, open)| (&*session, open))
}
