//! Random sequences of calls of workers, compared with an exact model of the close rule. No TLS is
//! involved, so after every call the cache must match the model, and every call must return the
//! result of the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tls_sessiond::config::Config;
use tls_sessiond_core::{
    cache::revocation::Selector,
    clock::{Clock, ManualClock, Timestamp, WallTime},
    connection::{
        Alert, ConnectionId, ConnectionPlan, EngineKind, Error, Shutdown, State,
        table::{Most, Wanted},
        worker_engine::{Put, PutOutcome},
    },
    context::{Registry, Trust},
    session::{Format, Miss, PeerIdentity, ResumeCriteria, Secret, SessionId},
    state::CoreState,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

use crate::{harness::now, pki, seed::runner};

const SLOTS: usize = 4;
/// Few ids, so that calls often use the same one.
const IDS: u8 = 8;
/// The default session time-out.
const LIFE: Duration = Duration::from_secs(7_200);

#[derive(Clone, Copy, Debug)]
enum Op {
    New(usize, Option<u8>),
    Put(usize, u8, bool, Claim),
    SetSession(usize, Option<u8>),
    Shutdown(usize),
    SetShutdown(usize, bool, bool),
    Alert(usize, bool),
    Clear(usize),
    Free(usize),
    Lookup(u8),
    Remove(u8),
    /// Revokes the sessions of a peer, or all sessions (0), that authenticated at least this many
    /// seconds ago.
    Revoke(u8, u64),
    /// Moves the context to another scope.
    Reload,
    Wait(u64),
}

/// The claims of a worker about a handshake.
#[derive(Clone, Copy, Debug)]
struct Claim {
    /// The time since the peers authenticated, in seconds.
    ago: Option<u64>,
    /// An index into [`PEERS`], counted from 1. 0 is no peer.
    peer: u8,
}

const PEERS: [&str; 2] = ["spiffe://one", "spiffe://two"];

impl Claim {
    fn identity(self) -> Option<PeerIdentity> {
        let uri = PEERS.get(usize::from(self.peer).checked_sub(1)?)?;
        let certificate_sha256 = [self.peer; 32];
        Some(PeerIdentity {
            certificate_sha256,
            uris: vec![(*uri).into()],
            not_after: WallTime::MAX,
            ..Default::default()
        })
    }
}

fn claim() -> impl Strategy<Value = Claim> {
    let ago = prop_oneof![3 => Just(None), 1 => Just(Some(0)), 1 => Just(Some(1_800_u64)), 1 => Just(Some(7_200))];
    (ago, 0..3_u8).prop_map(|(ago, peer)| Claim { ago, peer })
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let id = || 0..IDS;
    prop_oneof![
        2 => (slot(), proptest::option::of(id())).prop_map(|(s, i)| Op::New(s, i)),
        6 => (slot(), id(), any::<bool>(), claim()).prop_map(|(s, i, once, c)| Op::Put(s, i, once, c)),
        4 => (slot(), proptest::option::of(id())).prop_map(|(s, i)| Op::SetSession(s, i)),
        3 => slot().prop_map(Op::Shutdown),
        2 => (slot(), any::<bool>(), any::<bool>()).prop_map(|(s, a, b)| Op::SetShutdown(s, a, b)),
        1 => (slot(), any::<bool>()).prop_map(|(s, r)| Op::Alert(s, r)),
        3 => slot().prop_map(Op::Clear),
        2 => slot().prop_map(Op::Free),
        4 => id().prop_map(Op::Lookup),
        1 => id().prop_map(Op::Remove),
        1 => (0..3_u8, prop_oneof![Just(0_u64), Just(1_800)]).prop_map(|(p, ago)| Op::Revoke(p, ago)),
        1 => Just(Op::Reload),
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

/// A connection in the model.
#[derive(Debug, Default)]
struct Model {
    phase: Phase,
    flags: Shutdown,
    family: BTreeSet<(u8, u32)>,
    attached: Option<(u8, u32)>,
    reused: bool,
    authenticated: Option<Timestamp>,
    peer: u8,
    version: Option<Version>,
    /// The number of the scope in which the connection was made.
    generation: u32,
}

/// A session in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Alive {
    /// Unique for each session. An id may be used again.
    serial: u32,
    once: bool,
    authenticated: Timestamp,
    peer: u8,
}

fn version(once: bool) -> Version {
    if once { Version::Tls13 } else { Version::Tls12 }
}

struct World {
    core: CoreState,
    clock: ManualClock,
    ids: [Option<ConnectionId>; SLOTS],
    models: [Model; SLOTS],
    alive: BTreeMap<u8, Alive>,
    /// Records of sessions that were consumed, revoked, or removed by a reload, by scope and id. A
    /// connection may still resume from a record. When a later session of the same id is lost, its
    /// record is removed too.
    gone: BTreeMap<(u32, u8), Alive>,
    /// Revocations: the peer, and the time before which its authentications are revoked.
    revoked: Vec<(u8, Timestamp)>,
    /// Every session ever made, by serial number.
    every: BTreeMap<u32, Alive>,
    serial: u32,
    /// The number of scopes before the present one.
    generation: u32,
    folder: PathBuf,
}

impl World {
    fn new(folder: &Path) -> Self {
        let clock = ManualClock::starting(now());
        let registry = Arc::new(Registry::build(&config(folder, 0).settings()).unwrap());
        Self {
            core: CoreState::new(registry, Clock::Manual(clock.clone()), Most::all(100)),
            clock,
            ids: [None; SLOTS],
            models: Default::default(),
            alive: BTreeMap::new(),
            gone: BTreeMap::new(),
            revoked: Vec::new(),
            every: BTreeMap::new(),
            serial: 0,
            generation: 0,
            folder: folder.to_owned(),
        }
    }

    /// Removes sessions together with the records of their ids. A connection cannot resume them any
    /// more.
    fn lose(&mut self, lost: impl Fn(u8, &Alive) -> bool) {
        for (id, _) in self.leaving(lost) {
            self.gone.remove(&(self.generation, id));
        }
    }

    /// Removes sessions that a running handshake may still resume.
    fn let_go(&mut self, lost: impl Fn(u8, &Alive) -> bool) {
        for (id, alive) in self.leaving(lost) {
            self.gone.insert((self.generation, id), alive);
        }
    }

    fn leaving(&mut self, lost: impl Fn(u8, &Alive) -> bool) -> Vec<(u8, Alive)> {
        let left: Vec<_> = self
            .alive
            .iter()
            .map(|(&id, &alive)| (id, alive))
            .filter(|(id, alive)| lost(*id, alive))
            .collect();
        self.alive
            .retain(|id, _| !left.iter().any(|(left, _)| left == id));
        left
    }

    fn connection(&mut self, slot: usize) -> ConnectionId {
        match self.ids[slot] {
            Some(id) => id,
            None => self.make(slot, None),
        }
    }

    fn make(&mut self, slot: usize, session: Option<u8>) -> ConnectionId {
        let plan = ConnectionPlan {
            context: Arc::clone(self.core.registry().get("default").unwrap()),
            role: Role::Server,
            engine: EngineKind::Worker,
            server_name: String::new(),
            owner: "test".into(),
            idle_timeout: Some(Duration::from_secs(86_400)),
            peer_address: String::new(),
        };
        let named = session.map(session_id);
        let registry = self.core.registry();
        let named = named.as_ref().map(|id| Wanted {
            id,
            joined: None,
            registry: &registry,
            within: &|_| true,
        });
        let id = self
            .core
            .connections()
            .create(plan, named, |connection, _| connection.id())
            .unwrap();
        self.ids[slot] = Some(id);
        self.models[slot] = Model {
            generation: self.generation,
            ..Model::default()
        };
        if session.is_some() {
            self.resume(slot, session);
        }
        id
    }

    /// The close rule: a connection that ends established and without SENT removes its family.
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

    /// Returns the session that a connection finds under an id. It finds sessions of its own scope
    /// only, and none once that scope was replaced.
    fn held(&self, slot: usize, id: u8) -> Option<Alive> {
        self.alive
            .get(&id)
            .copied()
            .filter(|_| self.models[slot].generation == self.generation)
    }

    fn record(&self, slot: usize, id: u8) -> Option<Alive> {
        self.gone.get(&(self.models[slot].generation, id)).copied()
    }

    fn resume(&mut self, slot: usize, session: Option<u8>) {
        let named = session.and_then(|id| self.held(slot, id).map(|alive| (id, alive.serial)));
        let model = &self.models[slot];
        // Naming the attached session again replaces nothing, even if the session has left the
        // cache.
        let attached = model.attached.filter(|_| model.phase == Phase::Established);
        let same = attached
            .filter(|&(id, _)| session == Some(id) && (named.is_none() || named == attached));
        if same.is_none() {
            self.leave(slot);
        }
        let Some(id) = session else {
            self.models[slot].attached = None;
            return;
        };
        // The session as it was when it was named. It may have left the cache together with the
        // connection's family.
        let found = self
            .held(slot, id)
            .filter(|found| named == Some((id, found.serial)));
        let of_attached = same.and_then(|(_, serial)| self.every.get(&serial).copied());
        let known = of_attached.or(found).or_else(|| self.record(slot, id));
        self.establish(slot);
        let model = &mut self.models[slot];
        model.reused = true;
        model.attached = same.or(found.map(|found| (id, found.serial)));
        model.family.extend(model.attached);
        // The resumption replaces the authentication that an earlier handshake of the connection
        // reported.
        model.authenticated = known.map(|known| known.authenticated);
        model.peer = known.map_or(0, |known| known.peer);
        model.version = known.map(|known| version(known.once));
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::New(slot, session) => {
                self.free(slot);
                self.make(slot, session);
            }
            Op::Put(slot, id, once, claim) => self.put(slot, id, once, claim),
            Op::SetSession(slot, session) => {
                let id = self.connection(slot);
                let named = session.map(session_id);
                let registry = self.core.registry();
                let done = self.core.connections().set_session(
                    id,
                    named.as_ref().map(|id| Wanted {
                        id,
                        joined: None,
                        registry: &registry,
                        within: &|_| true,
                    }),
                    |_, _| (),
                );
                // The id exists in the new scope only, not in the connection's own.
                let elsewhere = session.is_some_and(|id| {
                    self.alive.contains_key(&id)
                        && self.held(slot, id).is_none()
                        && self.record(slot, id).is_none()
                });
                if elsewhere {
                    assert!(matches!(done, Err(Error::SessionOutOfScope)));
                } else if self.models[slot].phase == Phase::Failed {
                    assert!(matches!(done, Err(Error::Failed(_))));
                } else {
                    done.unwrap();
                    self.resume(slot, session);
                }
            }
            Op::Shutdown(slot) => {
                let id = self.connection(slot);
                let done = self
                    .core
                    .connections()
                    .with_exclusive(id, |connection, _| connection.shutdown(&mut Vec::new()));
                let model = &mut self.models[slot];
                // The daemon does not know of a handshake that made no session.
                assert_eq!(
                    done.is_ok(),
                    matches!(model.phase, Phase::Before | Phase::Established)
                );
                model.flags.sent |= done.is_ok();
            }
            Op::SetShutdown(slot, sent, received) => {
                let id = self.connection(slot);
                let flags = Shutdown { sent, received };
                self.core
                    .connections()
                    .with_exclusive(id, |connection, _| {
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
                self.core
                    .connections()
                    .with_exclusive(id, |connection, _| Ok(connection.clear()))
                    .unwrap();
                let Model {
                    attached,
                    generation,
                    ..
                } = self.models[slot];
                self.models[slot] = Model {
                    attached,
                    generation,
                    ..Model::default()
                };
            }
            Op::Free(slot) => self.free(slot),
            Op::Lookup(id) => self.lookup(id),
            Op::Remove(id) => {
                let context = Arc::clone(self.core.registry().get("default").unwrap());
                let removed = context
                    .server_cache
                    .remove(&session_id(id), self.core.now());
                assert_eq!(removed, self.alive.contains_key(&id));
                self.lose(|lost, _| lost == id);
            }
            Op::Revoke(peer, ago) => self.revoke(peer, ago),
            Op::Reload => {
                let next = config(&self.folder, self.generation + 1);
                self.core.swap(Arc::new(
                    self.core.registry().rebuild(&next.settings()).unwrap(),
                ));
                self.let_go(|_, _| true);
                self.generation += 1;
                // Earlier authentications happened under another scope.
                self.revoked.push((0, self.core.now().at));
            }
            Op::Wait(seconds) => {
                self.clock.advance(Duration::from_secs(seconds));
                let now = self.core.now();
                let over = |alive: &Alive| alive.authenticated.after(LIFE) <= now.at;
                // The sweep may be some seconds late.
                let context = Arc::clone(self.core.registry().get("default").unwrap());
                for (&id, _) in self.alive.iter().filter(|(_, alive)| over(alive)) {
                    assert!(!context.server_cache.remove(&session_id(id), now));
                }
                self.lose(|_, alive| over(alive));
                self.core.registry().reap(now.at);
            }
        }
        self.compare(op);
    }

    fn revoke(&mut self, peer: u8, ago: u64) {
        let before = Timestamp::from_millis(self.core.now().at.as_millis() - ago * 1000 + 1);
        let selector = match PEERS.get(usize::from(peer).wrapping_sub(1)) {
            Some(&uri) => Selector::Uri(uri.into()),
            None => Selector::All,
        };
        let context = Arc::clone(self.core.registry().get("default").unwrap());
        context.server_cache.revoke(selector, before);
        self.revoked.push((peer, before));
        let purged: usize = (0..context.server_cache.shards())
            .map(|part| context.server_cache.purge(part))
            .sum();
        let held = self.alive.len();
        self.let_go(|_, alive| (peer == 0 || peer == alive.peer) && alive.authenticated < before);
        assert_eq!(purged, held - self.alive.len());
    }

    fn put(&mut self, slot: usize, id: u8, once: bool, claim: Claim) {
        let connection = self.connection(slot);
        let now = self.core.now().at;
        let told = claim
            .ago
            .map(|ago| Timestamp::from_millis(now.as_millis() - ago * 1000));
        let put = Put {
            id: Some(session_id(id)),
            secret: Secret::bytes(vec![id; 4]),
            format: Format::Worker("test".into()),
            binding: [].into(),
            single_use: once,
            version: version(once),
            cipher_suite: String::new(),
            server_name: ServerName::NONE,
            peer: claim.identity(),
            timeout: None,
            authenticated: told,
        };
        let done = self
            .core
            .connections()
            .with_exclusive(connection, |connection, now| {
                connection.put_session(put, now)
            });
        if self.models[slot].phase == Phase::Failed {
            assert!(matches!(done, Err(Error::Failed(_))));
            return;
        }
        self.establish(slot);
        let model = &mut self.models[slot];
        // One handshake authenticates once. A resumption of an unknown session authenticates
        // nothing, so its new sessions are not stored.
        model.authenticated = match (told, model.authenticated) {
            (told, Some(known)) => Some(told.map_or(known, |told| told.min(known))),
            (_, None) if model.reused => None,
            (told, None) => Some(told.unwrap_or(now)),
        };
        if model.peer == 0 && !model.reused {
            model.peer = claim.peer;
        }
        model.version = model
            .version
            .filter(|_| model.reused)
            .or(Some(version(once)));
        // A TLS 1.2 resumption makes no session.
        let resumed = model.reused && (!once || model.version == Some(Version::Tls12));
        let lives = model
            .authenticated
            .filter(|authenticated| authenticated.after(LIFE) > now);
        let kept = lives.filter(|authenticated| {
            let covers = |(peer, before): &(u8, Timestamp)| {
                (*peer == 0 || *peer == model.peer) && authenticated < before
            };
            !resumed
                && model.generation == self.generation
                && !self.revoked.iter().any(covers)
                && !self.alive.contains_key(&id)
        });
        let stored = matches!(done.unwrap(), PutOutcome::Stored(..));
        assert_eq!(stored, kept.is_some(), "put does not match the model");
        if let Some(authenticated) = kept {
            self.serial += 1;
            let alive = Alive {
                serial: self.serial,
                once,
                authenticated,
                peer: model.peer,
            };
            self.alive.insert(id, alive);
            self.every.insert(self.serial, alive);
            model.family.insert((id, self.serial));
            model.attached = Some((id, self.serial));
        }
    }

    fn alert(&mut self, slot: usize, received: bool) {
        let id = self.connection(slot);
        let alert = Alert { code: 40, received };
        let done = self
            .core
            .connections()
            .with_exclusive(id, |connection, _| connection.report_alert(alert));
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
            self.core.connections().free(id).unwrap();
        }
    }

    fn lookup(&mut self, id: u8) {
        let format = Format::Worker("test".into());
        let terms = ResumeCriteria {
            format: &format,
            binding: &[],
            versions: &[Version::Tls12, Version::Tls13],
            server_name: &ServerName::NONE,
            cipher_suite: None,
        };
        let context = Arc::clone(self.core.registry().get("default").unwrap());
        let found = context
            .server_cache
            .find(&session_id(id), &terms, self.core.now());
        match (found, self.alive.get(&id).copied()) {
            (Ok(session), Some(alive)) => {
                let found = (session.kind().single_use, session.authenticated());
                assert_eq!(found, (alive.once, alive.authenticated));
                if alive.once {
                    self.let_go(|taken, _| taken == id);
                }
            }
            (Err(Miss::Unknown | Miss::Expired | Miss::Removed | Miss::Revoked), None) => {}
            (found, wanted) => panic!("{found:?}, and the model has {wanted:?}"),
        }
    }

    fn compare(&self, op: Op) {
        let mut cached = BTreeMap::new();
        let context = Arc::clone(self.core.registry().get("default").unwrap());
        context.server_cache.scan(self.core.now(), |session| {
            let once = session.kind().single_use;
            let peer = session
                .kind()
                .peer
                .as_ref()
                .map_or(0, |peer| peer.certificate_sha256[0]);
            cached.insert(
                session.id().as_bytes()[0] - 1,
                (once, session.authenticated(), peer),
            );
        });
        let alive: BTreeMap<_, _> = self
            .alive
            .iter()
            .map(|(&id, alive)| (id, (alive.once, alive.authenticated, alive.peer)))
            .collect();
        assert_eq!(
            cached, alive,
            "after {op:?} the cache does not match the close rule"
        );
        for (slot, id) in self.ids.iter().enumerate() {
            let Some(id) = *id else { continue };
            let model = &self.models[slot];
            let seen = self.core.connections().inspect(id, |connection, _| {
                let attached = connection
                    .session()
                    .map(|session| session.id().as_bytes()[0] - 1);
                (
                    connection.state(),
                    connection.shutdown_flags(),
                    attached,
                    connection.session_reused(),
                )
            });
            let state = match model.phase {
                Phase::Before => State::Before,
                Phase::Established => State::Established,
                Phase::Failed => State::Failed,
            };
            assert_eq!(
                seen.unwrap(),
                (
                    state,
                    model.flags,
                    model.attached.map(|key| key.0),
                    model.reused
                ),
                "slot {slot} after {op:?}"
            );
        }
    }
}

fn session_id(id: u8) -> SessionId {
    SessionId::new(&[id + 1]).unwrap()
}

/// Returns a configuration with one context. Its scope differs between consecutive generations.
fn config(folder: &Path, generation: u32) -> Config {
    let mut config = Config::defaults();
    let context = &mut config.contexts[0];
    context.self_made = false;
    context.trust = Trust::File(folder.join("ca.pem"));
    // Alternates between two scopes, as a reload that is taken back restores an earlier scope.
    context.alpn = vec![format!("p{}", generation % 2)];
    config
}

#[test]
fn random_worker_sequences_follow_the_close_rule() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    runner(5_000)
        .run(&proptest::collection::vec(op(), 1..60), |ops| {
            let mut world = World::new(folder.path());
            ops.into_iter().for_each(|op| world.run(op));
            world.core.connections().free_all();
            Ok(())
        })
        .unwrap();
}
