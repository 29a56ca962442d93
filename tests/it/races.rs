//! Threads that compete for one session.
//!
//! A recorded ClientHello is played to many server objects at a time. Whether they find the offered
//! session does not depend on the rest of the handshake.

use std::{
    path::Path,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tls_sessiond::config::Config;
use tls_sessiond_core::{
    clock::Clock,
    connection::{ConnectionId, ConnectionPlan, EngineKind, Input, State, table::Most},
    context::Registry,
    state::CoreState,
};
use tls_sessiond_types::Role;

use crate::pki;

const THREADS: usize = 4;

fn core(version: &str, lines: &str) -> Arc<CoreState> {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let config = config(folder.path(), version, lines);
    Arc::new(CoreState::new(
        Arc::new(Registry::build(&config.settings()).unwrap()),
        Clock::System,
        Most::all(10_000),
    ))
}

fn config(folder: &Path, version: &str, lines: &str) -> Config {
    let file = folder.join("races.toml");
    let text = format!(
        "[[context]]\nversions = [\"{version}\"]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n\
         key_exchange = [\"X25519\"]\ntickets = 1\nclient_sessions = \"explicit\"\n{lines}\n"
    );
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file), std::iter::empty(), &[]).unwrap()
}

fn make(core: &CoreState, role: Role) -> ConnectionId {
    let plan = ConnectionPlan {
        context: Arc::clone(core.registry().get("default").unwrap()),
        role,
        engine: EngineKind::Daemon,
        server_name: "localhost".into(),
        owner: "test".into(),
        idle_timeout: None,
        peer_address: String::new(),
    };
    core.connections()
        .create(plan, None, |connection, _| connection.id())
        .unwrap()
}

fn step(core: &CoreState, id: ConnectionId, ciphertext: &[u8]) -> Vec<u8> {
    let input = Input {
        ciphertext,
        ..Input::default()
    };
    core.connections()
        .with(id, |connection, now| connection.exchange(input, now))
        .unwrap()
        .done()
        .unwrap()
        .ciphertext
}

fn handshake(core: &CoreState) -> (ConnectionId, ConnectionId) {
    let (client, server) = (make(core, Role::Client), make(core, Role::Server));
    let mut to_server = step(core, client, b"");
    while !to_server.is_empty() {
        let to_client = step(core, server, &to_server);
        to_server = step(core, client, &to_client);
    }
    (client, server)
}

/// Returns a ClientHello that offers the session of this client's connection.
fn hello_that_resumes(core: &CoreState, client: ConnectionId) -> Vec<u8> {
    core.connections()
        .with(client, |connection, _| connection.shutdown(&mut Vec::new()))
        .unwrap();
    core.connections()
        .with(client, |connection, _| Ok(connection.clear()))
        .unwrap();
    step(core, client, b"")
}

/// Returns whether a new server resumes the session that this ClientHello offers.
fn resumes(core: &CoreState, hello: &[u8]) -> bool {
    let server = make(core, Role::Server);
    step(core, server, hello);
    let reused = core
        .connections()
        .inspect(server, |connection, _| connection.session_reused())
        .unwrap();
    core.connections().free(server).unwrap();
    reused
}

// Invariant 2.
#[test]
fn one_ticket_offered_to_many_servers_resumes_once() {
    let core = core("1.3", "");
    for _ in 0..100 {
        let (client, server) = handshake(&core);
        core.connections()
            .with(server, |connection, _| connection.shutdown(&mut Vec::new()))
            .unwrap();
        let hello = hello_that_resumes(&core, client);
        let start = Barrier::new(THREADS);
        let resumed: usize = std::thread::scope(|scope| {
            let all: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        usize::from(resumes(&core, &hello))
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).sum()
        });
        assert_eq!(resumed, 1);
    }
}

// Invariant 1.
#[test]
fn no_resumption_follows_the_free_of_an_open_connection() {
    let core = core("1.2", "");
    for _ in 0..50 {
        let (client, server) = handshake(&core);
        let hello = hello_that_resumes(&core, client);
        assert!(
            resumes(&core, &hello),
            "an open connection's session is not resumed"
        );
        let (start, gone) = (Barrier::new(THREADS + 1), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..20 {
                        let was_gone = gone.load(Ordering::SeqCst);
                        let resumed = resumes(&core, &hello);
                        assert!(!(was_gone && resumed), "a removed session was resumed");
                    }
                });
            }
            start.wait();
            assert_eq!(core.connections().free(server).unwrap().len(), 1);
            gone.store(true, Ordering::SeqCst);
        });
        assert!(!resumes(&core, &hello));
    }
}

#[test]
fn concurrent_evictions_and_resumptions_keep_limit_and_count() {
    let core = core("1.2", "cache_entries_max = 2");
    let context = Arc::clone(core.registry().get("default").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..60 {
                    let (client, server) = handshake(&core);
                    core.connections()
                        .with(server, |connection, _| connection.shutdown(&mut Vec::new()))
                        .unwrap();
                    let hello = hello_that_resumes(&core, client);
                    resumes(&core, &hello);
                    core.connections().free(server).unwrap();
                    core.connections().free(client).unwrap();
                }
            });
        }
    });
    let mut held = 0;
    context.server_cache.scan(core.now(), |_| held += 1);
    assert!(held <= 2);
    assert_eq!(
        (context.server_cache.len(), core.connections().len()),
        (held, 0)
    );
    context.server_cache.scan(core.now(), |session| {
        assert_eq!(session.open_connections(), 0);
    });
}

#[test]
fn concurrent_free_and_exchange_leave_no_session() {
    let core = core("1.3", "");
    for _ in 0..100 {
        let (client, server) = (make(&core, Role::Client), make(&core, Role::Server));
        let flight = step(&core, server, &step(&core, client, b""));
        let finished = step(&core, client, &flight);
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                // Finishes the handshake and makes a ticket, unless the object was freed before.
                let input = Input {
                    ciphertext: &finished,
                    ..Input::default()
                };
                drop(
                    core.connections()
                        .with(server, |connection, now| connection.exchange(input, now)),
                );
            });
            start.wait();
            core.connections().free(server).unwrap();
        });
        core.connections().free(client).unwrap();
        let context = Arc::clone(core.registry().get("default").unwrap());
        assert!(
            context.server_cache.is_empty(),
            "a session of an unclosed connection was kept"
        );
    }
}

// Invariant 16.
#[test]
fn handshakes_succeed_during_reloads_and_no_old_cache_stays() {
    for version in ["1.2", "1.3"] {
        let folder = tempfile::tempdir().unwrap();
        pki::localhost(folder.path());
        // The server's scope changes each time, the client's never.
        let configs = ["none", "request"]
            .map(|auth| config(folder.path(), version, &format!("client_auth = \"{auth}\"")));
        let registry = Arc::new(Registry::build(&configs[0].settings()).unwrap());
        let core = Arc::new(CoreState::new(registry, Clock::System, Most::all(10_000)));
        let (done, made) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let (client, server) = handshake(&core);
                        for id in [client, server] {
                            let state = core
                                .connections()
                                .inspect(id, |connection, _| connection.state())
                                .unwrap();
                            assert_eq!(state, State::Established);
                            core.connections()
                                .with(id, |connection, _| connection.shutdown(&mut Vec::new()))
                                .unwrap();
                            core.connections().free(id).unwrap();
                        }
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for round in 1..200 {
                let next = core
                    .registry()
                    .rebuild(&configs[round % 2].settings())
                    .unwrap();
                core.swap(Arc::new(next));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(made.load(Ordering::Relaxed) > 0);
        // The caches of the current registry hold all sessions that the budget counts.
        let registry = core.registry();
        let found: usize = registry.caches().map(|cache| cache.len()).sum();
        assert_eq!(registry.ledger().budget.held().entries(), found);
    }
}
