//! Random sequences of what workers tell, held against a model of the close rule that is exact: no TLS is in the way, so
//! after every call the cache must hold what the model says, and every call must answer what the model answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use tls_sessiond::{
    clock::{Clock, ManualClock, Timestamp},
    config::Config,
    connection::{
        Alert, ConnectionId, EngineKind, Error, Plan, Shutdown, State, Table,
        table::{Most, Wanted},
        worker::Put,
    },
    context::Registry,
    session::{Format, Role, Secret, SessionId, Terms, Version, cache::Miss},
};

use crate::{harness::now, seed::runner};

const SLOTS: usize = 4;
/// So few that they meet all the time.
const IDS: u8 = 8;
/// The default session time-out.
const LIFE: Duration = Duration::from_secs(7_200);

#[derive(Clone, Copy, Debug)]
enum Op {
    New(usize, Option<u8>),
    Put(usize, u8, bool),
    SetSession(usize, Option<u8>),
    Shutdown(usize),
    SetShutdown(usize, bool, bool),
    Alert(usize, bool),
    Clear(usize),
    Free(usize),
    Lookup(u8),
    Remove(u8),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let id = || 0..IDS;
    prop_oneof![
        2 => (slot(), proptest::option::of(id())).prop_map(|(s, i)| Op::New(s, i)),
        6 => (slot(), id(), any::<bool>()).prop_map(|(s, i, once)| Op::Put(s, i, once)),
        4 => (slot(), proptest::option::of(id())).prop_map(|(s, i)| Op::SetSession(s, i)),
        3 => slot().prop_map(Op::Shutdown),
        2 => (slot(), any::<bool>(), any::<bool>()).prop_map(|(s, a, b)| Op::SetShutdown(s, a, b)),
        1 => (slot(), any::<bool>()).prop_map(|(s, r)| Op::Alert(s, r)),
        3 => slot().prop_map(Op::Clear),
        2 => slot().prop_map(Op::Free),
        4 => id().prop_map(Op::Lookup),
        1 => id().prop_map(Op::Remove),
        1 => prop_oneof![Just(1u64), Just(3_600), Just(7_200)].prop_map(Op::Wait),
    ]
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Before,
    Established,
    Failed,
}

/// A connection as the rule sees it.
#[derive(Debug, Default)]
struct Model {
    phase: Phase,
    flags: Shutdown,
    family: BTreeSet<(u8, u32)>,
    attached: Option<(u8, u32)>,
    reused: bool,
    authenticated: Option<Timestamp>,
}

/// A session as the rule sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Alive {
    /// Ids come again, sessions do not.
    serial: u32,
    once: bool,
    authenticated: Timestamp,
}

struct World {
    table: Table,
    clock: ManualClock,
    ids: [Option<ConnectionId>; SLOTS],
    models: [Model; SLOTS],
    alive: BTreeMap<u8, Alive>,
    /// When the peers had authenticated of those that were handed out, and what came to the id since is gone too.
    handed_out: BTreeMap<u8, Timestamp>,
    serial: u32,
    /// The cache is one for all worlds, and remembers: each world has ids of its own.
    world: u64,
}

static WORLDS: AtomicU64 = AtomicU64::new(0);

impl World {
    fn new(registry: &Arc<Registry>) -> Self {
        let clock = ManualClock::starting(now());
        let table = Table::new(Arc::clone(registry), Clock::Manual(clock.clone()), Most::all(100));
        let cache = &registry.get("default").unwrap().server_cache;
        let mut left = Vec::new();
        cache.scan(table.now(), |session| left.push(session.id().clone()));
        left.iter().for_each(|id| assert!(cache.remove(id, table.now())));
        Self {
            table,
            clock,
            ids: [None; SLOTS],
            models: Default::default(),
            alive: BTreeMap::new(),
            handed_out: BTreeMap::new(),
            serial: 0,
            world: WORLDS.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn session_id(&self, id: u8) -> SessionId {
        SessionId::new(&[&[id + 1][..], &self.world.to_be_bytes()].concat()).unwrap()
    }

    /// Sessions leave, and not by being handed out.
    fn lose(&mut self, lost: impl Fn(u8, &Alive) -> bool) {
        let handed_out = &mut self.handed_out;
        self.alive.retain(|&id, alive| {
            let lost = lost(id, alive);
            if lost {
                handed_out.remove(&id);
            }
            !lost
        });
    }

    fn connection(&mut self, slot: usize) -> ConnectionId {
        match self.ids[slot] {
            Some(id) => id,
            None => self.make(slot, None),
        }
    }

    fn make(&mut self, slot: usize, session: Option<u8>) -> ConnectionId {
        let plan = Plan {
            context: Arc::clone(self.table.registry().get("default").unwrap()),
            role: Role::Server,
            engine: EngineKind::Worker,
            server_name: String::new(),
            owner: "test".into(),
            idle_timeout: Some(Duration::from_secs(86_400)),
        };
        let named = session.map(|id| self.session_id(id));
        let named = named.as_ref().map(|id| Wanted { id, within: &|_| true });
        let id = self.table.create(plan, named, |connection, _| connection.id()).unwrap();
        self.ids[slot] = Some(id);
        self.models[slot] = Model::default();
        if session.is_some() {
            self.resume(slot, session);
        }
        id
    }

    /// The rule: what ends established and without SENT takes its family along.
    fn leave(&mut self, slot: usize) {
        let model = &mut self.models[slot];
        let family = std::mem::take(&mut model.family);
        if model.phase == Phase::Established && !model.flags.sent {
            let attached = model.attached.take();
            self.lose(|id, alive| {
                let key = (id, alive.serial);
                family.contains(&key) || attached == Some(key)
            });
        }
    }

    fn establish(&mut self, slot: usize) {
        let model = &mut self.models[slot];
        if model.phase == Phase::Before {
            model.phase = Phase::Established;
            model.flags = Shutdown::default();
            model.attached = None;
        }
    }

    fn resume(&mut self, slot: usize, session: Option<u8>) {
        let model = &self.models[slot];
        let named = session.and_then(|id| self.alive.get(&id).map(|alive| (id, alive.serial)));
        let same = named.is_some() && named == model.attached;
        if !(same && model.phase == Phase::Established) {
            self.leave(slot);
        }
        let Some(id) = session else {
            self.models[slot].attached = None;
            return;
        };
        self.establish(slot);
        let found = self.alive.get(&id).copied();
        let model = &mut self.models[slot];
        model.reused = true;
        model.attached = found.map(|found| (id, found.serial));
        if let Some(found) = found {
            model.family.insert((id, found.serial));
        }
        let known = found.map(|found| found.authenticated).or(self.handed_out.get(&id).copied());
        model.authenticated = known.or(model.authenticated);
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::New(slot, session) => {
                self.free(slot);
                self.make(slot, session);
            }
            Op::Put(slot, id, once) => self.put(slot, id, once),
            Op::SetSession(slot, session) => {
                let id = self.connection(slot);
                let named = session.map(|id| self.session_id(id));
                let done = self.table.set_session(
                    id,
                    named.as_ref().map(|id| Wanted { id, within: &|_| true }),
                    |_, _| (),
                );
                if self.models[slot].phase == Phase::Failed {
                    assert!(matches!(done, Err(Error::Failed(_))));
                } else {
                    done.unwrap();
                    self.resume(slot, session);
                }
            }
            Op::Shutdown(slot) => {
                let id = self.connection(slot);
                let done = self.table.apply_alone(id, |connection, _| connection.shutdown(&mut Vec::new()));
                let model = &mut self.models[slot];
                assert_eq!(done.is_ok(), model.phase == Phase::Established);
                model.flags.sent |= done.is_ok();
            }
            Op::SetShutdown(slot, sent, received) => {
                let id = self.connection(slot);
                let flags = Shutdown { sent, received };
                self.table
                    .apply_alone(id, |connection, _| {
                        connection.set_shutdown(flags);
                        Ok(())
                    })
                    .unwrap();
                self.models[slot].flags = flags;
            }
            Op::Alert(slot, received) => self.alert(slot, received),
            Op::Clear(slot) => {
                let id = self.connection(slot);
                self.leave(slot);
                self.table.apply_alone(id, |connection, _| Ok(connection.clear())).unwrap();
                let attached = self.models[slot].attached;
                self.models[slot] = Model { attached, ..Model::default() };
            }
            Op::Free(slot) => self.free(slot),
            Op::Lookup(id) => self.lookup(id),
            Op::Remove(id) => {
                let context = Arc::clone(self.table.registry().get("default").unwrap());
                let removed = context.server_cache.remove(&self.session_id(id), self.table.now());
                assert_eq!(removed, self.alive.contains_key(&id));
                self.lose(|lost, _| lost == id);
            }
            Op::Wait(seconds) => {
                self.clock.advance(Duration::from_secs(seconds));
                let now = self.table.now().at;
                self.lose(|_, alive| alive.authenticated.after(LIFE) <= now);
                self.table.registry().reap(now);
            }
        }
        self.compare(op);
    }

    fn put(&mut self, slot: usize, id: u8, once: bool) {
        let connection = self.connection(slot);
        let put = Put {
            id: Some(self.session_id(id)),
            secret: Secret::bytes(vec![id; 4]),
            format: Format::Worker("test".into()),
            binding: [].into(),
            single_use: once,
            version: if once { Version::Tls13 } else { Version::Tls12 },
            cipher_suite: String::new(),
            server_name: String::new(),
            peer: None,
            timeout: None,
            authenticated: None,
        };
        let done = self.table.apply_alone(connection, |connection, now| connection.put_session(put, now));
        if self.models[slot].phase == Phase::Failed {
            assert!(matches!(done, Err(Error::Failed(_))));
            return;
        }
        self.establish(slot);
        let now = self.table.now().at;
        let model = &mut self.models[slot];
        // A resumption of what nobody remembers authenticates nobody: what it makes is not kept.
        let authenticated = if model.reused { model.authenticated } else { Some(now) };
        model.authenticated = authenticated;
        // A TLS 1.2 resumption adds none; TLS 1.3 is told apart by single use.
        let resumed = model.reused && !once;
        let lives = authenticated.filter(|authenticated| authenticated.after(LIFE) > now);
        let kept = lives.filter(|_| !resumed && !self.alive.contains_key(&id));
        assert_eq!(done.unwrap().is_ok(), kept.is_some(), "an id is not taken twice, no life is made longer");
        if let Some(authenticated) = kept {
            self.serial += 1;
            self.alive.insert(id, Alive { serial: self.serial, once, authenticated });
            model.family.insert((id, self.serial));
            model.attached = Some((id, self.serial));
        }
    }

    fn alert(&mut self, slot: usize, received: bool) {
        let id = self.connection(slot);
        let alert = Alert { code: 40, received };
        let done = self.table.apply_alone(id, |connection, _| connection.report_alert(alert));
        let model = &mut self.models[slot];
        assert_eq!(done.is_ok(), model.phase != Phase::Failed);
        if done.is_err() {
            return;
        }
        let family = std::mem::take(&mut model.family);
        if received || !model.flags.sent {
            let attached = model.attached.take();
            self.lose(|id, alive| {
                let key = (id, alive.serial);
                family.contains(&key) || attached == Some(key)
            });
        }
        let model = &mut self.models[slot];
        model.flags.received |= received;
        model.phase = Phase::Failed;
    }

    fn free(&mut self, slot: usize) {
        if let Some(id) = self.ids[slot].take() {
            self.leave(slot);
            self.table.free(id).unwrap();
        }
    }

    fn lookup(&mut self, id: u8) {
        let format = Format::Worker("test".into());
        let terms = Terms {
            format: &format,
            binding: &[],
            versions: &[Version::Tls12, Version::Tls13],
            server_name: "",
        };
        let context = Arc::clone(self.table.registry().get("default").unwrap());
        let found = context.server_cache.find(&self.session_id(id), &terms, self.table.now());
        match (found, self.alive.get(&id).copied()) {
            (Ok(session), Some(alive)) => {
                let found = (session.kind().single_use, session.authenticated());
                assert_eq!(found, (alive.once, alive.authenticated));
                if alive.once {
                    self.alive.remove(&id);
                    self.handed_out.insert(id, alive.authenticated);
                }
            }
            (Err(Miss::Unknown | Miss::Expired | Miss::Removed), None) => {}
            (found, wanted) => panic!("{found:?}, and the rule says {wanted:?}"),
        }
    }

    fn compare(&self, op: Op) {
        let mut cached = BTreeMap::new();
        let context = Arc::clone(self.table.registry().get("default").unwrap());
        context.server_cache.scan(self.table.now(), |session| {
            let once = session.kind().single_use;
            cached.insert(session.id().as_bytes()[0] - 1, (once, session.authenticated()));
        });
        let alive: BTreeMap<_, _> =
            self.alive.iter().map(|(&id, alive)| (id, (alive.once, alive.authenticated))).collect();
        assert_eq!(cached, alive, "after {op:?} the cache is not what the rule says");
        for (slot, id) in self.ids.iter().enumerate() {
            let Some(id) = *id else { continue };
            let model = &self.models[slot];
            let seen = self.table.look(id, |connection, _| {
                let attached = connection.session().map(|session| session.id().as_bytes()[0] - 1);
                (connection.state(), connection.shutdown_flags(), attached, connection.session_reused())
            });
            let state = match model.phase {
                Phase::Before => State::Before,
                Phase::Established => State::Established,
                Phase::Failed => State::Failed,
            };
            assert_eq!(
                seen.unwrap(),
                (state, model.flags, model.attached.map(|key| key.0), model.reused),
                "slot {slot} after {op:?}"
            );
        }
    }
}

#[test]
fn random_sequences_of_workers_keep_the_rule() {
    let registry = Arc::new(Registry::build(&Config::defaults()).unwrap());
    runner(20_000)
        .run(&proptest::collection::vec(op(), 1..60), |ops| {
            let mut world = World::new(&registry);
            ops.into_iter().for_each(|op| world.run(op));
            world.table.free_all();
            Ok(())
        })
        .unwrap();
}
