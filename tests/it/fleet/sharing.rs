//! Sessions resume at any daemon, for both engines, both versions, and all ways of calling.

use rustls::{
    ClientConnection, HandshakeKind,
    version::{TLS12, TLS13},
};
use tls_sessiond_proto as pb;
use tls_sessiond_store::layout::Bucket;

use super::{Kind, StoreServer};
use crate::{
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    process::Server,
    returning::{Certificate, Returning},
    worker_client::{established, found, worker_of},
};

/// Three daemons with the same certificate and the same store.
pub(super) struct Three {
    pub(super) daemons: Vec<TestDaemon>,
    pub(super) certificate: Certificate,
    pub(super) server: StoreServer,
}

impl Three {
    pub(super) async fn start(kind: Kind) -> Self {
        let (certificate, server) = (Certificate::new(), StoreServer::start(kind));
        let config = certificate.context() + &server.config();
        let start = || TestDaemon::by_real_time(&config);
        let (one, two, three) = tokio::join!(start(), start(), start());
        Self {
            daemons: vec![one, two, three],
            certificate,
            server,
        }
    }
}

/// Waits until the store has everything that this daemon has decided.
pub(super) async fn delivered(daemon: &TestDaemon) {
    let fleet = daemon.core.registry().ledger().fleet.clone().unwrap();
    daemon
        .until("the store has everything", async |_| {
            Bucket::all().all(|bucket| fleet.is_flushed(bucket))
        })
        .await;
}

/// Writes what the client has to send.
pub(super) fn written(tls: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Runs a handshake of a client with a server's connection of the daemon, by Exchange. Returns the
/// connection's id, and whether the client resumed.
pub(super) async fn by_exchange(daemon: &TestDaemon, client: &Returning) -> (String, bool) {
    let (mut tls, id) = (client.tls(), daemon.open(pb::Role::Server).await);
    loop {
        let bytes = written(&mut tls);
        if bytes.is_empty() {
            break;
        }
        let answer = daemon.exchange(&id, &bytes, b"").await.unwrap();
        let mut records = &answer.ciphertext[..];
        while !records.is_empty() {
            tls.read_tls(&mut records).unwrap();
            tls.process_new_packets().unwrap();
        }
    }
    let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
    (id, resumed)
}

#[tokio::test]
async fn closed_sessions_of_the_daemons_engine_resume_anywhere() {
    for kind in Kind::ALL {
        let three = Three::start(kind).await;
        for version in [&TLS12, &TLS13] {
            let client = Returning::new(&three.certificate, version);
            for (place, daemon) in three.daemons.iter().cycle().take(6).enumerate() {
                let (id, resumed) = by_exchange(daemon, &client).await;
                assert_eq!(resumed, place > 0, "{kind:?} {version:?} {place}");
                Worker(daemon).shutdown(&id).await;
                assert_eq!(Worker(daemon).free(&id).await, 0);
            }
            // The last connection ends unclosed.
            let daemon = &three.daemons[0];
            let (id, resumed) = by_exchange(daemon, &client).await;
            assert!(resumed);
            assert!(Worker(daemon).free(&id).await > 0);
            delivered(daemon).await;
            for daemon in &three.daemons {
                let (id, resumed) = by_exchange(daemon, &client).await;
                assert!(
                    !resumed,
                    "{kind:?} {version:?}: a session that ended unclosed"
                );
                Worker(daemon).free(&id).await;
                // This one made a session too, and ended unclosed.
                delivered(daemon).await;
            }
        }
    }
}

#[tokio::test]
async fn sessions_of_workers_are_found_anywhere_until_one_ends_unclosed() {
    for kind in Kind::ALL {
        let three = Three::start(kind).await;
        let workers: Vec<_> = three.daemons.iter().map(Worker).collect();
        let made = workers[0].open(worker(pb::Role::Server)).await.id;
        assert_eq!(workers[0].put(put(&made, "aa")).await.reason, "");
        // While the first connection is open, the session is resumed elsewhere.
        assert!(workers[1].found("aa").await);
        let resumed = workers[1]
            .open(pb::NewRequest {
                session_id: "aa".into(),
                ..worker(pb::Role::Server)
            })
            .await;
        assert!(resumed.session_reused);
        workers[0].shutdown(&made).await;
        assert_eq!(workers[0].free(&made).await, 0);
        assert!(workers[2].found("aa").await);
        // The second connection ends unclosed.
        assert_eq!(workers[1].free(&resumed.id).await, 1);
        let missed = workers[1].lookup(lookup("aa")).await;
        assert_eq!(missed.miss_reason(), pb::MissReason::Removed);
        for other in [0, 2] {
            three.daemons[other]
                .until("removed in the store", async |daemon| {
                    !Worker(daemon).found("aa").await
                })
                .await;
        }
    }
}

#[tokio::test]
async fn one_ticket_offered_to_three_daemons_at_once_is_accepted_once() {
    let three = Three::start(Kind::Redis).await;
    let workers: Vec<_> = three.daemons.iter().map(Worker).collect();
    for round in 0..1_000 {
        let ticket = format!("{round:08x}");
        let made = workers[round % 3].open(worker(pb::Role::Server)).await.id;
        let request = pb::PutSessionRequest {
            single_use: true,
            version: pb::ProtocolVersion::Tls13.into(),
            ..put(&made, &ticket)
        };
        assert_eq!(workers[round % 3].put(request).await.reason, "");
        let (one, two, three) = tokio::join!(
            workers[0].found(&ticket),
            workers[1].found(&ticket),
            workers[2].found(&ticket)
        );
        let accepted = [one, two, three].into_iter().filter(|found| *found).count();
        assert_eq!(accepted, 1, "round {round}");
        workers[round % 3].shutdown(&made).await;
        workers[round % 3].free(&made).await;
    }
}

#[tokio::test]
async fn one_client_hello_sent_to_three_daemons_is_resumed_by_one() {
    let three = Three::start(Kind::Valkey).await;
    let client = Returning::new(&three.certificate, &TLS13);
    for round in 0..50 {
        let daemon = &three.daemons[round % 3];
        let (id, _) = by_exchange(daemon, &client).await;
        Worker(daemon).shutdown(&id).await;
        Worker(daemon).free(&id).await;
        // The same bytes, as an attacker replays them (RFC 8446 section 8).
        let hello = written(&mut client.tls());
        let mut ids = Vec::new();
        for daemon in &three.daemons {
            ids.push(daemon.open(pb::Role::Server).await);
        }
        let sent = three.daemons.iter().zip(&ids).map(async |(daemon, id)| {
            let answer = daemon.exchange(id, &hello, b"").await.unwrap();
            answer.connection.unwrap().session_reused
        });
        let resumed = futures_util::future::join_all(sent).await;
        let count = resumed.iter().filter(|resumed| **resumed).count();
        assert_eq!(count, 1, "round {round}: {resumed:?}");
    }
}

#[tokio::test]
async fn drive_resumes_anywhere() {
    for version in [&TLS12, &TLS13] {
        let three = Three::start(Kind::Valkey).await;
        let mut servers = Vec::new();
        for daemon in &three.daemons {
            servers.push(Server::start(daemon, "one of three").await);
        }
        let client = Returning::new(&three.certificate, version);
        for (place, server) in servers.iter().cycle().take(9).enumerate() {
            let page = client.fetch(&server.address).await;
            assert_eq!(
                page.contains("resumed: true"),
                place > 0,
                "{version:?} {place}: {page}"
            );
            // A daemon learns of the close when the client's close_notify arrives.
            for daemon in &three.daemons {
                daemon
                    .until("the connection has ended", async |daemon| {
                        daemon.core.connections().is_empty()
                    })
                    .await;
            }
        }
    }
}

#[tokio::test]
async fn workers_attached_to_other_daemons_find_each_others_sessions() {
    for kind in Kind::ALL {
        let three = Three::start(kind).await;
        let mut workers = Vec::new();
        for daemon in &three.daemons {
            workers.push(worker_of(daemon).await);
        }
        let found_by = async |place: usize, id: &[u8]| found(&workers[place], id).await;
        let until = async |what: &str, place: usize, id: &[u8], is_found: bool| {
            three.daemons[place]
                .until(what, async |_| found_by(place, id).await == is_found)
                .await;
        };
        let connection = established(&workers[0], b"a");
        until("while it is open", 1, b"a", true).await;
        let resumed = workers[1].open(tls_sessiond_client::Role::Server, "", Some(b"a"));
        connection.shutdown();
        drop(connection);
        until("one was closed, one is open", 2, b"a", true).await;
        // The second connection ends unclosed.
        drop(resumed);
        for place in 0..3 {
            until("unclosed", place, b"a", false).await;
        }
        // Many at once, on one stream.
        let connections: Vec<_> = (0..200_u16)
            .map(|number| established(&workers[0], &number.to_be_bytes()))
            .collect();
        until("the last is stored", 0, &199_u16.to_be_bytes(), true).await;
        let lookups =
            (0..200_u16).map(async |number| found(&workers[2], &number.to_be_bytes()).await);
        let all = futures_util::future::join_all(lookups).await;
        assert!(all.iter().all(|found| *found));
        connections
            .iter()
            .for_each(tls_sessiond_client::Connection::shutdown);
        drop(connections);
    }
}

#[tokio::test]
async fn clients_of_workers_share_the_newest_session_with_a_server() {
    for kind in Kind::ALL {
        let three = Three::start(kind).await;
        let workers: Vec<_> = three.daemons.iter().map(Worker).collect();
        let newest = |server: &str| pb::LookupSessionRequest {
            role: pb::Role::Client.into(),
            server_name: server.into(),
            session_id: String::new(),
            ..lookup("")
        };
        let missed = workers[1].lookup(newest("localhost")).await;
        assert!(!missed.found);
        let mut made = Vec::new();
        for (number, single_use) in [(1, true), (2, true), (3, false)] {
            let id = workers[0].open(worker(pb::Role::Client)).await.id;
            let request = pb::PutSessionRequest {
                session_id: String::new(),
                data: format!("session {number}").into(),
                single_use,
                ..put(&id, "")
            };
            let stored = workers[0].put(request).await;
            assert_eq!(stored.reason, "");
            made.push((id, stored.session.unwrap().id));
        }
        assert!(!workers[1].lookup(newest("other.test")).await.found);
        // The newest is not single-use, so it is found again and again.
        for place in [1, 2, 1] {
            let found = workers[place].lookup(newest("localhost")).await;
            assert_eq!(found.data, "session 3");
        }
        // It ends unclosed: the next one is offered, once.
        workers[0].free(&made[2].0).await;
        three.daemons[1]
            .until("the newest is gone", async |daemon| {
                let request = pb::LookupSessionRequest {
                    session_id: made[2].1.clone(),
                    ..newest("localhost")
                };
                !Worker(daemon).lookup(request).await.found
            })
            .await;
        assert_eq!(
            workers[1].lookup(newest("localhost")).await.data,
            "session 2"
        );
        assert_eq!(
            workers[2].lookup(newest("localhost")).await.data,
            "session 1"
        );
        assert!(!workers[0].lookup(newest("localhost")).await.found);
    }
}
