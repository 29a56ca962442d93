//! Sessions that are sealed in tickets resume at any daemon that shares the ring, by the rules of stored ones.

use std::{sync::Arc, time::Duration};

use rustls::version::{TLS12, TLS13};
use tls_sessiond_core::fleet::FleetStore;
use tls_sessiond_proto::{
    self as pb, revoke_sessions_request::Selector,
    ticket_key_service_client::TicketKeyServiceClient,
};
use tls_sessiond_store::{keeper::UNCLOSED_MAX, layout::BUCKETS};
use tokio::time::sleep;

use super::{
    Kind, StoreServer,
    lost::Process,
    sharing::{Three, by_exchange, delivered, written},
};
use crate::{
    calls::Worker,
    harness::TestDaemon,
    psk_hello::{first_message, resumed},
    returning::{Certificate, Returning},
};

const RING: &str =
    "[[ticket_keys]]\nname = \"web\"\nrotate = \"7d\"\nlifetime = \"1h\"\nmax_key_age = \"7d\"\n";
const SEALED: &str = "ticket_kind = \"sealed\"\nticket_ring = \"web\"\n";

/// Returns the configuration of a daemon that seals the sessions of its default context.
fn config(certificate: &Certificate, server: &StoreServer, lines: &str) -> String {
    certificate.context() + SEALED + lines + RING + &server.config()
}

/// Waits until the daemon has seen the ring.
async fn has_ring(daemon: &TestDaemon) {
    daemon
        .until("the ring is there", async |daemon| {
            let mut rings = TicketKeyServiceClient::new(daemon.channel.clone());
            let request = pb::GetRingRequest { ring: "web".into() };
            let got = rings.get_ring(request).await.unwrap().into_inner();
            got.ring.unwrap().epoch > 0
        })
        .await;
}

fn fleet(daemon: &TestDaemon) -> Arc<FleetStore> {
    daemon.core.registry().ledger().fleet.clone().unwrap()
}

async fn three(kind: Kind, lines: &str) -> Three {
    let (certificate, server) = (Certificate::new(), StoreServer::start(kind));
    let config = config(&certificate, &server, lines);
    let start = || TestDaemon::by_real_time(&config);
    let (one, two, three) = tokio::join!(start(), start(), start());
    let daemons = vec![one, two, three];
    for daemon in &daemons {
        has_ring(daemon).await;
    }
    Three {
        daemons,
        certificate,
        server,
    }
}

fn unix_seconds() -> f64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// Runs a handshake and closes it. Returns whether the client resumed.
async fn visits(daemon: &TestDaemon, client: &Returning) -> bool {
    let (id, resumed) = by_exchange(daemon, client).await;
    Worker(daemon).shutdown(&id).await;
    assert_eq!(Worker(daemon).free(&id).await, 0);
    resumed
}

async fn misses(daemon: &TestDaemon, why: pb::MissReason) -> u64 {
    let mut contexts = daemon.contexts();
    let got = contexts.get_context(pb::GetContextRequest::default());
    let stats = got.await.unwrap().into_inner().context.unwrap().stats;
    let stats = stats.unwrap();
    let counts = stats.misses_by_reason.iter();
    counts
        .filter(|count| count.reason() == why)
        .map(|count| count.count)
        .sum()
}

// Invariants 1 and 2.
#[tokio::test]
async fn sealed_sessions_resume_anywhere_until_one_ends_unclosed() {
    for kind in Kind::ALL {
        let three = three(kind, "").await;
        let client = Returning::new(&three.certificate, &TLS13);
        for (place, daemon) in three.daemons.iter().cycle().take(6).enumerate() {
            assert_eq!(visits(daemon, &client).await, place > 0, "{kind:?} {place}");
        }
        // Nothing is stored but the list of spent tickets, each with a margin for clocks.
        let keys: Vec<String> = three.server.run(&["KEYS", "*:s:*"]);
        assert_eq!(keys, [""; 0]);
        let lists: Vec<String> = three.server.run(&["KEYS", "*:l"]);
        let mut spent = 0;
        for list in &lists {
            let scores: Vec<Vec<u8>> = three.server.run(&["ZRANGE", list, "0", "-1", "WITHSCORES"]);
            // Besides the names of sessions, it has marks of daemons that have stopped, and a member of its own.
            let scores = scores.chunks(2).filter(|pair| pair[0].len() == 16);
            for score in scores.map(|pair| std::str::from_utf8(&pair[1]).unwrap()) {
                let score: f64 = score.parse().unwrap();
                let left = score / 8000.0 - unix_seconds();
                // The check of a store lists something for ten seconds.
                if left > 60.0 {
                    assert!((7_200.0 + 30.0..7_200.0 + 61.0).contains(&left), "{left}");
                    spent += 1;
                }
            }
        }
        assert_eq!(spent, 5);
        let (id, resumed) = by_exchange(&three.daemons[0], &client).await;
        assert!(resumed);
        assert!(Worker(&three.daemons[0]).free(&id).await > 0);
        delivered(&three.daemons[0]).await;
        assert!(!visits(&three.daemons[1], &client).await, "unclosed");
        assert_eq!(misses(&three.daemons[1], pb::MissReason::Removed).await, 1);
    }
}

// Invariant 2.
#[tokio::test]
async fn ticket_is_resumed_at_one_of_two_daemons() {
    let three = three(Kind::Redis, "tickets = 1\n").await;
    for _ in 0..10 {
        let client = Returning::new(&three.certificate, &TLS13);
        visits(&three.daemons[0], &client).await;
        let flight = written(&mut client.tls());
        let (here, there) = tokio::join!(
            resumes(&three.daemons[1], &flight),
            resumes(&three.daemons[2], &flight)
        );
        assert!(here != there, "exactly one of two resumes");
    }
}

/// Sends a ClientHello to a new connection. Returns whether the answer resumes.
async fn resumes(daemon: &TestDaemon, flight: &[u8]) -> bool {
    let id = daemon.open(pb::Role::Server).await;
    let answer = daemon.exchange(&id, flight, b"").await.unwrap();
    resumed(first_message(&answer.ciphertext)).is_some()
}

// Invariant 15.
#[tokio::test]
async fn revocation_reaches_sealed_sessions_at_every_daemon() {
    let three = three(Kind::Valkey, "tickets = 1\n").await;
    let client = Returning::new(&three.certificate, &TLS13);
    visits(&three.daemons[0], &client).await;
    let request = pb::RevokeSessionsRequest {
        selector: Some(Selector::All(true)),
        ..Default::default()
    };
    let mut sessions = three.daemons[1].sessions();
    sessions.revoke_sessions(request).await.unwrap();
    for daemon in &three.daemons {
        let revision = fleet(&three.daemons[1]).revision();
        daemon
            .until("it knows of the revocation", async |daemon| {
                fleet(daemon).revision() == revision
            })
            .await;
    }
    assert!(!visits(&three.daemons[2], &client).await, "revoked");
    assert_eq!(misses(&three.daemons[2], pb::MissReason::Revoked).await, 1);
}

#[tokio::test]
async fn removal_reaches_sealed_sessions_at_every_daemon() {
    let three = three(Kind::Valkey, "tickets = 1\n").await;
    let client = Returning::new(&three.certificate, &TLS13);
    let (id, _) = by_exchange(&three.daemons[0], &client).await;
    let session = three.daemons[0].get(&id).await.session_id;
    Worker(&three.daemons[0]).shutdown(&id).await;
    Worker(&three.daemons[0]).free(&id).await;
    let remove = pb::RemoveSessionRequest {
        role: pb::Role::Server.into(),
        session_id: session,
        ..Default::default()
    };
    let mut sessions = three.daemons[1].sessions();
    let removed = sessions.remove_session(remove).await.unwrap();
    assert!(removed.into_inner().removed);
    assert!(!visits(&three.daemons[2], &client).await, "removed");
    assert_eq!(misses(&three.daemons[2], pb::MissReason::Removed).await, 1);
}

/// What a daemon that died knew of its connections is lost. One that stopped has told all of it.
// Invariant 1.
#[tokio::test]
async fn tickets_of_a_daemon_that_stopped_resume_and_of_one_that_died_do_not() {
    let (certificate, server) = (Certificate::new(), StoreServer::start(Kind::Redis));
    let config = config(&certificate, &server, "");
    let stays = TestDaemon::by_real_time(&config).await;
    has_ring(&stays).await;
    let stops = Process::with(&server, &config).await;
    let dies = Process::with(&server, &config).await;
    let mut clients = Vec::new();
    for daemon in [&stops.calls, &dies.calls] {
        has_ring(daemon).await;
        for _ in 0..24 {
            let client = Returning::new(&certificate, &TLS13);
            visits(daemon, &client).await;
            clients.push(client);
        }
    }
    let open = Returning::new(&certificate, &TLS13);
    by_exchange(&stops.calls, &open).await;
    stops.binary.terminate().await;
    stops.binary.end().await;
    dies.binary.kill().await;
    let (of_stopped, of_dead) = clients.split_at(24);
    assert!(!visits(&stays, &open).await, "open when its daemon stopped");
    let mut refused = false;
    for client in of_dead {
        // Its heartbeats lapse within UNCLOSED_MAX.
        let resumed = visits(&stays, client).await;
        assert!(!(refused && resumed), "refused once, then resumed");
        refused |= !resumed;
        if resumed {
            sleep(Duration::from_millis(UNCLOSED_MAX / 8)).await;
        }
    }
    assert!(refused && misses(&stays, pb::MissReason::HolderLost).await > 0);
    for client in of_stopped {
        assert!(visits(&stays, client).await, "closed, and all delivered");
    }
    stays.stop().await;
}

/// A session of TLS 1.2 is resumed any number of times, so other daemons must know of each.
#[tokio::test]
async fn sessions_of_tls12_are_stored() {
    for lines in ["", "close_policy = \"errors-only\"\n"] {
        let three = three(Kind::Redis, lines).await;
        let client = Returning::new(&three.certificate, &TLS12);
        for (place, daemon) in three.daemons.iter().cycle().take(6).enumerate() {
            assert_eq!(visits(daemon, &client).await, place > 0, "{lines} {place}");
        }
        let keys: Vec<String> = three.server.run(&["KEYS", "*:s:*"]);
        assert_eq!(keys.len(), 1, "{lines}");
    }
}

/// With the store, the list of bad tickets is lost: no earlier ticket is resumed.
#[tokio::test]
async fn no_ticket_is_resumed_after_the_store_lost_the_list() {
    let mut three = three(Kind::Redis, "").await;
    let client = Returning::new(&three.certificate, &TLS13);
    visits(&three.daemons[0], &client).await;
    assert!(visits(&three.daemons[1], &client).await);
    three.server.kill();
    assert!(
        !visits(&three.daemons[1], &client).await,
        "the store is away"
    );
    three.server.restart();
    for daemon in &three.daemons {
        daemon
            .until("the store is used again", async |daemon| {
                fleet(daemon).open_buckets(daemon.core.now().at) == BUCKETS
            })
            .await;
    }
    assert!(!visits(&three.daemons[1], &client).await, "of before");
    three.daemons[2]
        .until("tickets are resumed again", async |daemon| {
            visits(daemon, &client).await
        })
        .await;
}

/// A store that evicts the list of bad tickets has nothing that tells good ones from bad ones.
#[tokio::test]
async fn no_ticket_of_before_is_resumed_after_the_list_was_evicted() {
    let three = three(Kind::Valkey, "tickets = 1\n").await;
    let client = Returning::new(&three.certificate, &TLS13);
    visits(&three.daemons[0], &client).await;
    let flight = written(&mut client.tls());
    assert!(resumes(&three.daemons[1], &flight).await);
    let lists: Vec<String> = three.server.run(&["KEYS", "*:l"]);
    for list in &lists {
        let _: i64 = three.server.run(&["DEL", list]);
    }
    for daemon in &three.daemons {
        assert!(
            !resumes(daemon, &flight).await,
            "spent, and the list is lost"
        );
    }
    three.daemons[2]
        .until("tickets are resumed again", async |daemon| {
            let client = Returning::new(&three.certificate, &TLS13);
            visits(daemon, &client).await;
            visits(&three.daemons[0], &client).await
        })
        .await;
    assert!(!resumes(&three.daemons[0], &flight).await);
}

/// The engine's tickets hold master secrets. A caller with the role `keys` seals and opens tickets of the ring
/// too, and must neither open nor forge these.
#[tokio::test]
async fn callers_with_the_role_keys_do_not_open_tickets_of_the_engine() {
    let three = three(Kind::Redis, "tickets = 1\n").await;
    let client = Returning::new(&three.certificate, &TLS13);
    visits(&three.daemons[0], &client).await;
    let flight = written(&mut client.tls());
    let ticket = offered_ticket(&flight);
    let scope = three.daemons[0].core.registry().all()[0]
        .server_cache
        .bound(&[0; 16]);
    let open = pb::OpenTicketRequest {
        ring: "web".into(),
        ticket: ticket.clone().into(),
        binding: scope.into(),
        single_use: false,
    };
    let mut rings = TicketKeyServiceClient::new(three.daemons[1].channel.clone());
    let opened = rings.open_ticket(open).await.unwrap().into_inner();
    assert_eq!(opened.miss_reason(), pb::MissReason::Scope);
    assert!(
        resumes(&three.daemons[1], &flight).await,
        "the ticket is good"
    );
}

/// Returns the first ticket that a ClientHello of TLS 1.3 offers: it is in the last extension, before its age (4
/// bytes), the length of binders (2) and one binder of 49 bytes.
fn offered_ticket(flight: &[u8]) -> Vec<u8> {
    let end = flight.len() - 4 - 2 - 49;
    let begin = (0..end)
        .rev()
        .find(|&at| usize::from(u16::from_be_bytes([flight[at - 2], flight[at - 1]])) == end - at)
        .expect("a ticket");
    flight[begin..end].to_vec()
}
