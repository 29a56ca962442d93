//! The client for workers in Rust, with a daemon that runs, stops, dies and restarts.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prost::Message;
use tls_sessiond::config::Config;
use tls_sessiond_client::{Connection, Found, Lookup, Options, Put, Role, Version, Worker};
use tls_sessiond_proto::{
    self as pb,
    answer::Result as Answered,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{binary::Binary, harness::TestDaemon};

/// Additional time that a busy machine may need after a deadline.
const SLACK: Duration = Duration::from_secs(2);

/// Returns options with a long deadline and a short back-off.
fn options(endpoint: &str) -> Options {
    let mut options = Options::new(endpoint, "openssl").unwrap();
    options.lookup_deadline = Duration::from_secs(20);
    options.back_off = (Duration::from_millis(10), Duration::from_millis(50));
    options
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) async fn attached(options: Options) -> Worker {
    let worker = Worker::connect(options);
    until("the worker is attached", async || worker.is_attached()).await;
    worker
}

pub(crate) async fn worker_of(daemon: &TestDaemon) -> Worker {
    attached(options(&format!("http://{}", daemon.address))).await
}

fn put(session_id: &[u8]) -> Put {
    Put {
        session_id: session_id.to_vec(),
        ..Put::new(Version::Tls12, b"master secret".to_vec())
    }
}

/// Opens a server's connection that made this session.
pub(crate) fn established(worker: &Worker, session_id: &[u8]) -> Connection {
    let connection = worker.open(Role::Server, "", None);
    connection.put(put(session_id));
    connection
}

async fn look(worker: &Worker, session_id: &[u8]) -> Option<Found> {
    worker.lookup(Lookup::server(session_id)).await
}

pub(crate) async fn found(worker: &Worker, session_id: &[u8]) -> bool {
    look(worker, session_id).await.is_some()
}

#[tokio::test]
async fn rust_client_sessions_follow_the_close_rule() {
    let daemon = TestDaemon::start().await;
    let worker = worker_of(&daemon).await;
    assert!(!found(&worker, b"a").await);

    // Never closed, reopened after the close, or failed by an alert.
    let connection = established(&worker, b"a");
    assert!(
        found(&worker, b"a").await,
        "an open connection's session may be resumed"
    );
    drop(connection);
    assert!(!found(&worker, b"a").await);
    let connection = established(&worker, b"b");
    connection.shutdown();
    connection.set_shutdown(false, true);
    drop(connection);
    assert!(!found(&worker, b"b").await);
    let connection = established(&worker, b"c");
    connection.alert(20, true);
    connection.alert(20, true);
    assert!(!found(&worker, b"c").await);
    drop(connection);

    // Closed by Shutdown or by SetShutdown.
    for sessions in [[b"d", b"e"], [b"f", b"g"]] {
        for (place, id) in sessions.into_iter().enumerate() {
            let connection = established(&worker, id);
            match place {
                0 => connection.shutdown(),
                _ => connection.set_shutdown(true, false),
            }
            connection.alert(0, false);
            drop(connection);
            assert!(found(&worker, id).await);
        }
    }

    // The close of a resumed connection decides about its session.
    let session = look(&worker, b"d").await.unwrap();
    assert_eq!(
        (session.data(), session.is_single_use()),
        (&b"master secret"[..], false)
    );
    assert_eq!(
        (session.session_id(), session.version()),
        (&b"d"[..], Version::Tls12)
    );
    let connection = worker.open(Role::Server, "", Some(session.session_id()));
    connection.shutdown();
    drop(connection);
    assert!(found(&worker, b"d").await);
    drop(worker.open(Role::Server, "", Some(b"d")));
    assert!(!found(&worker, b"d").await);
    let connection = worker.open(Role::Server, "", None);
    connection.resumed(b"e");
    drop(connection);
    assert!(!found(&worker, b"e").await);
    daemon
        .until("all connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    let counters = worker.counters();
    let lookups = (
        counters.hits,
        counters.misses,
        counters.timeouts,
        counters.away,
    );
    assert_eq!(
        (lookups, counters.refused, counters.reconnects),
        ((7, 6, 0, 0), 0, 0)
    );
    daemon.stop().await;
}

// Invariant 1.
#[tokio::test]
async fn rust_client_connections_outlive_the_contexts_idle_time() {
    let daemon = TestDaemon::start().await;
    let mut unbounded = options(&format!("http://{}", daemon.address));
    unbounded.idle_timeout = Duration::MAX;
    let worker = attached(unbounded).await;
    let long = established(&worker, b"long");
    let mut short_lived = options(&format!("http://{}", daemon.address));
    short_lived.idle_timeout = Duration::from_secs(60);
    let impatient = attached(short_lived).await;
    let short = established(&impatient, b"short");
    assert!(found(&worker, b"long").await && found(&impatient, b"short").await);
    // An hour without a call. The idle time-out of the context is five minutes.
    daemon.clock.advance(Duration::from_secs(3_600));
    daemon
        .until("one connection is idle for too long", async |daemon| {
            daemon.core.connections().len() == 1
        })
        .await;
    assert!(!found(&worker, b"short").await, "it was never closed");
    long.shutdown();
    drop((long, short));
    assert!(found(&worker, b"long").await, "it was closed after an hour");
    daemon.stop().await;
}

#[tokio::test]
async fn rust_client_passes_on_single_use_and_bindings() {
    let daemon = TestDaemon::start().await;
    let worker = worker_of(&daemon).await;
    let connection = worker.open(Role::Client, "localhost", None);
    let made = Put {
        binding: b"h2".to_vec(),
        ..Put::new(Version::Tls13, b"ticket".to_vec())
    };
    connection.put(made);
    connection.shutdown();
    assert!(
        worker.lookup(Lookup::client("localhost")).await.is_none(),
        "another binding"
    );
    let bound = Lookup {
        binding: b"h2",
        ..Lookup::client("localhost")
    };
    let first = worker.lookup(bound).await.unwrap();
    assert_eq!(
        (first.is_single_use(), first.server_name()),
        (true, "localhost")
    );
    assert!(first.authenticate_time() < first.expire_time());
    assert!(
        worker.lookup(bound).await.is_none(),
        "the session was consumed"
    );
    drop(connection);

    // A lookup that the daemon refuses is a miss, and is counted as refused.
    let mut other = options(&format!("http://{}", daemon.address));
    other.format = "no format".into();
    let other = attached(other).await;
    assert!(!found(&other, b"a").await);
    assert_eq!((other.counters().misses, other.counters().refused), (1, 1));
    daemon.stop().await;
}

/// A service that records the sizes of batches and finds no session.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<usize>>>);

type Answers = std::pin::Pin<Box<dyn Stream<Item = Result<pb::codec::Answers, Status>> + Send>>;

#[async_trait]
impl WorkerService for Recorder {
    type AttachStream = Answers;

    async fn attach(
        &self,
        request: Request<Streaming<pb::codec::Calls>>,
    ) -> Result<Response<Answers>, Status> {
        let sizes = Arc::clone(&self.0);
        let answers = request.into_inner().map(move |batch| {
            let calls = pb::AttachRequest::decode(batch?.0).unwrap().calls;
            sizes.lock().unwrap().push(calls.len());
            let missed = |call: &pb::Call| pb::Answer {
                id: call.id,
                result: Some(Answered::LookupSession(Box::default())),
            };
            let answers = calls
                .iter()
                .filter(|call| call.id != 0)
                .map(missed)
                .collect();
            Ok(pb::codec::Answers(
                pb::AttachResponse {
                    answers,
                    draining: false,
                }
                .encode_to_vec(),
            ))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Recorder {
    async fn serve(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let service = WorkerServiceServer::new(self.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        address
    }

    fn sizes(&self) -> Vec<usize> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

// On one thread nothing is sent between two calls that do not wait.
#[tokio::test]
async fn ready_calls_are_sent_as_one_message() {
    let recorder = Recorder::default();
    let worker = attached(options(&format!("http://{}", recorder.serve().await))).await;
    let ask = |id: &'static [u8]| worker.lookup(Lookup::server(id));
    drop(tokio::join!(ask(b"a"), ask(b"b"), ask(b"c")));
    assert_eq!(recorder.sizes(), [3]);

    // At most 1000 calls a message, and the order is kept.
    for number in 0..600_u32 {
        let connection = established(&worker, &number.to_be_bytes());
        connection.shutdown();
    }
    ask(b"d").await;
    assert_eq!(recorder.sizes(), [1000, 1000, 401]);

    // A lookup that was dropped before it was sent is not sent. Otherwise it would consume a
    // single-use session for no handshake.
    tokio::select! {
        biased;
        _ = ask(b"nobody") => panic!("answered too early"),
        () = std::future::ready(()) => {}
    }
    ask(b"d").await;
    assert_eq!(recorder.sizes(), [1]);

    // At most about 1 MiB a message.
    let connection = worker.open(Role::Server, "", None);
    for _ in 0..5 {
        connection.put(Put::new(Version::Tls12, vec![7; 400 << 10]));
    }
    ask(b"e").await;
    assert_eq!(recorder.sizes(), [3, 2, 2]);
    let counters = worker.counters();
    assert_eq!((counters.messages, counters.calls), (8, 3 + 2401 + 1 + 7));
}

#[tokio::test]
async fn full_queue_drops_reports_but_no_required_ones() {
    let daemon = TestDaemon::start().await;
    let mut options = options(&format!("http://{}", daemon.address));
    options.limits.queued_calls = 10;
    let worker = attached(options).await;
    let mut opened: Vec<_> = (0..15)
        .map(|_| worker.open(Role::Server, "", None))
        .collect();
    opened[0].shutdown();
    assert!(!found(&worker, b"a").await);
    let counters = worker.counters();
    assert_eq!(
        (
            counters.reports_dropped,
            counters.lookups_dropped,
            counters.away
        ),
        (6, 1, 0)
    );
    daemon
        .until("ten connections are open", async |daemon| {
            daemon.core.connections().len() == 10
        })
        .await;

    // The queue is full again. Alerts and Free are queued beyond the limit.
    opened.truncate(10);
    let late = worker.open(Role::Server, "", None);
    let mut more: Vec<_> = (0..9)
        .map(|_| worker.open(Role::Server, "", None))
        .collect();
    more.push(late);
    assert_eq!(worker.counters().reports_dropped, 6);
    opened
        .iter()
        .for_each(|connection| connection.alert(40, false));
    drop((opened, more));
    daemon
        .until("all connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    until("all calls are sent", async || {
        worker.counters().calls == 10 + 10 + 10 + 20
    })
    .await;

    // A session that is too large for a message is dropped, and the stream goes on.
    let connection = worker.open(Role::Server, "", None);
    connection.put(Put {
        session_id: b"b".to_vec(),
        ..Put::new(Version::Tls12, vec![0; 2 << 20])
    });
    assert_eq!(worker.counters().reports_dropped, 7);
    connection.put(put(b"b"));
    assert!(found(&worker, b"b").await);
    assert_eq!(worker.counters().reconnects, 0);
    drop(connection);
    daemon.stop().await;
}

// Invariant 14.
#[tokio::test(flavor = "multi_thread")]
async fn breaker_opens_after_lookups_of_a_stopped_daemon_time_out() {
    let daemon = Binary::start(&[]).await;
    let deadline = Duration::from_millis(200);
    let mut options = options(&format!("http://{}", daemon.address));
    (options.lookup_deadline, options.breaker_timeouts) = (deadline, 3);
    let worker = attached(options).await;
    let connection = established(&worker, b"a");
    until("the session is found", async || found(&worker, b"a").await).await;

    // The daemon's threads stop one after the other, so some lookups may still be answered.
    let before = worker.counters();
    daemon.signal("-STOP").await;
    until("a lookup misses", async || !found(&worker, b"a").await).await;
    for blocking in [true, false] {
        let begun = Instant::now();
        let missed = if blocking {
            let worker = worker.clone();
            tokio::task::spawn_blocking(move || worker.lookup_blocking(Lookup::server(b"a")))
                .await
                .unwrap()
        } else {
            look(&worker, b"a").await
        };
        assert!(missed.is_none());
        let took = begun.elapsed();
        assert!((deadline..deadline + SLACK).contains(&took), "{took:?}");
    }
    let stopped = worker.counters();
    assert_eq!(stopped.timeouts - before.timeouts, 3);
    assert_eq!(stopped.breaker_openings - before.breaker_openings, 1);
    // From now on one lookup at a time tries the daemon, and all others miss at once.
    until("lookups miss at once", async || {
        let lookups = (0..20).map(|_| {
            let worker = worker.clone();
            tokio::spawn(async move { look(&worker, b"a").await.is_none() })
        });
        for lookup in lookups.collect::<Vec<_>>() {
            assert!(lookup.await.unwrap());
        }
        worker.counters().away - stopped.away >= 38
    })
    .await;
    assert!(worker.counters().timeouts - stopped.timeouts <= 10);
    let told = established(&worker, b"b");

    daemon.signal("-CONT").await;
    until("both are found again", async || {
        found(&worker, b"a").await && found(&worker, b"b").await
    })
    .await;
    assert_eq!(
        worker.counters().reconnects,
        0,
        "the stream was reconnected"
    );
    drop((connection, told));
}

// Invariant 14.
#[tokio::test]
async fn lookups_miss_until_the_restarted_daemon_is_reached() {
    let daemon = Binary::start(&[]).await;
    let address = daemon.address.clone();
    let worker = attached(options(&format!("http://{address}"))).await;
    let old = established(&worker, b"a");
    assert!(found(&worker, b"a").await);
    daemon.kill().await;
    until("the worker is detached", async || !worker.is_attached()).await;
    let mut expected = worker.counters();
    expected.away += 1;
    let begun = Instant::now();
    assert!(!found(&worker, b"a").await);
    assert!(
        begun.elapsed() < SLACK,
        "the lookup waited for its deadline"
    );
    assert_eq!(worker.counters(), expected);
    let nowhere = established(&worker, b"b");

    let daemon = Binary::start(&["--set", &format!("listen.api=[\"tcp://{address}\"]")]).await;
    assert_eq!(daemon.address, address);
    until("the worker is attached again", async || {
        worker.is_attached()
    })
    .await;
    let new = established(&worker, b"c");
    assert!(found(&worker, b"c").await);
    // Both connections were the first of their stream. Reports of the old one must not reach the
    // new one.
    for handle in [old, nowhere] {
        handle.put(put(b"d"));
        handle.alert(40, true);
        drop(handle);
    }
    assert!(found(&worker, b"c").await && !found(&worker, b"d").await);
    drop(new);
    assert!(!found(&worker, b"c").await);
    let counters = worker.counters();
    assert_eq!(
        (
            counters.reconnects,
            counters.refused,
            counters.reports_dropped
        ),
        (1, 0, 0)
    );
}

#[tokio::test]
async fn lookup_without_a_daemon_misses() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let worker = Worker::connect(options(&format!("http://{free}")));
    assert!(!found(&worker, b"a").await);
    assert!(worker.lookup_blocking(Lookup::server(b"a")).is_none());
    drop(established(&worker, b"a"));
    assert_eq!(worker.counters().away, 2);
    for wrong in [
        "127.0.0.1:50551",
        "https://localhost",
        "unix:api.sock",
        "http://a b",
    ] {
        assert!(Options::new(wrong, "openssl").is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn draining_daemon_learns_only_how_connections_end() {
    let mut daemon = TestDaemon::start().await;
    let worker = worker_of(&daemon).await;
    let (closed, open) = (established(&worker, b"a"), established(&worker, b"b"));
    assert!(found(&worker, b"a").await && found(&worker, b"b").await);
    daemon.begin_stop();
    until("the worker knows of the drain", async || {
        !worker.is_attached()
    })
    .await;
    assert!(!found(&worker, b"a").await);
    drop(worker.open(Role::Server, "", None));
    assert_eq!(daemon.core.connections().len(), 2);
    closed.shutdown();
    drop((closed, open));
    daemon
        .until("both connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    assert_eq!(daemon.server_cache_len(), 1);
    // The stream ends by itself, long before drain.timeout.
    tokio::time::timeout(Duration::from_secs(10), daemon.stop())
        .await
        .expect("the stream does not end");
}

#[tokio::test]
async fn connections_outlive_their_dropped_client() {
    let daemon = TestDaemon::start().await;
    let worker = worker_of(&daemon).await;
    let (closed, open) = (established(&worker, b"a"), established(&worker, b"b"));
    let clone = worker.clone();
    drop(worker);
    assert!(found(&clone, b"a").await && found(&clone, b"b").await);
    drop(clone);
    closed.shutdown();
    drop(closed);
    daemon
        .until("one connection is freed", async |daemon| {
            daemon.core.connections().len() == 1
        })
        .await;
    drop(open);
    daemon
        .until("both connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    assert_eq!(daemon.server_cache_len(), 1);
    tokio::time::timeout(Duration::from_secs(10), daemon.stop())
        .await
        .expect("the stream does not end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lookups_miss_once_the_runtime_is_shut_down() {
    let daemon = TestDaemon::start().await;
    let options = options(&format!("http://{}", daemon.address));
    let outside = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(1)
            .build()
            .unwrap();
        let worker = runtime.block_on(attached(options));
        let connection = established(&worker, b"a");
        assert!(worker.lookup_blocking(Lookup::server(b"a")).is_some());
        let asking = worker.clone();
        let asking = std::thread::spawn(move || {
            while asking.is_attached() {
                drop(asking.lookup_blocking(Lookup::server(b"a")));
            }
        });
        runtime.shutdown_timeout(SLACK);
        asking.join().unwrap();
        assert!(worker.lookup_blocking(Lookup::server(b"a")).is_none());
        connection.shutdown();
        drop(connection);
        worker
    });
    let worker = outside.await.unwrap();
    assert!(!found(&worker, b"a").await);
    drop(established(&worker, b"b"));
    daemon
        .until("the stream's connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    assert_eq!(daemon.server_cache_len(), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn rust_client_works_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", folder.path().join("api.sock").display());
    let set = format!("listen.api=[\"{socket}\", \"tcp://127.0.0.1:0\"]");
    let config = Config::load(None, std::iter::empty(), &[set]).unwrap();
    let daemon = TestDaemon::run(&config).await;
    let worker = attached(options(&socket)).await;
    let connection = established(&worker, b"a");
    assert!(found(&worker, b"a").await);
    drop(connection);
    assert!(!found(&worker, b"a").await);
    daemon.stop().await;
}
