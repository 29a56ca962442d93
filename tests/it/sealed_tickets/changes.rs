//! Rotations, restarts and reloads.

use std::time::Duration;

use rustls::version::TLS12;
use tls_sessiond_proto as pb;

use super::{Client, House, SEALED, VERSIONS, config, said};
use crate::{harness::TestDaemon, pki};

#[tokio::test]
async fn ticket_opens_for_one_rotation_and_not_after_an_emergency() {
    for version in VERSIONS {
        let folder = tempfile::tempdir().unwrap();
        pki::localhost(folder.path());
        // Rings run by the clock of this machine.
        let quick =
            config(folder.path(), SEALED).replacen("lifetime = \"1h\"", "lifetime = \"1s\"", 1);
        let daemon = TestDaemon::with(&quick).await;
        let house = House { folder, daemon };
        let client = house.client(version);
        let (id, _) = client.visits(&house.daemon).await;
        house.shut(&id).await;
        // A client forgets its ticket when its lifetime is over, so what it says is kept here.
        let early = said(&mut client.tls());
        house.rotate(false).await;
        let (id, resumed) = client.visits(&house.daemon).await;
        assert!(resumed, "of the epoch before");
        house.shut(&id).await;
        house
            .daemon
            .until("the tickets before have expired", async |_| {
                house.is_idle().await
            })
            .await;
        house.rotate(false).await;
        house.answers(&early).await;
        assert_eq!(house.misses(pb::MissReason::Unknown).await, 1);
        let client = house.client(version);
        let (id, _) = client.visits(&house.daemon).await;
        house.shut(&id).await;
        house.rotate(true).await;
        assert!(!client.visits(&house.daemon).await.1);
        assert_eq!(house.misses(pb::MissReason::Unknown).await, 2);
        house.daemon.stop().await;
    }
}

// Invariant 1: what is not good any more is in the memory of the daemon alone.
#[tokio::test]
async fn tickets_do_not_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    std::fs::write(folder.path().join("credential"), [7; 32]).unwrap();
    let saved = format!(
        "state = {:?}\ncredential = {:?}\n[[context]]",
        folder.path().join("ring"),
        folder.path().join("credential")
    );
    let config = config(folder.path(), SEALED).replacen("[[context]]", &saved, 1);
    let pem = std::fs::read(folder.path().join("ca.pem")).unwrap();
    for version in VERSIONS {
        let client = Client::new(&pem, version, None);
        for _ in 0..2 {
            let daemon = TestDaemon::with(&config).await;
            let house = House {
                folder: tempfile::tempdir().unwrap(),
                daemon,
            };
            let (id, resumed) = client.visits(&house.daemon).await;
            assert!(!resumed);
            house.shut(&id).await;
            assert!(client.visits(&house.daemon).await.1);
            // The ring is saved a moment later.
            let ring = folder.path().join("ring");
            house
                .daemon
                .until("the ring is saved", async |_| ring.exists())
                .await;
            house.daemon.stop().await;
        }
    }
}

#[tokio::test]
async fn client_without_tickets_gets_a_session_id() {
    let house = House::new().await;
    let client = house.client(&TLS12).without_tickets();
    let (id, _) = client.visits(&house.daemon).await;
    assert_eq!(house.daemon.get(&id).await.session_id.len(), 64);
    assert_eq!(house.daemon.server_cache_len(), 1);
    house.shut(&id).await;
    assert!(client.visits(&house.daemon).await.1);
    house.daemon.stop().await;
}

#[tokio::test]
async fn session_that_is_too_large_or_not_kept_has_no_ticket() {
    for lines in [
        "session_bytes_max = \"64B\"\n",
        "options = [\"no-session-cache\"]\n",
    ] {
        for version in VERSIONS {
            let house = House::with(lines).await;
            let client = house.client(version);
            for _ in 0..2 {
                let (id, resumed) = client.visits(&house.daemon).await;
                assert!(!resumed);
                assert_eq!(house.daemon.get(&id).await.session_id, "");
                assert_eq!(house.free(&id).await, [""; 0]);
            }
            assert_eq!(house.stats().await.misses, 0, "no ticket is offered");
            house.daemon.stop().await;
        }
    }
}

// Invariant 16.
#[tokio::test]
async fn reload_changes_the_kind_of_tickets_and_keeps_the_list() {
    for version in VERSIONS {
        let house = House::new().await;
        let file = |lines: &str| config(house.folder.path(), lines);
        let (stored, sealed) = (house.client(version), house.client(version));
        let bad = house.client(version);
        for client in [&sealed, &bad] {
            let (id, _) = client.visits(&house.daemon).await;
            match std::ptr::eq(client, &bad) {
                true => drop(house.free(&id).await),
                false => house.shut(&id).await,
            }
        }
        let stateful = "ticket_kind = \"stateful\"\nticket_ring = \"\"\ncache_entries_max = 9\ncache_bytes_max = \"1MiB\"\n";
        let reloaded = house.daemon.reload(&file(stateful)).unwrap();
        assert!(reloaded.dropped.is_empty(), "the scope stays");
        let (id, _) = stored.visits(&house.daemon).await;
        assert_ne!(house.daemon.server_cache_len(), 0);
        house.shut(&id).await;
        house.daemon.reload(&file(SEALED)).unwrap();
        assert!(sealed.visits(&house.daemon).await.1, "{version:?}");
        assert!(!bad.visits(&house.daemon).await.1, "{version:?}");
        assert_eq!(house.context().await.ticket_ring, "web");
        // Another scope: no ticket of the old one is resumed.
        let other = format!("{SEALED}session_id_context = \"other\"\n");
        let (id, _) = sealed.visits(&house.daemon).await;
        house.shut(&id).await;
        house.daemon.reload(&file(&other)).unwrap();
        assert!(!sealed.visits(&house.daemon).await.1, "{version:?}");
        house.daemon.stop().await;
    }
}

#[tokio::test]
async fn session_stored_before_a_reload_is_resumed_after_it() {
    for version in VERSIONS {
        let house = House::with("").await;
        let file = |lines: &str| config(house.folder.path(), lines);
        let stateful = "ticket_kind = \"stateful\"\nticket_ring = \"\"\ncache_entries_max = 9\ncache_bytes_max = \"1MiB\"\n";
        house.daemon.reload(&file(stateful)).unwrap();
        let client = house.client(version);
        let (id, _) = client.visits(&house.daemon).await;
        house.shut(&id).await;
        let roomy = stateful
            .replace("stateful", "sealed")
            .replace("ticket_ring = \"\"", "ticket_ring = \"web\"");
        house.daemon.reload(&file(&roomy)).unwrap();
        for _ in 0..3 {
            let (id, resumed) = client.visits(&house.daemon).await;
            assert!(resumed, "{version:?}");
            house.shut(&id).await;
        }
        house.daemon.stop().await;
    }
}

// Invariant 5: what a ticket was given by an earlier configuration stays.
#[tokio::test]
async fn longer_timeout_of_a_reload_extends_no_session_of_tls12() {
    let house = House::with("session_timeout = \"1m\"\n").await;
    let client = house.client(&TLS12);
    let (id, _) = client.visits(&house.daemon).await;
    house.shut(&id).await;
    let longer = config(
        house.folder.path(),
        &format!("{SEALED}session_timeout = \"1h\"\n"),
    );
    house.daemon.reload(&longer).unwrap();
    for (seconds, wanted) in [(30, true), (29, true), (1, false)] {
        house.daemon.clock.advance(Duration::from_secs(seconds));
        let (id, resumed) = client.visits(&house.daemon).await;
        assert_eq!(resumed, wanted);
        house.shut(&id).await;
    }
    assert_eq!(house.misses(pb::MissReason::Expired).await, 1);
    house.daemon.stop().await;
}

/// Both tickets have one handle. The first one lives longer, so the handle is bad for as long as that.
// Invariant 1.
#[tokio::test]
async fn unclosed_connection_of_a_renewed_ticket_ends_the_longer_one_too() {
    let house = House::with("session_timeout = \"1h\"\n").await;
    let client = house.client(&TLS12);
    let (id, _) = client.visits(&house.daemon).await;
    house.shut(&id).await;
    let first = said(&mut client.tls());
    let shorter = config(
        house.folder.path(),
        &format!("{SEALED}session_timeout = \"3s\"\n"),
    );
    house.daemon.reload(&shorter).unwrap();
    let (id, resumed) = client.visits(&house.daemon).await;
    assert!(resumed);
    house.shut(&id).await;
    let (id, resumed) = client.visits(&house.daemon).await;
    assert!(resumed, "by the renewed ticket");
    assert_eq!(house.free(&id).await.len(), 1, "unclosed");
    for _ in 0..3 {
        house.daemon.clock.advance(Duration::from_secs(4));
        house.answers(&first).await;
    }
    assert_eq!(house.misses(pb::MissReason::Removed).await, 3);
    house.daemon.stop().await;
}
