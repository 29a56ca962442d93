//! Tickets as they are on the wire: sent twice, changed, cut, made up.

use rustls::version::{TLS12, TLS13};
use tls_sessiond_proto as pb;

use super::{House, said};
use crate::{
    client_hello::{Extension, Hello, records},
    psk_hello::{PskHello, Ticket, resumed},
};

// Invariant 2.
#[tokio::test]
async fn sealed_ticket_of_tls13_is_resumed_once() {
    let house = House::new().await;
    let client = house.client(&TLS13);
    let (id, _) = client.visits(&house.daemon).await;
    house.shut(&id).await;
    let flight = said(&mut client.tls());
    assert_eq!(resumed(&house.answers(&flight).await), Some(0));
    for _ in 0..2 {
        assert_eq!(resumed(&house.answers(&flight).await), None);
    }
    assert_eq!(house.misses(pb::MissReason::Removed).await, 2);
    house.daemon.stop().await;
}

#[tokio::test]
async fn changed_ticket_of_tls13_costs_no_ticket_and_no_handshake() {
    let house = House::new().await;
    let client = house.client(&TLS13);
    let (id, _) = client.visits(&house.daemon).await;
    house.shut(&id).await;
    let flight = said(&mut client.tls());
    // The ticket is before its age (4), the length of binders (2), and one binder of 48 bytes.
    let end = flight.len() - 4 - 2 - 49;
    let length = (0..end)
        .rev()
        .find(|&at| usize::from(u16::from_be_bytes([flight[at - 2], flight[at - 1]])) == end - at)
        .map(|at| end - at)
        .expect("a ticket");
    assert!(length > 100, "{length}");
    // In its key's name, its handle, its nonce, its state and its tag.
    for at in [0, 15, 16, 31, 32, 43, 44, 60, length - 16, length - 1] {
        let mut changed = flight.clone();
        changed[end - length + at] ^= 1;
        // A ticket that opened would fail the handshake: its binder is that of another ClientHello.
        assert_eq!(resumed(&house.answers(&changed).await), None, "{at}");
    }
    assert_eq!(resumed(&house.answers(&flight).await), Some(0));
    house.daemon.stop().await;
}

#[tokio::test]
async fn made_up_tickets_are_misses() {
    let house = House::new().await;
    let psk = vec![7; 32];
    let sizes = [1, 59, 60, 64, 65, 76, 77, 300, 4_000, 16_384, 16_385];
    let mut told = 0;
    for size in sizes {
        let ticket = Ticket {
            identity: vec![9; size],
            psk: psk.clone(),
        };
        let hello = PskHello::offering(&[&ticket]);
        assert_eq!(resumed(&house.answers(&hello.flight()).await), None);
        // The session ids of the daemon have up to 64 bytes, and its tickets up to 16 KiB.
        told += u64::from(size <= 16_384);
        assert_eq!(house.misses(pb::MissReason::Unknown).await, told, "{size}");

        let mut extensions = Extension::negotiable(&[29], &[], &[]);
        extensions.retain(|extension| matches!(extension, Extension::Unknown(10 | 13, _)));
        extensions.push(Extension::Ticket(vec![9; size]));
        let hello = Hello {
            session_id: vec![5; 32],
            suites: vec![0xc02b, 0xc02f],
            extensions,
        };
        house.answers(&records(&hello.message(), &[])).await;
        told += u64::from((65..=16_384).contains(&size));
        assert_eq!(house.misses(pb::MissReason::Unknown).await, told, "{size}");
    }
    house.daemon.stop().await;
}

#[tokio::test]
async fn ticket_of_another_daemon_is_a_miss() {
    for version in [&TLS12, &TLS13] {
        let (house, other) = (House::new().await, House::new().await);
        let client = house.client(version);
        let (id, _) = client.visits(&house.daemon).await;
        house.shut(&id).await;
        let flight = said(&mut client.tls());
        other.answers(&flight).await;
        assert_eq!(other.misses(pb::MissReason::Unknown).await, 1);
        assert_eq!(other.stats().await.hits, 0);
        house.daemon.stop().await;
        other.daemon.stop().await;
    }
}
