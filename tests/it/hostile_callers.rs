//! Callers that exhaust shared resources: calls that never finish, sockets that never prove an
//! identity.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tls_sessiond_proto as pb;
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::TlsConnector;
use tonic_types::StatusExt;

use crate::{
    doors::{Guest, House, over, rule},
    frames::{self, DATA, END_HEADERS, HEADERS, Raw, frame},
    process::PATIENCE,
};

const NEW: &str = "/tls.sessiond.v1.ConnectionService/New";

/// Begins calls and does not finish them. Returns the connection, which keeps them open.
async fn unfinished(address: &str, calls: u32) -> Raw {
    let mut raw = Raw::connect(address, 65_535).await;
    for stream in 0..calls {
        let begun = [
            frame(HEADERS, END_HEADERS, 2 * stream + 1, &frames::call(NEW)),
            frame(DATA, 0, 2 * stream + 1, &[0, 0]),
        ];
        assert!(raw.send(&begun.concat()).await);
    }
    assert!(raw.send(&frame(frames::PING, 0, 0, &[7; 8])).await);
    raw.until(frames::PING).await.unwrap();
    raw
}

#[tokio::test]
async fn unfinished_calls_of_one_identity_leave_places_for_others() {
    let rules = rule("local", "default", "worker");
    let house = House::limited(
        "[limits]\ncalls_in_flight = 40\ncalls_per_owner = 20",
        &rules,
    )
    .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(unfinished(&house.daemon.address, 20).await);
    }
    let refused = Guest::new(&house.over_tcp().await)
        .open("")
        .await
        .unwrap_err();
    assert_eq!(
        crate::harness::reason(&refused),
        "OWNER_CALL_LIMIT",
        "{refused:?}"
    );
    // Calls of another identity, and health checks, are answered.
    Guest::new(&house.over_unix(0).await)
        .open("")
        .await
        .unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(house.over_tcp().await);
    health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap();
    drop(held);
    let until = Instant::now() + PATIENCE;
    while Guest::new(&house.over_tcp().await).open("").await.is_err() {
        assert!(Instant::now() < until, "the places are never freed");
    }
}

#[tokio::test]
async fn watchers_of_one_identity_leave_places_for_others() {
    let rules = rule("uid:0", "*", "observer") + &rule("local", "*", "observer");
    let house = House::with(&rules).await;
    let mut held = Vec::new();
    let mut local = Guest::new(&house.over_tcp().await);
    let refused = loop {
        let request = pb::WatchSessionsRequest::default();
        match local.sessions.watch_sessions(request).await {
            Ok(stream) => held.push(stream),
            Err(status) => break status,
        }
        assert!(held.len() < 64, "one identity has all places");
    };
    assert_eq!(
        (crate::harness::reason(&refused).as_str(), held.len()),
        ("WATCHER_LIMIT", 32),
        "{refused:?}"
    );
    let mut other = Guest::new(&house.over_unix(0).await);
    other
        .sessions
        .watch_sessions(pb::WatchSessionsRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn peers_without_a_certificate_take_no_place_of_others() {
    let rules = rule("dns:a.test", "*", "worker") + &rule("local", "*", "worker");
    let house = House::limited("[limits]\nsockets = 160", &rules).await;
    let leaf = house.authority.leaf(&["a.test"]);
    let mut mute = Vec::new();
    for _ in 0..300 {
        mute.push(TcpStream::connect(house.tls).await.unwrap());
    }
    // Callers on this host have their own places.
    Guest::new(&house.over_tcp().await).open("").await.unwrap();
    // A worker from another address is admitted too.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    let connector = TlsConnector::from(std::sync::Arc::new(house.client(Some(&leaf))));
    let stream = connector
        .connect(
            "localhost".try_into().unwrap(),
            socket.connect(house.tls).await.unwrap(),
        )
        .await
        .unwrap();
    Guest::new(&over(stream).await).open("").await.unwrap();
    // Most sockets without a certificate are closed at once, without an answer.
    let mut closed = 0;
    for socket in &mut mute {
        let mut bytes = [0; 16];
        if let Ok(Ok(0) | Err(_)) =
            tokio::time::timeout(Duration::from_millis(5), socket.read(&mut bytes)).await
        {
            closed += 1;
        }
    }
    assert!(closed >= 200, "{closed} of 300 were closed");
}

/// Returns the reason of a refusal, and whether it has a RetryInfo.
fn refused_with(status: &tonic::Status) -> (String, bool) {
    (
        crate::harness::reason(status),
        status.get_details_retry_info().is_some(),
    )
}

#[tokio::test]
async fn streams_over_the_byte_limit_are_told_when_to_retry() {
    let limits = "[limits]\nrequest_bytes = \"1MiB\"\nrequest_bytes_per_owner = \"256KiB\"";
    let house = House::limited(limits, &rule("local", "default", "worker")).await;
    let mut guest = Guest::new(&house.over_tcp().await);
    let reason = ("REQUEST_BYTES_LIMIT".to_owned(), true);
    let driven = |bytes: usize| {
        let first = pb::drive_request::Event::New(crate::harness::new("", pb::Role::Server));
        let long = pb::drive_request::Event::Ciphertext(vec![0; bytes].into());
        tokio_stream::iter([first, long].map(|event| pb::DriveRequest { event: Some(event) }))
    };
    let mut answers = guest
        .connections
        .drive(driven(300 << 10))
        .await
        .unwrap()
        .into_inner();
    let refused = loop {
        match answers.message().await {
            Ok(answer) => assert!(answer.is_some(), "the stream ends with a refusal"),
            Err(status) => break status,
        }
    };
    assert_eq!(refused_with(&refused), reason, "{refused:?}");
    let session_id = "0".repeat(300 << 10);
    let lookup = pb::LookupSessionRequest {
        session_id,
        ..Default::default()
    };
    let call = pb::Call {
        method: Some(pb::call::Method::LookupSession(Box::new(lookup))),
        ..Default::default()
    };
    let calls = tokio_stream::iter([pb::AttachRequest { calls: vec![call] }]);
    let refused = match guest.workers.attach(calls).await {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(refused_with(&refused), reason, "{refused:?}");
    // The refused streams gave their bytes back.
    let mut answers = guest
        .connections
        .drive(driven(100 << 10))
        .await
        .unwrap()
        .into_inner();
    assert!(answers.message().await.unwrap().is_some());
}

#[tokio::test]
async fn requests_behind_unread_answers_are_counted_and_reset() {
    let limits = "[limits]\nrequest_bytes = \"1MiB\"\nrequest_bytes_per_owner = \"256KiB\"";
    let rules = rule("local", "default", "worker");
    let house = House::limited(limits, &rules).await;
    let mut honest = Guest::new(&house.over_unix(0).await);
    // The client gives answers no window, and sends data in pieces of one byte, then in large ones,
    // behind each request.
    let mut raw = Raw::connect(&house.daemon.address, 0).await;
    raw.agree().await;
    let opens = frames::message(&[10, 2, 16, 2]);
    let mut sent = Vec::new();
    for stream in (1..32).step_by(2) {
        sent.extend(frame(
            HEADERS,
            END_HEADERS,
            stream,
            &frames::call("/tls.sessiond.v1.ConnectionService/Drive"),
        ));
        sent.extend(frame(DATA, 0, stream, &opens));
        sent.extend(frame(DATA, 0, stream, &[0]).repeat(100));
        sent.extend(frame(DATA, 0, stream, &[0; 16_000]).repeat(4));
    }
    assert!(raw.send(&sent).await);
    let reset = raw.until(frames::RST_STREAM).await.unwrap();
    let calm = 11u32.to_be_bytes();
    assert_eq!(reset.payload, calm, "ENHANCE_YOUR_CALM");
    // Another identity has its own budget. The first one is served again once its connection has
    // ended.
    honest.open("").await.unwrap();
    drop(raw);
    let until = Instant::now() + PATIENCE;
    while Guest::new(&house.over_tcp().await).open("").await.is_err() {
        assert!(Instant::now() < until, "the bytes are never given back");
    }
}

#[tokio::test]
async fn unread_answers_are_reset_and_free_their_places() {
    let rules = rule("local", "default", "worker");
    let house = House::limited(
        "[limits]\ncalls_in_flight = 40\ncalls_per_owner = 20",
        &rules,
    )
    .await;
    let mut raw = Raw::connect(&house.daemon.address, 0).await;
    raw.agree().await;
    for stream in 0..20 {
        let list = frames::call("/tls.sessiond.v1.ContextService/ListContexts");
        let call = [
            frame(HEADERS, END_HEADERS, 2 * stream + 1, &list),
            frame(DATA, frames::END_STREAM, 2 * stream + 1, &[0; 5]),
        ];
        assert!(raw.send(&call.concat()).await);
    }
    assert!(raw.send(&frame(frames::PING, 0, 0, &[7; 8])).await);
    raw.until(frames::PING).await.unwrap();
    let refused = Guest::new(&house.over_tcp().await)
        .open("")
        .await
        .unwrap_err();
    assert_eq!(
        crate::harness::reason(&refused),
        "OWNER_CALL_LIMIT",
        "{refused:?}"
    );
    for _ in 0..20 {
        let reset = raw.until(frames::RST_STREAM).await.unwrap();
        assert_eq!(reset.payload, 8u32.to_be_bytes(), "CANCEL");
    }
    Guest::new(&house.over_tcp().await).open("").await.unwrap();
}

#[tokio::test]
async fn silent_drives_count_as_calls_and_end() {
    let rules = rule("local", "default", "worker");
    let house = House::limited(
        "[limits]\ncalls_in_flight = 40\ncalls_per_owner = 20",
        &rules,
    )
    .await;
    let mut raw = Raw::connect(&house.daemon.address, 65_535).await;
    for stream in 0..20 {
        let begun = frames::call("/tls.sessiond.v1.ConnectionService/Drive");
        assert!(
            raw.send(&frame(HEADERS, END_HEADERS, 2 * stream + 1, &begun))
                .await
        );
    }
    assert!(raw.send(&frame(frames::PING, 0, 0, &[7; 8])).await);
    raw.until(frames::PING).await.unwrap();
    let refused = Guest::new(&house.over_tcp().await)
        .open("")
        .await
        .unwrap_err();
    assert_eq!(
        crate::harness::reason(&refused),
        "OWNER_CALL_LIMIT",
        "{refused:?}"
    );
    // The daemon ends a Drive that names no connection within 20 s. The test waits for that.
    let until = Instant::now() + PATIENCE;
    while Guest::new(&house.over_tcp().await).open("").await.is_err() {
        assert!(Instant::now() < until, "the streams never end");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn attached_streams_of_one_identity_have_a_limit() {
    let rules = rule("local", "default", "worker");
    let house = House::limited(
        "[limits]\ncalls_in_flight = 40\ncalls_per_owner = 20",
        &rules,
    )
    .await;
    let mut guest = Guest::new(&house.over_tcp().await);
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(guest.attach().await);
    }
    let (_calls, calls) = tokio::sync::mpsc::channel(1);
    let refused = guest
        .workers
        .attach(tokio_stream::wrappers::ReceiverStream::new(calls))
        .await
        .unwrap_err();
    assert_eq!(
        crate::harness::reason(&refused),
        "OWNER_CALL_LIMIT",
        "{refused:?}"
    );
    guest.open("").await.unwrap();
    Guest::new(&house.over_unix(0).await).attach().await;
}

#[tokio::test]
async fn late_messages_of_ended_calls_close_no_connection() {
    let house = House::with(&rule("local", "default", "worker")).await;
    for rules in [rule("local", "*", "worker"), rule("uid:4", "*", "worker")] {
        house.reload(&rules).unwrap();
        let mut raw = Raw::connect(&house.daemon.address, 65_535).await;
        raw.until(frames::SETTINGS).await.unwrap();
        // The daemon refuses each call before its message comes. A PING after every tenth call
        // keeps the number of open streams below the limit of a caller without a role.
        for stream in (1..8001).step_by(2) {
            let call = frame(
                HEADERS,
                END_HEADERS,
                stream,
                &frames::call("/no.such.Service/Method"),
            );
            let late = frame(DATA, frames::END_STREAM, stream, &[0; 5]);
            assert!(
                raw.send(&[call, late].concat()).await,
                "{rules}: closed at stream {stream}"
            );
            if stream % 20 == 19 {
                assert!(raw.send(&frame(frames::PING, 0, 0, &[7; 8])).await);
                raw.until(frames::PING)
                    .await
                    .unwrap_or_else(|err| panic!("{rules} {stream}: {err}"));
            }
        }
    }
}
