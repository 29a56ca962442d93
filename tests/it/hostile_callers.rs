//! Callers that take what is for all: calls that never finish, sockets that never prove an identity.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{io::AsyncReadExt, net::TcpSocket, net::TcpStream};
use tokio_rustls::TlsConnector;

use crate::{
    doors::{Guest, House, over, rule},
    frames::{self, DATA, END_HEADERS, HEADERS, Raw, frame},
    process::PATIENCE,
};

const NEW: &str = "/tls.sessiond.v1.ConnectionService/New";

/// Calls that have begun and do not end. Returns the connection, which keeps them.
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
    let house = House::limited("[limits]\ncalls_in_flight = 40\ncalls_per_owner = 20", &rules).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(unfinished(&house.daemon.address, 20).await);
    }
    let refused = Guest::new(&house.over_tcp().await).open("").await.unwrap_err();
    assert_eq!(crate::harness::reason(&refused), "OWNER_CALL_LIMIT", "{refused:?}");
    // Another identity, and health, are answered.
    Guest::new(&house.over_unix(0).await).open("").await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(house.over_tcp().await);
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
    drop(held);
    let until = Instant::now() + PATIENCE;
    while Guest::new(&house.over_tcp().await).open("").await.is_err() {
        assert!(Instant::now() < until, "the places are never free");
    }
}

#[tokio::test]
async fn watchers_of_one_identity_leave_places_for_others() {
    let rules = rule("uid:0", "*", "observer") + &rule("local", "*", "observer");
    let house = House::with(&rules).await;
    let mut held = Vec::new();
    let mut local = Guest::new(&house.over_tcp().await);
    let refused = loop {
        let request = tls_sessiond::proto::WatchSessionsRequest::default();
        match local.sessions.watch_sessions(request).await {
            Ok(stream) => held.push(stream),
            Err(status) => break status,
        }
        assert!(held.len() < 64, "it has the places of all");
    };
    assert_eq!((crate::harness::reason(&refused).as_str(), held.len()), ("WATCHER_LIMIT", 32), "{refused:?}");
    let mut other = Guest::new(&house.over_unix(0).await);
    other.sessions.watch_sessions(tls_sessiond::proto::WatchSessionsRequest::default()).await.unwrap();
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
    // Callers on this host have places of their own.
    Guest::new(&house.over_tcp().await).open("").await.unwrap();
    // A worker that comes from another address is let in as well.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    let connector = TlsConnector::from(std::sync::Arc::new(house.client(Some(&leaf))));
    let stream = connector
        .connect("localhost".try_into().unwrap(), socket.connect(house.tls).await.unwrap())
        .await
        .unwrap();
    Guest::new(&over(stream).await).open("").await.unwrap();
    // Of the others most are closed at once, without an answer.
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
