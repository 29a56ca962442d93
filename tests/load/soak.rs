//! An hour of traffic in a minute, and the resources that are left afterwards.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tls_sessiond_proto::{
    self as pb, call::Method, drive_request::Event, drive_response::Event as Answer,
    revoke_sessions_request::Selector, worker_service_client::WorkerServiceClient,
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::mpsc::{self, Sender},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    calls::{Worker, lookup, put, worker},
    harness::{TestDaemon, new, reason, within},
    meter::{alone, descriptors, memory, status},
    pki,
};

/// Far more time than any step takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Minutes.
const HOUR: u64 = 60;
/// The most that the process may grow between the first minutes and the last, in MiB. The
/// tombstones fill meanwhile.
const GROWTH: u64 = 24;
const VERSIONS: [&str; 2] = ["1.2", "1.3"];

fn event(event: Event) -> pb::DriveRequest {
    pb::DriveRequest { event: Some(event) }
}

/// One connection on a Drive.
struct Driven {
    events: Sender<pb::DriveRequest>,
    answers: Streaming<pb::DriveResponse>,
}

impl Driven {
    async fn begin(daemon: &TestDaemon, context: &str, role: pb::Role) -> Self {
        let (events, receiver) = mpsc::channel(16);
        events
            .send(event(Event::New(new(context, role))))
            .await
            .unwrap();
        let answers = daemon
            .connections()
            .drive(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self { events, answers }
    }

    async fn send(&self, what: Event) {
        self.events.send(event(what)).await.unwrap();
    }

    async fn answer(&mut self) -> Answer {
        let answer = timeout(PATIENCE, self.answers.message())
            .await
            .expect("a Drive sends no answer");
        answer.unwrap().expect("a Drive ended").event.unwrap()
    }

    /// Ends the requests and reads the remaining answers.
    async fn end(self) {
        let Self {
            events,
            mut answers,
        } = self;
        drop(events);
        let rest = async { while let Ok(Some(_)) = answers.message().await {} };
        timeout(PATIENCE, rest).await.expect("a Drive does not end");
    }
}

/// Runs a handshake through Exchange. Both sides close well or not at all. Returns whether the
/// server resumed.
async fn visit(daemon: &TestDaemon, context: &str, closes: bool) -> bool {
    let client = daemon.open_in(context, pb::Role::Client).await;
    let server = daemon.open_in(context, pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    let seen = daemon.get(&server).await;
    assert_eq!(seen.state(), pb::ConnectionState::Established);
    let w = Worker(daemon);
    for id in [&client, &server] {
        if closes {
            w.shutdown(id).await;
        }
        w.free(id).await;
    }
    seen.session_reused
}

/// Runs a handshake through two Drives. Where they do not close, both streams break.
async fn drive(daemon: &TestDaemon, context: &str, closes: bool) {
    let mut client = Driven::begin(daemon, context, pb::Role::Client).await;
    let mut server = Driven::begin(daemon, context, pb::Role::Server).await;
    loop {
        let (answer, to) = tokio::select! {
            answer = client.answer() => (answer, &server.events),
            answer = server.answer() => (answer, &client.events),
        };
        match answer {
            Answer::Ciphertext(bytes) => to.send(event(Event::Ciphertext(bytes))).await.unwrap(),
            Answer::Established(seen) if seen.role() == pb::Role::Client => break,
            _ => {}
        }
    }
    if closes {
        client
            .send(Event::Shutdown(pb::ShutdownRequest::default()))
            .await;
        server
            .send(Event::Shutdown(pb::ShutdownRequest::default()))
            .await;
        client.end().await;
        server.end().await;
    }
}

/// Runs connections of a worker's engine in a batch. Half of them are open when the stream ends.
async fn attach(channel: Channel, minute: u64) {
    let (requests, receiver) = mpsc::channel(4);
    let mut client = WorkerServiceClient::new(channel);
    let mut answers = client
        .attach(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let call = |id, method| pb::Call {
        id,
        method: Some(method),
        alias: String::new(),
    };
    let mut calls = Vec::new();
    for place in 0..50 {
        let (alias, session) = (format!("@{place}"), format!("{minute:08x}{place:08x}"));
        let made = Method::New(worker(pb::Role::Server).into());
        calls.push(pb::Call {
            alias: alias.clone(),
            ..call(0, made)
        });
        calls.push(call(0, Method::PutSession(put(&alias, &session).into())));
        if place % 2 == 0 {
            calls.push(call(
                0,
                Method::Shutdown(pb::ShutdownRequest {
                    connection_id: alias.clone(),
                }),
            ));
            calls.push(call(
                0,
                Method::Free(pb::FreeRequest {
                    connection_id: alias,
                    allow_missing: false,
                }),
            ));
        }
        calls.push(call(
            place + 1,
            Method::LookupSession(lookup(&session).into()),
        ));
    }
    requests.send(pb::AttachRequest { calls }).await.unwrap();
    let mut left = 50;
    while left > 0 {
        left -= answers.message().await.unwrap().unwrap().answers.len();
    }
}

/// Makes refused calls, and callers that disappear in the middle of a request.
async fn misbehave(daemon: &TestDaemon) {
    for (id, why) in [
        ("0", "CONNECTION_ID_MALFORMED"),
        (&"0".repeat(32), "CONNECTION_NOT_FOUND"),
    ] {
        assert_eq!(
            reason(&daemon.exchange(id, b"", b"").await.unwrap_err()),
            why
        );
    }
    let server = daemon.open(pb::Role::Server).await;
    let alert = daemon
        .exchange(&server, b"GET / HTTP/1.1\r\n\r\n", b"")
        .await
        .unwrap()
        .alert;
    assert!(alert.is_some());
    // No caller frees the last connection. Its idle time-out does.
    let nobodys = daemon.open(pb::Role::Server).await;
    daemon
        .connections()
        .free(pb::FreeRequest {
            connection_id: server,
            allow_missing: false,
        })
        .await
        .unwrap();
    let request = pb::ExchangeRequest {
        connection_id: nobodys,
        ..Default::default()
    };
    drop(
        daemon
            .patient_connections()
            .exchange(within("1n", request))
            .await
            .unwrap_err(),
    );
    for bytes in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0",
    ] {
        let mut socket = TcpStream::connect(&daemon.address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
    }
}

/// Runs the traffic of one minute. Returns the number of resumed handshakes.
async fn minute(daemon: &Arc<TestDaemon>, minute: u64, configs: &[String; 2]) -> usize {
    let mut watch = daemon
        .sessions()
        .watch_sessions(pb::WatchSessionsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut running = JoinSet::new();
    for version in VERSIONS {
        let daemon = Arc::clone(daemon);
        running.spawn(async move {
            let mut resumed = 0;
            for place in 0..36 {
                resumed += usize::from(visit(&daemon, version, place % 6 != 5).await);
                drive(&daemon, version, place % 4 != 3).await;
            }
            resumed
        });
    }
    let channel = Channel::from_shared(format!("http://{}", daemon.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    attach(channel, minute).await;
    misbehave(daemon).await;
    let w = Worker(daemon);
    for place in 0..50 {
        w.lookup(lookup(&format!("{minute:08x}{place:08x}"))).await;
    }
    if minute.is_multiple_of(5) {
        daemon
            .reload(&configs[usize::try_from(minute / 5 % 2).unwrap()])
            .unwrap();
    }
    if minute.is_multiple_of(7) {
        let request = pb::RevokeSessionsRequest {
            context: "1.2".into(),
            selector: Some(Selector::All(true)),
            ..Default::default()
        };
        daemon.sessions().revoke_sessions(request).await.unwrap();
    }
    assert!(watch.message().await.unwrap().is_some());
    let resumed = running.join_all().await.into_iter().sum();
    daemon.clock.advance(Duration::from_secs(60));
    resumed
}

fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

/// Everything must be returned except the resources that the daemon started with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hour_of_mixed_traffic_leaks_nothing() {
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let path = folder.path().display().to_string();
    // The scope of one context changes with every reload. Those of the others stay.
    let configs = ["none", "request"].map(|auth| {
        let context = |name: &str, versions: &str, auth: &str| {
            format!(
                "[[context]]\nname = \"{name}\"\nversions = [{versions}]\ncertificate = \"{path}/tls.crt\"\n\
                 key = \"{path}/tls.key\"\nca = \"{path}/ca.pem\"\nsession_timeout = \"10m\"\n\
                 idle_timeout = \"2m\"\nclient_auth = \"{auth}\"\n"
            )
        };
        context("1.2", "\"1.2\"", "none")
            + &context("1.3", "\"1.3\"", auth)
            + &context("default", "\"1.2\", \"1.3\"", "none")
    });
    let daemon = Arc::new(TestDaemon::with(&configs[0]).await);
    let begun = Instant::now();
    let mut resumed = 0;
    // The first minutes allocate lasting resources: threads, the allocator, buffers.
    for number in 0..5 {
        resumed += minute(&daemon, number, &configs).await;
    }
    settle(&daemon).await;
    let before = (descriptors(), tasks(), status("self", "Threads"));
    let watchers = Arc::strong_count(&daemon.core.registry().ledger().watchers);
    let memory_before = memory("self");

    for number in 5..HOUR {
        resumed += minute(&daemon, number, &configs).await;
    }
    // All stored sessions have expired, and unfreed connections have been idle for too long.
    settle(&daemon).await;
    daemon
        .until("descriptors, tasks and threads are as before", async |_| {
            (descriptors(), tasks(), status("self", "Threads")) == before
        })
        .await;
    let memory_after = memory("self");
    println!(
        "{HOUR} minutes in {:?}, {resumed} handshakes resumed; {before:?} descriptors, tasks and threads; {memory_before} \
         MiB, {memory_after} MiB",
        begun.elapsed()
    );
    assert!(resumed > 1500, "{resumed} resumed");
    assert!(
        memory_after <= memory_before + GROWTH,
        "{memory_before} MiB before, {memory_after} MiB after"
    );
    assert_eq!(
        Arc::strong_count(&daemon.core.registry().ledger().watchers),
        watchers
    );
    Arc::into_inner(daemon).unwrap().stop().await;
}

/// Waits until all sessions have expired and all connections are freed.
async fn settle(daemon: &TestDaemon) {
    daemon.clock.advance(Duration::from_secs(20 * 60));
    daemon
        .until("nothing is left", async |daemon| {
            let registry = daemon.core.registry();
            let sessions: usize = registry.caches().map(|cache| cache.len()).sum();
            let held = registry.ledger().budget.held();
            daemon.core.connections().is_empty()
                && sessions == 0
                && (held.entries(), held.bytes()) == (0, 0)
        })
        .await;
}
