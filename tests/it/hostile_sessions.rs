//! Callers and peers that fill memory or slow the calls of others down: with sessions, names,
//! lists, batches and half handshakes.

use std::time::{Duration, Instant};

use tls_sessiond_core::connection::{
    table::LISTED_AT_ONCE,
    unanswered::{UNANSWERED_OF_ONE_MAX, UNANSWERED_TIMEOUT},
};
use tls_sessiond_proto::{
    self as pb, answer::Result as Answered, call::Method,
    connection_service_client::ConnectionServiceClient,
    session_service_client::SessionServiceClient, worker_service_client::WorkerServiceClient,
};
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use crate::{
    binary::{Binary, PATIENCE},
    calls::{lookup, put, worker},
    harness::{TestDaemon, new, reason},
};

async fn channel(binary: &Binary) -> Channel {
    Channel::from_shared(format!("http://{}", binary.address))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

/// Returns a line of /proc/PID/status in bytes: VmRSS is the resident memory of the process, VmHWM
/// its peak.
fn memory(binary: &Binary, line: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", binary.process())).unwrap();
    let value = status
        .lines()
        .find_map(|text| text.strip_prefix(line)?.strip_prefix(':'))
        .unwrap();
    value
        .trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        << 10
}

/// An Attach on its own connection.
struct Attach {
    requests: Sender<pb::AttachRequest>,
    answers: Streaming<pb::AttachResponse>,
}

impl Attach {
    async fn to(binary: &Binary) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = WorkerServiceClient::new(channel(binary).await);
        let answers = client
            .attach(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self { requests, answers }
    }

    /// Sends calls of which only the last asks for an answer. Returns that answer.
    async fn call(&mut self, calls: Vec<pb::Call>) -> Answered {
        self.requests
            .send(pb::AttachRequest { calls })
            .await
            .unwrap();
        let answers = tokio::time::timeout(PATIENCE, self.answers.message());
        let mut answers = answers
            .await
            .expect("no answer")
            .unwrap()
            .expect("the stream ended")
            .answers;
        assert_eq!(answers.len(), 1);
        answers.remove(0).result.unwrap()
    }
}

fn call(id: u64, method: Method, alias: &str) -> pb::Call {
    pb::Call {
        id,
        method: Some(method),
        alias: alias.into(),
    }
}

fn free(id: u64, alias: &str) -> pb::Call {
    let request = pb::FreeRequest {
        connection_id: alias.into(),
        allow_missing: false,
    };
    call(id, Method::Free(request), "")
}

/// Puts `count` sessions in batches, each batch over its own connection. Returns the duration.
async fn put_all(
    binary: &Binary,
    count: u32,
    session: impl Fn(u32) -> pb::PutSessionRequest,
) -> Duration {
    const BATCH: u32 = 60;
    let mut stream = Attach::to(binary).await;
    let begun = Instant::now();
    for first in (0..count).step_by(BATCH as usize) {
        let alias = format!("@{first}");
        let mut calls = vec![call(
            0,
            Method::New(worker(pb::Role::Server).into()),
            &alias,
        )];
        for number in first..count.min(first + BATCH) {
            let request = pb::PutSessionRequest {
                connection_id: alias.clone(),
                ..session(number)
            };
            calls.push(call(0, Method::PutSession(request.into()), ""));
        }
        // The connection is closed, so that its sessions stay.
        let sent = pb::SetShutdownRequest {
            connection_id: alias.clone(),
            shutdown: Some(pb::ShutdownFlags {
                sent: true,
                received: false,
            }),
        };
        calls.push(call(0, Method::SetShutdown(sent), ""));
        calls.push(free(1, &alias));
        let Answered::Free(_) = stream.call(calls).await else {
            panic!("the connection was not freed")
        };
    }
    begun.elapsed()
}

fn peer(subject: String) -> Option<pb::PeerIdentity> {
    Some(pb::PeerIdentity {
        certificate_sha256: "0".repeat(64),
        subject,
        ..Default::default()
    })
}

/// Asserts that hostile puts take less than three times as long as ordinary ones. Both are run
/// alternately and the shortest time of each counts, because other tests run at the same time.
async fn compare(
    count: u32,
    hostile: impl Fn(u32) -> pb::PutSessionRequest,
    ordinary: impl Fn(u32) -> pb::PutSessionRequest,
) {
    let (mut attack, mut usual) = (Duration::MAX, Duration::MAX);
    for _ in 0..2 {
        let binary = Binary::start(&[]).await;
        usual = usual.min(put_all(&binary, count, &ordinary).await);
        attack = attack.min(put_all(&binary, count, &hostile).await);
        let stored = format!("{:02x}", 1).repeat(32);
        let mut sessions = SessionServiceClient::new(channel(&binary).await);
        assert!(
            !sessions
                .lookup_session(lookup(&stored))
                .await
                .unwrap()
                .into_inner()
                .found
        );
        for put in [hostile(0), hostile(count - 1), ordinary(count - 1)] {
            let found = sessions
                .lookup_session(lookup(&put.session_id))
                .await
                .unwrap()
                .into_inner()
                .found;
            assert!(found, "{} is stored", put.session_id);
        }
        let listed = sessions.list_sessions(pb::ListSessionsRequest {
            page_size: 1000,
            ..Default::default()
        });
        assert_eq!(
            listed.await.unwrap().into_inner().sessions.len(),
            1000,
            "the sessions are stored"
        );
    }
    assert!(
        attack < 3 * usual,
        "{count} puts took {attack:?}, and {usual:?} for ordinary sessions"
    );
}

#[tokio::test]
async fn sessions_that_differ_in_one_name_slow_no_put() {
    // The last byte of the id selects the shard of the shared attributes: all of these lie in one.
    let id = |mark: u8, number: u32| format!("{mark:02x}{number:08x}{}", "00".repeat(27));
    let named = |mark, number, subject: String| pb::PutSessionRequest {
        peer: peer(subject),
        ..put("", &id(mark, number))
    };
    compare(
        7_168,
        |number| named(1, number, format!("CN={number:08}")),
        |number| named(2, number, "CN=00000000".into()),
    )
    .await;
}

#[tokio::test]
async fn ids_made_against_public_seeds_slow_no_put() {
    // With foldhash's FixedState, all ids whose first 16 bytes are this constant twice have one
    // hash.
    let constant: String = 0xc0ac_29b7_c97c_50dd_u64
        .to_ne_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let hostile = |number: u32| format!("{constant}{constant}{number:032x}");
    let ordinary = |number: u32| {
        format!(
            "{:032x}{number:032x}",
            u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        )
    };
    compare(
        5_000,
        |number| put("", &hostile(number)),
        |number| put("", &ordinary(number)),
    )
    .await;
}

#[tokio::test]
async fn long_batches_of_puts_leave_turns_to_lookups() {
    let binary = Binary::start(&[
        "--set",
        "context=[{cache_entries_max=100000, cache_bytes_max=\"1GiB\"}]",
    ])
    .await;
    let mut sessions = SessionServiceClient::new(channel(&binary).await);
    let honest = tokio::spawn(async move {
        let (mut latencies, missing) = (Vec::new(), "0f".repeat(32));
        for _ in 0..200 {
            let begun = Instant::now();
            assert!(
                !sessions
                    .lookup_session(lookup(&missing))
                    .await
                    .unwrap()
                    .into_inner()
                    .found
            );
            latencies.push(begun.elapsed());
        }
        latencies.sort_unstable();
        latencies[100]
    });
    // Only the last call of each batch asks for an answer, so only the time limit ends a turn.
    for round in 0..3_u32 {
        let long = |number: u32| pb::PutSessionRequest {
            peer: peer(format!("{round}{number:04000}")),
            ..put("", &format!("{round:08x}{number:08x}"))
        };
        put_all(&binary, 1_000, long).await;
    }
    let median = honest.await.unwrap();
    assert!(
        median < Duration::from_millis(100),
        "half of the lookups took longer than {median:?}"
    );
}

#[tokio::test]
async fn batch_without_answers_is_executed_to_its_end() {
    let binary = Binary::start(&[]).await;
    let mut stream = Attach::to(&binary).await;
    let session = |number: u32| format!("{number:064x}");
    let mut calls = Vec::new();
    for number in 0..330 {
        let alias = format!("@{number}");
        calls.push(call(
            0,
            Method::New(worker(pb::Role::Server).into()),
            &alias,
        ));
        let request = pb::PutSessionRequest {
            connection_id: alias,
            ..put("", &session(number))
        };
        calls.push(call(0, Method::PutSession(request.into()), ""));
    }
    // The first batch takes many turns. The following ones must not displace it.
    stream
        .requests
        .send(pb::AttachRequest { calls })
        .await
        .unwrap();
    for number in 0..330 {
        let asked = call(
            1,
            Method::LookupSession(lookup(&session(number)).into()),
            "",
        );
        let Answered::LookupSession(answer) = stream.call(vec![asked]).await else {
            panic!("no lookup")
        };
        assert!(answer.found, "session {number}");
    }
}

/// An AttachRequest with an unknown field at its end.
#[derive(Clone, PartialEq, prost::Message)]
struct Odd {
    #[prost(message, repeated, tag = "1")]
    calls: Vec<()>,
    #[prost(uint32, tag = "2")]
    odd: u32,
}

#[tokio::test]
async fn million_empty_calls_are_refused_in_bounded_memory() {
    let binary = Binary::start(&[]).await;
    // The first call allocates the channel's buffers, before memory is measured.
    let refused = async |calls: usize| {
        let mut client = tonic::client::Grpc::new(channel(&binary).await);
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<Odd, pb::AttachResponse>::default();
        let requests = Request::new(tokio_stream::iter([Odd {
            calls: vec![(); calls],
            odd: 1,
        }]));
        let path = "/tls.sessiond.v1.WorkerService/Attach".parse().unwrap();
        let mut answers = client
            .streaming(requests, path, codec)
            .await
            .unwrap()
            .into_inner();
        answers.message().await.unwrap_err()
    };
    let status = refused(1_001).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "BATCH_TOO_LARGE")
    );
    let before = memory(&binary, "VmHWM");
    let status = refused(1_000_000).await;
    assert_eq!(reason(&status), "BATCH_TOO_LARGE");
    assert!(
        status.message().starts_with("1000000 calls"),
        "{}",
        status.message()
    );
    let grown = memory(&binary, "VmHWM").saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes to refuse 2 MB");
}

/// Returns records with the first 64,000 bytes of a ClientHello of 65,535 bytes, the longest that
/// is read.
fn half_client_hello() -> Vec<u8> {
    let mut message = vec![1, 0, 0xff, 0xff];
    message.resize(64_000, 3);
    message
        .chunks(16_000)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1, length[0], length[1]][..], part].concat()
        })
        .collect()
}

async fn open(rpc: &mut ConnectionServiceClient<Channel>, role: pb::Role) -> String {
    rpc.new_connection(new("", role))
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap()
        .id
}

async fn exchange(
    rpc: &mut ConnectionServiceClient<Channel>,
    id: &str,
    bytes: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    let request = pb::ExchangeRequest {
        connection_id: id.into(),
        ciphertext: bytes.into(),
        ..Default::default()
    };
    Ok(rpc.exchange(request).await?.into_inner().ciphertext.into())
}

/// Begins handshakes until the daemon refuses to keep more of their bytes. Returns the connections
/// and the refusal.
async fn half_handshakes(rpc: &mut ConnectionServiceClient<Channel>) -> (Vec<String>, Status) {
    let mut kept = Vec::new();
    loop {
        let id = open(rpc, pb::Role::Server).await;
        match exchange(rpc, &id, half_client_hello()).await {
            Ok(answer) => assert!(answer.is_empty(), "half a ClientHello is not answered"),
            Err(status) => return (kept, status),
        }
        kept.push(id);
        assert!(kept.len() < 1_000, "handshakes are kept without a limit");
    }
}

#[tokio::test]
async fn half_client_hellos_are_bounded_and_block_no_handshake() {
    let binary = Binary::start(&[]).await;
    let mut rpc = ConnectionServiceClient::new(channel(&binary).await);
    let before = memory(&binary, "VmRSS");
    let (kept, status) = half_handshakes(&mut rpc).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "OWNER_HANDSHAKE_BYTES_LIMIT");
    assert!(
        kept.len() > UNANSWERED_OF_ONE_MAX / 80_000,
        "{} handshakes",
        kept.len()
    );
    let grown = memory(&binary, "VmRSS").saturating_sub(before);
    assert!(
        grown < UNANSWERED_OF_ONE_MAX * 3 / 2 + (16 << 20),
        "{grown} bytes for {} of them",
        kept.len()
    );
    // A whole ClientHello needs no place among the kept bytes.
    let (client, server) = (
        open(&mut rpc, pb::Role::Client).await,
        open(&mut rpc, pb::Role::Server).await,
    );
    let hello = exchange(&mut rpc, &client, Vec::new()).await.unwrap();
    let answer = exchange(&mut rpc, &server, hello).await.unwrap();
    assert!(!answer.is_empty());
    let finished = exchange(&mut rpc, &client, answer).await.unwrap();
    exchange(&mut rpc, &server, finished).await.unwrap();
    let asked = pb::GetConnectionRequest {
        connection_id: server,
    };
    let connection = rpc
        .get_connection(asked)
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap();
    assert_eq!(connection.state(), pb::ConnectionState::Established);
    // Freed connections give their bytes back.
    for connection_id in kept {
        rpc.free(pb::FreeRequest {
            connection_id,
            allow_missing: false,
        })
        .await
        .unwrap();
    }
    let id = open(&mut rpc, pb::Role::Server).await;
    assert!(
        exchange(&mut rpc, &id, half_client_hello())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn half_handshakes_end_after_a_minute_whatever_the_idle_timeout() {
    let daemon = TestDaemon::start().await;
    let day = prost_types::Duration {
        seconds: 24 * 3600,
        nanos: 0,
    };
    let request = pb::NewRequest {
        idle_timeout: Some(day),
        ..new("", pb::Role::Server)
    };
    let mut ids = Vec::new();
    for _ in 0..2 {
        let made = daemon
            .connections()
            .new_connection(request.clone())
            .await
            .unwrap()
            .into_inner();
        ids.push(made.connection.unwrap().id);
    }
    let half = half_client_hello();
    daemon
        .exchange(&ids[0], &half[..10_000], b"")
        .await
        .unwrap();
    let kept = daemon.core.connections().unanswered();
    assert!((10_000..11_000).contains(&kept), "{kept} bytes");
    // A further byte does not extend the time-out.
    daemon.clock.advance(UNANSWERED_TIMEOUT / 2);
    daemon
        .exchange(&ids[0], &half[10_000..10_001], b"")
        .await
        .unwrap();
    daemon.clock.advance(UNANSWERED_TIMEOUT / 2);
    daemon
        .until("the half handshake has ended", async |daemon| {
            daemon.core.connections().len() == 1
        })
        .await;
    assert_eq!(daemon.core.connections().unanswered(), 0);
    assert_eq!(
        daemon.get(&ids[1]).await.state(),
        pb::ConnectionState::Before,
        "one without bytes stays"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn remembered_requests_take_bounded_memory() {
    const BATCH: u32 = 400;
    let binary = Binary::start(&[]).await;
    let mut stream = Attach::to(&binary).await;
    let request = |number: u32| pb::NewRequest {
        request_id: format!("{number:064}"),
        server_name: "n".repeat(255),
        ..worker(pb::Role::Server)
    };
    let mut made = async |first: u32| {
        let mut calls = Vec::new();
        for number in first..first + BATCH {
            calls.push(call(0, Method::New(request(number).into()), "@1"));
            calls.push(free(if number + 1 == first + BATCH { 1 } else { 0 }, "@1"));
        }
        let Answered::Free(_) = stream.call(calls).await else {
            panic!("the last connection was not freed")
        };
    };
    made(0).await;
    let before = memory(&binary, "VmRSS");
    for first in (BATCH..40_000).step_by(BATCH as usize) {
        made(first).await;
    }
    let grown = memory(&binary, "VmRSS").saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for 40,000 requests");
    // The last request is remembered: it gets the same answer, although its connection was freed.
    let mut rpc = ConnectionServiceClient::new(channel(&binary).await);
    let again = async |rpc: &mut ConnectionServiceClient<Channel>| {
        rpc.new_connection(request(39_999))
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    };
    let first = again(&mut rpc).await;
    assert_eq!(again(&mut rpc).await, first);
    let asked = pb::GetConnectionRequest {
        connection_id: first.id,
    };
    assert_eq!(
        reason(&rpc.get_connection(asked).await.unwrap_err()),
        "CONNECTION_NOT_FOUND"
    );
}

#[tokio::test]
async fn open_connections_keep_no_evicted_sessions() {
    const CONNECTIONS: u32 = 200;
    let binary = Binary::start(&["--set", "context=[{cache_entries_max=64}]"]).await;
    let mut stream = Attach::to(&binary).await;
    let mut put_some = async |connection: u32| {
        let alias = format!("@{connection}");
        let mut calls = vec![call(
            0,
            Method::New(worker(pb::Role::Server).into()),
            &alias,
        )];
        for number in 0..60_u32 {
            let request = pb::PutSessionRequest {
                connection_id: alias.clone(),
                data: vec![7; 14_000].into(),
                ..put("", &format!("{connection:08x}{number:08x}"))
            };
            calls.push(call(
                u64::from(number == 59),
                Method::PutSession(request.into()),
                "",
            ));
        }
        let Answered::PutSession(answer) = stream.call(calls).await else {
            panic!("not stored")
        };
        assert_eq!(answer.reason, "");
    };
    for connection in 0..20 {
        put_some(connection).await;
    }
    let before = memory(&binary, "VmRSS");
    for connection in 20..CONNECTIONS {
        put_some(connection).await;
    }
    // Each connection keeps only its last session, which GetSession returns.
    let grown = memory(&binary, "VmRSS").saturating_sub(before);
    assert!(
        grown < 40 << 20,
        "{grown} bytes for connections whose sessions have 150 MB"
    );
}

#[tokio::test]
async fn list_of_connections_looks_at_a_bounded_number_in_a_step() {
    let daemon = TestDaemon::start().await;
    let mut ids = Vec::new();
    for _ in 0..3 * LISTED_AT_ONCE {
        ids.push(daemon.open(pb::Role::Server).await);
    }
    let mut after = None;
    for step in 1..=3 {
        let (mut looked_at, mut found) = (0, Vec::new());
        let looked = std::cell::Cell::new(0);
        let none = |_: &str, _: &str| {
            looked.set(looked.get() + 1);
            false
        };
        after = daemon
            .core
            .connections()
            .page(none, after, 1_000, &mut found);
        looked_at += looked.get();
        assert_eq!((looked_at, found.len()), (LISTED_AT_ONCE, 0), "step {step}");
    }
    let mut found = Vec::new();
    assert_eq!(
        daemon
            .core
            .connections()
            .page(|_, _| true, after, 1_000, &mut found),
        None
    );
    assert!(found.is_empty());
    // Pages of any size list each connection once, even if some are freed between two pages.
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    for freed in 0.. {
        let request = pb::ListConnectionsRequest {
            page_size: 50,
            page_token,
            ..Default::default()
        };
        let page = daemon
            .connections()
            .list_connections(request)
            .await
            .unwrap()
            .into_inner();
        assert!(page.connections.len() <= 50);
        listed.extend(page.connections.into_iter().map(|connection| connection.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        let request = pb::FreeRequest {
            connection_id: listed[freed].clone(),
            allow_missing: false,
        };
        daemon.connections().free(request).await.unwrap();
    }
    listed.sort_unstable();
    ids.sort_unstable();
    assert_eq!(listed, ids);
    daemon.stop().await;
}

/// Reads all pages of a list. Returns the number of pages and the ids on them.
async fn pages(
    sessions: &mut SessionServiceClient<Channel>,
    server_name: &str,
) -> (usize, Vec<String>) {
    let server_name = server_name.to_owned();
    let mut request = pb::ListSessionsRequest {
        page_size: 1000,
        server_name,
        ..Default::default()
    };
    let (mut count, mut ids) = (0, Vec::new());
    loop {
        let page = sessions
            .list_sessions(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(page.sessions.len() <= 1000);
        (count, request.page_token) = (count + 1, page.next_page_token);
        ids.extend(page.sessions.into_iter().map(|session| session.id));
        if request.page_token.is_empty() {
            return (count, ids);
        }
    }
}

#[tokio::test]
async fn page_of_sessions_looks_at_a_bounded_part() {
    const SESSIONS: u32 = 24_000;
    let binary = Binary::start(&["--set", "context.0.cache_entries_max=40000"]).await;
    let id = |number: u32| {
        format!(
            "{:016x}",
            u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        )
    };
    put_all(&binary, SESSIONS, |number| put("", &id(number))).await;
    let mut sessions = SessionServiceClient::new(channel(&binary).await);
    let (count, mut ids) = pages(&mut sessions, "").await;
    assert!((24..=25).contains(&count), "{count} pages of 1,000");
    ids.sort_unstable();
    let mut all: Vec<String> = (0..SESSIONS).map(id).collect();
    all.sort_unstable();
    assert!(ids == all, "each session is listed once");
    // No session has this name. Each page still looks at a part of the sessions only, so there are
    // two.
    assert_eq!(pages(&mut sessions, "other.test").await, (2, Vec::new()));
}

#[tokio::test]
async fn many_lists_of_one_caller_leave_turns_to_others() {
    const LISTS: usize = 40;
    let binary = Binary::start(&[]).await;
    let mut stream = Attach::to(&binary).await;
    for batch in 0..10 {
        let open = |number: u32| {
            call(
                u64::from(number == 499),
                Method::New(worker(pb::Role::Server).into()),
                "",
            )
        };
        let Answered::New(_) = stream.call((0..500).map(open).collect()).await else {
            panic!("batch {batch}")
        };
    }
    let lists = channel(&binary).await;
    let running: Vec<_> = (0..LISTS)
        .map(|number| {
            let (mut rpc, mut sessions) = (
                ConnectionServiceClient::new(lists.clone()),
                SessionServiceClient::new(lists.clone()),
            );
            tokio::spawn(async move {
                if number % 4 == 0 {
                    let request = pb::ListSessionsRequest {
                        page_size: 1000,
                        ..Default::default()
                    };
                    return sessions
                        .list_sessions(request)
                        .await
                        .unwrap()
                        .into_inner()
                        .sessions
                        .len()
                        + 1000;
                }
                let request = pb::ListConnectionsRequest {
                    page_size: 1000,
                    ..Default::default()
                };
                rpc.list_connections(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .connections
                    .len()
            })
        })
        .collect();
    let mut sessions = SessionServiceClient::new(channel(&binary).await);
    let mut latencies = Vec::new();
    for _ in 0..100 {
        let begun = Instant::now();
        assert!(
            !sessions
                .lookup_session(lookup(&"0f".repeat(32)))
                .await
                .unwrap()
                .into_inner()
                .found
        );
        latencies.push(begun.elapsed());
    }
    latencies.sort_unstable();
    assert!(
        latencies[50] < Duration::from_millis(100),
        "half took longer than {:?}",
        latencies[50]
    );
    for list in running {
        assert_eq!(list.await.unwrap(), 1_000, "each list is answered");
    }
}
