//! What happens when a daemon or the store is lost, hangs, or comes back.

use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use tls_sessiond_proto as pb;
use tls_sessiond_store::keeper::{BEAT_VALID, UNCLOSED_MAX};

use super::{
    Kind, StoreServer,
    sharing::{Three, by_exchange},
};
use crate::{
    binary::Binary,
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    returning::{Certificate, Returning},
};

/// A daemon in a process of its own, which a test can kill or stop.
pub(super) struct Process {
    pub(super) binary: Binary,
    pub(super) calls: TestDaemon,
}

impl Process {
    async fn start(server: &StoreServer, certificate: &Certificate) -> Self {
        Self::with(server, &(certificate.context() + &server.config())).await
    }

    pub(super) async fn with(server: &StoreServer, config: &str) -> Self {
        let file = server.folder.path().join("daemon.toml");
        std::fs::write(&file, config).unwrap();
        let binary = Binary::start(&["--config", file.to_str().unwrap()]).await;
        let calls = TestDaemon::at(&binary.address).await;
        Self { binary, calls }
    }
}

/// Returns why a lookup misses, or `None` if it hits.
async fn miss(daemon: &TestDaemon, id: &str) -> Option<pb::MissReason> {
    let answer = Worker(daemon).lookup(lookup(id)).await;
    (!answer.found).then(|| answer.miss_reason())
}

async fn until_missed(daemon: &TestDaemon, id: &str, why: pb::MissReason) {
    daemon
        .until("the session is not resumed", async |daemon| {
            miss(daemon, id).await == Some(why)
        })
        .await;
}

#[tokio::test]
async fn killed_daemon_loses_what_it_held_open_and_nothing_that_was_closed() {
    for kind in Kind::ALL {
        let (certificate, server) = (Certificate::new(), StoreServer::start(kind));
        let config = certificate.context() + &server.config();
        let (killed, other) = tokio::join!(
            Process::start(&server, &certificate),
            TestDaemon::by_real_time(&config)
        );
        let holder = Worker(&killed.calls);
        holder.established("aa").await;
        let closed = holder.established("bb").await;
        holder.shutdown(&closed).await;
        holder.free(&closed).await;
        assert_eq!(
            miss(&other, "aa").await,
            None,
            "while its connection is open"
        );
        // The hold of the closed connection ends a moment later: releases go out in batches.
        other
            .until("the closed connection has released", async |other| {
                let found = Worker(other).lookup(lookup("bb")).await;
                found
                    .session
                    .is_some_and(|session| session.open_connections == 0)
            })
            .await;
        let begun = Instant::now();
        killed.binary.kill().await;
        until_missed(&other, "aa", pb::MissReason::HolderLost).await;
        // The machine may be busy; the rule itself is checked in virtual time by the simulation.
        let took = begun.elapsed();
        assert!(
            took < Duration::from_millis(UNCLOSED_MAX) + Duration::from_secs(5),
            "{took:?}"
        );
        assert_eq!(miss(&other, "bb").await, None);
    }
}

#[tokio::test]
async fn stopped_and_continued_daemon_delivers_its_removals_first() {
    let (certificate, server) = (Certificate::new(), StoreServer::start(Kind::Valkey));
    let config = certificate.context() + &server.config();
    let (stopped, other) = tokio::join!(
        Process::start(&server, &certificate),
        TestDaemon::by_real_time(&config)
    );
    let holder = Worker(&stopped.calls);
    let open = holder.established("aa").await;
    let bad = holder.established("bb").await;
    stopped.binary.signal("-STOP").await;
    until_missed(&other, "aa", pb::MissReason::HolderLost).await;
    stopped.binary.signal("-CONT").await;
    // Continued, the daemon is alive again, and what it holds is good.
    other
        .until("the held session is found again", async |other| {
            miss(other, "aa").await.is_none()
        })
        .await;
    assert_eq!(holder.free(&bad).await, 1);
    until_missed(&other, "bb", pb::MissReason::Removed).await;
    assert_eq!(miss(&other, "aa").await, None);
    holder.free(&open).await;
    until_missed(&other, "aa", pb::MissReason::Removed).await;
}

#[tokio::test]
async fn restarted_daemon_resumes_what_was_closed_and_not_what_it_held_open() {
    for version in [&TLS12, &TLS13] {
        let (certificate, server) = (Certificate::new(), StoreServer::start(Kind::Redis));
        let config = certificate.context() + &server.config();
        let daemon = TestDaemon::by_real_time(&config).await;
        let (closed, open) = (
            Returning::new(&certificate, version),
            Returning::new(&certificate, version),
        );
        let (id, _) = by_exchange(&daemon, &closed).await;
        Worker(&daemon).shutdown(&id).await;
        Worker(&daemon).free(&id).await;
        by_exchange(&daemon, &open).await;
        daemon.stop().await;
        let daemon = TestDaemon::by_real_time(&config).await;
        let (_, resumed) = by_exchange(&daemon, &closed).await;
        assert!(resumed, "{version:?}: closed before the restart");
        let (_, resumed) = by_exchange(&daemon, &open).await;
        assert!(!resumed, "{version:?}: open at the stop");
    }
}

#[tokio::test]
async fn handshakes_go_on_without_a_store_and_resume_when_it_is_back() {
    for version in [&TLS12, &TLS13] {
        let (certificate, mut server) = (Certificate::new(), StoreServer::start(Kind::Redis));
        let config = certificate.context() + &server.config();
        let daemon = TestDaemon::by_real_time(&config).await;
        let client = Returning::new(&certificate, version);
        let close = async |id: String| {
            Worker(&daemon).shutdown(&id).await;
            Worker(&daemon).free(&id).await;
        };
        close(by_exchange(&daemon, &client).await.0).await;
        let (id, resumed) = by_exchange(&daemon, &client).await;
        assert!(resumed);
        close(id).await;
        server.kill();
        for _ in 0..50 {
            let (id, resumed) = by_exchange(&daemon, &client).await;
            assert!(!resumed, "the store is away");
            close(id).await;
        }
        server.restart();
        // The store is empty, and another process: the daemon begins a new life there.
        daemon
            .until("a session is resumed again", async |daemon| {
                let (id, resumed) = by_exchange(daemon, &client).await;
                close(id).await;
                resumed
            })
            .await;
    }
}

#[tokio::test]
async fn hanging_store_delays_few_calls_and_later_gives_nothing_bad() {
    let three = Three::start(Kind::Valkey).await;
    let daemon = &three.daemons[0];
    let holder = Worker(daemon);
    let bad = holder.established("aa").await;
    three.server.signal("STOP");
    // All lookups are of one bucket: at most five wait for their deadline, and none after.
    let mut waited = 0;
    for _ in 0..50 {
        let begun = Instant::now();
        assert_eq!(
            miss(daemon, "bb").await,
            Some(pb::MissReason::StoreUnavailable)
        );
        waited += usize::from(begun.elapsed() > Duration::from_millis(900));
    }
    assert!((1..=5).contains(&waited), "{waited} lookups have waited");
    // The session ends unclosed while its removal cannot be delivered.
    assert_eq!(holder.free(&bad).await, 1);
    assert!(miss(daemon, "aa").await.is_some());
    three.server.signal("CONT");
    for other in &three.daemons {
        until_missed(other, "aa", pb::MissReason::Removed).await;
    }
}

#[tokio::test]
async fn emptied_store_is_used_again_after_a_quarantine() {
    for kind in Kind::ALL {
        let three = Three::start(kind).await;
        let workers: Vec<_> = three.daemons.iter().map(Worker).collect();
        workers[0].established("aa").await;
        let _: () = three.server.run(&["FLUSHALL"]);
        let _: () = three.server.run(&["SCRIPT", "FLUSH"]);
        for daemon in &three.daemons {
            daemon
                .until("a put is stored again", async |daemon| {
                    let id = Worker(daemon).open(worker(pb::Role::Server)).await.id;
                    let request = put(&id, &format!("{:032x}", std::ptr::from_ref(daemon).addr()));
                    Worker(daemon).put(request).await.reason.is_empty()
                })
                .await;
            daemon
                .until("lookups are answered again", async |daemon| {
                    miss(daemon, "aa").await == Some(pb::MissReason::Unknown)
                })
                .await;
        }
    }
}

/// A worker resumes a session, and the store cannot be asked for it when New names it.
#[tokio::test]
async fn session_resumed_while_the_store_is_away_is_removed_if_it_ends_unclosed() {
    let three = Three::start(Kind::Redis).await;
    let by = Worker(&three.daemons[0]);
    for id in ["aa", "bb"] {
        let made = by.established(id).await;
        by.shutdown(&made).await;
        by.free(&made).await;
        assert!(by.found(id).await);
    }
    three.server.signal("STOP");
    let resumed = |id: &str| pb::NewRequest {
        session_id: id.into(),
        ..worker(pb::Role::Server)
    };
    let unclosed = by.open(resumed("aa")).await;
    let closed = by.open(resumed("bb")).await;
    assert!(unclosed.session_reused && closed.session_reused);
    by.shutdown(&closed.id).await;
    assert_eq!(by.free(&closed.id).await, 0);
    assert_eq!(by.free(&unclosed.id).await, 1);
    three.server.signal("CONT");
    for daemon in &three.daemons {
        until_missed(daemon, "aa", pb::MissReason::Removed).await;
        daemon
            .until("the closed one is found again", async |daemon| {
                miss(daemon, "bb").await.is_none()
            })
            .await;
    }
}

#[tokio::test]
async fn cancelled_handshake_that_waits_for_the_store_leaves_the_connection_usable() {
    let three = Three::start(Kind::Valkey).await;
    let daemon = &three.daemons[0];
    let client = Returning::new(&three.certificate, &TLS13);
    let (made, _) = by_exchange(daemon, &client).await;
    Worker(daemon).shutdown(&made).await;
    Worker(daemon).free(&made).await;
    three.server.signal("STOP");
    let id = daemon.open(pb::Role::Server).await;
    let mut tls = client.tls();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    let cancelled = tokio::time::timeout(
        Duration::from_millis(100),
        daemon.exchange(&id, &hello, b""),
    );
    assert!(cancelled.await.is_err(), "it waits for the store");
    // It is busy until the daemon has noticed, and then another call can use it.
    daemon
        .until("the connection is free", async |daemon| {
            let request = pb::ClearRequest {
                connection_id: id.clone(),
            };
            daemon.connections().clear(request).await.is_ok()
        })
        .await;
    three.server.signal("CONT");
    let (_, resumed) = by_exchange(daemon, &Returning::new(&three.certificate, &TLS12)).await;
    assert!(!resumed);
}

/// What the server runs, line by line, from now on (MONITOR).
struct Monitor {
    lines: std::io::Lines<std::io::BufReader<std::net::TcpStream>>,
}

impl Monitor {
    fn begin(server: &StoreServer) -> Self {
        use std::io::{BufRead, Write};
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        socket.write_all(b"MONITOR\r\n").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut lines = std::io::BufReader::new(socket).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "+OK");
        Self { lines }
    }

    /// Returns the commands of scripts until the one that is looked for.
    fn until(&mut self, last: impl Fn(&[String]) -> bool) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if !line.contains(" lua] ") {
                continue;
            }
            let words: Vec<String> = line
                .split('"')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect();
            let ends = last(&words);
            all.push(words);
            if ends {
                break;
            }
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_reach_the_store_before_the_next_heartbeat_and_in_order() {
    let (certificate, server) = (Certificate::new(), StoreServer::start(Kind::Redis));
    let proxy = super::proxy::Proxy::start(server.port).await;
    let config = certificate.context() + &server.config_at(proxy.port, "");
    let daemon = TestDaemon::by_real_time(&config).await;
    let by = Worker(&daemon);
    let mut open = Vec::new();
    for number in 0..200 {
        open.push(by.established(&format!("{number:08x}")).await);
    }
    proxy.hold("EVALSHA");
    for id in &open {
        by.free(id).await;
    }
    // A heartbeat that was made before the removals were decided may still run: until it lapses.
    tokio::time::sleep(Duration::from_millis(BEAT_VALID + 300)).await;
    let mut monitor = Monitor::begin(&server);
    proxy.heal();
    // Every session is gone at the end, so 200 deletions are seen.
    let mut deleted = 0;
    let commands = tokio::task::spawn_blocking(move || {
        let seen = std::cell::Cell::new(0);
        monitor.until(|words| {
            let is_removal = words[0].eq_ignore_ascii_case("DEL");
            if is_removal && words.get(1).is_some_and(|key| key.contains(":s:")) {
                seen.set(seen.get() + 1);
            }
            seen.get() == 200
        })
    })
    .await
    .unwrap();
    let bucket = |key: &str| key.split(['{', '}']).nth(1).unwrap().to_owned();
    let mut beaten = std::collections::HashSet::new();
    for words in &commands {
        let Some(key) = words.get(1) else {
            continue;
        };
        let command = words[0].to_uppercase();
        if command == "HSET" && key.ends_with(":b") {
            beaten.insert(bucket(key));
        }
        if command == "DEL" && key.contains(":s:") {
            deleted += 1;
            assert!(
                !beaten.contains(&bucket(key)),
                "a heartbeat came before the removal of {key}"
            );
        }
    }
    assert_eq!(deleted, 200);
}

#[tokio::test]
async fn evicted_heartbeats_are_a_new_life_and_hand_out_nothing_bad() {
    let three = Three::start(Kind::Valkey).await;
    let by = Worker(&three.daemons[0]);
    let open = by.established("aa").await;
    let keys: Vec<String> = three.server.run(&["KEYS", "*:b"]);
    assert_eq!(keys.len(), 64);
    for key in &keys {
        let _: i64 = three.server.run(&["DEL", key]);
    }
    // What was held is not resumed by others: its holder has a new life.
    for daemon in &three.daemons {
        daemon
            .until("the bucket is open again", async |daemon| {
                let missed = miss(daemon, "aa").await;
                assert!(missed.is_some(), "its holder has another life");
                missed == Some(pb::MissReason::HolderLost)
            })
            .await;
    }
    by.shutdown(&open).await;
    by.free(&open).await;
    three.daemons[0]
        .until("all buckets are open again", async |daemon| {
            let fleet = daemon.core.registry().ledger().fleet.clone().unwrap();
            fleet.open_buckets(daemon.core.now().at) == 64
        })
        .await;
    let made = by.established("bb").await;
    for daemon in &three.daemons {
        daemon
            .until("another session is found", async |daemon| {
                miss(daemon, "bb").await.is_none()
            })
            .await;
    }
    by.free(&made).await;
}

#[tokio::test]
async fn changed_password_is_trouble_until_a_reload_brings_the_new_one() {
    let server = StoreServer::start(Kind::Redis);
    let password = server.folder.path().join("password");
    std::fs::write(&password, "first\n").unwrap();
    let _: () = server.run(&["ACL", "SETUSER", "daemon", "on", ">first", "~*", "+@all"]);
    let keys = format!("user = \"daemon\"\npassword_file = {password:?}");
    let certificate = Certificate::new();
    let config = certificate.context() + &server.config_at(server.port, &keys);
    let daemon = TestDaemon::by_real_time(&config).await;
    let by = Worker(&daemon);
    let made = by.established("aa").await;
    by.shutdown(&made).await;
    by.free(&made).await;
    assert!(by.found("aa").await);
    let _: () = server.run(&["ACL", "SETUSER", "daemon", "resetpass", ">second"]);
    let _: i64 = server.run(&["CLIENT", "KILL", "USER", "daemon"]);
    daemon
        .until("lookups miss", async |daemon| {
            miss(daemon, "aa").await == Some(pb::MissReason::StoreUnavailable)
        })
        .await;
    let client = Worker(&daemon).open(worker(pb::Role::Server)).await.id;
    let refused = by.put(put(&client, "bb")).await;
    assert_eq!(
        refused.not_stored_reason(),
        pb::NotStoredReason::StoreUnavailable
    );
    std::fs::write(&password, "second\n").unwrap();
    daemon.reload(&config).unwrap();
    daemon
        .until("lookups hit again", async |daemon| {
            miss(daemon, "aa").await.is_none()
        })
        .await;
}
