//! Connections to the store that are cut, held back or mixed up.

use tls_sessiond_proto as pb;
use tls_sessiond_proto::{call::Method, worker_service_client::WorkerServiceClient};
use tls_sessiond_store::{
    layout::{Fit, Name},
    script::{Claim, Head, Holder, Request, Token},
    seal::SealingKeys,
};

use super::{
    Kind, StoreServer,
    proxy::{Proxy, Way},
    server::KEY,
    sharing::delivered,
};
use crate::{
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    returning::Certificate,
};

/// Returns the hash that names the script of a request.
fn hash(request: &Request) -> &'static str {
    &request.script().sha1
}

fn some_name() -> Name {
    let keys = SealingKeys::read(KEY).unwrap();
    keys.names()
        .name(b"", tls_sessiond_types::Role::Server, b"any")
}

fn claim() -> Claim {
    Claim {
        holder: Holder([0; 8]),
        deadline: 0,
        revision: 0,
    }
}

/// The hash of the script that stores a session.
fn put_script() -> &'static str {
    hash(&Request::Put {
        name: some_name(),
        claim: claim(),
        token: Token(0),
        head: Head {
            single_use: false,
            version: tls_sessiond_types::Version::Tls12,
            cipher_suite: 0,
            fit: Fit([0; 8]),
        },
        sealed: Vec::new(),
        valid_until: 0,
        life: 1,
        pool: None,
    })
}

/// A daemon behind a proxy, and one straight at the store.
struct Pair {
    behind: TestDaemon,
    straight: TestDaemon,
    proxy: Proxy,
    server: StoreServer,
}

impl Pair {
    async fn start() -> Self {
        let (certificate, server) = (Certificate::new(), StoreServer::start(Kind::Redis));
        let proxy = Proxy::start(server.port).await;
        let behind = certificate.context() + &server.config_at(proxy.port, "");
        let straight = certificate.context() + &server.config();
        let (behind, straight) = tokio::join!(
            TestDaemon::by_real_time(&behind),
            TestDaemon::by_real_time(&straight)
        );
        Self {
            behind,
            straight,
            proxy,
            server,
        }
    }

    /// Waits until the daemon behind the proxy stores and finds sessions again.
    async fn settle(&self, id: &str) {
        self.behind
            .until("the daemon uses the store again", async |daemon| {
                let made = Worker(daemon).open(worker(pb::Role::Server)).await.id;
                let stored = Worker(daemon).put(put(&made, id)).await;
                let is_found = Worker(daemon).found(id).await;
                Worker(daemon).free(&made).await;
                stored.reason.is_empty() && is_found
            })
            .await;
    }
}

fn call(id: u64, alias: &str, method: Method) -> pb::Call {
    pb::Call {
        id,
        method: Some(method),
        alias: alias.into(),
    }
}

fn single_use(connection: &str, id: &str) -> pb::PutSessionRequest {
    pb::PutSessionRequest {
        single_use: true,
        version: pb::ProtocolVersion::Tls13.into(),
        ..put(connection, id)
    }
}

#[tokio::test]
async fn connection_cut_anywhere_hands_out_nothing_twice_and_nothing_bad() {
    let pair = Pair::start().await;
    let mut number = 0;
    let mut next = || {
        number += 1;
        format!("{number:08x}")
    };
    // Before the first byte, within each part of requests and answers, and behind them.
    for (way, places) in [
        (
            Way::Request,
            [0, 1, 60, 200, 330, 420, 600, 900, 1_400, 2_000],
        ),
        (Way::Answer, [0, 1, 5, 20, 80, 200, 350, 420, 500, 700]),
    ] {
        for place in places {
            pair.settle(&next()).await;
            let (worker_behind, worker_straight) = (Worker(&pair.behind), Worker(&pair.straight));
            pair.proxy.cut_after(way, place);
            let (ticket, open) = (next(), next());
            let made = worker_behind.open(worker(pb::Role::Server)).await.id;
            let stored = worker_behind.put(single_use(&made, &ticket)).await;
            let unclosed = worker_behind.open(worker(pb::Role::Server)).await.id;
            worker_behind.put(put(&unclosed, &open)).await;
            worker_behind.shutdown(&made).await;
            worker_behind.free(&made).await;
            // A connection with a session that was not stored has none to remove.
            worker_behind.free(&unclosed).await;
            let (one, two) = tokio::join!(
                worker_behind.lookup(lookup(&ticket)),
                worker_straight.found(&ticket)
            );
            assert!(
                !(one.found && two),
                "{way:?} {place}: a ticket was handed out twice"
            );
            pair.proxy.heal();
            if stored.not_stored_reason() != pb::NotStoredReason::Unspecified {
                // The store may have it until the daemon has delivered its removal.
                delivered(&pair.behind).await;
                assert!(
                    !Worker(&pair.straight).found(&ticket).await,
                    "{way:?} {place}: it was not stored"
                );
            }
            pair.straight
                .until("the unclosed session is gone", async |daemon| {
                    !Worker(daemon).found(&open).await
                })
                .await;
            let again = Worker(&pair.straight).found(&ticket).await;
            assert!(
                !(again && (one.found || two)),
                "{way:?} {place}: handed out again"
            );
        }
    }
}

#[tokio::test]
async fn put_that_is_held_back_is_void_after_its_removal() {
    let pair = Pair::start().await;
    pair.settle("01").await;
    pair.proxy.hold(put_script());
    let behind = Worker(&pair.behind);
    let made = behind.open(worker(pb::Role::Server)).await.id;
    let stored = behind.put(put(&made, "aa")).await;
    assert!(pair.proxy.happened());
    assert_eq!(
        stored.not_stored_reason(),
        pb::NotStoredReason::StoreUnavailable
    );
    // The daemon does not know whether the store has it, and has queued its removal.
    behind.free(&made).await;
    pair.straight
        .until("the removal has left its note", async |daemon| {
            Worker(daemon).lookup(lookup("aa")).await.miss_reason() == pb::MissReason::Removed
        })
        .await;
    pair.proxy.heal();
    pair.settle("02").await;
    assert!(!Worker(&pair.straight).found("aa").await);
    // Also where the note was evicted meanwhile: the put has lapsed.
    pair.proxy.hold(put_script());
    let made = behind.open(worker(pb::Role::Server)).await.id;
    behind.put(put(&made, "bb")).await;
    behind.free(&made).await;
    pair.straight
        .until("the removal has left its note", async |daemon| {
            Worker(daemon).lookup(lookup("bb")).await.miss_reason() == pb::MissReason::Removed
        })
        .await;
    let keys: Vec<String> = pair.server.run(&["KEYS", "*:s:*"]);
    for key in keys {
        let _: i64 = pair.server.run(&["DEL", &key]);
    }
    pair.proxy.heal();
    pair.settle("03").await;
    assert!(!Worker(&pair.straight).found("bb").await);
}

#[tokio::test]
async fn answers_that_are_mixed_up_hand_out_nothing() {
    let pair = Pair::start().await;
    pair.settle("01").await;
    let behind = Worker(&pair.behind);
    let mut made = Vec::new();
    for id in ["aa", "bb"] {
        let connection = behind.open(worker(pb::Role::Server)).await.id;
        let request = pb::PutSessionRequest {
            data: format!("secret of {id}").into(),
            ..put(&connection, id)
        };
        assert_eq!(behind.put(request).await.reason, "");
        made.push(connection);
    }
    let mut seen = 0;
    for round in 0..20 {
        pair.proxy.swap();
        let (one, two) = tokio::join!(behind.lookup(lookup("aa")), behind.lookup(lookup("bb")));
        for (answer, id) in [(one, "aa"), (two, "bb")] {
            if answer.found {
                assert_eq!(answer.data, format!("secret of {id}"));
            } else {
                seen += usize::from(pair.proxy.happened());
            }
        }
        pair.proxy.heal();
        pair.settle(&format!("02{round:02x}")).await;
    }
    assert!(seen > 0, "no answers were mixed up");
}

#[tokio::test]
async fn ten_thousand_lookups_without_a_store_fail_none() {
    let pair = Pair::start().await;
    // Heartbeats too: one that is answered lets a part be asked again.
    pair.proxy.hold("EVALSHA");
    let behind = &Worker(&pair.behind);
    for _ in 0..100 {
        let many =
            (0..100).map(|number| async move { behind.found(&format!("{number:04x}")).await });
        let found = futures_util::future::join_all(many).await;
        assert!(found.iter().all(|found| !found));
    }
    let stats = pair
        .behind
        .core
        .registry()
        .ledger()
        .fleet
        .as_ref()
        .map(|fleet| {
            let counters = &fleet.counters;
            let read = |count: &std::sync::atomic::AtomicU64| {
                count.load(std::sync::atomic::Ordering::SeqCst)
            };
            (read(&counters.failures), read(&counters.shed))
        })
        .unwrap();
    // Each of 64 buckets has a breaker of its own. The first hundred calls were under way together.
    assert!(stats.0 <= 64 * 5 + 100, "{stats:?}");
    assert!(stats.1 >= 9_500, "{stats:?}");
}

#[tokio::test]
async fn calls_of_a_connection_wait_for_its_session_and_others_go_on() {
    let pair = Pair::start().await;
    pair.settle("01").await;
    let behind = Worker(&pair.behind);
    let made = behind.open(worker(pb::Role::Server)).await.id;
    for id in ["aa", "bb"] {
        assert_eq!(behind.put(put(&made, id)).await.reason, "");
    }
    let new = |id, alias: &str, session_id: &str| {
        let request = pb::NewRequest {
            session_id: session_id.into(),
            ..worker(pb::Role::Server)
        };
        call(id, alias, Method::New(Box::new(request)))
    };
    let shutdown = |id, alias: &str| {
        let connection_id = alias.into();
        call(
            id,
            "",
            Method::Shutdown(pb::ShutdownRequest { connection_id }),
        )
    };
    let free = |id, connection_id: &str| {
        let request = pb::FreeRequest {
            connection_id: connection_id.into(),
            allow_missing: true,
        };
        call(id, "", Method::Free(request))
    };
    let calls = vec![
        new(1, "@a", "aa"),
        shutdown(2, "@a"),
        new(3, "@b", "bb"),
        shutdown(10, "@b"),
        free(4, "@b"),
        new(5, "@b", "bb"),
        new(6, "@c", ""),
        shutdown(7, "@c"),
        // It names an id, which may be that of any connection: it waits for all.
        free(8, &"0".repeat(32)),
        shutdown(9, "@c"),
    ];
    pair.proxy.hold("EVALSHA");
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let mut answers = WorkerServiceClient::new(pair.behind.channel.clone())
        .attach(tokio_stream::wrappers::ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    requests.send(pb::AttachRequest { calls }).await.unwrap();
    let mut order = Vec::new();
    while order.len() < 10 {
        for answer in answers.message().await.unwrap().unwrap().answers {
            assert!(
                !matches!(answer.result, Some(pb::answer::Result::Error(_))),
                "{answer:?}"
            );
            order.push(answer.id);
        }
        if order == [6, 7] {
            // While the store is silent, others have gone on.
            pair.proxy.heal();
        }
    }
    assert_eq!(order[..2], [6, 7]);
    let place = |id| order.iter().position(|seen| *seen == id).unwrap();
    for (before, after) in [(1, 2), (3, 10), (10, 4), (4, 5), (5, 8), (2, 8), (8, 9)] {
        assert!(place(before) < place(after), "{order:?}");
    }
}
