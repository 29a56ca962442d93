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
    connection::{ConnectionId, ConnectionPlan, EngineKind, Input, State, Table, table::Most},
    context::Registry,
};
use tls_sessiond_types::Role;

use crate::pki;

const THREADS: usize = 4;

fn table(version: &str, lines: &str) -> Arc<Table> {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let config = config(folder.path(), version, lines);
    Arc::new(Table::new(
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

fn make(table: &Table, role: Role) -> ConnectionId {
    let plan = ConnectionPlan {
        context: Arc::clone(table.registry().get("default").unwrap()),
        role,
        engine: EngineKind::Daemon,
        server_name: "localhost".into(),
        owner: "test".into(),
        idle_timeout: None,
        peer_address: String::new(),
    };
    table.create(plan, None, |connection, _| connection.id()).unwrap()
}

fn step(table: &Table, id: ConnectionId, ciphertext: &[u8]) -> Vec<u8> {
    let input = Input { ciphertext, ..Input::default() };
    table.with(id, |connection, now| connection.exchange(input, now)).unwrap().ciphertext
}

fn handshake(table: &Table) -> (ConnectionId, ConnectionId) {
    let (client, server) = (make(table, Role::Client), make(table, Role::Server));
    let mut to_server = step(table, client, b"");
    while !to_server.is_empty() {
        let to_client = step(table, server, &to_server);
        to_server = step(table, client, &to_client);
    }
    (client, server)
}

/// Returns a ClientHello that offers the session of this client's connection.
fn hello_that_resumes(table: &Table, client: ConnectionId) -> Vec<u8> {
    table.with(client, |connection, _| connection.shutdown(&mut Vec::new())).unwrap();
    table.with(client, |connection, _| Ok(connection.clear())).unwrap();
    step(table, client, b"")
}

/// Returns whether a new server resumes the session that this ClientHello offers.
fn resumes(table: &Table, hello: &[u8]) -> bool {
    let server = make(table, Role::Server);
    step(table, server, hello);
    let reused = table.inspect(server, |connection, _| connection.session_reused()).unwrap();
    table.free(server).unwrap();
    reused
}

#[test]
fn one_ticket_offered_to_many_servers_resumes_once() {
    let table = table("1.3", "");
    for _ in 0..100 {
        let (client, server) = handshake(&table);
        table.with(server, |connection, _| connection.shutdown(&mut Vec::new())).unwrap();
        let hello = hello_that_resumes(&table, client);
        let start = Barrier::new(THREADS);
        let resumed: usize = std::thread::scope(|scope| {
            let all: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        usize::from(resumes(&table, &hello))
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).sum()
        });
        assert_eq!(resumed, 1);
    }
}

#[test]
fn no_resumption_follows_the_free_of_an_open_connection() {
    let table = table("1.2", "");
    for _ in 0..50 {
        let (client, server) = handshake(&table);
        let hello = hello_that_resumes(&table, client);
        assert!(resumes(&table, &hello), "an open connection's session is not resumed");
        let (start, gone) = (Barrier::new(THREADS + 1), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..20 {
                        let was_gone = gone.load(Ordering::SeqCst);
                        let resumed = resumes(&table, &hello);
                        assert!(!(was_gone && resumed), "a removed session was resumed");
                    }
                });
            }
            start.wait();
            assert_eq!(table.free(server).unwrap().len(), 1);
            gone.store(true, Ordering::SeqCst);
        });
        assert!(!resumes(&table, &hello));
    }
}

#[test]
fn concurrent_evictions_and_resumptions_keep_limit_and_count() {
    let table = table("1.2", "cache_entries_max = 2");
    let context = Arc::clone(table.registry().get("default").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..60 {
                    let (client, server) = handshake(&table);
                    table.with(server, |connection, _| connection.shutdown(&mut Vec::new())).unwrap();
                    let hello = hello_that_resumes(&table, client);
                    resumes(&table, &hello);
                    table.free(server).unwrap();
                    table.free(client).unwrap();
                }
            });
        }
    });
    let mut held = 0;
    context.server_cache.scan(table.now(), |_| held += 1);
    assert!(held <= 2);
    assert_eq!((context.server_cache.len(), table.len()), (held, 0));
    context.server_cache.scan(table.now(), |session| assert_eq!(session.open_connections(), 0));
}

#[test]
fn concurrent_free_and_exchange_leave_no_session() {
    let table = table("1.3", "");
    for _ in 0..100 {
        let (client, server) = (make(&table, Role::Client), make(&table, Role::Server));
        let flight = step(&table, server, &step(&table, client, b""));
        let finished = step(&table, client, &flight);
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                // Finishes the handshake and makes a ticket, unless the object was freed before.
                let input = Input { ciphertext: &finished, ..Input::default() };
                drop(table.with(server, |connection, now| connection.exchange(input, now)));
            });
            start.wait();
            table.free(server).unwrap();
        });
        table.free(client).unwrap();
        let context = Arc::clone(table.registry().get("default").unwrap());
        assert!(context.server_cache.is_empty(), "a session of an unclosed connection was kept");
    }
}

#[test]
fn handshakes_succeed_during_reloads_and_no_old_cache_stays() {
    for version in ["1.2", "1.3"] {
        let folder = tempfile::tempdir().unwrap();
        pki::localhost(folder.path());
        // The server's scope changes each time, the client's never.
        let configs = ["none", "request"]
            .map(|auth| config(folder.path(), version, &format!("client_auth = \"{auth}\"")));
        let registry = Arc::new(Registry::build(&configs[0].settings()).unwrap());
        let table = Arc::new(Table::new(registry, Clock::System, Most::all(10_000)));
        let (done, made) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let (client, server) = handshake(&table);
                        for id in [client, server] {
                            let state = table.inspect(id, |connection, _| connection.state()).unwrap();
                            assert_eq!(state, State::Established);
                            table.with(id, |connection, _| connection.shutdown(&mut Vec::new())).unwrap();
                            table.free(id).unwrap();
                        }
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for round in 1..200 {
                let next = table.registry().rebuild(&configs[round % 2].settings()).unwrap();
                table.swap(Arc::new(next));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(made.load(Ordering::Relaxed) > 0);
        // The caches of the current registry hold all sessions that the budget counts.
        let registry = table.registry();
        let found: usize = registry.caches().map(|cache| cache.len()).sum();
        assert_eq!(registry.ledger().budget.held().entries(), found);
    }
}
