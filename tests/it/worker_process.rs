//! Workers that fail as processes: they are killed, or do not read.

use std::{
    fmt::Write as _,
    process::Stdio,
    time::{Duration, Instant},
};

use tls_sessiond_client::{Lookup, Options, Put, Role, Version, Worker};
use tls_sessiond_proto::{self as pb, call::Method, worker_service_client::WorkerServiceClient};
use tokio::{io::AsyncWriteExt, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::{harness::TestDaemon, process::peer, worker_engine::call};

const OPEN: usize = 10_000;

/// Starts a worker in this process, with a session that stays.
async fn neighbour(daemon: &TestDaemon) -> Worker {
    let mut options = Options::new(&format!("http://{}", daemon.address), "openssl").unwrap();
    options.lookup_deadline = Duration::from_secs(10);
    let worker = Worker::connect(options);
    assert!(worker.attached(Duration::from_secs(20)).await);
    let connection = worker.open(Role::Server, "", None);
    connection.put(Put {
        session_id: b"mine".to_vec(),
        ..Put::new(Version::Tls12, vec![7; 200])
    });
    connection.shutdown();
    drop(connection);
    assert!(worker.flush(Duration::from_secs(20)).await);
    worker
}

/// Returns Attach requests for grpcurl. Each makes a few hundred connections and gives each a
/// session.
fn script() -> String {
    const BATCH: usize = 400;
    let mut script = String::new();
    for batch in 0..OPEN / BATCH {
        script.push_str("{\"calls\":[");
        for place in 0..BATCH {
            let number = batch * BATCH + place;
            let comma = if place == 0 { "" } else { "," };
            write!(
                script,
                "{comma}{{\"alias\":\"@{number}\",\"new\":{{\"role\":\"ROLE_SERVER\",\"engine\":\"ENGINE_WORKER\"}}}},\
                 {{\"putSession\":{{\"connectionId\":\"@{number}\",\"sessionId\":\"{number:016x}\",\"data\":\"c2VjcmV0\",\
                 \"format\":\"openssl\",\"version\":\"PROTOCOL_VERSION_TLS_1_2\"}}}}"
            )
            .unwrap();
        }
        script.push_str("]}\n");
    }
    script
}

#[tokio::test]
async fn killed_worker_loses_ten_thousand_open_sessions_quickly() {
    let daemon = TestDaemon::start().await;
    let neighbour = neighbour(&daemon).await;
    let mut killed = peer("grpcurl")
        .args([
            "-plaintext",
            "-d",
            "@",
            &daemon.address,
            "tls.sessiond.v1.WorkerService/Attach",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Held open, because grpcurl ends its side of the stream with its standard input.
    let mut stdin = killed.stdin.take().unwrap();
    stdin.write_all(script().as_bytes()).await.unwrap();
    stdin.flush().await.unwrap();
    daemon
        .until("all connections are open", async |daemon| {
            daemon.server_cache_len() == OPEN + 1
        })
        .await;
    assert_eq!(daemon.core.connections().len(), OPEN);

    killed.kill().await.unwrap();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut lookups = 0;
    // The last session is removed a moment before its connection.
    while daemon.server_cache_len() > 1 || !daemon.core.connections().is_empty() {
        let asked = Instant::now();
        assert!(neighbour.lookup(Lookup::server(b"mine")).await.is_some());
        slowest = slowest.max(asked.elapsed());
        lookups += 1;
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{} are left",
            daemon.server_cache_len()
        );
    }
    println!(
        "{OPEN} freed in {:?}; {lookups} lookups meanwhile, the slowest {slowest:?}",
        begun.elapsed()
    );
    assert!(
        lookups > 0 && slowest < Duration::from_millis(250),
        "a lookup waited {slowest:?}"
    );
    assert!(neighbour.lookup(Lookup::server(b"mine")).await.is_some());
    assert!(neighbour.lookup(Lookup::server(&[0; 8])).await.is_none());
    daemon.stop().await;
}

#[tokio::test]
async fn worker_with_unread_answers_blocks_no_other_worker() {
    let daemon = TestDaemon::start().await;
    let neighbour = neighbour(&daemon).await;
    let (requests, receiver) = mpsc::channel(1);
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", daemon.address))
        .unwrap()
        .connect()
        .await;
    let mut client = WorkerServiceClient::new(channel.unwrap());
    let mut answers = client
        .attach(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    // The answer to each lookup carries a session of 200 bytes and little more.
    let lookup = |id: u64| {
        let request = pb::LookupSessionRequest {
            role: pb::Role::Server.into(),
            session_id: "6d696e65".into(),
            format: "openssl".into(),
            ..pb::LookupSessionRequest::default()
        };
        call(id, Method::LookupSession(request.into()))
    };
    let mut sent = 0;
    // The daemon reads until the windows of both directions and one batch of answers are full.
    loop {
        let calls = (0..1000)
            .map(|place| lookup(sent * 1000 + place + 1))
            .collect();
        match timeout(
            Duration::from_millis(500),
            requests.send(pb::AttachRequest { calls }),
        )
        .await
        {
            Ok(taken) => taken.unwrap(),
            Err(_) => break,
        }
        sent += 1;
        assert!(
            sent < 1000,
            "the daemon reads without end although its answers are not read"
        );
    }
    for _ in 0..100 {
        assert!(neighbour.lookup(Lookup::server(b"mine")).await.is_some());
    }
    // The worker reads again, and no answer is lost.
    let mut left = sent * 1000;
    while left > 0 {
        left -= answers.message().await.unwrap().unwrap().answers.len() as u64;
    }
    drop(requests);
    daemon.stop().await;
}
