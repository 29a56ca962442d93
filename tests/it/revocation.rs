//! RevokeSessions: sessions stored now, sessions stored later, and sessions in running handshakes.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use tls_sessiond_proto::{self as pb, revoke_sessions_request::Selector};
use tonic::Code;

use crate::{
    calls::{Worker, lookup, put, worker},
    harness::{TestDaemon, reason},
    pki::{self, Authority},
};

const CERTIFICATE: [u8; 32] = [7; 32];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A peer with every kind of name.
fn peer() -> pb::PeerIdentity {
    pb::PeerIdentity {
        certificate_sha256: hex(&CERTIFICATE),
        subject: "CN=job".into(),
        dns_names: vec!["Job.Example.org".into(), "job2.example.org".into()],
        uris: vec!["spiffe://example.org/ns/web/job".into()],
    }
}

fn time(daemon: &TestDaemon) -> Timestamp {
    let now = daemon.core.now();
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_millis(now.wall().as_millis()))
        .unwrap()
        .into()
}

impl Worker<'_> {
    async fn revoke(&self, selector: Selector) -> u64 {
        let request = pb::RevokeSessionsRequest {
            selector: Some(selector),
            ..Default::default()
        };
        self.0
            .sessions()
            .revoke_sessions(request)
            .await
            .unwrap()
            .into_inner()
            .removed
    }

    /// Stores this session through a connection that is then closed.
    async fn keeps(&self, request: pb::PutSessionRequest) {
        let id = self.open(worker(pb::Role::Server)).await.id;
        assert_eq!(
            self.put(pb::PutSessionRequest {
                connection_id: id.clone(),
                ..request
            })
            .await
            .reason,
            ""
        );
        self.shutdown(&id).await;
        self.free(&id).await;
    }

    async fn why(&self, request: pb::LookupSessionRequest) -> pb::MissReason {
        self.lookup(request).await.miss_reason()
    }
}

// Invariant 15.
#[tokio::test]
async fn each_selector_revokes_only_the_sessions_it_names() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let named = |id: &str| pb::LookupSessionRequest {
        server_name: "a.test".into(),
        ..lookup(id)
    };
    let sha = |bytes: &[u8]| Selector::CertificateSha256(hex(bytes));
    for (selector, matches) in [
        (Selector::All(true), true),
        (sha(&CERTIFICATE), true),
        (sha(&[8; 32]), false),
        (
            Selector::Uri("spiffe://example.org/ns/web/job".into()),
            true,
        ),
        (Selector::Uri("spiffe://example.org/ns/web".into()), false),
        (Selector::Uri("job.example.org".into()), false),
        (Selector::DnsName("job.EXAMPLE.org".into()), true),
        (Selector::DnsName("job2.example.org".into()), true),
        (Selector::DnsName("example.org".into()), false),
        (Selector::DnsName("a.test".into()), false),
        (Selector::ServerName("A.test".into()), true),
        (Selector::ServerName("b.test".into()), false),
    ] {
        let named_and_known = pb::PutSessionRequest {
            peer: Some(peer()),
            server_name: "a.test".into(),
            ..put("", "aa")
        };
        w.keeps(named_and_known).await;
        w.keeps(put("", "bb")).await;
        assert_eq!(
            w.revoke(selector.clone()).await,
            u64::from(matches) + u64::from(selector == Selector::All(true))
        );
        let found = w.lookup(named("aa")).await;
        assert_eq!(found.found, !matches, "{selector:?}");
        if matches {
            assert_eq!(found.miss_reason(), pb::MissReason::Revoked);
        }
        // The other session has no peer and no name, so only the selector of all matches it.
        assert_eq!(w.found("bb").await, selector != Selector::All(true));
        daemon.clock.advance(Duration::from_millis(2));
        assert_eq!(
            w.revoke(Selector::All(true)).await,
            if selector == Selector::All(true) {
                0
            } else {
                2 - u64::from(matches)
            }
        );
        daemon.clock.advance(Duration::from_millis(2));
    }
    daemon.stop().await;
}

// Invariant 15.
#[tokio::test]
async fn only_authentications_after_the_revocation_are_stored() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let before = time(&daemon);
    let known = |id: &str| pb::PutSessionRequest {
        peer: Some(peer()),
        ..put("", id)
    };
    daemon.clock.advance(Duration::from_secs(10));
    w.keeps(known("aa")).await;
    let request = pb::RevokeSessionsRequest {
        selector: Some(Selector::CertificateSha256(hex(&CERTIFICATE))),
        before: Some(time(&daemon)),
        ..Default::default()
    };
    let answer = daemon
        .sessions()
        .revoke_sessions(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (answer.removed, answer.before),
        (0, request.before),
        "authenticated at `before` itself"
    );
    assert!(w.found("aa").await);
    daemon.clock.advance(Duration::from_millis(1));
    let later = pb::RevokeSessionsRequest {
        before: None,
        ..request
    };
    let answer = daemon
        .sessions()
        .revoke_sessions(later)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.removed, 1);
    assert_eq!(w.why(lookup("aa")).await, pb::MissReason::Revoked);

    // A worker stores a session with an old authentication.
    let id = w.open(worker(pb::Role::Server)).await.id;
    let old = pb::PutSessionRequest {
        connection_id: id.clone(),
        authenticate_time: Some(before),
        ..known("ab")
    };
    assert_eq!(w.put(old.clone()).await.reason, "REVOKED");
    assert_eq!(
        w.put(pb::PutSessionRequest { peer: None, ..old })
            .await
            .reason,
        "REVOKED",
        "the connection's peer"
    );
    // A peer that authenticates again may resume.
    daemon.clock.advance(Duration::from_secs(1));
    w.keeps(known("ac")).await;
    assert!(w.found("ac").await);
    daemon.stop().await;
}

// Invariants 5 and 15.
#[tokio::test]
async fn session_revoked_after_a_lookup_stores_no_successor() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let ticket = |id: &str| pb::PutSessionRequest {
        single_use: true,
        version: pb::ProtocolVersion::Tls13.into(),
        ..put("", id)
    };
    w.keeps(pb::PutSessionRequest {
        peer: Some(peer()),
        ..ticket("aa")
    })
    .await;
    daemon.clock.advance(Duration::from_secs(10));
    // A handshake holds the session when the revocation comes.
    assert!(w.found("aa").await);
    assert_eq!(
        w.revoke(Selector::Uri(peer().uris.remove(0))).await,
        0,
        "it is not in the cache"
    );
    daemon.clock.advance(Duration::from_secs(10));
    // The worker names no peer, and no authentication time or the present one.
    for (place, authenticate_time) in [None, Some(time(&daemon))].into_iter().enumerate() {
        let resumed = pb::NewRequest {
            session_id: "aa".into(),
            ..worker(pb::Role::Server)
        };
        let connection = w.open(resumed).await;
        assert_eq!(
            connection.peer.unwrap().uris,
            peer().uris,
            "the daemon remembers the peer"
        );
        let next = pb::PutSessionRequest {
            connection_id: connection.id,
            authenticate_time,
            ..ticket(&format!("b{place}"))
        };
        assert_eq!(w.put(next).await.reason, "REVOKED");
    }
    // The daemon cannot tell whether an unknown session is revoked.
    let resumed = pb::NewRequest {
        session_id: "ffff".into(),
        ..worker(pb::Role::Server)
    };
    let id = w.open(resumed).await.id;
    let next = pb::PutSessionRequest {
        connection_id: id,
        ..ticket("cc")
    };
    assert_eq!(w.put(next).await.reason, "AUTHENTICATION_UNKNOWN");
    daemon.stop().await;
}

#[tokio::test]
async fn revoked_client_certificate_is_requested_again() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let clients = Authority::new("clients");
    std::fs::write(folder.path().join("clients.pem"), &clients.pem).unwrap();
    clients
        .leaf(&["job.test", "spiffe://example.org/job"])
        .write(folder.path(), "job");
    let path = folder.path().display();
    for version in ["1.2", "1.3"] {
        let daemon = TestDaemon::with(&format!(
            "[[context]]\nname = \"server\"\nversions = [\"{version}\"]\nclient_auth = \"require\"\n\
             certificate = \"{path}/tls.crt\"\nkey = \"{path}/tls.key\"\nca = \"{path}/clients.pem\"\n\
             [[context]]\nname = \"client\"\nversions = [\"{version}\"]\nca = \"{path}/ca.pem\"\n\
             client_certificates = [{{ certificate = \"{path}/job.crt\", key = \"{path}/job.key\" }}]\n"
        ))
        .await;
        let w = Worker(&daemon);
        let handshake = async || {
            let client = daemon.open_in("client", pb::Role::Client).await;
            let server = daemon.open_in("server", pb::Role::Server).await;
            daemon.handshake(&client, &server).await;
            let seen = daemon.get(&server).await;
            for id in [&client, &server] {
                w.shutdown(id).await;
                w.free(id).await;
            }
            daemon.clock.advance(Duration::from_millis(10));
            assert_eq!(seen.peer.unwrap().uris, ["spiffe://example.org/job"]);
            seen.session_reused
        };
        assert!(!handshake().await);
        assert!(handshake().await, "TLS {version}");
        let removed = w
            .revoke(Selector::Uri("spiffe://example.org/job".into()))
            .await;
        assert!(removed >= 1, "TLS {version}: {removed}");
        // A revocation covers authentications in its own millisecond.
        daemon.clock.advance(Duration::from_millis(1));
        assert!(!handshake().await, "TLS {version}");
        assert!(
            handshake().await,
            "the client does not resume after a new authentication"
        );

        // A revocation between the flights of server and client: the handshake goes on, and its
        // tickets are not stored.
        if version == "1.3" {
            let client = daemon.open_in("client", pb::Role::Client).await;
            let server = daemon.open_in("server", pb::Role::Server).await;
            let hello = daemon.exchange(&client, b"", b"").await.unwrap().ciphertext;
            let flight = daemon
                .exchange(&server, &hello, b"")
                .await
                .unwrap()
                .ciphertext;
            w.revoke(Selector::DnsName("job.test".into())).await;
            let finished = daemon
                .exchange(&client, &flight, b"")
                .await
                .unwrap()
                .ciphertext;
            daemon.exchange(&server, &finished, b"").await.unwrap();
            assert!(daemon.get(&server).await.session_reused);
            assert_eq!(
                daemon.get(&server).await.session_id,
                "",
                "its ticket is in the cache"
            );
            w.shutdown(&server).await;
            daemon.clock.advance(Duration::from_millis(1));
            assert!(!handshake().await);
        }
        daemon.stop().await;
    }
}

#[tokio::test]
async fn revocation_in_one_context_spares_the_others() {
    let daemon = TestDaemon::with("[[context]]\n[[context]]\nname = \"other\"\n").await;
    let w = Worker(&daemon);
    let there = pb::LookupSessionRequest {
        context: "other".into(),
        ..lookup("aa")
    };
    w.keeps(put("", "aa")).await;
    let id = w
        .open(pb::NewRequest {
            context: "other".into(),
            ..worker(pb::Role::Server)
        })
        .await
        .id;
    w.put(put(&id, "aa")).await;
    let all = |context: &str| pb::RevokeSessionsRequest {
        context: context.into(),
        selector: Some(Selector::All(true)),
        before: None,
    };
    assert_eq!(
        daemon
            .sessions()
            .revoke_sessions(all("other"))
            .await
            .unwrap()
            .into_inner()
            .removed,
        1
    );
    assert!(w.found("aa").await && !w.lookup(there.clone()).await.found);
    assert_eq!(
        daemon
            .sessions()
            .revoke_sessions(all(""))
            .await
            .unwrap()
            .into_inner()
            .removed,
        1
    );
    assert!(!w.found("aa").await);
    daemon.stop().await;
}

#[tokio::test]
async fn bad_revocations_are_refused_and_revoke_nothing() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    w.keeps(put("", "aa")).await;
    let all = pb::RevokeSessionsRequest {
        selector: Some(Selector::All(true)),
        ..Default::default()
    };
    let selects = |selector| pb::RevokeSessionsRequest {
        selector: Some(selector),
        ..Default::default()
    };
    let at = |seconds, nanos| pb::RevokeSessionsRequest {
        before: Some(Timestamp { seconds, nanos }),
        ..all.clone()
    };
    for (request, code, why) in [
        (
            pb::RevokeSessionsRequest::default(),
            Code::InvalidArgument,
            "SELECTOR_REQUIRED",
        ),
        (
            selects(Selector::All(false)),
            Code::InvalidArgument,
            "SELECTOR_REQUIRED",
        ),
        (
            selects(Selector::Uri(String::new())),
            Code::InvalidArgument,
            "SELECTOR_REQUIRED",
        ),
        (
            selects(Selector::DnsName(String::new())),
            Code::InvalidArgument,
            "SELECTOR_REQUIRED",
        ),
        (
            selects(Selector::ServerName(String::new())),
            Code::InvalidArgument,
            "SELECTOR_REQUIRED",
        ),
        (
            selects(Selector::ServerName(".".into())),
            Code::InvalidArgument,
            "SELECTOR_REQUIRED",
        ),
        (
            selects(Selector::CertificateSha256("AB:".repeat(32))),
            Code::InvalidArgument,
            "CERTIFICATE_SHA256_MALFORMED",
        ),
        (
            selects(Selector::CertificateSha256("ab".repeat(31))),
            Code::InvalidArgument,
            "CERTIFICATE_SHA256_MALFORMED",
        ),
        (
            selects(Selector::Uri("u".repeat(2049))),
            Code::InvalidArgument,
            "BYTES_TOO_LONG",
        ),
        (
            selects(Selector::DnsName("d".repeat(256))),
            Code::InvalidArgument,
            "BYTES_TOO_LONG",
        ),
        (
            selects(Selector::ServerName("s".repeat(256))),
            Code::InvalidArgument,
            "BYTES_TOO_LONG",
        ),
        (
            pb::RevokeSessionsRequest {
                context: "none".into(),
                ..all.clone()
            },
            Code::NotFound,
            "CONTEXT_NOT_FOUND",
        ),
        (
            at(time(&daemon).seconds + 61, 0),
            Code::InvalidArgument,
            "BEFORE_INVALID",
        ),
        (at(-1, 0), Code::InvalidArgument, "BEFORE_INVALID"),
        (
            at(1, 1_000_000_000),
            Code::InvalidArgument,
            "BEFORE_INVALID",
        ),
    ] {
        let refused = daemon
            .sessions()
            .revoke_sessions(request.clone())
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (code, why),
            "{request:?}"
        );
    }
    assert!(w.found("aa").await);
    daemon.stop().await;
}
