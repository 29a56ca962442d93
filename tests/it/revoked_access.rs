//! Rights that a reload takes away while they are in use.

use tls_sessiond_proto::{self as pb, drive_request::Event};

use crate::{
    calls,
    doors::{Guest, House, SOMEBODY, denied, not_there, rule, told, why},
    harness::new,
};

// Invariant 20.
#[tokio::test]
async fn removed_identity_loses_its_streams_and_their_connections() {
    let admin = rule("local", "*", "admin");
    let stays = rule("spiffe://example.org/web/a", "*", "worker");
    let goes = rule("spiffe://example.org/web/b", "default", "worker")
        + &rule("spiffe://example.org/web/b", "mail", "observer");
    let house = House::with(&(goes + &stays + &admin)).await;
    let [a, b] = ["a", "b"].map(|name| {
        house
            .authority
            .leaf(&[&format!("spiffe://example.org/web/{name}")])
    });
    let mut guests = [
        Guest::new(&house.over_tls(&a).await),
        Guest::new(&house.over_tls(&b).await),
    ];
    let mut streams = Vec::new();
    for (guest, session_id) in guests.iter_mut().zip(["aa", "bb"]) {
        let mut attached = guest.attach().await;
        attached.established(session_id).await;
        let mut driven = guest.drive(Event::New(new("", pb::Role::Server))).await;
        driven.answers.message().await.unwrap().unwrap();
        streams.push((attached, driven));
    }
    let mut watched = guests[1].watch("").await;
    let left = guests[1].open("").await.unwrap();
    assert_eq!(house.daemon.core.connections().len(), 5);

    house.reload(&(stays + &admin)).unwrap();
    let (attached, driven) = &mut streams[1];
    assert_eq!(told(attached.answers.message()).await, denied());
    assert_eq!(told(driven.answers.message()).await, denied());
    assert_eq!(told(watched.message()).await, denied());
    // Connections that New made without a stream stay until their idle time-out.
    house
        .daemon
        .until("the streams' connections are freed", async |daemon| {
            daemon.core.connections().len() == 3
        })
        .await;
    let daemon = &house.daemon;
    let explain = async |session_id: &str| {
        let request = pb::ExplainSessionRequest {
            session_id: session_id.into(),
            role: pb::Role::Server.into(),
            ..Default::default()
        };
        daemon
            .sessions()
            .explain_session(request)
            .await
            .unwrap()
            .into_inner()
    };
    assert_eq!(
        explain("bb").await.removal_reason(),
        pb::RemovalReason::Unclosed
    );
    let [stayed, gone] = &mut guests;
    assert_eq!(why(gone.open("").await), denied());
    assert_eq!(
        why(gone.sessions.lookup_session(calls::lookup("aa")).await),
        denied()
    );
    let request = pb::ExchangeRequest {
        connection_id: left,
        ..Default::default()
    };
    assert_eq!(why(gone.connections.exchange(request).await), denied());
    let again = pb::WatchSessionsRequest::default();
    assert_eq!(why(gone.sessions.watch_sessions(again).await), denied());
    // A new connection of this identity is refused as well.
    assert_eq!(
        why(Guest::new(&house.over_tls(&b).await).open("").await),
        denied()
    );

    assert!(explain("aa").await.resumable);
    stayed.open("").await.unwrap();
    streams[0].0.established("ab").await;
    let lookup = stayed
        .sessions
        .lookup_session(calls::lookup("ab"))
        .await
        .unwrap()
        .into_inner();
    assert!(lookup.found);
    house.daemon.stop().await;
}

// Invariant 20.
#[tokio::test]
async fn lost_context_ends_its_streams_and_hides_its_connections() {
    let all = rule("uid:54321", "*", "worker") + &rule("uid:54322", "*", "observer");
    let fewer = rule("uid:54321", "mail", "worker") + &rule("uid:54322", "mail", "observer");
    let admin = rule("uid:0", "*", "admin");
    let house = House::with(&(all + &admin)).await;
    let mut guest = Guest::new(&house.over_unix(SOMEBODY).await);
    let mut observer = Guest::new(&house.over_unix(SOMEBODY + 1).await);
    let (here, there) = (
        guest.open("default").await.unwrap(),
        guest.open("mail").await.unwrap(),
    );
    let mut drives = Vec::new();
    let mut watches = Vec::new();
    for context in ["default", "mail"] {
        let mut driven = guest
            .drive(Event::New(new(context, pb::Role::Server)))
            .await;
        driven.answers.message().await.unwrap().unwrap();
        drives.push(driven);
        watches.push(observer.watch(context).await);
    }
    watches.push(observer.watch("").await);
    assert_eq!(house.daemon.core.connections().len(), 4);

    house.reload(&(fewer + &admin)).unwrap();
    assert_eq!(told(drives[0].answers.message()).await, denied());
    assert_eq!(told(watches[0].message()).await, denied());
    house
        .daemon
        .until("the Drive's connection is freed", async |daemon| {
            daemon.core.connections().len() == 3
        })
        .await;
    let get = |id: &str| pb::GetConnectionRequest {
        connection_id: id.into(),
    };
    assert_eq!(
        why(guest.connections.get_connection(get(&here)).await),
        not_there()
    );
    guest.connections.get_connection(get(&there)).await.unwrap();
    assert_eq!(why(guest.open("default").await), denied());

    // Calls and streams of the other context go on: a session is put, and both watchers that may
    // see it are told.
    let put = calls::put(&there, "aa");
    guest.sessions.put_session(put).await.unwrap();
    for watched in &mut watches[1..] {
        assert!(watched.message().await.unwrap().unwrap().event.is_some());
    }
    drop(drives);
    house
        .daemon
        .until("the other Drive's connection is freed", async |daemon| {
            daemon.core.connections().len() == 2
        })
        .await;
    house.daemon.stop().await;
}
