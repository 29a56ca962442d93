//! What reaches every daemon: revocations, removals, explanations, scopes by names, and new keys.

use rustls::version::TLS13;
use tls_sessiond_proto::{self as pb, revoke_sessions_request::Selector};

use super::{
    Kind, StoreServer,
    server::KEY,
    sharing::{Three, by_exchange},
};
use crate::{
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    pki::Authority,
    returning::{Certificate, Returning},
};

const OTHER_KEY: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

async fn revoke(daemon: &TestDaemon, selector: Selector) {
    let request = pb::RevokeSessionsRequest {
        selector: Some(selector),
        ..Default::default()
    };
    daemon.sessions().revoke_sessions(request).await.unwrap();
}

async fn explain(daemon: &TestDaemon, id: &str) -> pb::ExplainSessionResponse {
    let request = pb::ExplainSessionRequest {
        role: pb::Role::Server.into(),
        session_id: id.into(),
        ..Default::default()
    };
    let explained = daemon.sessions().explain_session(request).await;
    explained.unwrap().into_inner()
}

/// Stores a session whose connection is then closed.
async fn keep(daemon: &TestDaemon, request: pb::PutSessionRequest) {
    let by = Worker(daemon);
    let id = by.open(worker(pb::Role::Server)).await.id;
    let request = pb::PutSessionRequest {
        connection_id: id.clone(),
        ..request
    };
    assert_eq!(by.put(request).await.reason, "");
    by.shutdown(&id).await;
    by.free(&id).await;
}

#[tokio::test]
async fn revoked_sessions_are_resumed_by_no_daemon() {
    for kind in Kind::ALL {
        let three = Three::start(kind).await;
        let of = |uri: &str, id: &str| pb::PutSessionRequest {
            peer: Some(pb::PeerIdentity {
                certificate_sha256: "ab".repeat(32),
                uris: vec![uri.into()],
                ..Default::default()
            }),
            ..put("", id)
        };
        keep(&three.daemons[0], of("spiffe://a.test/bad", "aa")).await;
        keep(&three.daemons[0], of("spiffe://a.test/good", "bb")).await;
        keep(&three.daemons[1], of("spiffe://a.test/bad", "cc")).await;
        revoke(
            &three.daemons[2],
            Selector::Uri("spiffe://a.test/bad".into()),
        )
        .await;
        // The answer means that it is in force everywhere: no daemon gets a moment more.
        for daemon in &three.daemons {
            for id in ["aa", "cc"] {
                let missed = Worker(daemon).lookup(lookup(id)).await;
                assert!(!missed.found, "{kind:?}: {id} is revoked");
            }
        }
        for daemon in &three.daemons {
            daemon
                .until("others are resumed", async |daemon| {
                    Worker(daemon).found("bb").await
                })
                .await;
            let missed = Worker(daemon).lookup(lookup("aa")).await;
            assert_eq!(missed.miss_reason(), pb::MissReason::Revoked);
        }
        // A daemon that starts later knows of it before it is ready.
        let config = three.certificate.context() + &three.server.config();
        let later = TestDaemon::by_real_time(&config).await;
        let missed = Worker(&later).lookup(lookup("cc")).await;
        assert_eq!(missed.miss_reason(), pb::MissReason::Revoked);
        assert!(Worker(&later).found("bb").await);
        // A store that has lost the revocation gets it back from a daemon that knows it.
        let keys: Vec<String> = three.server.run(&["KEYS", "*:r"]);
        let _: i64 = three.server.run(&["DEL", &keys[0]]);
        revoke(
            &three.daemons[0],
            Selector::Uri("spiffe://a.test/other".into()),
        )
        .await;
        let length: i64 = three.server.run(&["HLEN", &keys[0]]);
        assert_eq!(length, 3, "two revocations and their version");
    }
}

#[tokio::test]
async fn revocation_without_a_store_is_told_to_the_caller() {
    let three = Three::start(Kind::Redis).await;
    three.server.signal("STOP");
    let request = pb::RevokeSessionsRequest {
        selector: Some(Selector::All(true)),
        ..Default::default()
    };
    let refused = three.daemons[0].sessions().revoke_sessions(request).await;
    let refused = refused.unwrap_err();
    assert_eq!(crate::harness::reason(&refused), "STORE_UNAVAILABLE");
    let removed = three.daemons[0]
        .sessions()
        .remove_session(pb::RemoveSessionRequest {
            role: pb::Role::Server.into(),
            session_id: "aa".into(),
            ..Default::default()
        })
        .await;
    assert_eq!(
        crate::harness::reason(&removed.unwrap_err()),
        "STORE_UNAVAILABLE"
    );
    three.server.signal("CONT");
    three.daemons[1]
        .until("the queued removal is delivered", async |daemon| {
            explain(daemon, "aa").await.removal_reason() == pb::RemovalReason::Removed
        })
        .await;
}

#[tokio::test]
async fn explanations_say_what_the_store_has() {
    let three = Three::start(Kind::Valkey).await;
    let by = Worker(&three.daemons[0]);
    let open = by.established("aa").await;
    let held = explain(&three.daemons[1], "aa").await;
    assert!(held.resumable);
    assert_eq!(held.session.unwrap().open_connections, 1);
    by.free(&open).await;
    three.daemons[1]
        .until("its end is known", async |daemon| {
            explain(daemon, "aa").await.removal_reason() == pb::RemovalReason::Unclosed
        })
        .await;
    keep(&three.daemons[0], put("", "bb")).await;
    let removed = three.daemons[2]
        .sessions()
        .remove_session(pb::RemoveSessionRequest {
            role: pb::Role::Server.into(),
            session_id: "bb".into(),
            ..Default::default()
        })
        .await;
    assert!(removed.unwrap().into_inner().removed);
    let gone = explain(&three.daemons[1], "bb").await;
    assert_eq!(
        (gone.miss_reason(), gone.removal_reason()),
        (pb::MissReason::Removed, pb::RemovalReason::Removed)
    );
    let unknown = explain(&three.daemons[1], "ff").await;
    assert_eq!(unknown.miss_reason(), pb::MissReason::Unknown);
    assert!(
        unknown.summary.contains("shared store"),
        "{}",
        unknown.summary
    );

    let listed = three.daemons[0]
        .contexts()
        .list_contexts(pb::ListContextsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(listed.contexts[0].shared_sessions);
    let store = listed.daemon.unwrap().shared_store.unwrap();
    assert_eq!(store.open_parts, 64);
    assert_eq!(
        store.address,
        format!("redis://127.0.0.1:{}", three.server.port)
    );
    assert!(store.requests > 0 && store.unopened == 0, "{store:?}");
}

#[tokio::test]
async fn certificates_of_the_same_names_share_sessions_by_names() {
    let (authority, server) = (Authority::new("pods"), StoreServer::start(Kind::Valkey));
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let daemon = async |name: &str, scope_by: &str| {
        // Each pod has a certificate and a key of its own.
        authority.leaf(&["localhost"]).write(folder.path(), name);
        let path = |ending: &str| folder.path().join(name).with_extension(ending);
        let (certificate, key) = (path("crt"), path("key"));
        let context = format!(
            "[[context]]\ncertificate = {certificate:?}\nkey = {key:?}\nca = {ca:?}\nscope_by = \"{scope_by}\"\n"
        );
        TestDaemon::by_real_time(&(context + &server.config())).await
    };
    let (one, two, strict) = tokio::join!(
        daemon("one", "names"),
        daemon("two", "names"),
        daemon("three", "certificate")
    );
    keep(&one, put("", "aa")).await;
    assert!(Worker(&two).found("aa").await);
    assert!(!Worker(&strict).found("aa").await);
    // A pod that is replaced has another certificate again.
    drop(one);
    let next = daemon("four", "names").await;
    assert!(Worker(&next).found("aa").await);
}

#[tokio::test]
async fn sealing_keys_rotate_under_traffic() {
    let (certificate, server) = (Certificate::new(), StoreServer::start(Kind::Redis));
    let config = certificate.context() + &server.config();
    let (one, two) = tokio::join!(
        TestDaemon::by_real_time(&config),
        TestDaemon::by_real_time(&config)
    );
    let file = server.folder.path().join("keys");
    keep(&one, put("", "a0")).await;
    // First every daemon can open the new key, then it seals, then the old one goes.
    for (step, text) in [
        format!("{KEY}\nnew:{OTHER_KEY}\nnames:{KEY}"),
        format!("new:{OTHER_KEY}\n{KEY}\nnames:{KEY}"),
    ]
    .iter()
    .enumerate()
    {
        // `names` repeats the old key, which the first form of the file used for names.
        std::fs::write(&file, text).unwrap();
        for daemon in [&one, &two] {
            daemon.reload(&config).unwrap();
        }
        let id = format!("a{}", step + 1);
        keep(&one, put("", &id)).await;
        for id in ["a0", &id] {
            assert!(Worker(&two).found(id).await, "step {step}: {id}");
        }
    }
    std::fs::write(&file, format!("new:{OTHER_KEY}\nnames:{KEY}")).unwrap();
    two.reload(&config).unwrap();
    let missed = Worker(&two).lookup(lookup("a0")).await;
    assert_eq!(missed.miss_reason(), pb::MissReason::StoreUnavailable);
    assert!(Worker(&two).found("a2").await, "sealed with the new key");
    let refused = |text: &str| {
        std::fs::write(&file, text).unwrap();
        two.reload(&config).unwrap_err().to_string()
    };
    for (text, why) in [
        (OTHER_KEY, "the key of names has changed"),
        ("", "there is no sealing key"),
        (&KEY[1..], "line 1"),
    ] {
        let error = refused(text);
        assert!(error.contains("store.redis.sealing_keys"), "{error}");
        assert!(error.contains(why), "{error}");
        assert!(!error.contains(&KEY[1..9]), "{error}");
    }
    assert!(Worker(&two).found("a2").await, "nothing has changed");
}

#[tokio::test]
async fn store_shows_no_id_no_name_and_no_secret_of_a_session() {
    let three = Three::start(Kind::Redis).await;
    let request = pb::PutSessionRequest {
        data: "marker of the secret".into(),
        binding: "marker of the binding".into(),
        server_name: "marker.test".into(),
        peer: Some(pb::PeerIdentity {
            certificate_sha256: "cd".repeat(32),
            dns_names: vec!["marker.peer.test".into()],
            ..Default::default()
        }),
        ..put("", "6d61726b6572206f6620746865206964")
    };
    keep(&three.daemons[0], request).await;
    let client = Returning::new(&three.certificate, &TLS13);
    by_exchange(&three.daemons[0], &client).await;
    revoke(
        &three.daemons[0],
        Selector::DnsName("marker.peer.test".into()),
    )
    .await;
    let _: () = three.server.run(&["SAVE"]);
    let dump = std::fs::read(three.server.folder.path().join("dump.rdb")).unwrap();
    assert!(dump.len() > 500, "the dump has the sessions");
    for marker in [
        "marker",
        "localhost",
        "default",
        "openssl",
        "rustls",
        "master",
    ] {
        let there = memchr::memmem::find(&dump, marker.as_bytes());
        assert!(there.is_none(), "{marker}");
    }
}
