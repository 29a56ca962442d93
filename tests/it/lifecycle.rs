//! The rules of the life cycle of connections and sessions, over gRPC. The scenarios test most of
//! them, this file the others.

use std::time::Duration;

use tls_sessiond_proto::{self as pb, drive_request::Event, drive_response::Event as Answer};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use crate::{
    harness::{TestDaemon, new},
    pki::{self, Authority},
};

/// Returns three contexts for localhost, `default` with both versions, `tls12` and `tls13`, with
/// these lines in each.
fn config(folder: &std::path::Path, lines: &str) -> String {
    pki::localhost(folder);
    [("default", "\"1.2\", \"1.3\""), ("tls12", "\"1.2\""), ("tls13", "\"1.3\"")]
        .map(|(name, versions)| {
            format!(
                "[[context]]\nname = \"{name}\"\nsession_id_context = \"one\"\nversions = [{versions}]\n\
                 certificate = \"{0}/tls.crt\"\nkey = \"{0}/tls.key\"\nca = \"{0}/ca.pem\"\n{lines}\n",
                folder.display()
            )
        })
        .concat()
}

async fn pair(daemon: &TestDaemon, context: &str) -> (String, String) {
    let client = daemon.open_in(context, pb::Role::Client).await;
    let server = daemon.open_in(context, pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    (client, server)
}

async fn close(daemon: &TestDaemon, id: &str) -> pb::ShutdownResponse {
    let request = pb::ShutdownRequest {
        connection_id: id.into(),
    };
    daemon
        .connections()
        .shutdown(request)
        .await
        .unwrap()
        .into_inner()
}

async fn assert_flags(daemon: &TestDaemon, id: &str, sent: bool, received: bool) {
    let flags = pb::ShutdownFlags { sent, received };
    let request = pb::SetShutdownRequest {
        connection_id: id.into(),
        shutdown: Some(flags),
    };
    daemon.connections().set_shutdown(request).await.unwrap();
}

async fn clear(daemon: &TestDaemon, id: &str) -> pb::ClearResponse {
    daemon
        .connections()
        .clear(pb::ClearRequest {
            connection_id: id.into(),
        })
        .await
        .unwrap()
        .into_inner()
}

async fn free(daemon: &TestDaemon, id: &str) -> Vec<pb::RemovedSession> {
    let request = pb::FreeRequest {
        connection_id: id.into(),
        allow_missing: false,
    };
    daemon
        .connections()
        .free(request)
        .await
        .unwrap()
        .into_inner()
        .removed_sessions
}

/// Returns whether a new pair resumes, with the session that the cache offers for the server name.
async fn resumes(daemon: &TestDaemon, context: &str) -> bool {
    let (client, server) = pair(daemon, context).await;
    let reused = daemon.get(&server).await.session_reused;
    assert_eq!(reused, daemon.get(&client).await.session_reused);
    for id in [client, server] {
        assert_flags(daemon, &id, true, true).await;
        free(daemon, &id).await;
    }
    reused
}

#[tokio::test]
async fn traffic_flows_and_the_connection_is_described() {
    let daemon = TestDaemon::start().await;
    let (client, server) = pair(&daemon, "").await;
    let seen = daemon.get(&client).await;
    assert_eq!(seen.state(), pb::ConnectionState::Established);
    assert_eq!(seen.version(), pb::ProtocolVersion::Tls13);
    assert!(
        seen.cipher_suite.starts_with("TLS_"),
        "{}",
        seen.cipher_suite
    );
    assert_eq!(
        (seen.server_name.as_str(), seen.owner.as_str()),
        ("localhost", "local")
    );
    let peer = seen.peer.unwrap();
    assert_eq!(
        (peer.certificate_sha256.len(), peer.dns_names),
        (64, vec!["localhost".to_owned()])
    );
    assert_eq!(daemon.get(&server).await.server_name, "localhost");
    let sent = daemon
        .exchange(&client, b"", &vec![7; 1 << 20])
        .await
        .unwrap();
    let mut got = Vec::new();
    for part in sent.ciphertext.chunks(1 << 20) {
        got.extend(daemon.exchange(&server, part, b"").await.unwrap().plaintext);
    }
    assert_eq!(got, vec![7; 1 << 20]);
    daemon.stop().await;
}

#[tokio::test]
async fn evidence_tells_a_written_close_from_an_asserted_one() {
    let daemon = TestDaemon::start().await;
    let (client, server) = pair(&daemon, "").await;
    assert_eq!(
        daemon.get(&client).await.close_evidence(),
        pb::CloseEvidence::Unspecified
    );
    assert_flags(&daemon, &client, true, false).await;
    assert_eq!(
        daemon.get(&client).await.close_evidence(),
        pb::CloseEvidence::Asserted
    );
    let closed = close(&daemon, &server).await;
    assert_eq!(closed.status(), pb::ShutdownStatus::Sent);
    assert!(!closed.ciphertext.is_empty());
    assert_eq!(
        closed.connection.unwrap().close_evidence(),
        pb::CloseEvidence::Written
    );
    assert_flags(&daemon, &server, false, false).await;
    assert_eq!(
        daemon.get(&server).await.close_evidence(),
        pb::CloseEvidence::Unspecified
    );
    assert_flags(&daemon, &server, true, false).await;
    assert_eq!(
        daemon.get(&server).await.close_evidence(),
        pb::CloseEvidence::Asserted,
        "SENT set again"
    );
    assert_flags(&daemon, &server, false, false).await;
    let again = close(&daemon, &server).await;
    assert_eq!(
        (again.status(), again.ciphertext.len()),
        (pb::ShutdownStatus::Sent, 0),
        "one close_notify is enough"
    );
    assert_eq!(
        again.connection.unwrap().close_evidence(),
        pb::CloseEvidence::Written
    );
    assert_flags(&daemon, &server, true, true).await;
    assert_eq!(
        daemon.get(&server).await.close_evidence(),
        pb::CloseEvidence::Written,
        "SENT was set already"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn close_policy_defines_a_clean_close() {
    for (policy, asserted, open) in [
        ("flag", true, false),
        ("written", false, false),
        ("errors-only", true, true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let daemon = TestDaemon::with(&config(
            folder.path(),
            &format!("close_policy = \"{policy}\""),
        ))
        .await;
        for context in ["tls12", "tls13"] {
            let (client, server) = pair(&daemon, context).await;
            assert_flags(&daemon, &client, true, false).await;
            assert_flags(&daemon, &server, true, false).await;
            let removed = [free(&daemon, &client).await, free(&daemon, &server).await].concat();
            assert_eq!(
                removed.is_empty(),
                asserted,
                "{policy}, {context}: asserted"
            );
            let (client, server) = pair(&daemon, context).await;
            close(&daemon, &client).await;
            close(&daemon, &server).await;
            assert!(
                free(&daemon, &client).await.is_empty() && free(&daemon, &server).await.is_empty()
            );
            let (client, server) = pair(&daemon, context).await;
            let removed = [free(&daemon, &client).await, free(&daemon, &server).await].concat();
            assert_eq!(removed.is_empty(), open, "{policy}, {context}: open");
            // A connection that fails after SENT was only asserted does not count as closed under
            // `written`.
            for end_of_stream in [true, false] {
                let (client, server) = pair(&daemon, context).await;
                assert_flags(&daemon, &server, true, false).await;
                let ciphertext = if end_of_stream {
                    Vec::new()
                } else {
                    [&[23, 3, 3, 0, 24][..], &[7; 24]].concat()
                };
                let request = pb::ExchangeRequest {
                    connection_id: server.clone(),
                    ciphertext: ciphertext.into(),
                    end_of_stream,
                    ..Default::default()
                };
                let failed = daemon
                    .connections()
                    .exchange(request)
                    .await
                    .unwrap()
                    .into_inner();
                assert_eq!(
                    failed.connection.unwrap().state(),
                    pb::ConnectionState::Failed
                );
                assert!(
                    failed.ciphertext.is_empty() && failed.alert.is_none(),
                    "nothing is sent after SENT"
                );
                assert_eq!(
                    failed.removed_sessions.is_empty(),
                    asserted,
                    "{policy}, {context}: failed"
                );
                free(&daemon, &client).await;
            }
        }
        daemon.stop().await;
    }
}

#[tokio::test]
async fn quiet_shutdown_closes_without_an_alert() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = TestDaemon::with(&config(folder.path(), "options = [\"quiet-shutdown\"]")).await;
    let (client, _) = pair(&daemon, "").await;
    let closed = close(&daemon, &client).await;
    assert_eq!(
        (closed.status(), closed.ciphertext.len()),
        (pb::ShutdownStatus::Complete, 0)
    );
    assert_eq!(
        closed.connection.unwrap().close_evidence(),
        pb::CloseEvidence::Asserted
    );
    assert!(free(&daemon, &client).await.is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn ignored_end_of_stream_keeps_sent() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = TestDaemon::with(&config(
        folder.path(),
        "options = [\"ignore-unexpected-eof\"]",
    ))
    .await;
    let (client, server) = pair(&daemon, "").await;
    close(&daemon, &server).await;
    for id in [&client, &server] {
        let request = pb::ExchangeRequest {
            connection_id: id.clone(),
            end_of_stream: true,
            ..Default::default()
        };
        let answer = daemon
            .connections()
            .exchange(request)
            .await
            .unwrap()
            .into_inner();
        assert!(answer.alert.is_none() && answer.removed_sessions.is_empty());
    }
    let flags = daemon.get(&server).await.shutdown.unwrap();
    assert!(
        flags.sent && flags.received,
        "SENT stays, although OpenSSL loses it here"
    );
    assert!(free(&daemon, &server).await.is_empty());
    let flags = daemon.get(&client).await.shutdown.unwrap();
    assert!(
        flags.sent && flags.received,
        "the end counts as the peer's close and closes this side too"
    );
    assert!(free(&daemon, &client).await.is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn no_session_cache_makes_no_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = TestDaemon::with(&config(folder.path(), "options = [\"no-session-cache\"]")).await;
    for context in ["tls12", "tls13"] {
        let (client, server) = pair(&daemon, context).await;
        assert_eq!(daemon.get(&client).await.session_id, "");
        close(&daemon, &client).await;
        close(&daemon, &server).await;
        assert!(!resumes(&daemon, context).await);
    }
    assert_eq!(daemon.server_sessions().await, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn attached_session_pins_its_version_until_detached() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = TestDaemon::with(&config(folder.path(), "client_sessions = \"explicit\"")).await;
    // A client with both versions meets a server of TLS 1.2.
    let client = daemon.open(pb::Role::Client).await;
    let server = daemon.open_in("tls12", pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    close(&daemon, &client).await;
    close(&daemon, &server).await;
    let cleared = clear(&daemon, &client).await.connection.unwrap();
    assert_eq!(cleared.pinned_version(), pb::ProtocolVersion::Tls12);
    assert!(!cleared.session_id.is_empty());

    // Now the peer speaks TLS 1.3 only. The handshake fails, the kept session is removed, and the
    // error names the cause.
    let server = daemon.open_in("tls13", pb::Role::Server).await;
    let hello = daemon.exchange(&client, b"", b"").await.unwrap().ciphertext;
    let refusal = daemon.exchange(&server, &hello, b"").await.unwrap();
    let told = daemon
        .exchange(&client, &refusal.ciphertext, b"")
        .await
        .unwrap();
    let alert = told.alert.unwrap();
    assert_eq!(
        (alert.name.as_str(), alert.received),
        ("protocol_version", true)
    );
    assert_eq!(told.removed_sessions.len(), 1);
    assert_eq!(
        told.removed_sessions[0].reason(),
        pb::RemovalReason::FatalAlert
    );
    let error = daemon.exchange(&client, b"", b"").await.unwrap_err();
    assert!(
        error.message().contains("pinned to TLS 1.2"),
        "{}",
        error.message()
    );
    let cleared = clear(&daemon, &client).await.connection.unwrap();
    assert_eq!(
        cleared.pinned_version(),
        pb::ProtocolVersion::Unspecified,
        "no session is kept, so no version is pinned"
    );

    // SetSession("") detaches the session and unpins the version.
    let server = daemon.open_in("tls12", pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    close(&daemon, &client).await;
    clear(&daemon, &client).await;
    let request = pb::SetSessionRequest {
        connection_id: client.clone(),
        session_id: String::new(),
    };
    let let_go = daemon
        .connections()
        .set_session(request)
        .await
        .unwrap()
        .into_inner();
    assert!(
        let_go.removed_sessions.is_empty(),
        "detaching removes nothing"
    );
    assert_eq!(
        let_go.connection.unwrap().pinned_version(),
        pb::ProtocolVersion::Unspecified
    );
    let server = daemon.open_in("tls13", pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    assert_eq!(
        daemon.get(&client).await.version(),
        pb::ProtocolVersion::Tls13
    );
    daemon.stop().await;
}

#[tokio::test]
async fn session_moves_to_another_object_without_its_settings() {
    // The manual advises this for another peer: GetSession, New, SetSession, Free.
    let folder = tempfile::tempdir().unwrap();
    let daemon = TestDaemon::with(&config(folder.path(), "client_sessions = \"explicit\"")).await;
    for context in ["tls12", "tls13"] {
        let (client, server) = pair(&daemon, context).await;
        let request = pb::GetSessionRequest {
            connection_id: client.clone(),
        };
        let session = daemon
            .connections()
            .get_session(request)
            .await
            .unwrap()
            .into_inner()
            .session
            .unwrap();
        assert_eq!(
            (session.single_use, session.open_connections),
            (context == "tls13", 1)
        );
        close(&daemon, &client).await;
        close(&daemon, &server).await;
        free(&daemon, &client).await;
        let request = pb::NewRequest {
            session_id: session.id.clone(),
            ..new(context, pb::Role::Client)
        };
        let client = daemon
            .connections()
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap();
        assert_eq!(client.session_id, session.id);
        let server = daemon.open_in(context, pb::Role::Server).await;
        daemon.handshake(&client.id, &server).await;
        let resumed = daemon.get(&server).await;
        assert!(resumed.session_reused && daemon.get(&client.id).await.session_reused);
        assert!(resumed.peer.is_none());
    }
    daemon.stop().await;
}

#[tokio::test]
async fn client_cache_offers_the_newest_and_each_ticket_once() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = TestDaemon::with(&config(folder.path(), "")).await;
    let (client, server) = pair(&daemon, "tls13").await;
    close(&daemon, &client).await;
    close(&daemon, &server).await;
    let newest = daemon.get(&client).await.session_id;
    // The two tickets of one handshake serve two clients, the newest first. A third client finds
    // none.
    let mut offered = Vec::new();
    for resumed in [true, true, false] {
        let (client, server) = (
            daemon.open_in("tls13", pb::Role::Client).await,
            daemon.open_in("tls13", pb::Role::Server).await,
        );
        let hello = daemon.exchange(&client, b"", b"").await.unwrap();
        offered.push(hello.connection.unwrap().session_id);
        daemon
            .exchange(&server, &hello.ciphertext, b"")
            .await
            .unwrap();
        assert_eq!(daemon.get(&server).await.session_reused, resumed);
    }
    assert_eq!(offered[0], newest);
    assert_ne!(offered[1], newest);
    assert_eq!(offered[2], "");
    // The client sessions of another server name are separate.
    let request = pb::NewRequest {
        server_name: "127.0.0.1".into(),
        ..new("tls13", pb::Role::Client)
    };
    let id = daemon
        .connections()
        .new_connection(request)
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap()
        .id;
    let hello = daemon.exchange(&id, b"", b"").await.unwrap();
    assert_eq!(hello.connection.unwrap().session_id, "");
    daemon.stop().await;
}

// Invariant 5.
#[tokio::test]
async fn sessions_expire_on_time_and_resumption_extends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "session_timeout = \"100s\"\nidle_timeout = \"1h\"";
    let daemon = TestDaemon::with(&config(folder.path(), lines)).await;
    for context in ["tls12", "tls13"] {
        assert!(!resumes(&daemon, context).await);
        daemon.clock.advance(Duration::from_secs(60));
        assert!(resumes(&daemon, context).await);
        daemon.clock.advance(Duration::from_millis(39_999));
        assert!(
            resumes(&daemon, context).await,
            "a millisecond before the expiry"
        );
        daemon.clock.advance(Duration::from_millis(1));
        assert!(
            !resumes(&daemon, context).await,
            "at the expiry: a miss, no alert"
        );
        daemon.clock.advance(Duration::from_secs(1000));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn statistics_count_as_openssl_does() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = TestDaemon::with(&config(
        folder.path(),
        "client_sessions = \"explicit\"\ncache_entries_max = 2",
    ))
    .await;
    let stats = async || {
        let request = pb::GetContextRequest {
            name: "tls12".into(),
        };
        daemon
            .contexts()
            .get_context(request)
            .await
            .unwrap()
            .into_inner()
            .context
            .unwrap()
            .stats
            .unwrap()
    };
    let (client, server) = pair(&daemon, "tls12").await;
    let session_id = daemon.get(&client).await.session_id;
    close(&daemon, &client).await;
    close(&daemon, &server).await;
    let offer = async || {
        let request = pb::NewRequest {
            session_id: session_id.clone(),
            ..new("tls12", pb::Role::Client)
        };
        let id = daemon
            .connections()
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
            .id;
        let server = daemon.open_in("tls12", pb::Role::Server).await;
        daemon.handshake(&id, &server).await;
        assert_flags(&daemon, &id, true, true).await;
        free(&daemon, &server).await
    };
    let first = stats().await;
    assert_eq!(
        (
            first.accept,
            first.accept_good,
            first.connect,
            first.connect_good
        ),
        (1, 1, 1, 1)
    );
    assert_eq!((first.sessions, first.hits, first.misses), (2, 0, 0));
    assert!(first.session_bytes > 0);
    // The connection resumed and was not closed, so the server's session is removed.
    assert_eq!(offer().await.len(), 1);
    let second = stats().await;
    assert_eq!(
        (second.hits, second.misses, second.unclosed),
        (2, 0, 1),
        "a hit on each side"
    );
    offer().await;
    let third = stats().await;
    assert_eq!((third.hits, third.misses, third.unclosed), (2, 1, 2));
    for _ in 0..3 {
        pair(&daemon, "tls12").await;
    }
    assert!(stats().await.cache_full > 0);
    let started = daemon.open_in("tls12", pb::Role::Client).await;
    daemon.exchange(&started, b"", b"").await.unwrap();
    let last = stats().await;
    assert_eq!(last.connect, last.connect_good + 1);
    daemon.stop().await;
}

#[tokio::test]
async fn client_shows_the_certificate_that_the_server_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    for (authority, leaf) in [
        ("one", "spiffe://example.org/one"),
        ("two", "spiffe://example.org/two"),
    ] {
        let ca = Authority::new(authority);
        std::fs::write(folder.path().join(format!("{authority}.pem")), &ca.pem).unwrap();
        ca.leaf(&[leaf]).write(folder.path(), authority);
    }
    let path = folder.path().display();
    let mut text = format!(
        "[[context]]\nname = \"client\"\nca = \"{path}/ca.pem\"\nclient_certificates = [\n\
         {{ certificate = \"{path}/one.crt\", key = \"{path}/one.key\" }},\n\
         {{ certificate = \"{path}/two.crt\", key = \"{path}/two.key\" }}]\n\
         [[context]]\nname = \"nocert\"\nca = \"{path}/ca.pem\"\n"
    );
    for (name, ca, auth) in [
        ("ask-two", "two", "request"),
        ("must-two", "two", "require"),
        ("ask-one", "one", "request"),
    ] {
        text += &format!(
            "[[context]]\nname = \"{name}\"\ncertificate = \"{path}/tls.crt\"\nkey = \"{path}/tls.key\"\n\
             ca = \"{path}/{ca}.pem\"\nclient_auth = \"{auth}\"\n"
        );
    }
    let daemon = TestDaemon::with(&text).await;
    for (client_context, server_context, shown) in [
        ("client", "ask-two", Some("spiffe://example.org/two")),
        ("client", "ask-one", Some("spiffe://example.org/one")),
        ("client", "must-two", Some("spiffe://example.org/two")),
        ("nocert", "ask-two", None),
    ] {
        let client = daemon.open_in(client_context, pb::Role::Client).await;
        let server = daemon.open_in(server_context, pb::Role::Server).await;
        daemon.handshake(&client, &server).await;
        let seen = daemon.get(&server).await;
        assert_eq!(seen.state(), pb::ConnectionState::Established);
        assert_eq!(
            seen.peer.clone().map(|peer| peer.uris),
            shown.map(|uri| vec![uri.to_owned()])
        );
        // A resumption keeps the peer's identity.
        close(&daemon, &client).await;
        close(&daemon, &server).await;
        free(&daemon, &client).await;
        let client = daemon.open_in(client_context, pb::Role::Client).await;
        let again = daemon.open_in(server_context, pb::Role::Server).await;
        daemon.handshake(&client, &again).await;
        let resumed = daemon.get(&again).await;
        assert_eq!(
            (resumed.session_reused, resumed.peer),
            (true, seen.peer),
            "{client_context} at {server_context}"
        );
        close(&daemon, &client).await;
    }
    // A client without a certificate fails where one is required.
    let client = daemon.open_in("nocert", pb::Role::Client).await;
    let server = daemon.open_in("must-two", pb::Role::Server).await;
    let hello = daemon.exchange(&client, b"", b"").await.unwrap().ciphertext;
    let flight = daemon
        .exchange(&server, &hello, b"")
        .await
        .unwrap()
        .ciphertext;
    let empty = daemon
        .exchange(&client, &flight, b"")
        .await
        .unwrap()
        .ciphertext;
    let refusal = daemon.exchange(&server, &empty, b"").await.unwrap();
    assert_eq!(refusal.alert.unwrap().name, "certificate_required");
    daemon.stop().await;
}

#[tokio::test]
async fn context_decides_alpn_suites_groups_and_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    authority.leaf(&["a.test"]).write(folder.path(), "a");
    authority.leaf(&["*.b.test"]).write(folder.path(), "b");
    let path = folder.path().display();
    let text = format!(
        "[[context]]\ncertificate = [\"{path}/a.crt\", \"{path}/b.crt\"]\nkey = [\"{path}/a.key\", \"{path}/b.key\"]\n\
         ca = \"{path}/ca.pem\"\nalpn = [\"h2\", \"http/1.1\"]\nkey_exchange = [\"secp256r1\"]\n\
         cipher_suites = [\"TLS_CHACHA20_POLY1305_SHA256\"]\nversions = [\"1.3\"]\n\
         [[context]]\nname = \"other-alpn\"\nca = \"{path}/ca.pem\"\nalpn = [\"imap\"]\n\
         [[context]]\nname = \"any\"\nca = \"{path}/ca.pem\"\nalpn = [\"http/1.1\"]\n"
    );
    let daemon = TestDaemon::with(&text).await;
    for (name, certificate) in [("a.test", "a.test"), ("x.b.test", "*.b.test")] {
        let request = pb::NewRequest {
            server_name: name.into(),
            ..new("any", pb::Role::Client)
        };
        let client = daemon
            .connections()
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
            .id;
        let server = daemon.open(pb::Role::Server).await;
        daemon.handshake(&client, &server).await;
        let seen = daemon.get(&client).await;
        assert_eq!(seen.cipher_suite, "TLS_CHACHA20_POLY1305_SHA256");
        assert_eq!(seen.alpn, "http/1.1");
        assert_eq!(seen.peer.unwrap().dns_names, [certificate]);
        close(&daemon, &client).await;
        close(&daemon, &server).await;
        free(&daemon, &client).await;
    }
    // A handshake with a HelloRetryRequest resumes too. `any` first sends a key share of another
    // group. A second handshake with a name knows the group from its session; the first one learns
    // it from the HelloRetryRequest.
    let request = pb::NewRequest {
        server_name: "a.test".into(),
        ..new("any", pb::Role::Client)
    };
    let client = daemon
        .connections()
        .new_connection(request)
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap()
        .id;
    let server = daemon.open(pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    assert!(daemon.get(&server).await.session_reused);
    // Client and server have no ALPN protocol in common.
    let request = pb::NewRequest {
        server_name: "a.test".into(),
        ..new("other-alpn", pb::Role::Client)
    };
    let client = daemon
        .connections()
        .new_connection(request)
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap()
        .id;
    let server = daemon.open(pb::Role::Server).await;
    let mut bytes = daemon.exchange(&client, b"", b"").await.unwrap().ciphertext;
    let alert = loop {
        let answer = daemon.exchange(&server, &bytes, b"").await.unwrap();
        if let Some(alert) = answer.alert {
            break alert;
        }
        bytes = daemon
            .exchange(&client, &answer.ciphertext, b"")
            .await
            .unwrap()
            .ciphertext;
    };
    assert_eq!(
        (alert.name.as_str(), alert.received),
        ("no_application_protocol", false)
    );
    daemon.stop().await;
}

#[tokio::test]
async fn repeated_request_gets_the_first_answer() {
    let daemon = TestDaemon::start().await;
    let mut rpc = daemon.connections();
    let request = pb::NewRequest {
        request_id: "r1".into(),
        ..new("", pb::Role::Server)
    };
    let first = rpc
        .new_connection(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        rpc.new_connection(request.clone())
            .await
            .unwrap()
            .into_inner(),
        first
    );
    assert_eq!(daemon.core.connections().len(), 1);
    let other = pb::NewRequest {
        role: pb::Role::Client.into(),
        ..request.clone()
    };
    assert_eq!(
        crate::harness::reason(&rpc.new_connection(other).await.unwrap_err()),
        "REQUEST_ID_REUSED"
    );
    daemon.clock.advance(Duration::from_secs(61));
    assert_ne!(
        rpc.new_connection(request).await.unwrap().into_inner(),
        first
    );
    daemon.stop().await;
}

#[tokio::test]
async fn lists_go_page_by_page_oldest_first() {
    let daemon = TestDaemon::start().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(daemon.open(pb::Role::Server).await);
        daemon.clock.advance(Duration::from_millis(1));
    }
    let mut seen = Vec::new();
    let mut request = pb::ListConnectionsRequest {
        page_size: 2,
        ..Default::default()
    };
    loop {
        let page = daemon
            .connections()
            .list_connections(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(page.connections.len() <= 2);
        seen.extend(page.connections.into_iter().map(|connection| connection.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, made);
    let elsewhere = pb::ListConnectionsRequest {
        context: "default".into(),
        ..request
    };
    assert!(
        daemon
            .connections()
            .list_connections(elsewhere)
            .await
            .is_err(),
        "another list's token"
    );

    // A handshake makes two sessions of the server and two of the client.
    let (client, _) = pair(&daemon, "").await;
    let mut request = pb::ListSessionsRequest {
        page_size: 3,
        server_name: "localhost".into(),
        ..Default::default()
    };
    let first = daemon
        .sessions()
        .list_sessions(request.clone())
        .await
        .unwrap()
        .into_inner();
    request.page_token = first.next_page_token;
    let second = daemon
        .sessions()
        .list_sessions(request)
        .await
        .unwrap()
        .into_inner();
    let mut ids: Vec<_> = first
        .sessions
        .iter()
        .chain(&second.sessions)
        .map(|session| session.id.clone())
        .collect();
    assert_eq!(
        (
            first.sessions.len(),
            second.sessions.len(),
            second.next_page_token.as_str()
        ),
        (3, 1, "")
    );
    ids.dedup();
    assert_eq!(ids.len(), 4);
    assert!(ids.contains(&daemon.get(&client).await.session_id));
    let none = pb::ListSessionsRequest {
        server_name: "absent.test".into(),
        ..Default::default()
    };
    assert!(
        daemon
            .sessions()
            .list_sessions(none)
            .await
            .unwrap()
            .into_inner()
            .sessions
            .is_empty()
    );
    daemon.stop().await;
}

#[tokio::test]
async fn drive_carries_one_connection_for_its_whole_life() {
    let daemon = TestDaemon::start().await;
    let server = daemon.open(pb::Role::Server).await;
    let (events, receiver) = mpsc::channel(16);
    let event = |event| pb::DriveRequest { event: Some(event) };
    // Plaintext that comes before the handshake is sent after it.
    events
        .send(event(Event::New(new("", pb::Role::Client))))
        .await
        .unwrap();
    events
        .send(event(Event::Plaintext("early".into())))
        .await
        .unwrap();
    let mut answers = daemon
        .connections()
        .drive(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let mut established = false;
    let mut got = Vec::new();
    let mut closed = None;
    while let Some(answer) = answers.next().await {
        match answer.unwrap().event.unwrap() {
            Answer::Opened(opened) => assert_eq!(opened.state(), pb::ConnectionState::Before),
            Answer::Established(seen) => {
                established = true;
                assert_eq!(seen.state(), pb::ConnectionState::Established);
            }
            Answer::Ciphertext(ciphertext) => {
                let step = daemon.exchange(&server, &ciphertext, b"").await.unwrap();
                got.extend(step.plaintext);
                let mut back = step.ciphertext.to_vec();
                if got == b"early" && closed.is_none() {
                    back.extend(
                        daemon
                            .exchange(&server, b"", b"answer")
                            .await
                            .unwrap()
                            .ciphertext,
                    );
                    back.extend(close(&daemon, &server).await.ciphertext);
                }
                if !back.is_empty() {
                    events
                        .send(event(Event::Ciphertext(back.into())))
                        .await
                        .unwrap();
                }
            }
            Answer::Plaintext(plaintext) => assert_eq!(plaintext, "answer"),
            Answer::Closed(end) => {
                assert!(end.alert.is_none());
                closed = Some(end.connection.unwrap().id);
                // The connection is half closed: this side may still write, and then closes.
                events
                    .send(event(Event::Shutdown(pb::ShutdownRequest::default())))
                    .await
                    .unwrap();
                break;
            }
        }
    }
    assert!(established);
    let Answer::Ciphertext(_) = answers.next().await.unwrap().unwrap().event.unwrap() else {
        panic!("no close")
    };
    let id = closed.unwrap();
    assert_eq!(
        daemon.get(&id).await.close_evidence(),
        pb::CloseEvidence::Written
    );
    drop(events);
    assert!(answers.next().await.is_none());
    daemon
        .until("the stream's connection is freed", async |daemon| {
            daemon.core.connections().len() == 1
        })
        .await;
    daemon.stop().await;
}

#[tokio::test]
async fn full_cache_evicts_and_never_fails_a_handshake() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "cache_entries_max = 3\ncache_bytes_max = \"600B\"\nclient_sessions = \"explicit\"";
    let daemon = TestDaemon::with(&config(folder.path(), lines)).await;
    for _ in 0..5 {
        let (client, server) = pair(&daemon, "tls13").await;
        close(&daemon, &client).await;
        close(&daemon, &server).await;
        assert!(daemon.server_sessions().await <= 3);
    }
    assert!(daemon.server_sessions().await > 0);
    daemon.stop().await;
}

#[tokio::test]
async fn unread_drive_blocks_no_other_call_and_loses_nothing() {
    const MESSAGES: u32 = 48;
    let daemon = TestDaemon::start().await;
    let (client, server) = pair(&daemon, "").await;
    let message = |number: u32| -> Vec<u8> {
        (0..60_000u32)
            .flat_map(|at| (at ^ number).to_be_bytes())
            .collect()
    };
    let (events, receiver) = mpsc::channel(1);
    let mut rpc = daemon.connections();
    let sender = tokio::spawn(async move {
        events
            .send(pb::DriveRequest {
                event: Some(Event::ConnectionId(server)),
            })
            .await
            .unwrap();
        for number in 0..MESSAGES {
            let event = Some(Event::Plaintext(message(number).into()));
            events.send(pb::DriveRequest { event }).await.unwrap();
        }
        events
    });
    let mut answers = rpc
        .drive(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let mut got = Vec::new();
    while got.len() < MESSAGES as usize * 240_000 {
        let Answer::Ciphertext(records) = answers.next().await.unwrap().unwrap().event.unwrap()
        else {
            continue;
        };
        // A unary call over the same HTTP/2 connection, while the stream is full in both
        // directions.
        for part in records.chunks(1 << 20) {
            let opened =
                tokio::time::timeout(Duration::from_secs(60), daemon.exchange(&client, part, b""))
                    .await;
            got.extend(
                opened
                    .expect("the full stream blocks the other call")
                    .unwrap()
                    .plaintext,
            );
        }
    }
    for (number, part) in got.chunks(240_000).enumerate() {
        assert!(
            part == message(u32::try_from(number).unwrap()),
            "message {number} is damaged"
        );
    }
    drop(sender.await.unwrap());
    daemon.stop().await;
}

#[tokio::test]
async fn plaintext_is_sent_in_the_call_with_the_peers_close() {
    let daemon = TestDaemon::start().await;
    let (client, server) = pair(&daemon, "").await;
    let closing = close(&daemon, &client).await.ciphertext;
    let answer = daemon
        .exchange(&server, &closing, b"half open")
        .await
        .unwrap();
    assert!(answer.connection.unwrap().shutdown.unwrap().received);
    assert_eq!(
        daemon
            .exchange(&client, &answer.ciphertext, b"")
            .await
            .unwrap()
            .plaintext,
        "half open"
    );
    daemon.stop().await;
}
