//! Random sequences of what workers tell, held against a model of the close rule that is exact: no TLS is in the way, so
//! after every call the cache must hold what the model says, and every call must answer what the model answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tls_sessiond::{
    clock::{Clock, ManualClock, Timestamp},
    config::Config,
    connection::{Alert, ConnectionId, EngineKind, Error, Plan, Shutdown, State, Table, worker::Put},
    context::Registry,
    session::{Format, Role, SessionId, Terms, Version, cache::Miss},
};
use zeroize::Zeroizing;

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
    serial: u32,
}

fn session_id(id: u8) -> SessionId {
    SessionId::new(&[id + 1]).unwrap()
}

impl World {
    fn new(registry: &Arc<Registry>) -> Self {
        let clock = ManualClock::starting(now());
        let table = Table::new(Arc::clone(registry), Clock::Manual(clock.clone()), 100);
        for id in 0..IDS {
            registry.get("default").unwrap().server_cache.remove(&session_id(id), table.now());
        }
        Self {
            table,
            clock,
            ids: [None; SLOTS],
            models: Default::default(),
            alive: BTreeMap::new(),
            serial: 0,
        }
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
        let named = session.map(session_id);
        let id = self.table.create(plan, named.as_ref(), |connection, _| connection.id()).unwrap();
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
            self.alive.retain(|&id, alive| {
                let key = (id, alive.serial);
                !family.contains(&key) && model.attached != Some(key)
            });
            model.attached = None;
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
            model.authenticated = Some(found.authenticated);
        }
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
                let named = session.map(session_id);
                let done = self.table.set_session(id, named.as_ref(), |_, _| ());
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
                let cache = &self.table.registry().get("default").unwrap().server_cache;
                assert_eq!(cache.remove(&session_id(id), self.table.now()), self.alive.remove(&id).is_some());
            }
            Op::Wait(seconds) => {
                self.clock.advance(Duration::from_secs(seconds));
                let now = self.table.now();
                self.alive.retain(|_, alive| alive.authenticated.after(LIFE) > now);
                self.table.registry().reap(now);
            }
        }
        self.compare(op);
    }

    fn put(&mut self, slot: usize, id: u8, once: bool) {
        let connection = self.connection(slot);
        let put = Put {
            id: Some(session_id(id)),
            data: Zeroizing::new(vec![id; 4]),
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
        let now = self.table.now();
        let model = &mut self.models[slot];
        let authenticated = model.authenticated.filter(|_| model.reused).unwrap_or(now);
        model.authenticated = Some(authenticated);
        // A TLS 1.2 resumption adds none; TLS 1.3 is told apart by single use.
        let resumed = model.reused && !once;
        let kept = !resumed && !self.alive.contains_key(&id) && authenticated.after(LIFE) > now;
        assert_eq!(done.unwrap().is_ok(), kept, "an id is not taken twice, and no life is made longer");
        if kept {
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
            self.alive.retain(|&id, alive| {
                let key = (id, alive.serial);
                !family.contains(&key) && model.attached != Some(key)
            });
            model.attached = None;
        }
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
            server_name: None,
        };
        let cache = &self.table.registry().get("default").unwrap().server_cache;
        match (cache.find(&session_id(id), &terms, self.table.now()), self.alive.get(&id).copied()) {
            (Ok(session), Some(alive)) => {
                assert_eq!((session.single_use, session.authenticated), (alive.once, alive.authenticated));
                if alive.once {
                    self.alive.remove(&id);
                }
            }
            (Err(Miss::Unknown | Miss::Expired), None) => {}
            (found, wanted) => panic!("{found:?}, and the rule says {wanted:?}"),
        }
    }

    fn compare(&self, op: Op) {
        let mut cached = BTreeMap::new();
        let context = self.table.registry().get("default").unwrap();
        context.server_cache.scan(self.table.now(), |session| {
            cached.insert(session.id.as_bytes()[0] - 1, (session.single_use, session.authenticated));
        });
        let alive: BTreeMap<_, _> =
            self.alive.iter().map(|(&id, alive)| (id, (alive.once, alive.authenticated))).collect();
        assert_eq!(cached, alive, "after {op:?} the cache is not what the rule says");
        for (slot, id) in self.ids.iter().enumerate() {
            let Some(id) = *id else { continue };
            let model = &self.models[slot];
            let seen = self.table.look(id, |connection, _| {
                let attached = connection.session().map(|session| session.id.as_bytes()[0] - 1);
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
