//! Random sequences of all calls on connections that share sessions, compared with a small model.
//!
//! Goal: the daemon never hands out a session that the close rule calls bad, and loses none that it
//! calls good.
//!
//! Method: the test observes the effects of TLS (states, alerts, new sessions) and predicts their
//! effect on the cache. After every call the cache must hold exactly the sessions that are alive in
//! the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tls_sessiond::config::Config;
use tls_sessiond_core::{
    clock::{Clock, ManualClock, Timestamp},
    connection::{
        ConnectionId, ConnectionPlan, EngineKind, Error, Input, Output, Shutdown, State,
        table::{Most, Wanted},
    },
    context::Registry,
    session::SessionId,
    state::CoreState,
};
use tls_sessiond_types::{
    Role, Version,
    client_hello::{FirstFlight, Progress},
};

use crate::{harness::now, pki, seed::runner};

const CONTEXTS: [&str; 3] = ["any", "tls12", "tls13"];
const SLOTS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    New(Role, usize, usize),
    Free(Role, usize),
    Clear(Role, usize),
    Shutdown(Role, usize),
    SetShutdown(Role, usize, bool, bool),
    /// Names the nth session ever seen, of either side, alive or removed.
    SetSession(Role, usize, Option<prop::sample::Index>),
    RemoveSession(prop::sample::Index),
    /// Connects two objects with new wires. Bytes in flight are lost.
    Pair(usize, usize),
    /// One Exchange with the queued bytes.
    Step(Role, usize),
    Write(Role, usize),
    /// Steps on both ends until neither sends anything.
    Settle(usize, usize),
    EndOfStream(Role, usize),
    Garbage(Role, usize),
    /// A whole connection: new wires, a handshake, and a close of each side or none.
    Visit(usize, usize, bool, bool),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let role = || prop_oneof![Just(Role::Client), Just(Role::Server)];
    let slot = || 0..SLOTS;
    let index = any::<prop::sample::Index>;
    prop_oneof![
        2 => (role(), slot(), 0..CONTEXTS.len()).prop_map(|(r, s, c)| Op::New(r, s, c)),
        2 => (role(), slot()).prop_map(|(r, s)| Op::Free(r, s)),
        4 => (role(), slot()).prop_map(|(r, s)| Op::Clear(r, s)),
        4 => (role(), slot()).prop_map(|(r, s)| Op::Shutdown(r, s)),
        2 => (role(), slot(), any::<bool>(), any::<bool>()).prop_map(|(r, s, a, b)| Op::SetShutdown(r, s, a, b)),
        3 => (role(), slot(), proptest::option::of(index())).prop_map(|(r, s, i)| Op::SetSession(r, s, i)),
        1 => index().prop_map(Op::RemoveSession),
        3 => (slot(), slot()).prop_map(|(c, s)| Op::Pair(c, s)),
        4 => (role(), slot()).prop_map(|(r, s)| Op::Step(r, s)),
        2 => (role(), slot()).prop_map(|(r, s)| Op::Write(r, s)),
        4 => (slot(), slot()).prop_map(|(c, s)| Op::Settle(c, s)),
        1 => (role(), slot()).prop_map(|(r, s)| Op::EndOfStream(r, s)),
        1 => (role(), slot()).prop_map(|(r, s)| Op::Garbage(r, s)),
        5 => (slot(), slot(), any::<bool>(), any::<bool>()).prop_map(|(c, s, a, b)| Op::Visit(c, s, a, b)),
        1 => prop_oneof![Just(1u64), Just(60), Just(301), Just(7_200)].prop_map(Op::Wait),
    ]
}

/// Whether it is a server's session, and its id.
type Key = (bool, SessionId);

struct Object {
    id: ConnectionId,
    role: Role,
    inbox: Vec<u8>,
    peer: Option<(Role, usize)>,
    // The state of the model:
    sent: bool,
    family: BTreeSet<Key>,
    flight: Option<FirstFlight>,
    /// When the session that its handshake resumed expires.
    until: Option<Timestamp>,
}

struct World {
    core: CoreState,
    registry: Arc<Registry>,
    clock: ManualClock,
    objects: BTreeMap<(bool, usize), Object>,
    /// Every session that was ever in the cache.
    seen: BTreeMap<Key, Born>,
    alive: BTreeSet<Key>,
}

/// The attributes of a session that never change.
#[derive(Clone, Copy)]
struct Born {
    version: Version,
    expires: Timestamp,
}

/// One Exchange as seen from outside.
struct Step<'a> {
    inbox: &'a [u8],
    before: &'a Seen,
    after: &'a Seen,
    /// The attached session, if it still counted when the call ended.
    attached: Option<Key>,
    output: &'a Output,
}

/// The state of an object after a call.
struct Seen {
    state: State,
    flags: Shutdown,
    attached: Option<Key>,
    reused: bool,
    version: Option<Version>,
}

impl World {
    /// Returns a world with empty caches.
    fn new(registry: &Arc<Registry>, clock: &ManualClock) -> Self {
        let world = Self {
            core: CoreState::new(
                Arc::clone(registry),
                Clock::Manual(clock.clone()),
                Most::all(1_000),
            ),
            registry: Arc::clone(registry),
            clock: clock.clone(),
            objects: BTreeMap::new(),
            seen: BTreeMap::new(),
            alive: BTreeSet::new(),
        };
        for (of_server, id) in world.cached().into_keys() {
            let role = if of_server {
                Role::Server
            } else {
                Role::Client
            };
            registry
                .get("any")
                .unwrap()
                .cache(role)
                .remove(&id, world.core.now());
        }
        world
    }

    fn object(&mut self, role: Role, slot: usize) -> &mut Object {
        if !self.objects.contains_key(&place(role, slot)) {
            self.make(role, slot, 0);
        }
        self.objects.get_mut(&place(role, slot)).unwrap()
    }

    fn make(&mut self, role: Role, slot: usize, context: usize) {
        let plan = ConnectionPlan {
            context: Arc::clone(self.registry.get(CONTEXTS[context]).unwrap()),
            role,
            engine: EngineKind::Daemon,
            server_name: "localhost".into(),
            owner: "test".into(),
            idle_timeout: None,
            peer_address: String::new(),
        };
        let id = self
            .core
            .connections()
            .create(plan, None, |connection, _| connection.id())
            .unwrap();
        let object = Object {
            id,
            role,
            inbox: Vec::new(),
            peer: None,
            sent: false,
            family: BTreeSet::new(),
            flight: None,
            until: None,
        };
        self.objects.insert(place(role, slot), object);
    }

    /// Returns `None` if the idle time-out has freed the connection.
    fn look(&self, id: ConnectionId) -> Option<Seen> {
        self.core
            .connections()
            .inspect(id, |connection, _| Seen {
                state: connection.state(),
                flags: connection.shutdown_flags(),
                attached: connection
                    .session()
                    .map(|s| (connection.role() == Role::Server, s.id().clone())),
                reused: connection.session_reused(),
                version: connection.version(),
            })
            .ok()
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::New(role, slot, context) => {
                self.free(role, slot);
                self.make(role, slot, context);
            }
            Op::Free(role, slot) => self.free(role, slot),
            Op::Clear(role, slot) => self.clear(role, slot),
            Op::Shutdown(role, slot) => self.shutdown(role, slot),
            Op::SetShutdown(role, slot, sent, received) => {
                let object = self.object(role, slot);
                object.sent = sent;
                let id = object.id;
                let flags = Shutdown { sent, received };
                self.core
                    .connections()
                    .with_exclusive(id, |connection, _| {
                        connection.set_shutdown(flags);
                        Ok(())
                    })
                    .unwrap();
            }
            Op::SetSession(role, slot, which) => self.set_session(role, slot, which),
            Op::RemoveSession(which) => self.remove_session(which),
            Op::Pair(client, server) => self.pair(client, server),
            Op::Step(role, slot) => {
                self.exchange(role, slot, b"", false);
            }
            Op::Write(role, slot) => {
                self.exchange(role, slot, b"text", false);
            }
            Op::Settle(client, server) => self.settle(client, server),
            Op::EndOfStream(role, slot) => {
                self.exchange(role, slot, b"", true);
            }
            Op::Garbage(role, slot) => {
                self.object(role, slot)
                    .inbox
                    .extend([23, 3, 3, 0, 24].iter().chain(&[0x55; 24]));
                self.exchange(role, slot, b"", false);
            }
            Op::Visit(client, server, client_closes, server_closes) => {
                self.clear(Role::Client, client);
                self.clear(Role::Server, server);
                self.pair(client, server);
                self.settle(client, server);
                if client_closes {
                    self.shutdown(Role::Client, client);
                }
                if server_closes {
                    self.shutdown(Role::Server, server);
                }
                self.settle(client, server);
            }
            Op::Wait(seconds) => self.wait(seconds),
        }
        self.compare(op);
    }

    /// The close rule: a connection that ends established and was not closed by this side removes
    /// its family.
    fn ends(&mut self, role: Role, slot: usize, before: &Seen) {
        let object = self.objects.get_mut(&place(role, slot)).unwrap();
        let mut family = std::mem::take(&mut object.family);
        if before.state == State::Established && !object.sent {
            family.extend(before.attached.clone());
            self.alive.retain(|key| !family.contains(key));
        }
    }

    fn free(&mut self, role: Role, slot: usize) {
        let Some(object) = self.objects.get(&place(role, slot)) else {
            return;
        };
        let id = object.id;
        let before = self.look(id).unwrap();
        self.ends(role, slot, &before);
        self.core.connections().free(id).unwrap();
        self.objects.remove(&place(role, slot));
    }

    fn clear(&mut self, role: Role, slot: usize) {
        let id = self.object(role, slot).id;
        let before = self.look(id).unwrap();
        self.ends(role, slot, &before);
        self.core
            .connections()
            .with_exclusive(id, |connection, _| Ok(connection.clear()))
            .unwrap();
        let object = self.object(role, slot);
        object.sent = false;
        object.flight = None;
        object.until = None;
    }

    fn shutdown(&mut self, role: Role, slot: usize) {
        let id = self.object(role, slot).id;
        let established = self.look(id).unwrap().state == State::Established;
        let mut ciphertext = Vec::new();
        let done = self
            .core
            .connections()
            .with_exclusive(id, |connection, _| connection.shutdown(&mut ciphertext));
        assert_eq!(
            done.is_ok(),
            established,
            "Shutdown works only on established connections"
        );
        if established {
            self.object(role, slot).sent = true;
        } else {
            assert!(matches!(done, Err(Error::ShutdownInInit)) && ciphertext.is_empty());
        }
        self.send(role, slot, &ciphertext);
    }

    fn set_session(&mut self, role: Role, slot: usize, which: Option<prop::sample::Index>) {
        let key = match which {
            Some(index) if !self.seen.is_empty() => {
                self.seen.keys().nth(index.index(self.seen.len())).cloned()
            }
            _ => None,
        };
        let id = self.object(role, slot).id;
        let before = self.look(id).unwrap();
        let done = self.core.connections().set_session(
            id,
            key.as_ref().map(|key| Wanted {
                id: &key.1,
                joined: None,
                registry: &self.registry,
                within: &|_| true,
            }),
            |connection, _| connection.session().map(|session| session.id().clone()),
        );
        let foreign = key
            .as_ref()
            .is_some_and(|key| key.0 != (role == Role::Server) && self.alive.contains(key));
        match done {
            Err(Error::HandshakeRunning) => assert_eq!(before.state, State::Handshaking),
            Err(Error::Failed(_)) => assert_eq!(before.state, State::Failed),
            Err(Error::SessionOutOfScope) => assert!(foreign),
            Err(other) => panic!("{other}"),
            Ok(attached) => {
                assert!(!foreign);
                // Naming the attached session again replaces nothing.
                let same = key.is_some() && key == before.attached && attached.is_some();
                if !(same && before.state == State::Established) {
                    self.ends(role, slot, &before);
                }
                if before.state == State::Established {
                    let key = attached.map(|id| (role == Role::Server, id));
                    self.object(role, slot).family.extend(key);
                }
            }
        }
    }

    fn remove_session(&mut self, which: prop::sample::Index) {
        if self.seen.is_empty() {
            return;
        }
        let key = self
            .seen
            .keys()
            .nth(which.index(self.seen.len()))
            .unwrap()
            .clone();
        let role = if key.0 { Role::Server } else { Role::Client };
        self.registry
            .get("any")
            .unwrap()
            .cache(role)
            .remove(&key.1, self.core.now());
        self.alive.remove(&key);
    }

    fn pair(&mut self, client: usize, server: usize) {
        let server_object = self.object(Role::Server, server);
        server_object.peer = Some((Role::Client, client));
        server_object.inbox.clear();
        let client_object = self.object(Role::Client, client);
        client_object.peer = Some((Role::Server, server));
        client_object.inbox.clear();
    }

    fn send(&mut self, role: Role, slot: usize, bytes: &[u8]) {
        let Some((peer, peer_slot)) = self.object(role, slot).peer else {
            return;
        };
        let back = Some((role, slot));
        let peer = self.object(peer, peer_slot);
        if peer.peer == back {
            peer.inbox.extend_from_slice(bytes);
        }
    }

    fn settle(&mut self, client: usize, server: usize) {
        for _ in 0..20 {
            let said = self.exchange(Role::Client, client, b"", false)
                + self.exchange(Role::Server, server, b"", false);
            if said == 0 {
                return;
            }
        }
        panic!("two peers exchange bytes without end");
    }

    /// Runs one Exchange and checks its effect on the cache. Returns the number of bytes that it
    /// made.
    fn exchange(
        &mut self,
        role: Role,
        slot: usize,
        plaintext: &[u8],
        end_of_stream: bool,
    ) -> usize {
        let object = self.object(role, slot);
        let id = object.id;
        let inbox = std::mem::take(&mut object.inbox);
        let (before, finished) = (self.look(id).unwrap(), self.finished());
        let input = Input {
            ciphertext: &inbox,
            plaintext,
            end_of_stream,
        };
        let output = match self
            .core
            .connections()
            .with_exclusive(id, |connection, now| connection.exchange(input, now))
            .map(|step| step.done().expect("no store is shared"))
        {
            Ok(output) => output,
            Err(refusal) => {
                match refusal {
                    Error::Failed(_) => assert_eq!(before.state, State::Failed),
                    Error::ProtocolIsShutdown => {
                        assert!(before.flags.sent && !plaintext.is_empty());
                    }
                    Error::HandshakeNotFinished => {
                        assert!(before.state != State::Established && !plaintext.is_empty());
                    }
                    other => panic!("{other}"),
                }
                if before.state != State::Failed {
                    // The call consumed nothing.
                    self.object(role, slot).inbox = inbox;
                }
                return 0;
            }
        };
        let after = self.look(id).unwrap();
        // A session that was attached for a handshake no longer counts once the handshake has
        // finished in the same call. Then only new and resumed sessions count.
        let attached = before
            .attached
            .clone()
            .filter(|_| self.finished() == finished);
        self.observe(
            role,
            slot,
            &Step {
                inbox: &inbox,
                before: &before,
                after: &after,
                attached,
                output: &output,
            },
        );
        if before.state == State::Failed {
            panic!("an Exchange on a failed connection succeeded");
        }
        if end_of_stream && after.state == State::Established {
            assert!(
                after.flags.received,
                "RECEIVED is not set at the end of the transport"
            );
            self.object(role, slot).sent = true;
        }
        self.send(role, slot, &output.ciphertext);
        output.ciphertext.len()
    }

    fn observe(&mut self, role: Role, slot: usize, step: &Step<'_>) {
        let &Step {
            inbox,
            before,
            after,
            ref attached,
            output,
        } = step;
        let begins = before.state == State::Before;
        if begins {
            self.object(role, slot).sent = false;
        }
        if role == Role::Client && begins {
            // The session that a client offers is attached from the first step on.
            if let Some(offered) = &after.attached {
                assert!(self.alive.contains(offered), "a client got a bad session");
                if self.seen[offered].version == Version::Tls13 {
                    self.alive.remove(offered);
                }
                self.object(role, slot).until = Some(self.seen[offered].expires);
            }
        }
        if role == Role::Client && begins && after.state == State::Failed {
            // The client began and failed in one call. The test cannot see the session that it
            // offered, but it offered at most one.
            let cached = self.cached();
            let offered: Vec<_> = self
                .alive
                .iter()
                .filter(|key| !cached.contains_key(key))
                .cloned()
                .collect();
            assert!(
                offered.len() <= 1,
                "a client that offers one session consumed more"
            );
            self.alive.retain(|key| !offered.contains(key));
            self.object(role, slot).family.extend(offered);
        }
        if role == Role::Server && matches!(before.state, State::Before | State::Handshaking) {
            self.client_hello(slot, begins, inbox, after);
        }
        if role == Role::Client
            && after.reused
            && !before.reused
            && after.version == Some(Version::Tls12)
        {
            let offered = before.attached.clone();
            self.object(role, slot).family.extend(offered);
        }

        // New sessions belong to the connection of this call.
        for (new, born) in self.cached() {
            if !self.seen.contains_key(&new) {
                assert_eq!(
                    new.0,
                    role == Role::Server,
                    "the other side stored a session"
                );
                if let Some(until) = self.object(role, slot).until.filter(|_| after.reused) {
                    assert!(born.expires <= until, "a resumption extended a lifetime");
                }
                self.seen.insert(new.clone(), born);
                self.alive.insert(new.clone());
                self.object(role, slot).family.insert(new);
            }
        }

        let sent = self.object(role, slot).sent;
        let lost = match output.alert {
            Some(alert) if alert.received => true,
            _ => after.state == State::Failed && !sent,
        };
        if lost {
            let mut family = std::mem::take(&mut self.object(role, slot).family);
            family.extend(attached.clone());
            self.alive.retain(|key| !family.contains(key));
            for removed in &output.removed {
                // The test never saw a session that was made in the same call.
                let key = (role == Role::Server, removed.id.clone());
                assert!(
                    family.contains(&key) || !self.seen.contains_key(&key),
                    "a session of another family was removed"
                );
            }
        } else {
            assert!(output.removed.is_empty());
        }
    }

    /// Predicts the lookup of a server that has the whole ClientHello. The server consumes the
    /// first ticket that it finds, and must not resume a bad session.
    fn client_hello(&mut self, slot: usize, begins: bool, inbox: &[u8], after: &Seen) {
        let object = self.object(Role::Server, slot);
        if begins {
            object.flight = Some(FirstFlight::default());
        }
        let Some(flight) = &mut object.flight else {
            return;
        };
        let Progress::Whole(offer) = flight.push(inbox) else {
            return;
        };
        object.flight = None;
        let versions = self.speaks(slot);
        let (version, ids) = if offer.tls13 && versions.contains(&Version::Tls13) {
            (Version::Tls13, offer.identities)
        } else {
            (Version::Tls12, offer.session_id.into_iter().collect())
        };
        let ids = ids.iter().filter_map(|id| SessionId::new(id));
        let found = ids.map(|id| (true, id)).find(|key| {
            self.alive.contains(key)
                && self.seen[key].version == version
                && versions.contains(&version)
                && *offer.server_name == *"localhost"
        });
        if after.reused {
            let found = found.as_ref().expect("a server resumed a bad session");
            let until = self.seen[found].expires;
            self.object(Role::Server, slot).until = Some(until);
            if version == Version::Tls12 {
                self.object(Role::Server, slot).family.insert(found.clone());
            }
        }
        if let Some(found) = found.filter(|_| version == Version::Tls13) {
            self.alive.remove(&found);
        }
    }

    /// Returns the versions that a server accepts in this handshake.
    fn speaks(&mut self, slot: usize) -> Vec<Version> {
        let id = self.object(Role::Server, slot).id;
        self.core
            .connections()
            .inspect(id, |connection, _| match connection.pinned_version() {
                Some(pin) => vec![pin],
                None => connection.context().versions.clone(),
            })
            .unwrap()
    }

    fn wait(&mut self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        let lapsed: Vec<_> = self
            .objects
            .iter()
            .filter(|(_, object)| {
                self.core
                    .connections()
                    .inspect(object.id, |_, lapse| lapse.at <= self.core.now().at)
                    .unwrap()
            })
            .map(|(_, object)| (object.role, object.id))
            .collect();
        for (role, id) in lapsed {
            let slot = self
                .objects
                .iter()
                .find(|(_, object)| object.id == id)
                .map(|(place, _)| place.1)
                .unwrap();
            let before = self.look(id).unwrap();
            self.ends(role, slot, &before);
            self.objects.remove(&place(role, slot));
        }
        self.core.connections().sweep();
        let now = self.core.now().at;
        self.registry.reap(now);
        let seen = &self.seen;
        self.alive.retain(|key| seen[key].expires > now);
    }

    /// Returns the number of successful handshakes.
    fn finished(&self) -> u64 {
        let stats = self.registry.all().iter().map(|context| &context.stats);
        stats
            .map(|stats| stats.accept_good.get() + stats.connect_good.get())
            .sum()
    }

    fn cached(&self) -> BTreeMap<Key, Born> {
        let context = self.registry.get("any").unwrap();
        let mut cached = BTreeMap::new();
        for role in [Role::Client, Role::Server] {
            context.cache(role).scan(self.core.now(), |session| {
                let born = Born {
                    version: session.kind().version,
                    expires: session.expires(),
                };
                cached.insert((role == Role::Server, session.id().clone()), born);
            });
        }
        cached
    }

    fn compare(&self, op: Op) {
        let cached: BTreeSet<_> = self.cached().into_keys().collect();
        assert_eq!(
            cached, self.alive,
            "after {op:?} the cache does not match the close rule"
        );
        for (place, object) in &self.objects {
            let seen = self.look(object.id).unwrap();
            assert_eq!(
                seen.flags.sent, object.sent,
                "SENT of {place:?} after {op:?}"
            );
        }
    }
}

fn place(role: Role, slot: usize) -> (bool, usize) {
    (role == Role::Server, slot)
}

fn registry(client_sessions: &str) -> Arc<Registry> {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let mut text = String::new();
    for (name, versions) in CONTEXTS
        .iter()
        .zip(["\"1.2\", \"1.3\"", "\"1.2\"", "\"1.3\""])
    {
        text += &format!(
            "[[context]]\nname = \"{name}\"\nsession_id_context = \"model\"\nversions = [{versions}]\n\
             certificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\nkey_exchange = [\"X25519\"]\n\
             client_sessions = \"{client_sessions}\"\n"
        );
    }
    let file = folder.path().join("model.toml");
    std::fs::write(&file, text).unwrap();
    let config = Config::load(Some(&file), std::iter::empty(), &[]).unwrap();
    Arc::new(Registry::build(&config.settings()).unwrap())
}

fn sequences_keep_the_rule(client_sessions: &str, cases: u32) {
    let registry = registry(client_sessions);
    let clock = ManualClock::starting(now());
    runner(cases)
        .run(&proptest::collection::vec(op(), 1..40), |ops| {
            let mut world = World::new(&registry, &clock);
            for op in ops {
                world.run(op);
            }
            Ok(())
        })
        .unwrap();
}

// Invariant 1.
#[test]
fn random_sequences_never_resume_a_bad_session_explicit() {
    sequences_keep_the_rule("explicit", 5_000);
}

// Invariant 1.
#[test]
fn random_sequences_never_resume_a_bad_session_shared() {
    sequences_keep_the_rule("shared", 5_000);
}
