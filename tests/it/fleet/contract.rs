//! The contract of the session cache, in memory and over a shared store: the same histories, with the
//! same outcome, in the memory of one process, in the model of the store, in Redis and in Valkey.

use std::{sync::Arc, time::Duration};

use tls_sessiond::config::Config;
use tls_sessiond_core::{
    cache::{Found, Look, NotStored, revocation::Selector},
    clock::{Now, Timestamp},
    connection::{
        Connection, ConnectionPlan, EngineKind, Named, Removed, Shutdown,
        worker_engine::{NotKept, Put, PutOutcome},
    },
    context::{Context, Registry},
    fleet::{Failure, FleetStore, Purpose},
    session::{Format, Miss, PeerIdentity, ResumeCriteria, Secret, SessionId},
};
use tls_sessiond_store::{
    layout::{Bucket, Layout},
    script::{Answer, Request},
    seal::SealingKeys,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};
use zeroize::Zeroizing;

use self::model::{Faults, Model};
use super::{Kind, StoreServer, server::KEY};
use crate::{harness::now, returning::Certificate};

#[path = "../../../crates/store/tests/shared/model.rs"]
#[allow(dead_code, reason = "the simulation uses the rest")]
mod model;

/// What runs the requests.
enum Backend {
    Memory,
    Model(Box<Model>),
    Server(StoreServer),
}

impl Backend {
    fn run(&mut self, request: &Request) -> Result<Answer, Failure> {
        match self {
            Self::Memory => unreachable!("memory sends no request"),
            Self::Model(model) => Ok(model.run(request)),
            Self::Server(server) => server.ask(request),
        }
    }
}

/// Two daemons with one cache. In memory they are one daemon.
struct World {
    backend: Backend,
    fleets: [Option<Arc<FleetStore>>; 2],
    registries: [Arc<Registry>; 2],
    now: Now,
}

const ONE: usize = 0;
const TWO: usize = 1;

impl World {
    fn over(mut backend: Backend, certificate: &Certificate) -> Self {
        let file = certificate.chain().with_file_name("contract.toml");
        std::fs::write(&file, certificate.context()).unwrap();
        let config = Config::load(Some(&file), std::iter::empty(), &[]).unwrap();
        let at = Now::from_millis(now().as_millis());
        let fleet = |seed: u8| {
            let keys = SealingKeys::read(KEY).unwrap();
            let layout = Layout::new("tsd1").unwrap();
            let seed = Zeroizing::new([seed; 32]);
            Arc::new(FleetStore::new(
                layout,
                keys,
                &seed,
                Duration::from_secs(1),
                || {},
            ))
        };
        let registry = |fleet: &Option<Arc<FleetStore>>| {
            Arc::new(Registry::build_over(&config.settings(), fleet.clone()).unwrap())
        };
        let fleets = match &mut backend {
            Backend::Memory => [None, None],
            Backend::Model(model) => {
                model.now = at.wall().as_millis();
                [Some(fleet(1)), Some(fleet(2))]
            }
            Backend::Server(_) => [Some(fleet(1)), Some(fleet(2))],
        };
        let first = registry(&fleets[ONE]);
        let second = match &fleets[TWO] {
            None => Arc::clone(&first),
            fleet => registry(fleet),
        };
        let mut world = Self {
            backend,
            fleets,
            registries: [first, second],
            now: at,
        };
        world.pump();
        world.pass(Duration::from_secs(2));
        world
    }

    /// Sends everything that the keepers have decided.
    fn pump(&mut self) {
        for fleet in self.fleets.iter().flatten() {
            for bucket in Bucket::all() {
                while let Some((id, request)) = fleet.poll(bucket, self.now.at) {
                    let answer = self.backend.run(&request);
                    fleet.answered(bucket, id, answer, self.now.at);
                }
            }
        }
    }

    /// Lets time pass. The clock of a real server does not move with it.
    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        if let Backend::Model(model) = &mut self.backend {
            model.now += u64::try_from(time.as_millis()).unwrap();
        }
        self.pump();
        // Releases go out a moment after the others.
        self.now = self.now.after(Duration::from_millis(30));
        self.pump();
    }

    fn context(&self, at: usize) -> Arc<Context> {
        Arc::clone(self.registries[at].get("default").unwrap())
    }

    fn open(&self, at: usize) -> Connection {
        let plan = ConnectionPlan {
            context: self.context(at),
            role: Role::Server,
            engine: EngineKind::Worker,
            server_name: String::new(),
            owner: "worker".into(),
            idle_timeout: None,
            peer_address: String::new(),
        };
        Connection::new(plan, self.now.at).unwrap()
    }

    fn put(&mut self, connection: &mut Connection, put: Put) -> Result<(), NotStored> {
        match connection.put_session(put, self.now).unwrap() {
            PutOutcome::Stored(_, None) => Ok(()),
            PutOutcome::Stored(_, Some(put)) => {
                let answer = self.backend.run(put.request().unwrap());
                let stored = put.answered(answer, self.now);
                connection.puts_answered();
                stored
            }
            PutOutcome::NotKept(NotKept::Cache(why)) => Err(why),
            PutOutcome::NotKept(other) => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, look: Look) -> Result<Found, Miss> {
        match look {
            Look::Done(found) => found,
            Look::Ask(ask) => {
                let answer = self.backend.run(ask.request());
                ask.answered(answer, self.now)
            }
        }
    }

    fn find(&mut self, at: usize, id: &[u8]) -> Result<Found, Miss> {
        self.find_with(at, id, |terms| terms)
    }

    fn find_with<'t>(
        &mut self,
        at: usize,
        id: &[u8],
        change: impl FnOnce(ResumeCriteria<'t>) -> ResumeCriteria<'t>,
    ) -> Result<Found, Miss> {
        let context = self.context(at);
        let terms = change(ResumeCriteria {
            format: &FORMAT,
            binding: b"binding",
            versions: &[Version::Tls12, Version::Tls13],
            server_name: &ServerName::NONE,
            cipher_suite: None,
        });
        let cache = &context.server_cache;
        let id = SessionId::new(id).unwrap();
        let look = cache.look(&id, &terms, Purpose::Lookup, &context.stats, self.now);
        self.settle(look)
    }

    /// Makes a connection that has resumed this session.
    fn resumed(&mut self, at: usize, id: &[u8]) -> Connection {
        let context = self.context(at);
        let id = SessionId::new(id).unwrap();
        let cache = &context.server_cache;
        let named = match cache.join(&id, false, &context.stats, self.now) {
            Some(look) => Named::Session(self.settle(look).unwrap()),
            None => Named::Session(Found::near(cache.peek(&id, self.now).unwrap())),
        };
        let mut connection = self.open(at);
        connection.set_session(named).unwrap();
        connection
    }

    fn free(&mut self, connection: Connection, closed: bool) -> Vec<Removed> {
        let mut connection = connection;
        if closed {
            connection.set_shutdown(Shutdown {
                sent: true,
                received: false,
            });
        }
        let removed = connection.free();
        self.pass(Duration::ZERO);
        removed
    }

    /// Stores a session whose connection is then closed.
    fn keep(&mut self, put: Put) -> Result<(), NotStored> {
        let mut connection = self.open(ONE);
        let stored = self.put(&mut connection, put);
        self.free(connection, true);
        stored
    }
}

static FORMAT: std::sync::LazyLock<Format> =
    std::sync::LazyLock::new(|| Format::Worker("openssl".into()));

fn session(id: &[u8]) -> Put {
    Put {
        id: SessionId::new(id),
        secret: Secret::copied(b"the secret"),
        format: FORMAT.clone(),
        binding: (*b"binding").into(),
        single_use: false,
        version: Version::Tls12,
        cipher_suite: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into(),
        server_name: ServerName::NONE,
        peer: None,
        timeout: None,
        authenticated: None,
    }
}

fn ticket(id: &[u8]) -> Put {
    Put {
        single_use: true,
        version: Version::Tls13,
        ..session(id)
    }
}

fn miss(found: Result<Found, Miss>) -> Option<Miss> {
    found.err()
}

/// The contract. Each step has the same outcome over every store.
fn contract(world: &mut World) {
    // A session is found by what it was stored with, and by nothing else.
    let peer = PeerIdentity {
        certificate_sha256: [7; 32],
        subject: "CN=peer".into(),
        dns_names: vec!["peer.test".into()],
        uris: vec!["spiffe://a.test/peer".into()],
        not_after: world.now.wall().after(Duration::from_secs(86_400)),
    };
    let began = world.now.at;
    let put = Put {
        peer: Some(peer.clone()),
        ..session(b"a")
    };
    assert_eq!(world.keep(put), Ok(()));
    let found = world.find(TWO, b"a").unwrap().session;
    assert_eq!(found.secret().as_bytes(), Some(&b"the secret"[..]));
    assert_eq!(found.kind().peer.as_deref(), Some(&peer));
    assert_eq!(
        found.kind().cipher_suite,
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
    );
    assert_eq!(found.authenticated(), began);
    let other_name = ServerName::new("other.test").into_owned();
    let other_format = Format::Worker("gnutls".into());
    assert_eq!(
        miss(world.find_with(TWO, b"a", |terms| ResumeCriteria {
            binding: b"other",
            ..terms
        })),
        Some(Miss::Scope)
    );
    assert_eq!(
        miss(world.find_with(TWO, b"a", |terms| ResumeCriteria {
            versions: &[Version::Tls13],
            ..terms
        })),
        Some(Miss::Scope)
    );
    let found = {
        let context = world.context(TWO);
        let terms = ResumeCriteria {
            format: &other_format,
            binding: b"binding",
            versions: &[Version::Tls12],
            server_name: &other_name,
            cipher_suite: None,
        };
        let id = SessionId::new(b"a").unwrap();
        let look =
            context
                .server_cache
                .look(&id, &terms, Purpose::Lookup, &context.stats, world.now);
        world.settle(look)
    };
    assert_eq!(miss(found), Some(Miss::Scope));
    assert!(world.find(ONE, b"a").is_ok(), "a miss changes nothing");
    assert_eq!(miss(world.find(TWO, b"never")), Some(Miss::Unknown));

    // An id belongs to one session.
    assert_eq!(world.keep(session(b"a")), Err(NotStored::IdTaken));
    assert!(world.find(TWO, b"a").is_ok(), "the first stays");

    // A single-use session is handed out once.
    assert_eq!(world.keep(ticket(b"t")), Ok(()));
    assert_eq!(
        miss(world.find_with(TWO, b"t", |terms| ResumeCriteria {
            binding: b"other",
            ..terms
        })),
        Some(Miss::Scope)
    );
    assert!(world.find(TWO, b"t").is_ok());
    assert_eq!(miss(world.find(TWO, b"t")), Some(Miss::Removed));
    assert!(world.find(ONE, b"t").is_err());

    // While its connection is open, a session is found. If the connection ends unclosed, it is not.
    let mut open = world.open(ONE);
    assert_eq!(world.put(&mut open, session(b"u")), Ok(()));
    assert_eq!(world.put(&mut open, ticket(b"v")), Ok(()));
    assert_eq!(world.find(TWO, b"u").unwrap().session.open_connections(), 1);
    assert_eq!(world.free(open, false).len(), 2);
    for id in [b"u", b"v"] {
        for at in [ONE, TWO] {
            assert_eq!(miss(world.find(at, id)), Some(Miss::Removed));
        }
    }
    // A session that was removed is not stored again.
    let mut late = world.open(TWO);
    let again = world.put(&mut late, session(b"u"));
    if world.fleets[ONE].is_some() {
        assert_eq!(again, Err(NotStored::IdTaken));
    }
    world.free(late, true);

    // Each connection that resumes a session decides about it.
    assert_eq!(world.keep(session(b"r")), Ok(()));
    let (first, second) = (world.resumed(TWO, b"r"), world.resumed(ONE, b"r"));
    assert_eq!(world.find(ONE, b"r").unwrap().session.open_connections(), 2);
    assert!(world.free(first, true).is_empty());
    assert_eq!(world.find(ONE, b"r").unwrap().session.open_connections(), 1);
    assert_eq!(world.free(second, false).len(), 1);
    assert_eq!(miss(world.find(TWO, b"r")), Some(Miss::Removed));

    // Lives end, and sessions over the limit are not stored.
    let short = Put {
        timeout: Some(Duration::from_secs(60)),
        ..session(b"s")
    };
    assert_eq!(world.keep(short), Ok(()));
    assert!(world.find(TWO, b"s").is_ok());
    for _ in 0..30 {
        world.pass(Duration::from_secs(2));
    }
    let expired = miss(world.find(TWO, b"s"));
    assert!(
        matches!(expired, Some(Miss::Expired | Miss::Unknown)),
        "{expired:?}"
    );
    let large = Put {
        secret: Secret::copied(&[1; 17 * 1024]),
        ..session(b"l")
    };
    assert_eq!(world.keep(large), Err(NotStored::TooLarge));
    let old = Put {
        authenticated: Some(Timestamp::from_millis(0)),
        ..session(b"o")
    };
    assert_eq!(world.keep(old), Err(NotStored::Expired));

    // A revoked session is neither found nor stored.
    let before = world.now.at.after(Duration::from_millis(1));
    for at in [ONE, TWO] {
        let cache = Arc::clone(&world.context(at).server_cache);
        cache.revoke(Selector::Uri("spiffe://a.test/peer".into()), before);
    }
    assert_eq!(miss(world.find(TWO, b"a")), Some(Miss::Revoked));
    let put = Put {
        peer: Some(peer),
        authenticated: Some(world.now.at),
        ..session(b"p")
    };
    assert_eq!(world.keep(put), Err(NotStored::Revoked));

    // What a caller removes is gone.
    assert_eq!(world.keep(session(b"d")), Ok(()));
    let id = SessionId::new(b"d").unwrap();
    let cache = Arc::clone(&world.context(TWO).server_cache);
    let removed = match cache.removal(&id, false) {
        Some(request) => world.backend.run(&request) == Ok(Answer::Done(1)),
        None => cache.remove(&id, world.now),
    };
    assert!(removed);
    assert_eq!(miss(world.find(ONE, b"d")), Some(Miss::Removed));
}

#[test]
fn cache_keeps_its_contract_in_memory_in_the_model_and_in_servers() {
    let certificate = Certificate::new();
    contract(&mut World::over(Backend::Memory, &certificate));
    let model = Model::new(0, Faults::default());
    contract(&mut World::over(
        Backend::Model(Box::new(model)),
        &certificate,
    ));
    for kind in Kind::ALL {
        println!("{kind:?}");
        let server = StoreServer::start(kind);
        contract(&mut World::over(Backend::Server(server), &certificate));
    }
}
