//! Explanations of a missed resumption: watch events, statistics and log lines. Also the accepted
//! spellings of ids.

use std::time::Duration;

use rustls::version::TLS13;
use tls_sessiond_proto::{self as pb, drive_request, watch_sessions_response::Event};
use tonic::Streaming;

use crate::{
    calls::{Worker, lookup, put, worker},
    client_hello::{Extension, Hello, records},
    harness::{TestDaemon, new, reason},
    log_lines::Logging,
    psk_hello::{PskHello, Ticket},
    returning::{Certificate, Returning},
};

async fn watch(daemon: &TestDaemon, context: &str) -> Streaming<pb::WatchSessionsResponse> {
    let request = pb::WatchSessionsRequest {
        context: context.into(),
    };
    daemon
        .sessions()
        .watch_sessions(request)
        .await
        .unwrap()
        .into_inner()
}

async fn miss(watch: &mut Streaming<pb::WatchSessionsResponse>) -> pb::SessionMiss {
    loop {
        let told = watch.message().await.unwrap().unwrap();
        assert!(told.time.is_some());
        if let Some(Event::Missed(miss)) = told.event {
            return miss;
        }
    }
}

#[tokio::test]
async fn watchers_are_told_of_misses_with_their_reason() {
    let certificate = Certificate::new();
    let config = format!(
        "{}[[context]]\nname = \"other\"\n[[context]]\nname = \"off\"\noptions = [\"no-session-cache\"]\n",
        certificate.context()
    );
    let daemon = TestDaemon::with(&config).await;
    let w = Worker(&daemon);
    let (mut watch_all, mut watch_other) =
        (watch(&daemon, "").await, watch(&daemon, "other").await);
    let id = w.established("aabbccddee").await;

    let named = |server_name: &str| pb::LookupSessionRequest {
        server_name: server_name.into(),
        ..lookup("aabbccddee")
    };
    assert!(!w.lookup(named("Elsewhere.test.")).await.found);
    let told = miss(&mut watch_all).await;
    let (prefix, name) = (told.session_id_prefix.as_str(), told.server_name.as_str());
    assert_eq!(
        (prefix, told.context.as_str(), name),
        ("aabbccdd", "default", "elsewhere.test")
    );
    assert_eq!(
        (told.role(), told.reason()),
        (pb::Role::Server, pb::MissReason::Scope)
    );

    w.free(&id).await;
    assert!(!w.lookup(lookup("aabbccddee")).await.found);
    assert_eq!(miss(&mut watch_all).await.reason(), pb::MissReason::Removed);

    // A hit is not reported as a miss, and the watcher of a context sees the events of that context
    // only.
    w.established("cc").await;
    assert!(w.found("cc").await);
    let other = pb::LookupSessionRequest {
        context: "other".into(),
        ..lookup("dd")
    };
    assert!(!w.lookup(other).await.found);
    for watch in [&mut watch_all, &mut watch_other] {
        let told = miss(watch).await;
        assert_eq!(
            (told.session_id_prefix.as_str(), told.context.as_str()),
            ("dd", "other")
        );
        assert_eq!(told.reason(), pb::MissReason::Unknown);
    }

    // In a handshake of the daemon's engine, each offered ticket is reported as a miss. The
    // statistics count one miss for the ClientHello.
    let unknown = |byte| Ticket {
        identity: vec![byte; 32],
        psk: vec![1; 32],
    };
    let server = daemon.open(pb::Role::Server).await;
    let hello = PskHello::offering(&[&unknown(7), &unknown(8)]);
    daemon
        .exchange(&server, &hello.flight(), b"")
        .await
        .unwrap();
    for prefix in ["07070707", "08080808"] {
        let told = miss(&mut watch_all).await;
        assert_eq!(
            (told.session_id_prefix.as_str(), told.server_name.as_str()),
            (prefix, "localhost")
        );
    }
    let off = pb::LookupSessionRequest {
        context: "off".into(),
        ..lookup("ee")
    };
    assert!(!w.lookup(off).await.found);
    assert_eq!(
        miss(&mut watch_all).await.reason(),
        pb::MissReason::CacheOff
    );
    daemon.stop().await;
}

#[tokio::test]
async fn flood_of_misses_hides_no_removal_from_a_watcher() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let mut watch = watch(&daemon, "").await;
    let id = w.established("aa").await;
    let registry = daemon.core.registry();
    let context = registry.get("default").unwrap();
    let unknown = tls_sessiond_core::session::SessionId::new(&[9; 32]).unwrap();
    for _ in 0..5000 {
        let (cache, name) = (
            &context.server_cache,
            tls_sessiond_types::server_name::ServerName::NONE,
        );
        let missed = tls_sessiond_core::cache::Missed {
            id: &unknown,
            server_name: &name,
            owner: &"local".into(),
            why: tls_sessiond_core::session::Miss::Unknown,
        };
        cache.missed(&context.stats, missed, daemon.core.now());
    }
    w.free(&id).await;
    let (mut misses, mut removed, mut dropped) = (0, 0, 0);
    while misses + dropped < 5000 || removed == 0 {
        match watch.message().await.unwrap().unwrap().event.unwrap() {
            Event::Missed(_) => misses += 1,
            Event::Removed(_) => removed += 1,
            Event::Dropped(count) => dropped += count,
            Event::Added(_) | Event::Hit(_) => {}
        }
    }
    assert_eq!(
        (misses + dropped, removed),
        (5000, 1),
        "each miss was delivered or counted as dropped"
    );
    assert!(misses > 100 && dropped > 0);
    daemon.stop().await;
}

#[tokio::test]
async fn ids_are_accepted_with_colons_and_in_upper_case() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let id = w.open(worker(pb::Role::Server)).await.id;
    let colons = |id: &str| {
        let bytes: Vec<_> = id
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8(pair.to_vec()).unwrap())
            .collect();
        bytes.join(":")
    };
    for typed in [id.to_uppercase(), colons(&id), colons(&id).to_uppercase()] {
        assert_eq!(daemon.get(&typed).await.id, id, "{typed}");
    }
    let stored = w.put(put(&id, "AB:CD:EF")).await.session.unwrap();
    assert_eq!(
        stored.id, "abcdef",
        "answers have lower-case hex without colons"
    );
    assert!(w.found("abcdef").await && w.found("ABCDEF").await);
    for typed in [
        "ab:cdef",
        "ab:cd:ef:",
        ":ab",
        "ab-cd-ef",
        "ab cd ef",
        "abcde",
    ] {
        let refused = daemon
            .sessions()
            .lookup_session(lookup(typed))
            .await
            .unwrap_err();
        assert_eq!(reason(&refused), "SESSION_ID_MALFORMED", "{typed}");
    }
    let explain = |session_id: &str| pb::ExplainSessionRequest {
        session_id: session_id.into(),
        role: pb::Role::Server.into(),
        ..pb::ExplainSessionRequest::default()
    };
    assert!(
        daemon
            .sessions()
            .explain_session(explain("AB:cd:EF"))
            .await
            .unwrap()
            .into_inner()
            .resumable
    );
    // The form that `openssl x509 -fingerprint -sha256` prints.
    let selector =
        pb::revoke_sessions_request::Selector::CertificateSha256(colons(&"AB".repeat(32)));
    let revoke = pb::RevokeSessionsRequest {
        selector: Some(selector),
        ..pb::RevokeSessionsRequest::default()
    };
    daemon.sessions().revoke_sessions(revoke).await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn server_names_are_compared_in_one_form() {
    use pb::revoke_sessions_request::Selector;
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let named = |session: &str, name: &str| pb::LookupSessionRequest {
        server_name: name.into(),
        ..lookup(session)
    };
    for (session, selector) in [
        ("aa", Selector::ServerName("A.test.".into())),
        ("ab", Selector::DnsName("Client.TEST.".into())),
    ] {
        let id = w.open(worker(pb::Role::Server)).await.id;
        let peer = pb::PeerIdentity {
            certificate_sha256: "ab".repeat(32),
            dns_names: vec!["client.test.".into()],
            ..pb::PeerIdentity::default()
        };
        let told = pb::PutSessionRequest {
            server_name: "a.Test.".into(),
            peer: Some(peer),
            ..put(&id, session)
        };
        let stored = w.put(told).await.session.unwrap();
        assert_eq!(
            (
                stored.server_name.as_str(),
                &stored.peer.unwrap().dns_names[..]
            ),
            ("a.test", &["client.test".to_owned()][..])
        );
        for name in ["a.test", "A.TEST", "a.test."] {
            assert!(w.lookup(named(session, name)).await.found, "{name}");
            let listed = pb::ListSessionsRequest {
                server_name: name.into(),
                ..pb::ListSessionsRequest::default()
            };
            assert_eq!(
                daemon
                    .sessions()
                    .list_sessions(listed)
                    .await
                    .unwrap()
                    .into_inner()
                    .sessions
                    .len(),
                1
            );
        }
        daemon.clock.advance(Duration::from_secs(1));
        let revoke = pb::RevokeSessionsRequest {
            selector: Some(selector),
            ..pb::RevokeSessionsRequest::default()
        };
        assert_eq!(
            daemon
                .sessions()
                .revoke_sessions(revoke)
                .await
                .unwrap()
                .into_inner()
                .removed,
            1
        );
        assert!(!w.lookup(named(session, "a.test")).await.found);
        daemon.clock.advance(Duration::from_secs(1));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn removal_time_is_not_before_its_cause() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let left = async |id: &str| {
        let request = pb::ExplainSessionRequest {
            session_id: id.into(),
            role: pb::Role::Server.into(),
            ..pb::ExplainSessionRequest::default()
        };
        let told = daemon
            .sessions()
            .explain_session(request)
            .await
            .unwrap()
            .into_inner();
        let time = told.remove_time.unwrap();
        Duration::new(
            time.seconds.try_into().unwrap(),
            time.nanos.try_into().unwrap(),
        )
    };
    let wall = || Duration::from_millis(daemon.core.now().wall().as_millis());
    // The test waits for no sweep between the steps. The removal times must be exact nevertheless.
    for (id, step) in [("a1", 90), ("a2", 180), ("a3", 11)] {
        let connection = w.open(worker(pb::Role::Server)).await.id;
        w.put(pb::PutSessionRequest {
            single_use: id == "a2",
            ..put(&connection, id)
        })
        .await;
        daemon.clock.advance(Duration::from_millis(step));
        let before = wall();
        match id {
            "a1" => drop(w.free(&connection).await),
            "a2" => assert!(w.found(id).await, "the lookup consumes the session"),
            _ => {
                let request = pb::RemoveSessionRequest {
                    session_id: id.into(),
                    role: pb::Role::Server.into(),
                    ..pb::RemoveSessionRequest::default()
                };
                daemon.sessions().remove_session(request).await.unwrap();
            }
        }
        assert_eq!(left(id).await, before, "{id}");
    }
    daemon.stop().await;
}

fn old_hello() -> Vec<u8> {
    let hello = Hello {
        session_id: Vec::new(),
        suites: vec![0x1301],
        extensions: Extension::negotiable(&[0x6a6a], &[0x6a6a], &[]),
    };
    records(&hello.message(), &[])
}

async fn failures(daemon: &TestDaemon) -> Vec<(Option<(u32, bool)>, u64)> {
    let context = daemon
        .contexts()
        .get_context(pb::GetContextRequest::default())
        .await
        .unwrap()
        .into_inner();
    let failures = context.context.unwrap().stats.unwrap().failures_by_alert;
    failures
        .into_iter()
        .map(|it| (it.alert.map(|alert| (alert.code, alert.received)), it.count))
        .collect()
}

#[tokio::test]
async fn failed_handshakes_are_counted_by_alert() {
    let certificate = Certificate::new();
    let daemon = TestDaemon::with(&certificate.context()).await;
    assert_eq!(failures(&daemon).await, []);
    // handshake_failure, twice.
    for _ in 0..2 {
        let server = daemon.open(pb::Role::Server).await;
        let output = daemon.exchange(&server, &old_hello(), b"").await.unwrap();
        assert_eq!(output.alert.unwrap().code, 40);
    }
    // The transport ends.
    let server = daemon.open(pb::Role::Server).await;
    let end = pb::ExchangeRequest {
        connection_id: server,
        end_of_stream: true,
        ..Default::default()
    };
    daemon.connections().exchange(end).await.unwrap();
    // A client that does not trust the certificate.
    let server = daemon.open(pb::Role::Server).await;
    let mut stranger = Returning::new(&Certificate::new(), &TLS13).tls();
    let mut to_server = Vec::new();
    stranger.write_tls(&mut to_server).unwrap();
    let answer = daemon
        .exchange(&server, &to_server, b"")
        .await
        .unwrap()
        .ciphertext;
    let mut rest = &answer[..];
    while !rest.is_empty() && stranger.read_tls(&mut rest).is_ok() {
        drop(stranger.process_new_packets());
    }
    to_server.clear();
    while stranger.wants_write() {
        stranger.write_tls(&mut to_server).unwrap();
    }
    let output = daemon.exchange(&server, &to_server, b"").await.unwrap();
    let alert = output.alert.unwrap();
    assert!(alert.received);
    // A worker's report in a handshake counts. One on an established connection is no failed
    // handshake.
    let w = Worker(&daemon);
    let report = |id: &str| pb::ReportAlertRequest {
        connection_id: id.into(),
        alert: Some(pb::Alert {
            code: 42,
            received: true,
            ..pb::Alert::default()
        }),
    };
    let id = w.open(worker(pb::Role::Server)).await.id;
    daemon
        .connections()
        .report_alert(report(&id))
        .await
        .unwrap();
    let id = w.established("aa").await;
    daemon
        .connections()
        .report_alert(report(&id))
        .await
        .unwrap();

    let mut expected = vec![
        (None, 1),
        (Some((40, false)), 2),
        (Some((42, true)), 1),
        (Some((alert.code, true)), 1),
    ];
    expected[2..].sort();
    assert_eq!(failures(&daemon).await, expected);
    daemon.stop().await;
}

#[tokio::test]
async fn failed_handshake_is_logged_with_the_peers_address() {
    let daemon = Logging::start(Some("debug"), "").await;
    let channel =
        tonic::transport::Channel::from_shared(format!("http://{}", daemon.address())).unwrap();
    let mut rpc = pb::connection_service_client::ConnectionServiceClient::new(
        channel.connect().await.unwrap(),
    );
    let long = pb::NewRequest {
        peer_address: "1".repeat(65),
        ..new("", pb::Role::Server)
    };
    assert_eq!(
        reason(&rpc.new_connection(long).await.unwrap_err()),
        "BYTES_TOO_LONG"
    );
    let request = pb::NewRequest {
        peer_address: "192.0.2.1:4711".into(),
        ..new("", pb::Role::Server)
    };
    let connection = rpc
        .new_connection(request)
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap();
    assert_eq!(connection.peer_address, "192.0.2.1:4711");
    let request = pb::ExchangeRequest {
        connection_id: connection.id,
        ciphertext: old_hello().into(),
        ..Default::default()
    };
    rpc.exchange(request).await.unwrap();
    daemon.until("stderr", "handshake failed").await;
    // A handshake over Drive fails in the same way.
    let request = pb::NewRequest {
        peer_address: "[2001:db8::1]:443".into(),
        ..new("", pb::Role::Server)
    };
    let events = [
        drive_request::Event::New(request),
        drive_request::Event::Ciphertext(old_hello().into()),
    ];
    let requests = events.map(|event| pb::DriveRequest { event: Some(event) });
    let mut answers = rpc
        .drive(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    while let Ok(Some(_)) = answers.message().await {}
    daemon.until("stderr", "[2001:db8::1]:443").await;
    let lines = daemon.end().await;
    let line = lines
        .iter()
        .find(|line| line["fields"]["message"] == "handshake failed")
        .unwrap();
    let fields = &line["fields"];
    assert_eq!(
        (line["level"].as_str(), fields["peer_address"].as_str()),
        (Some("DEBUG"), Some("192.0.2.1:4711"))
    );
    assert_eq!(fields["context"], "default");
    assert!(
        fields["why"]
            .as_str()
            .unwrap()
            .contains("handshake_failure"),
        "{line}"
    );
}

/// Puts a session into a context's cache directly, without a call and its checks.
pub(crate) fn store(
    context: &std::sync::Arc<tls_sessiond_core::context::Context>,
    core: &tls_sessiond_core::state::CoreState,
    id: u8,
) {
    use tls_sessiond_core::session::{Format, NewSession, Secret, SessionId};
    use tls_sessiond_types::Version;
    let new = NewSession {
        id: SessionId::new(&[id; 32]),
        version: Version::Tls12,
        cipher_suite: "".into(),
        server_name: tls_sessiond_types::server_name::ServerName::NONE,
        format: Format::Worker("test".into()),
        binding: [].into(),
        single_use: false,
        account: std::sync::Arc::clone(&context.stats),
        peer: None,
        authenticated: core.now().at,
        timeout: Duration::from_secs(60),
        secret: Secret::copied(b"secret"),
    };
    context.server_cache.put(new, core.now()).unwrap();
}
