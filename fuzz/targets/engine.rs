//! Connections of both roles that talk to each other over a wire of the fuzzer. The fuzzer cuts,
//! changes, repeats and swaps bytes on the wire, and in between calls everything that a worker may
//! call.
//!
//! ```text
//! input: steps: a byte for the kind, a byte for the connection, and the step's arguments; see
//!   `World::step`
//! ```

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tls_sessiond::config::Config;
use tls_sessiond_core::{
    clock::{Clock, ManualClock, WallTime},
    connection::{
        ConnectionId, ConnectionPlan, EngineKind, Error, Evidence, Input, Output, Shutdown, State,
        table::{Most, Wanted},
    },
    context::{ClosePolicy, Registry},
    session::SessionId,
    state::CoreState,
};
use tls_sessiond_types::Role;

use super::choices::Choices;
use crate::pki;

/// Pairs of a client and a server.
const PAIRS: usize = 3;
const CONNECTIONS_MAX: usize = 2 * PAIRS;
const STEPS_MAX: usize = 200;
/// Maximum number of bytes on the way to one side, and of recorded flights.
const WIRE_MAX: usize = 64 << 10;
const RECORDED_MAX: usize = 24;
/// Maximum output of a step beyond its input: a flight with its tickets.
const FLIGHT_MAX: usize = 16 << 10;
/// Maximum plaintext of a record that may have arrived in earlier steps.
const RECORD_MAX: usize = 16_384;
const CONTEXTS: [(&str, &str); 6] = [
    ("any", "client_sessions = \"shared\""),
    ("old", "versions = [\"1.2\"]\nsession_id_context = \"any\""),
    (
        "new",
        "versions = [\"1.3\"]\nsession_id_context = \"any\"\ntickets = 16",
    ),
    (
        "written",
        "close_policy = \"written\"\noptions = [\"ignore-unexpected-eof\"]\nalpn = [\"h2\", \"http/1.1\"]",
    ),
    (
        "quiet",
        "close_policy = \"errors-only\"\noptions = [\"quiet-shutdown\"]\ncache_entries_max = 2",
    ),
    (
        "asks",
        "client_auth = \"request\"\nclient_certificates = [{ certificate = \"tls.crt\", key = \"tls.key\" }]\n\
         options = [\"no-session-cache\"]\nclient_sessions = \"explicit\"",
    ),
];

thread_local! {
    static CONFIG: OnceCell<(Config, WallTime, tempfile::TempDir)> = const { OnceCell::new() };
}

pub(crate) fn run(data: &[u8]) {
    CONFIG.with(|config| {
        let (config, now, _) = config.get_or_init(configuration);
        let mut world = World::new(config, *now);
        let mut choices = Choices(data);
        for _ in 0..STEPS_MAX {
            if choices.is_empty() {
                break;
            }
            world.step(&mut choices);
            world.check();
        }
    });
}

fn configuration() -> (Config, WallTime, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder for certificates");
    pki::localhost(folder.path());
    let mut text = String::new();
    for (name, keys) in CONTEXTS {
        text += &format!(
            "[[context]]\nname = \"{name}\"\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n\
             key_exchange = [\"X25519\"]\n{keys}\n"
        );
    }
    let file = folder.path().join("fuzz.toml");
    std::fs::write(&file, text).expect("the file can be written");
    let config =
        Config::load(Some(&file), std::iter::empty(), &[]).expect("the configuration is valid");
    (config, Clock::System.now().wall(), folder)
}

/// One connection object, and the bytes on the wire to it.
struct Object {
    id: ConnectionId,
    context: usize,
    inbox: Vec<u8>,
    /// Application data of this handshake: the data received, and the entry of `World::said` to
    /// send.
    heard: Vec<u8>,
    speech: usize,
}

struct World {
    clock: ManualClock,
    registry: Arc<Registry>,
    core: CoreState,
    objects: HashMap<(Side, usize), Object>,
    /// Flights that have been on the wire.
    recorded: Vec<Vec<u8>>,
    /// The application data of every handshake.
    said: Vec<Vec<u8>>,
    /// Sessions seen, oldest first, and the bad ones among them.
    known: Vec<(Side, SessionId)>,
    bad: HashSet<(Side, SessionId)>,
}

/// A role that can be a key of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    Client,
    Server,
}

impl Side {
    fn role(self) -> Role {
        match self {
            Self::Client => Role::Client,
            Self::Server => Role::Server,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The state of a connection, as seen from outside.
struct Seen {
    state: State,
    flags: Shutdown,
    /// Whether its sessions are lost if it ends now. Computed here again instead of asking the
    /// connection.
    open: bool,
    attached: Option<SessionId>,
}

impl World {
    fn new(config: &Config, now: WallTime) -> Self {
        let clock = ManualClock::starting(now);
        let registry = Arc::new(Registry::build(&config.settings()).expect("the files are there"));
        let core = CoreState::new(
            Arc::clone(&registry),
            Clock::Manual(clock.clone()),
            Most::all(CONNECTIONS_MAX),
        );
        Self {
            clock,
            registry,
            core,
            objects: HashMap::new(),
            recorded: Vec::new(),
            said: vec![Vec::new()],
            known: Vec::new(),
            bad: HashSet::new(),
        }
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        let (what, whom) = (choices.byte(), choices.byte());
        let side = if whom & 1 == 0 {
            Side::Client
        } else {
            Side::Server
        };
        let place = (side, usize::from(whom >> 1) % PAIRS);
        let context = usize::from(whom >> 3) % CONTEXTS.len();
        match what % 20 {
            0 => self.open(place, context, choices),
            1 | 2 => self.settle(place.1, context),
            3 | 4 => self.exchange(place, usize::MAX, b"", false),
            5 => {
                let count = choices.below(1024);
                self.exchange(place, count, b"", false);
            }
            6 => self.change(place, choices),
            7 => self.cut(place, choices),
            8 => {
                let bytes = choices.vector().to_vec();
                self.deliver(place, &bytes);
            }
            9 => {
                let which = choices.below(RECORDED_MAX);
                if let Some(bytes) = self.recorded.get(which).cloned() {
                    self.deliver(place, &bytes);
                }
            }
            10 => {
                let length = choices.below(20_000);
                self.speak(place, length);
            }
            11 => self.shutdown(place),
            12 => {
                let flags = choices.byte();
                self.set_shutdown(
                    place,
                    Shutdown {
                        sent: flags & 1 != 0,
                        received: flags & 2 != 0,
                    },
                );
            }
            13 => self.clear(place),
            14 => self.free(place),
            15 => {
                let which = choices.byte();
                self.set_session(place, which);
            }
            16 => {
                let seconds = choices.below(10_000);
                self.wait(seconds);
            }
            17 => self.exchange(place, usize::MAX, b"", true),
            18 => {
                if let Some(object) = self.objects.get_mut(&place) {
                    object.inbox.clear();
                }
            }
            // Bytes on the way to one connection go to another one of its side.
            _ => {
                let other = (place.0, choices.below(PAIRS));
                let taken = self
                    .objects
                    .get_mut(&place)
                    .map(|object| std::mem::take(&mut object.inbox));
                self.deliver(other, &taken.unwrap_or_default());
            }
        }
    }

    fn open(&mut self, place: (Side, usize), context: usize, choices: &mut Choices<'_>) {
        self.free(place);
        let session = self
            .known
            .get(usize::from(choices.byte()))
            .filter(|(side, _)| *side == place.0);
        let session = session.map(|(_, id)| id.clone());
        let plan = ConnectionPlan {
            context: Arc::clone(
                self.registry
                    .get(CONTEXTS[context].0)
                    .expect("the context is configured"),
            ),
            role: place.0.role(),
            engine: EngineKind::Daemon,
            server_name: "localhost".into(),
            owner: "fuzz".into(),
            idle_timeout: None,
            peer_address: String::new(),
        };
        let session = session.as_ref().map(|id| Wanted {
            id,
            joined: None,
            registry: &self.registry,
            within: &|_| true,
        });
        let id = match self
            .core
            .connections()
            .create(plan, session, |connection, _| connection.id())
        {
            Ok(id) => id,
            Err(Error::SessionOutOfScope) => return,
            Err(other) => panic!("New: {other}"),
        };
        let object = Object {
            id,
            context,
            inbox: Vec::new(),
            heard: Vec::new(),
            speech: 0,
        };
        self.objects.insert(place, object);
    }

    /// Creates the missing connections of a pair, and lets them talk until both are silent.
    fn settle(&mut self, pair: usize, context: usize) {
        for side in [Side::Client, Side::Server] {
            if !self.objects.contains_key(&(side, pair)) {
                self.open((side, pair), context, &mut Choices(&[0xff]));
            }
        }
        for _ in 0..12 {
            self.exchange((Side::Client, pair), usize::MAX, b"", false);
            self.exchange((Side::Server, pair), usize::MAX, b"", false);
            let silent = |side| {
                self.objects
                    .get(&(side, pair))
                    .is_none_or(|object| object.inbox.is_empty())
            };
            if silent(Side::Client) && silent(Side::Server) {
                return;
            }
        }
    }

    fn look(&self, id: ConnectionId) -> Seen {
        self.core
            .connections()
            .inspect(id, |connection, _| {
                let closed = match connection.context().close_policy {
                    ClosePolicy::Flag => connection.shutdown_flags().sent,
                    ClosePolicy::Written => connection.evidence() == Evidence::Written,
                    ClosePolicy::ErrorsOnly => true,
                };
                Seen {
                    state: connection.state(),
                    flags: connection.shutdown_flags(),
                    open: connection.state() == State::Established && !closed,
                    attached: connection.session().map(|session| session.id().clone()),
                }
            })
            .expect("the connection exists")
    }

    /// Runs one step with up to `count` bytes from the wire, and checks its result.
    fn exchange(
        &mut self,
        place: (Side, usize),
        count: usize,
        plaintext: &[u8],
        end_of_stream: bool,
    ) {
        let Some(object) = self.objects.get_mut(&place) else {
            return;
        };
        let id = object.id;
        let rest = object.inbox.split_off(count.min(object.inbox.len()));
        let inbox = std::mem::replace(&mut object.inbox, rest);
        let before = self.look(id);
        let input = Input {
            ciphertext: &inbox,
            plaintext,
            end_of_stream,
        };
        let done = self
            .core
            .connections()
            .with_exclusive(id, |connection, now| connection.exchange(input, now))
            .map(|step| step.done().expect("no store is shared"));
        let after = self.look(id);
        match done {
            Ok(output) => {
                assert!(before.state != State::Failed, "a failed connection went on");
                self.said_and_done(
                    place,
                    &before,
                    &after,
                    inbox.len() + plaintext.len(),
                    &output,
                );
                if !output.ciphertext.is_empty() && self.recorded.len() < RECORDED_MAX {
                    self.recorded.push(output.ciphertext.clone());
                }
                self.deliver((place.0.other(), place.1), &output.ciphertext);
            }
            Err(refusal) => {
                match refusal {
                    Error::Failed(_) => assert!(before.state == State::Failed),
                    Error::ProtocolIsShutdown => {
                        assert!(before.flags.sent && !plaintext.is_empty());
                    }
                    Error::HandshakeNotFinished => {
                        assert!(before.state != State::Established && !plaintext.is_empty());
                    }
                    other => panic!("Exchange: {other}"),
                }
                assert!(after.state == before.state && after.flags == before.flags);
            }
        }
    }

    fn said_and_done(
        &mut self,
        place: (Side, usize),
        before: &Seen,
        after: &Seen,
        given: usize,
        output: &Output,
    ) {
        assert!(
            output.ciphertext.len() <= FLIGHT_MAX + 2 * given,
            "a step has too much output for its input"
        );
        assert!(
            output.plaintext.len() <= RECORD_MAX + given,
            "a step has more plaintext than its input"
        );
        assert!(
            after.state != State::Before,
            "the first step did not begin the handshake"
        );
        if before.state == State::Established {
            assert!(
                after.state != State::Handshaking,
                "a finished handshake began again"
            );
        }
        let failed = after.state == State::Failed;
        assert!(
            failed || (output.alert.is_none() && output.removed.is_empty()),
            "a connection went on after an alert"
        );
        // A connection that fails while it is open loses its session, whether or not an alert was
        // sent or received. A session attached before a handshake belongs to that handshake only if
        // it resumes no other session.
        let began = before.state != State::Before;
        if failed && began && (before.open || output.alert.is_some_and(|alert| alert.received)) {
            self.bad
                .extend(before.attached.clone().map(|id| (place.0, id)));
        }
        self.bad.extend(
            output
                .removed
                .iter()
                .map(|removed| (place.0, removed.id.clone())),
        );
        let object = self.objects.get_mut(&place).expect("the connection exists");
        object.heard.extend_from_slice(&output.plaintext);
        let heard = &object.heard;
        assert!(
            heard.is_empty() || self.said.iter().any(|said| said.starts_with(heard)),
            "a connection received data that no connection sent"
        );
    }

    /// Sends application data that no other handshake sends.
    fn speak(&mut self, place: (Side, usize), length: usize) {
        let Some(object) = self.objects.get_mut(&place) else {
            return;
        };
        if object.speech == 0 {
            object.speech = self.said.len();
            self.said.push(Vec::new());
        }
        let (id, speech) = (object.id, object.speech);
        let from = self.said[speech].len();
        let word =
            |at: usize| [speech, at, at >> 8].map(|part| u8::try_from(part & 0xff).unwrap_or(0));
        let text: Vec<u8> = (from..from + length).map(|at| word(at)[at % 3]).collect();
        let before = self.look(id);
        if before.state == State::Established && !before.flags.sent {
            self.said[speech].extend_from_slice(&text);
        }
        self.exchange(place, 0, &text, false);
    }

    fn deliver(&mut self, place: (Side, usize), bytes: &[u8]) {
        if let Some(object) = self.objects.get_mut(&place) {
            let room = WIRE_MAX.saturating_sub(object.inbox.len());
            object
                .inbox
                .extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn change(&mut self, place: (Side, usize), choices: &mut Choices<'_>) {
        let Some(object) = self
            .objects
            .get_mut(&place)
            .filter(|object| !object.inbox.is_empty())
        else {
            return;
        };
        let at = choices.below(object.inbox.len().min(4096));
        let change = choices.byte();
        object.inbox[at] ^= change.max(1);
    }

    /// Removes a piece of the bytes on the wire, repeats it, or replaces it.
    fn cut(&mut self, place: (Side, usize), choices: &mut Choices<'_>) {
        let Some(object) = self
            .objects
            .get_mut(&place)
            .filter(|object| !object.inbox.is_empty())
        else {
            return;
        };
        let from = choices.below(object.inbox.len().min(4096));
        let to = (from + choices.below(256)).min(object.inbox.len());
        let kind = choices.byte();
        let piece = match kind % 3 {
            0 => Vec::new(),
            1 => object.inbox[from..to].repeat(2),
            _ => choices.bytes(usize::from(kind >> 2)).to_vec(),
        };
        object.inbox.splice(from..to, piece);
        object.inbox.truncate(WIRE_MAX);
    }

    fn shutdown(&mut self, place: (Side, usize)) {
        let Some(object) = self.objects.get(&place) else {
            return;
        };
        let before = self.look(object.id);
        let mut ciphertext = Vec::new();
        let done = self
            .core
            .connections()
            .with_exclusive(object.id, |connection, _| {
                connection.shutdown(&mut ciphertext)
            });
        match done {
            Ok(_) => assert!(before.state == State::Established && self.look(object.id).flags.sent),
            Err(Error::ShutdownInInit) => {
                assert!(before.state != State::Established && ciphertext.is_empty());
            }
            Err(other) => panic!("Shutdown: {other}"),
        }
        assert!(
            ciphertext.len() <= 64,
            "a close_notify has more than one record"
        );
        self.deliver((place.0.other(), place.1), &ciphertext);
    }

    fn set_shutdown(&mut self, place: (Side, usize), flags: Shutdown) {
        let Some(object) = self.objects.get(&place) else {
            return;
        };
        let set = self.core.connections().with(object.id, |connection, _| {
            connection.set_shutdown(flags);
            Ok(connection.shutdown_flags())
        });
        assert_eq!(set.expect("any flags can be set"), flags);
    }

    fn clear(&mut self, place: (Side, usize)) {
        let Some(object) = self.objects.get_mut(&place) else {
            return;
        };
        (object.heard, object.speech) = (Vec::new(), 0);
        let id = object.id;
        let before = self.look(id);
        let removed = self
            .core
            .connections()
            .with_exclusive(id, |connection, _| Ok(connection.clear()))
            .expect("clear never fails");
        self.ended(
            place,
            &before,
            removed.into_iter().map(|removed| removed.id).collect(),
        );
        let after = self.look(id);
        assert!(after.state == State::Before && after.flags == Shutdown::default() && !after.open);
    }

    fn free(&mut self, place: (Side, usize)) {
        let Some(object) = self.objects.remove(&place) else {
            return;
        };
        let before = self.look(object.id);
        let removed = self
            .core
            .connections()
            .free(object.id)
            .expect("the connection exists");
        self.ended(
            place,
            &before,
            removed.into_iter().map(|removed| removed.id).collect(),
        );
        assert!(matches!(
            self.core.connections().free(object.id),
            Err(Error::NotFound(_))
        ));
    }

    /// Checks the close rule, as far as it is visible from outside.
    fn ended(&mut self, place: (Side, usize), before: &Seen, removed: Vec<SessionId>) {
        if before.open {
            self.bad
                .extend(before.attached.clone().map(|id| (place.0, id)));
        } else {
            assert!(
                removed.is_empty(),
                "a connection that was not open removed sessions"
            );
        }
        self.bad.extend(removed.into_iter().map(|id| (place.0, id)));
    }

    fn set_session(&mut self, place: (Side, usize), which: u8) {
        let Some(object) = self.objects.get(&place) else {
            return;
        };
        let before = self.look(object.id);
        let session = self.known.get(usize::from(which)).map(|(_, id)| id.clone());
        let wanted = session.as_ref().map(|id| Wanted {
            id,
            joined: None,
            registry: &self.registry,
            within: &|_| true,
        });
        let done = self
            .core
            .connections()
            .set_session(object.id, wanted, |connection, removed| {
                (
                    connection.session().map(|session| session.id().clone()),
                    removed,
                )
            });
        match done {
            Ok((attached, removed)) => {
                assert!(matches!(before.state, State::Before | State::Established));
                let removed: Vec<_> = removed.into_iter().map(|removed| removed.id).collect();
                if attached.is_some() && attached == before.attached {
                    assert!(
                        removed.is_empty(),
                        "attaching the same session removed a session"
                    );
                } else {
                    self.ended(place, &before, removed);
                }
            }
            Err(Error::HandshakeRunning) => assert!(before.state == State::Handshaking),
            Err(Error::Failed(_)) => assert!(before.state == State::Failed),
            Err(Error::SessionOutOfScope) => {}
            Err(other) => panic!("SetSession: {other}"),
        }
    }

    fn wait(&mut self, seconds: usize) {
        self.clock
            .advance(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        let now = self.core.now().at;
        let lapsed: Vec<_> = self
            .objects
            .iter()
            .filter(|(_, object)| {
                self.core
                    .connections()
                    .inspect(object.id, |_, lapse| lapse.at <= now)
                    .unwrap_or(false)
            })
            .map(|(place, _)| *place)
            .collect();
        for place in &lapsed {
            let object = self.objects.remove(place).expect("the connection exists");
            let before = self.look(object.id);
            self.ended(*place, &before, Vec::new());
        }
        assert_eq!(self.core.connections().sweep(), lapsed.len());
        self.registry.reap(now);
    }

    /// Checks invariants.
    fn check(&mut self) {
        assert_eq!(self.core.connections().len(), self.objects.len());
        let now = self.core.now();
        for (name, _) in CONTEXTS {
            let context = self.registry.get(name).expect("the context is configured");
            for side in [Side::Client, Side::Server] {
                let cache = context.cache(side.role());
                assert!(
                    cache.len() <= cache.limits().entries_max
                        && cache.bytes() <= cache.limits().bytes_max
                );
                cache.scan(now, |session| {
                    let key = (side, session.id().clone());
                    assert!(!self.bad.contains(&key), "a bad session is in the cache");
                    if !self.known.contains(&key) {
                        self.known.push(key);
                    }
                });
            }
        }
        for object in self.objects.values() {
            let context = CONTEXTS[object.context].0;
            let same = self.core.connections().inspect(object.id, |connection, _| {
                *connection.context().name == *context
            });
            assert!(same.expect("the connection exists"));
        }
    }
}
