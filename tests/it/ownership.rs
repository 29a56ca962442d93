//! A connection belongs to the identity that made it, and each owner has limits of its own.

use std::{collections::BTreeSet, time::Duration};

use tls_sessiond_proto::{
    self as pb, answer::Result as Answered, call::Method, drive_request::Event,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    calls,
    doors::{Guest, House, SOMEBODY, denied, not_there, rule, told, why},
    rights::{Right, table},
};

/// Makes every call that names a connection and returns the result of each.
async fn everything(guest: &mut Guest, id: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let connection_id = || id.to_owned();
    let rpc = &mut guest.connections;
    let mut done = Vec::new();
    macro_rules! tell {
        ($name:literal, $answer:expr) => {
            done.push(($name, $answer.await.map(drop)))
        };
    }
    tell!(
        "GetConnection",
        rpc.get_connection(pb::GetConnectionRequest {
            connection_id: connection_id()
        })
    );
    tell!(
        "GetSession",
        rpc.get_session(pb::GetSessionRequest {
            connection_id: connection_id()
        })
    );
    let flags = Some(pb::ShutdownFlags {
        sent: true,
        received: false,
    });
    let set = pb::SetShutdownRequest {
        connection_id: connection_id(),
        shutdown: flags,
    };
    tell!("SetShutdown", rpc.set_shutdown(set));
    tell!(
        "Shutdown",
        rpc.shutdown(pb::ShutdownRequest {
            connection_id: connection_id()
        })
    );
    let set = pb::SetSessionRequest {
        connection_id: connection_id(),
        session_id: String::new(),
    };
    tell!("SetSession", rpc.set_session(set));
    let alert = Some(pb::Alert {
        code: 40,
        ..Default::default()
    });
    tell!(
        "ReportAlert",
        rpc.report_alert(pb::ReportAlertRequest {
            connection_id: connection_id(),
            alert
        })
    );
    let exchange = pb::ExchangeRequest {
        connection_id: connection_id(),
        ..Default::default()
    };
    tell!("Exchange", rpc.exchange(exchange));
    tell!(
        "Clear",
        rpc.clear(pb::ClearRequest {
            connection_id: connection_id()
        })
    );
    tell!(
        "PutSession",
        guest.sessions.put_session(calls::put(id, "ab"))
    );
    let driven = match guest.try_drive(Event::ConnectionId(connection_id())).await {
        Ok(mut driven) => driven.answers.message().await.map(drop),
        Err(status) => Err(status),
    };
    done.push(("Drive", driven));
    let free = pb::FreeRequest {
        connection_id: connection_id(),
        allow_missing: false,
    };
    tell!("Free", guest.connections.free(free));
    done
}

async fn listed(guest: &mut Guest) -> BTreeSet<String> {
    let all = guest
        .connections
        .list_connections(pb::ListConnectionsRequest::default())
        .await
        .unwrap();
    all.into_inner()
        .connections
        .into_iter()
        .map(|listed| listed.id)
        .collect()
}

// Invariant 19.
#[tokio::test]
async fn no_call_finds_a_connection_of_another_owner() {
    let rules = [
        rule("uid:54321", "*", "worker"),
        rule("uid:54322", "*", "worker"),
        rule("dns:a.test", "*", "worker"),
        rule("uid:54323", "*", "observer"),
        rule("uid:54324", "*", "admin"),
        rule("local", "*", "worker"),
    ];
    let house = House::with(&rules.concat()).await;
    let mut owner = Guest::new(&house.over_unix(SOMEBODY).await);
    let id = owner.open("").await.unwrap();
    let session = owner
        .sessions
        .put_session(calls::put(&id, "aa"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(session.reason, "");
    let other = house.over_unix(SOMEBODY + 1).await;
    let loopback = house.daemon.channel.clone();
    let certified = house.over_tls(&house.authority.leaf(&["a.test"])).await;
    for (who, channel) in [
        ("another user", other),
        ("loopback", loopback),
        ("a certificate", certified),
    ] {
        let mut guest = Guest::new(&channel);
        let mut names: BTreeSet<_> = ["ListConnections"].into();
        for (name, answer) in everything(&mut guest, &id).await {
            names.insert(name);
            assert_eq!(why(answer), not_there(), "{name} by {who}");
        }
        // The answer is the same as for an id that does not exist.
        for (name, answer) in everything(&mut guest, &"0".repeat(32)).await {
            assert_eq!(why(answer), not_there(), "{name} of an unknown id");
        }
        let table = table();
        let own: BTreeSet<_> = table
            .iter()
            .filter(|row| row.rights[0] == Right::Own)
            .map(|row| row.path.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(
            names, own,
            "these are the calls that SECURITY.md reserves for the owner"
        );
        assert!(listed(&mut guest).await.is_empty(), "{who}");
        let free = pb::FreeRequest {
            connection_id: id.clone(),
            allow_missing: true,
        };
        guest.connections.free(free.clone()).await.unwrap();

        let mut attached = guest.attach().await;
        let connection_id = || id.clone();
        for method in [
            Method::Clear(pb::ClearRequest {
                connection_id: connection_id(),
            }),
            Method::Shutdown(pb::ShutdownRequest {
                connection_id: connection_id(),
            }),
            Method::SetShutdown(pb::SetShutdownRequest {
                connection_id: connection_id(),
                shutdown: Some(pb::ShutdownFlags::default()),
            }),
            Method::Free(pb::FreeRequest {
                connection_id: connection_id(),
                allow_missing: false,
            }),
            Method::SetSession(pb::SetSessionRequest {
                connection_id: connection_id(),
                session_id: "aa".into(),
            }),
            Method::PutSession(Box::new(calls::put(&id, "ab"))),
            Method::ReportAlert(pb::ReportAlertRequest {
                connection_id: connection_id(),
                alert: Some(pb::Alert {
                    code: 40,
                    ..Default::default()
                }),
            }),
        ] {
            let what = format!("{method:?} by {who}");
            let Answered::Error(error) = attached.call(method).await else {
                panic!("{what}")
            };
            assert_eq!(
                (error.code, error.reason.as_str()),
                (5, "CONNECTION_NOT_FOUND"),
                "{what}"
            );
        }
        assert!(
            matches!(attached.call(Method::Free(free)).await, Answered::Free(freed)
            if freed.removed_sessions.is_empty())
        );
        // A request id belongs to its owner too: the same id makes another connection.
        let request = pb::NewRequest {
            request_id: "one".into(),
            ..calls::worker(pb::Role::Server)
        };
        let made = guest
            .connections
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap();
        assert_eq!(
            listed(&mut guest).await,
            [made.id].into(),
            "{who} has a connection of its own"
        );
    }

    // Observers see all four connections and change none.
    for uid in [SOMEBODY + 2, SOMEBODY + 3] {
        let mut observer = Guest::new(&house.over_unix(uid).await);
        assert_eq!(listed(&mut observer).await.len(), 4);
        for (name, answer) in everything(&mut observer, &id).await {
            match name {
                "GetConnection" | "GetSession" => answer.unwrap(),
                _ => assert_eq!(why(answer), denied(), "{name}"),
            }
        }
    }
    // None of these calls has changed the connection. A second channel of the same user sees it.
    let mut again = Guest::new(&house.over_unix(SOMEBODY).await);
    assert_eq!(listed(&mut again).await, [id.clone()].into());
    let request = pb::GetConnectionRequest {
        connection_id: id.clone(),
    };
    let seen = again
        .connections
        .get_connection(request)
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap();
    assert_eq!(
        (seen.owner.as_str(), seen.session_id.as_str()),
        ("uid:54321", "aa")
    );
    assert_eq!(
        seen.shutdown.unwrap_or_default(),
        pb::ShutdownFlags::default()
    );
    for (name, answer) in everything(&mut again, &id).await {
        assert_ne!(why(answer), not_there(), "{name} by its owner");
    }
    assert!(listed(&mut again).await.is_empty());
    house.daemon.stop().await;
}

// Invariant 19.
#[tokio::test]
async fn lookups_need_the_worker_role_in_their_context() {
    let rules = rule("uid:54321", "default", "worker") + &rule("uid:54322", "mail", "worker");
    let house = House::with(&rules).await;
    let [mut one, mut two] = [
        house.over_unix(SOMEBODY).await,
        house.over_unix(SOMEBODY + 1).await,
    ]
    .map(|channel| Guest::new(&channel));
    let id = one.open("").await.unwrap();
    one.sessions
        .put_session(calls::put(&id, "aa"))
        .await
        .unwrap();
    assert!(
        one.sessions
            .lookup_session(calls::lookup("aa"))
            .await
            .unwrap()
            .into_inner()
            .found
    );
    assert_eq!(
        why(two.sessions.lookup_session(calls::lookup("aa")).await),
        denied()
    );
    let in_mail = pb::LookupSessionRequest {
        context: "mail".into(),
        ..calls::lookup("aa")
    };
    let looked = two
        .sessions
        .lookup_session(in_mail)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (looked.found, looked.miss_reason()),
        (false, pb::MissReason::Unknown)
    );
    // The daemon does not reveal whether a session of another context exists. It answers as for an
    // unknown id.
    let mut told = Vec::new();
    for session_id in ["aa", "dead"] {
        let request = pb::NewRequest {
            context: "mail".into(),
            session_id: session_id.into(),
            ..calls::worker(pb::Role::Server)
        };
        let made = two
            .connections
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap();
        let request = pb::SetSessionRequest {
            connection_id: made.id,
            session_id: session_id.into(),
        };
        let set = two
            .connections
            .set_session(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap();
        told.push((
            made.session_reused,
            made.peer,
            set.session_reused,
            set.peer,
            set.session_id == session_id,
        ));
    }
    assert_eq!(told[0], told[1]);
    house.daemon.stop().await;
}

// Invariant 22.
#[tokio::test]
async fn connections_are_limited_per_owner() {
    let rules = rule("local", "*", "worker");
    let house = House::limited("[limits]\nconnections_per_owner = 3\n", &rules).await;
    let mut one = Guest::new(&house.over_unix(SOMEBODY).await);
    let mut again = Guest::new(&house.over_unix(SOMEBODY).await);
    let mut two = Guest::new(&house.over_unix(SOMEBODY + 1).await);
    let full = (Code::ResourceExhausted, "OWNER_CONNECTION_LIMIT".to_owned());
    let first = one.open("").await.unwrap();
    again.open("").await.unwrap();
    let mut attached = again.attach().await;
    attached.established("aa").await;
    // All channels and streams of one owner count together.
    for guest in [&mut one, &mut again] {
        let refused = guest.open("").await.unwrap_err();
        assert!(refused.get_details_retry_info().is_some());
        assert_eq!(why::<()>(Err(refused)), full);
        let mut driven = guest
            .drive(Event::New(crate::harness::new("", pb::Role::Server)))
            .await;
        assert_eq!(told(driven.answers.message()).await, full);
    }
    let Answered::Error(error) = attached
        .call(Method::New(Box::new(calls::worker(pb::Role::Server))))
        .await
    else {
        panic!("the New beyond the limit succeeded")
    };
    assert_eq!(error.reason, full.1);
    for _ in 0..3 {
        two.open("").await.unwrap();
    }
    assert_eq!(why(two.open("").await), full);
    // Refused calls do not count, and a freed connection makes room.
    one.connections
        .free(pb::FreeRequest {
            connection_id: first,
            allow_missing: false,
        })
        .await
        .unwrap();
    one.open("").await.unwrap();
    assert_eq!(why(one.open("").await), full);
    drop(attached);
    house
        .daemon
        .until("the stream's connection is freed", async |daemon| {
            daemon.core.connections().len() == 5
        })
        .await;
    one.open("").await.unwrap();
    assert_eq!(why(again.open("").await), full);
    // Six minutes later the idle time-out has freed all connections.
    house.daemon.clock.advance(Duration::from_secs(360));
    house
        .daemon
        .until("all idle connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    for _ in 0..3 {
        one.open("").await.unwrap();
    }
    assert_eq!(why(one.open("").await), full);
    house.daemon.stop().await;
}

// Invariant 22.
#[tokio::test]
async fn misses_are_limited_per_owner_and_second() {
    let house = House::limited(
        "[limits]\nmisses_per_second = 3\n",
        &rule("local", "*", "worker"),
    )
    .await;
    let mut one = Guest::new(&house.over_unix(SOMEBODY).await);
    let mut again = Guest::new(&house.over_unix(SOMEBODY).await);
    let mut two = Guest::new(&house.over_unix(SOMEBODY + 1).await);
    let id = one.open("").await.unwrap();
    one.sessions
        .put_session(calls::put(&id, "aa"))
        .await
        .unwrap();
    // Advances the clock to the beginning of a second.
    let part = house.daemon.core.now().at.as_millis() % 1000;
    house
        .daemon
        .clock
        .advance(Duration::from_millis(1000 - part));
    for round in 0..2 {
        // Successful lookups do not count.
        for _ in 0..10 {
            assert!(
                one.sessions
                    .lookup_session(calls::lookup("aa"))
                    .await
                    .unwrap()
                    .into_inner()
                    .found
            );
        }
        for guess in ["01", "02"] {
            assert!(
                !one.sessions
                    .lookup_session(calls::lookup(guess))
                    .await
                    .unwrap()
                    .into_inner()
                    .found
            );
        }
        let mut attached = again.attach().await;
        let found = attached
            .call(Method::LookupSession(Box::new(calls::lookup("03"))))
            .await;
        assert!(matches!(found, Answered::LookupSession(looked) if !looked.found));
        let refused = one
            .sessions
            .lookup_session(calls::lookup("aa"))
            .await
            .unwrap_err();
        assert!(refused.get_details_retry_info().is_some(), "round {round}");
        assert_eq!(
            why::<()>(Err(refused)),
            (Code::ResourceExhausted, "MISS_LIMIT".into())
        );
        let Answered::Error(error) = attached
            .call(Method::LookupSession(Box::new(calls::lookup("aa"))))
            .await
        else {
            panic!("the limit does not hold on the stream")
        };
        assert_eq!((error.code, error.reason.as_str()), (8, "MISS_LIMIT"));
        assert!(
            two.sessions
                .lookup_session(calls::lookup("aa"))
                .await
                .unwrap()
                .into_inner()
                .found
        );
        one.open("").await.unwrap();
        house.daemon.clock.advance(Duration::from_millis(999));
        assert!(
            one.sessions
                .lookup_session(calls::lookup("aa"))
                .await
                .is_err(),
            "still the same second"
        );
        house.daemon.clock.advance(Duration::from_millis(1));
    }
    house.daemon.stop().await;
}
