//! Connections whose TLS runs in the worker: a lookup under another policy does not find their
//! sessions.

use tls_sessiond_proto as pb;

use super::{At, Site, VERSIONS, asks, at};

/// Asserts that a session of a worker's server made at `here` is found at `here`, and not at
/// `there`.
pub(super) async fn servers_apart(site: &Site, here: At, there: At) {
    let put = put(site, here, pb::Role::Server, b"").await;
    if here.0 != there.0 {
        site.refuses(&at(there, pb::Role::Server), &put.id).await;
    }
    assert_miss(site, there, lookup(&put, there)).await;
    assert_found(site, lookup(&put, here)).await;
}

/// Asserts that a session of a worker's client got at `here` is found at `here`. It is not found at
/// `there`, neither by its id nor as the newest one.
pub(super) async fn clients_apart(site: &Site, here: At, there: At) {
    let put = put(site, here, pb::Role::Client, b"").await;
    site.refuses(&at(there, pb::Role::Client), &put.id).await;
    let newest = |place| pb::LookupSessionRequest {
        session_id: String::new(),
        ..lookup(&put, place)
    };
    assert_miss(site, there, lookup(&put, there)).await;
    assert_miss(site, there, newest(there)).await;
    assert_found(site, newest(here)).await;
}

/// Asserts that within one context a lookup finds a session only with an equal binding and an equal
/// format.
pub(super) async fn bindings_apart(site: &Site, place: At, one: &str, two: &str) {
    let put = put(site, place, pb::Role::Server, one.as_bytes()).await;
    let asked = pb::LookupSessionRequest {
        binding: one.to_owned().into(),
        ..lookup(&put, place)
    };
    for binding in [two, "", &one[1..]] {
        let other = pb::LookupSessionRequest {
            binding: binding.to_owned().into(),
            ..asked.clone()
        };
        assert_miss(site, place, other).await;
    }
    assert_miss(
        site,
        place,
        pb::LookupSessionRequest {
            format: "go".into(),
            ..asked.clone()
        },
    )
    .await;
    assert_found(site, asked).await;
}

#[tokio::test]
async fn stunnel_cve_2015_3644_verdict_of_a_workers_session() {
    // CVE-2015-3644, stunnel, for a worker that runs TLS itself: a lookup returns the session with
    // its verdict, and without one if there was none.
    for version in VERSIONS {
        let contexts = [
            ("redirect", asks("a", "request", "one")),
            ("inside", asks("a", "require", "one")),
        ];
        let site = Site::start(version, &contexts).await;
        let gate = At("redirect", "a.test");
        let alice = pb::PeerIdentity {
            certificate_sha256: "ab".repeat(32),
            subject: "CN=alice".into(),
            ..Default::default()
        };
        for peer in [Some(alice), None] {
            let id = site.open(worker(gate, pb::Role::Server)).await.id;
            let request = pb::PutSessionRequest {
                peer: peer.clone(),
                ..to_put(&site, &id, gate.1, b"")
            };
            let put = site
                .daemon
                .sessions()
                .put_session(request)
                .await
                .unwrap()
                .into_inner()
                .session
                .unwrap();
            site.close(&id).await;
            assert_eq!(put.peer, peer);

            // New gets only the id, while the session is in the cache.
            let named = pb::NewRequest {
                session_id: put.id.clone(),
                ..worker(gate, pb::Role::Server)
            };
            let resumed = site.open(named).await;
            assert_eq!((resumed.session_reused, &resumed.peer), (true, &peer));
            site.close(&resumed.id).await;
            site.daemon
                .clock
                .advance(std::time::Duration::from_secs(60));
            assert_miss(
                &site,
                At("inside", gate.1),
                lookup(&put, At("inside", gate.1)),
            )
            .await;
            let found = assert_found(&site, lookup(&put, gate)).await;
            assert_eq!(
                (&found.peer, found.authenticate_time),
                (&peer, put.authenticate_time)
            );
        }
        site.daemon.stop().await;
    }
}

pub(super) fn worker(place: At, role: pb::Role) -> pb::NewRequest {
    pb::NewRequest {
        engine: pb::Engine::Worker.into(),
        ..at(place, role)
    }
}

/// Returns a request to store a session of this connection. Its id is the connection's, which is
/// unique.
pub(super) fn to_put(
    site: &Site,
    connection_id: &str,
    server_name: &str,
    binding: &[u8],
) -> pb::PutSessionRequest {
    let tls13 = site.version.version == rustls::ProtocolVersion::TLSv1_3;
    let version = if tls13 {
        pb::ProtocolVersion::Tls13
    } else {
        pb::ProtocolVersion::Tls12
    };
    pb::PutSessionRequest {
        connection_id: connection_id.into(),
        session_id: connection_id.into(),
        data: "master secret".into(),
        format: "openssl".into(),
        single_use: tls13,
        version: version.into(),
        server_name: server_name.into(),
        binding: binding.to_vec().into(),
        ..Default::default()
    }
}

/// Stores a session and closes its connection.
pub(super) async fn put(site: &Site, place: At, role: pb::Role, binding: &[u8]) -> pb::Session {
    let id = site.open(worker(place, role)).await.id;
    let mut request = to_put(site, &id, place.1, binding);
    if role == pb::Role::Client {
        request.session_id.clear();
    }
    let stored = site
        .daemon
        .sessions()
        .put_session(request)
        .await
        .unwrap()
        .into_inner();
    site.close(&id).await;
    stored.session.expect(&stored.reason)
}

pub(super) fn lookup(put: &pb::Session, place: At) -> pb::LookupSessionRequest {
    pb::LookupSessionRequest {
        context: place.0.into(),
        role: put.role,
        session_id: put.id.clone(),
        server_name: place.1.into(),
        format: put.format.clone(),
        binding: Vec::new().into(),
    }
}

pub(super) async fn assert_miss(site: &Site, place: At, request: pb::LookupSessionRequest) {
    let answer = site
        .daemon
        .sessions()
        .lookup_session(request)
        .await
        .unwrap()
        .into_inner();
    assert!(
        !answer.found && answer.data.is_empty() && answer.session.is_none(),
        "{place:?}: {answer:?}"
    );
}

pub(super) async fn assert_found(site: &Site, request: pb::LookupSessionRequest) -> pb::Session {
    let answer = site
        .daemon
        .sessions()
        .lookup_session(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(
        answer.found && answer.data == "master secret",
        "{request:?}: {answer:?}"
    );
    answer.session.unwrap()
}
