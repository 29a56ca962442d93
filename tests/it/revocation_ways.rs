//! Attempts to evade RevokeSessions, against the binary. None of them stores or resumes a revoked
//! session.

use bytes::Bytes;
use prost_types::Timestamp;
use tls_sessiond_proto::{self as pb, call::Method, revoke_sessions_request::Selector};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    binary::PATIENCE,
    calls::{lookup, put, worker},
    reload::context,
    void_scopes::{Served, peer, ticket},
    worker_engine::call,
};

/// All selectors that match [`peer`] or the server name of [`named`].
fn selectors() -> [Selector; 5] {
    [
        Selector::All(true),
        Selector::CertificateSha256(peer().certificate_sha256),
        Selector::Uri(peer().uris.remove(0)),
        Selector::DnsName(peer().dns_names.remove(0)),
        Selector::ServerName("a.test".into()),
    ]
}

/// A TLS 1.3 session that is not single-use, of a peer with every kind of name.
fn named(connection_id: &str, session_id: &str) -> pb::PutSessionRequest {
    pb::PutSessionRequest {
        single_use: false,
        server_name: "a.test".into(),
        ..ticket(connection_id, session_id)
    }
}

/// A peer without any name of [`peer`].
fn other_peer() -> pb::PeerIdentity {
    pb::PeerIdentity {
        certificate_sha256: "08".repeat(32),
        subject: "CN=other".into(),
        dns_names: vec!["other.example.org".into()],
        uris: vec!["spiffe://example.org/other".into()],
    }
}

/// The identities that a worker may give on a later put.
fn claims() -> [Option<pb::PeerIdentity>; 3] {
    let digest = pb::PeerIdentity {
        certificate_sha256: peer().certificate_sha256,
        ..Default::default()
    };
    [None, Some(digest), Some(other_peer())]
}

async fn started() -> Served {
    Served::start(|folder| context(folder, "default", "1.2\", \"1.3", "")).await
}

impl Served {
    /// Looks up a session of `a.test`, which must exist. Returns the time when its peers
    /// authenticated.
    async fn taken(&mut self, session_id: &str) -> Option<Timestamp> {
        let request = pb::LookupSessionRequest {
            server_name: "a.test".into(),
            ..lookup(session_id)
        };
        let found = self
            .guest
            .sessions
            .lookup_session(request)
            .await
            .unwrap()
            .into_inner();
        assert!(found.found, "{session_id}");
        found.session.unwrap().authenticate_time
    }

    /// Returns the daemon's time as a timestamp.
    async fn stamp(&mut self) -> Option<Timestamp> {
        let connection = self.resumed("", "").await;
        self.free(&connection.id).await;
        connection.create_time
    }
}

// Invariant 15.
#[tokio::test]
async fn reusable_session_is_revoked_between_lookup_and_put() {
    let mut served = started().await;
    for (place, selector) in selectors().into_iter().enumerate() {
        for version in [pb::ProtocolVersion::Tls12, pb::ProtocolVersion::Tls13] {
            let id = format!("a{place}{:02x}", version as i32);
            served
                .keep(
                    "",
                    pb::PutSessionRequest {
                        version: version.into(),
                        ..named("", &id)
                    },
                )
                .await;
            let before = served.taken(&id).await;
            assert_eq!(served.revoke(selector.clone()).await, 1, "{selector:?}");
            let stamps = [None, before, served.stamp().await];
            for authenticate_time in stamps {
                for says in [pb::ProtocolVersion::Tls12, pb::ProtocolVersion::Tls13] {
                    for claim in claims() {
                        let connection = served.resumed("", &id).await;
                        assert_eq!(connection.peer, Some(peer()), "the record lacks the peer");
                        let again = pb::PutSessionRequest {
                            version: says.into(),
                            server_name: "b.test".into(),
                            peer: claim,
                            authenticate_time,
                            ..named(&connection.id, "bb")
                        };
                        // Twice, because the first put must not change the outcome of the second.
                        for _ in 0..2 {
                            let reason = served.put(again.clone()).await.reason;
                            let tls12 = [version, says].contains(&pb::ProtocolVersion::Tls12);
                            assert_eq!(
                                reason,
                                if tls12 { "RESUMED" } else { "REVOKED" },
                                "{selector:?}"
                            );
                        }
                        served.free(&connection.id).await;
                    }
                }
            }
        }
    }
    assert_eq!(served.stored().await, []);
}

// Invariant 15.
#[tokio::test]
async fn resumption_keeps_the_peer_identity_known_to_the_daemon() {
    let mut served = started().await;
    for (place, selector) in selectors().into_iter().enumerate() {
        for single_use in [true, false] {
            for (number, claim) in claims().into_iter().enumerate() {
                let id = format!("a{place}{number}{}", u8::from(single_use));
                served
                    .keep(
                        "",
                        pb::PutSessionRequest {
                            single_use,
                            ..named("", &id)
                        },
                    )
                    .await;
                let authenticated = served.taken(&id).await;
                let connection = served.resumed("", &id).await.id;
                let next = pb::PutSessionRequest {
                    server_name: "b.test".into(),
                    peer: claim,
                    authenticate_time: served.stamp().await,
                    ..ticket(&connection, "bb")
                };
                let stored = served.put(next).await.session.unwrap();
                assert_eq!(stored.peer, Some(peer()), "the peer's identity has changed");
                assert_eq!(
                    (stored.authenticate_time, stored.server_name.as_str()),
                    (authenticated, "a.test")
                );
                // The selector covers the resumed session as well, where the cache still has it.
                assert_eq!(
                    served.revoke(selector.clone()).await,
                    if single_use { 1 } else { 2 },
                    "{selector:?}"
                );
                assert_eq!(served.stored().await, []);
                served.free(&connection).await;
            }
        }
    }
}

#[tokio::test]
async fn resumption_adds_no_identity_to_an_anonymous_peer() {
    let mut served = started().await;
    served
        .keep(
            "",
            pb::PutSessionRequest {
                peer: None,
                ..named("", "aa")
            },
        )
        .await;
    served.taken("aa").await;
    let connection = served.resumed("", "aa").await.id;
    let stored = served
        .put(pb::PutSessionRequest {
            peer: Some(other_peer()),
            ..named(&connection, "ab")
        })
        .await;
    assert_eq!(stored.session.unwrap().peer, None);
    assert_eq!(served.look(&connection).await.peer, None);
}

// Invariant 15.
#[tokio::test]
async fn resumption_of_a_forgotten_session_stores_nothing() {
    let mut served = started().await;
    served.keep("", ticket("", "ffff")).await;
    let before = served
        .lookup("", "ffff")
        .await
        .session
        .unwrap()
        .authenticate_time;
    take_many(&mut served, 40_000).await;
    let told = served.explain("", "ffff").await;
    assert_eq!(
        told.removal_reason(),
        pb::RemovalReason::Unspecified,
        "still known: {}",
        told.summary
    );

    let tries = async |served: &mut Served| {
        for authenticate_time in [None, before, served.stamp().await] {
            for claim in [None, Some(peer()), Some(other_peer())] {
                let connection = served.resumed("", "ffff").await;
                assert_eq!((connection.session_reused, connection.peer), (true, None));
                let next = pb::PutSessionRequest {
                    authenticate_time,
                    peer: claim,
                    ..ticket(&connection.id, "bb")
                };
                // Twice, because the first put must tell the connection nothing.
                for _ in 0..2 {
                    assert_eq!(
                        served.put(next.clone()).await.reason,
                        "AUTHENTICATION_UNKNOWN"
                    );
                }
                served.free(&connection.id).await;
            }
        }
    };
    // Also before any revocation, because a later revocation by name could not match the new
    // session.
    tries(&mut served).await;
    served.revoke(Selector::Uri(peer().uris.remove(0))).await;
    tries(&mut served).await;
    assert_eq!(served.stored().await, []);
}

/// Stores this many tickets and consumes them.
async fn take_many(served: &mut Served, count: usize) {
    let (calls, receiver) = mpsc::channel(16);
    let mut answers = served
        .guest
        .workers
        .attach(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<_> = (0..count).map(|number| format!("{number:08x}")).collect();
    // A connection has at most 64 sessions.
    for (number, ids) in ids.chunks(64).enumerate() {
        let alias = || "@1".to_owned();
        let make = Method::New(worker(pb::Role::Server).into());
        let mut batch = vec![pb::Call {
            alias: alias(),
            ..call(0, make)
        }];
        batch.extend(
            ids.iter()
                .map(|id| call(0, Method::PutSession(ticket(&alias(), id).into()))),
        );
        batch.extend(
            ids.iter()
                .map(|id| call(1 + number as u64, Method::LookupSession(lookup(id).into()))),
        );
        batch.push(call(
            0,
            Method::Free(pb::FreeRequest {
                connection_id: alias(),
                allow_missing: false,
            }),
        ));
        calls
            .send(pb::AttachRequest { calls: batch })
            .await
            .unwrap();
        let mut found = 0;
        while found < ids.len() {
            for answer in answers
                .message()
                .await
                .unwrap()
                .expect("the stream ended")
                .answers
            {
                match answer.result {
                    Some(pb::answer::Result::LookupSession(answer)) if answer.found => found += 1,
                    other => panic!("not found: {other:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn late_ticket_has_the_authentication_time_of_its_handshake() {
    let mut served = started().await;
    for (place, selector) in selectors().into_iter().enumerate() {
        let connection = served.resumed("", "").await.id;
        let first = served
            .put(pb::PutSessionRequest {
                single_use: true,
                ..named(&connection, &format!("a{place}"))
            })
            .await;
        let authenticated = first.session.unwrap().authenticate_time;
        // Time passes, so that a later authentication time would differ.
        let passes = async { while served.stamp().await == authenticated {} };
        timeout(PATIENCE, passes)
            .await
            .expect("the clock stands still");
        let late = pb::PutSessionRequest {
            peer: None,
            ..named(&connection, &format!("b{place}"))
        };
        let stored = served.put(late.clone()).await.session.unwrap();
        assert_eq!(
            (stored.authenticate_time, stored.peer),
            (authenticated, Some(peer()))
        );

        assert_eq!(served.revoke(selector.clone()).await, 2, "{selector:?}");
        for authenticate_time in [None, authenticated, served.stamp().await] {
            for claim in claims() {
                let request = pb::PutSessionRequest {
                    peer: claim,
                    authenticate_time,
                    ..late.clone()
                };
                assert_eq!(served.put(request).await.reason, "REVOKED", "{selector:?}");
            }
        }
        // Another handshake on the object is another authentication.
        served
            .guest
            .connections
            .clear(pb::ClearRequest {
                connection_id: connection.clone(),
            })
            .await
            .unwrap();
        assert_eq!(served.put(named(&connection, "cc")).await.reason, "");
        served.free(&connection).await;
        assert_eq!(served.stored().await, []);
    }
}

#[tokio::test]
async fn revocation_covers_late_tickets_of_the_daemons_engine() {
    let mut served = Served::start(|folder| context(folder, "default", "1.3", "")).await;
    for (selector, covers) in [
        (Selector::All(true), true),
        (Selector::DnsName("localhost".into()), true),
        (Selector::ServerName("localhost".into()), true),
        (Selector::DnsName("other.test".into()), false),
    ] {
        let [client, server] = served.ends().await;
        let hello = served
            .guest
            .exchange(&client, Bytes::new(), Bytes::new())
            .await
            .ciphertext;
        let flight = served
            .guest
            .exchange(&server, hello, Bytes::new())
            .await
            .ciphertext;
        let finished = served
            .guest
            .exchange(&client, flight, Bytes::new())
            .await
            .ciphertext;
        assert_eq!(
            served.look(&client).await.state(),
            pb::ConnectionState::Established
        );
        // The tickets are on the wire while the server's certificate is revoked.
        let tickets = served
            .guest
            .exchange(&server, finished, Bytes::new())
            .await
            .ciphertext;
        assert!(!tickets.is_empty());
        served.revoke(selector.clone()).await;
        served.guest.exchange(&client, tickets, Bytes::new()).await;
        let stored = served.stored().await;
        let of_client = stored
            .iter()
            .filter(|session| session.role() == pb::Role::Client)
            .count();
        assert_eq!(of_client, if covers { 0 } else { 2 }, "{selector:?}");
        assert_eq!(served.look(&client).await.session_id.is_empty(), covers);
        for id in [client, server] {
            served.free(&id).await;
        }
    }
}

#[tokio::test]
async fn unknown_session_inherits_no_peer_of_an_earlier_handshake() {
    let mut served = started().await;
    let connection = served.resumed("", "").await.id;
    assert_eq!(served.put(ticket(&connection, "aa")).await.reason, "");
    served.shutdown(&connection).await;
    let seen = served.set_session(&connection, "ffff").await;
    assert_eq!((seen.session_reused, seen.peer), (true, None));
    assert_eq!(
        served.put(ticket(&connection, "ab")).await.reason,
        "AUTHENTICATION_UNKNOWN"
    );
}

#[tokio::test]
async fn resumption_of_a_removed_session_stores_nothing() {
    let mut served = started().await;
    // Removed with its connection, and by an administrator.
    let open = served.resumed("", "").await.id;
    assert_eq!(served.put(named(&open, "a1")).await.reason, "");
    served.keep("", named("", "a2")).await;
    let mut stamps = Vec::new();
    for id in ["a1", "a2"] {
        stamps.push(served.taken(id).await);
    }
    served.free(&open).await;
    let remove = pb::RemoveSessionRequest {
        session_id: "a2".into(),
        role: pb::Role::Server.into(),
        ..Default::default()
    };
    assert!(
        served
            .guest
            .sessions
            .remove_session(remove)
            .await
            .unwrap()
            .into_inner()
            .removed
    );
    for (id, authenticate_time) in ["a1", "a2"].into_iter().zip(stamps) {
        let connection = served.resumed("", id).await.id;
        let next = pb::PutSessionRequest {
            authenticate_time,
            ..named(&connection, "bb")
        };
        assert_eq!(
            served.put(next).await.reason,
            "AUTHENTICATION_UNKNOWN",
            "{id}"
        );
    }
    assert_eq!(served.stored().await, []);
}

#[tokio::test]
async fn evicted_session_keeps_its_authentication_record() {
    let small = "cache_entries_max = 1";
    let mut served = Served::start(|folder| context(folder, "default", "1.3", small)).await;
    served.keep("", named("", "aa")).await;
    let authenticated = served.taken("aa").await;
    // Later puts evict it, or are evicted themselves.
    let mut number = 0;
    while served.explain("", "aa").await.removal_reason() != pb::RemovalReason::CacheFull {
        number += 1;
        assert!(number < 100, "the session is never evicted");
        served.keep("", put("", &format!("b{number:03}"))).await;
    }
    let connection = served.resumed("", "aa").await;
    assert_eq!(connection.peer, Some(peer()));
    let next = pb::PutSessionRequest {
        peer: None,
        ..named(&connection.id, "cc")
    };
    let stored = served.put(next).await.session.unwrap();
    assert_eq!(
        (stored.authenticate_time, stored.peer),
        (authenticated, Some(peer()))
    );
}
