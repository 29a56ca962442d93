//! The rules of stored sessions.

use std::{sync::Arc, time::Duration};

use rustls::version::{TLS12, TLS13};
use tls_sessiond_core::session::SessionId;
use tls_sessiond_proto::{self as pb, revoke_sessions_request::Selector};

use super::{Client, House, RING, SEALED, VERSIONS, config};
use crate::{
    harness::TestDaemon,
    pki::{self, Authority},
};

#[tokio::test]
async fn sealed_session_is_resumed_and_not_stored() {
    let house = House::new().await;
    for version in VERSIONS {
        // Far more sessions than the cache has room for.
        let mut clients = Vec::new();
        for _ in 0..8 {
            let client = house.client(version);
            let (id, resumed) = client.visits(&house.daemon).await;
            assert!(!resumed);
            let session = house.daemon.get(&id).await.session_id;
            assert_eq!(session.len(), 32, "the handle");
            house.shut(&id).await;
            clients.push(client);
        }
        for client in &clients {
            for _ in 0..3 {
                let (id, resumed) = client.visits(&house.daemon).await;
                assert!(resumed, "{version:?}");
                house.shut(&id).await;
            }
        }
    }
    assert_eq!(house.daemon.server_cache_len(), 0);
    let stats = house.stats().await;
    assert_eq!((stats.hits, stats.misses), (48, 0));
    // The spent tickets of TLS 1.3.
    assert_eq!(
        (stats.refused_tickets, stats.refused_tickets_max),
        (24, 65_536)
    );
    house.daemon.clock.advance(Duration::from_secs(7_201));
    house
        .daemon
        .until("expired tickets are forgotten", async |_| {
            house.stats().await.refused_tickets == 0
        })
        .await;
    house.daemon.stop().await;
}

#[tokio::test]
async fn good_sealed_session_is_explained_as_one_that_may_be_good() {
    let house = House::new().await;
    let client = house.client(&TLS13);
    let (id, _) = client.visits(&house.daemon).await;
    let session = house.daemon.get(&id).await.session_id;
    house.shut(&id).await;
    let explain = pb::ExplainSessionRequest {
        role: pb::Role::Server.into(),
        session_id: session,
        ..Default::default()
    };
    let mut sessions = house.daemon.sessions();
    let explained = sessions
        .explain_session(explain)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(explained.miss_reason(), pb::MissReason::Unknown);
    assert!(
        explained.summary.contains("may be good"),
        "{}",
        explained.summary
    );
    house.daemon.stop().await;
}

// Invariant 1.
#[tokio::test]
async fn ticket_of_an_unclosed_connection_is_refused() {
    for version in VERSIONS {
        let house = House::new().await;
        let client = house.client(version);
        let (id, _) = client.visits(&house.daemon).await;
        let session = house.daemon.get(&id).await.session_id;
        let removed = house.free(&id).await;
        assert!(removed.contains(&session));
        let tickets = if version.version == TLS13.version {
            2
        } else {
            1
        };
        assert_eq!(removed.len(), tickets, "the whole family");
        let (id, resumed) = client.visits(&house.daemon).await;
        assert!(!resumed, "{version:?}");
        assert_eq!(house.misses(pb::MissReason::Removed).await, 1);
        let explained = pb::ExplainSessionRequest {
            role: pb::Role::Server.into(),
            session_id: session,
            ..Default::default()
        };
        let mut sessions = house.daemon.sessions();
        let explained = sessions.explain_session(explained);
        assert_eq!(
            explained.await.unwrap().into_inner().removal_reason(),
            pb::RemovalReason::Unclosed
        );
        // The sessions of that handshake are good.
        house.shut(&id).await;
        assert!(client.visits(&house.daemon).await.1);
        house.daemon.stop().await;
    }
}

// Invariant 1: a renewed ticket of TLS 1.2 is the same session.
#[tokio::test]
async fn renewed_ticket_of_tls12_is_removed_with_the_first_one() {
    let house = House::new().await;
    let client = house.client(&TLS12);
    let (first, _) = client.visits(&house.daemon).await;
    let (second, resumed) = client.visits(&house.daemon).await;
    assert!(resumed);
    let session = house.daemon.get(&first).await.session_id;
    assert_eq!(house.daemon.get(&second).await.session_id, session);
    house.shut(&second).await;
    let (third, resumed) = client.visits(&house.daemon).await;
    assert!(resumed);
    house.shut(&third).await;
    assert_eq!(house.free(&first).await, [session]);
    assert!(!client.visits(&house.daemon).await.1);
    house.daemon.stop().await;
}

// Invariant 1.
#[tokio::test]
async fn ticket_of_a_connection_with_a_fatal_alert_is_refused() {
    for version in VERSIONS {
        let house = House::new().await;
        let client = house.client(version);
        let (id, _) = client.visits(&house.daemon).await;
        let session = house.daemon.get(&id).await.session_id;
        let garbage = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
        let failed = house.daemon.exchange(&id, &garbage, b"").await.unwrap();
        assert!(failed.alert.is_some());
        let mut removed = failed.removed_sessions.iter();
        assert!(removed.any(|removed| removed.session_id == session));
        assert!(!client.visits(&house.daemon).await.1, "{version:?}");
        assert_eq!(house.misses(pb::MissReason::Removed).await, 1);
        house.daemon.stop().await;
    }
}

// Invariant 3.
#[tokio::test]
async fn tickets_are_of_a_scope_and_a_ring() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let more = |name: &str, lines: &str| {
        let own = config(folder.path(), lines).replace(RING, "");
        own.replace("[[context]]", &format!("[[context]]\nname = {name:?}"))
    };
    let shared = "session_id_context = \"shared\"\n";
    let all = [
        config(folder.path(), &format!("{SEALED}{shared}")),
        more("same", &format!("{SEALED}{shared}")),
        more("other-scope", SEALED),
        more(
            "other-ring",
            &format!("{SEALED}{shared}").replace("\"web\"", "\"two\""),
        ),
        more(
            "stateful",
            &format!("{shared}cache_entries_max = 1\ncache_bytes_max = \"1KiB\"\n"),
        ),
        RING.replace("\"web\"", "\"two\""),
    ];
    for version in VERSIONS {
        let daemon = TestDaemon::with(&all.concat()).await;
        let pem = std::fs::read(folder.path().join("ca.pem")).unwrap();
        for (context, wanted) in [
            ("same", true),
            ("other-scope", false),
            ("other-ring", false),
            ("stateful", false),
        ] {
            let client = Client::new(&pem, version, None);
            let (id, _) = client.visits_in("default", &daemon).await;
            let request = pb::ShutdownRequest { connection_id: id };
            daemon.connections().shutdown(request).await.unwrap();
            let (_, resumed) = client.visits_in(context, &daemon).await;
            assert_eq!(resumed, wanted, "{version:?} {context}");
        }
        daemon.stop().await;
    }
}

// Invariants 1 and 6.
#[tokio::test]
async fn full_list_of_a_daemon_ends_all_earlier_tickets() {
    let house = House::new().await;
    let (bad, good) = (house.client(&TLS12), house.client(&TLS12));
    let (id, _) = bad.visits(&house.daemon).await;
    assert_eq!(house.free(&id).await.len(), 1);
    let (id, _) = good.visits(&house.daemon).await;
    house.shut(&id).await;
    let cache = Arc::clone(
        &house
            .daemon
            .core
            .registry()
            .get("default")
            .unwrap()
            .server_cache,
    );
    let now = house.daemon.core.now();
    // One handle is on the list already.
    for number in 1..=65_536_u128 {
        let id = SessionId::new(&number.to_le_bytes()).unwrap();
        assert!(cache.remove_sealed(&id, now));
    }
    assert_eq!(cache.refused_handles(), 0);
    for client in [&bad, &good] {
        assert!(!client.visits(&house.daemon).await.1);
        assert!(client.visits(&house.daemon).await.1, "a later session");
    }
    assert_eq!(house.misses(pb::MissReason::Unknown).await, 2);
    house.daemon.stop().await;
}

// Invariant 15.
#[tokio::test]
async fn revocation_reaches_sealed_sessions() {
    for version in VERSIONS {
        let house = House::new().await;
        let client = house.client(version);
        let (id, _) = client.visits(&house.daemon).await;
        house.shut(&id).await;
        house.daemon.clock.advance(Duration::from_millis(2));
        house
            .revoke(Selector::ServerName("other.test".into()))
            .await;
        let (id, resumed) = client.visits(&house.daemon).await;
        assert!(resumed, "another name");
        house.shut(&id).await;
        house.daemon.clock.advance(Duration::from_millis(2));
        // The last ticket was made just now, for an authentication of before.
        house.revoke(Selector::ServerName("localhost".into())).await;
        // It covers authentications of its own millisecond.
        house.daemon.clock.advance(Duration::from_millis(2));
        let (id, resumed) = client.visits(&house.daemon).await;
        assert!(!resumed);
        assert_eq!(house.misses(pb::MissReason::Revoked).await, 1);
        house.shut(&id).await;
        assert!(client.visits(&house.daemon).await.1, "a later one");
        house.daemon.stop().await;
    }
}

#[tokio::test]
async fn identity_of_a_client_survives_in_its_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    authority.leaf(&["localhost"]).write(folder.path(), "tls");
    let leaf = authority.leaf(&["job.test", "spiffe://a.test/job"]);
    for version in VERSIONS {
        let lines = format!("{SEALED}client_auth = \"require\"\nalpn = [\"h2\"]\n");
        let daemon = TestDaemon::with(&config(folder.path(), &lines)).await;
        let client = Client::new(authority.pem.as_bytes(), version, Some(&leaf));
        let mut alpn = Arc::unwrap_or_clone(client.0);
        alpn.alpn_protocols = vec![b"h2".to_vec()];
        let client = Client(Arc::new(alpn));
        let house = House {
            folder: tempfile::tempdir().unwrap(),
            daemon,
        };
        let (id, _) = client.visits(&house.daemon).await;
        let proved = house.daemon.get(&id).await.peer.unwrap();
        assert_eq!(proved.dns_names, ["job.test"]);
        assert_eq!(proved.uris, ["spiffe://a.test/job"]);
        house.shut(&id).await;
        for _ in 0..2 {
            let (id, resumed) = client.visits(&house.daemon).await;
            assert!(resumed);
            assert_eq!(house.daemon.get(&id).await.peer.as_ref(), Some(&proved));
            house.shut(&id).await;
        }
        house.daemon.clock.advance(Duration::from_millis(2));
        let selector = Selector::CertificateSha256(proved.certificate_sha256);
        house.revoke(selector).await;
        assert!(!client.visits(&house.daemon).await.1);
        house.daemon.stop().await;
    }
}

#[tokio::test]
async fn removed_handle_is_refused() {
    for version in VERSIONS {
        let house = House::new().await;
        let client = house.client(version);
        let (id, _) = client.visits(&house.daemon).await;
        let session = house.daemon.get(&id).await.session_id;
        house.shut(&id).await;
        assert!(house.remove(&session).await);
        assert!(!house.remove(&session).await, "it was removed before");
        // The daemon does not know which of the handles exist, but no such id does.
        assert!(!house.remove("0102").await);
        // rustls offers the newest ticket first, and that is the one.
        assert!(!client.visits(&house.daemon).await.1, "{version:?}");
        assert_eq!(house.misses(pb::MissReason::Removed).await, 1);
        house.daemon.stop().await;
    }
}

// Invariant 5.
#[tokio::test]
async fn resumption_by_tickets_does_not_extend_an_authentication() {
    for version in VERSIONS {
        let house = House::with("session_timeout = \"1m\"\n").await;
        let client = house.client(version);
        for (seconds, wanted) in [(0, false), (25, true), (25, true), (9, true), (1, false)] {
            house.daemon.clock.advance(Duration::from_secs(seconds));
            let (id, resumed) = client.visits(&house.daemon).await;
            assert_eq!(resumed, wanted, "{version:?}");
            house.shut(&id).await;
        }
        house.daemon.stop().await;
    }
}
