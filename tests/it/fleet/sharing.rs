//! Sessions resume at any daemon, for both engines, both versions, and all ways of calling.

use rustls::{
    ClientConnection, HandshakeKind,
    version::{TLS12, TLS13},
};
use tls_sessiond_proto as pb;

use super::{Kind, StoreServer};
use crate::{
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    returning::{Certificate, Returning},
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

/// Writes what the client has to send.
fn written(tls: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Runs a handshake of a client with a server's connection of the daemon, by Exchange. Returns the
/// connection's id, and whether the client resumed.
async fn by_exchange(daemon: &TestDaemon, client: &Returning) -> (String, bool) {
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
            for daemon in &three.daemons {
                let (id, resumed) = by_exchange(daemon, &client).await;
                assert!(
                    !resumed,
                    "{kind:?} {version:?}: a session that ended unclosed"
                );
                Worker(daemon).free(&id).await;
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
