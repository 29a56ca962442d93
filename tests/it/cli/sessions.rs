//! `sessions list`, `show`, `explain`, `remove` and `revoke`.

use tls_sessiond_proto as pb;

use super::ask;
use crate::{
    calls::{Worker, put, worker},
    harness::{TestDaemon, new},
};

const FIRST: &str = "aa11bb22cc33dd44ee55ff66aa11bb22cc33dd44ee55ff66aa11bb22cc33dd44";
const SECOND: &str = "aa11bb22cc33dd44ee55ff66aa11bb22cc33dd44ee55ff66aa11bb22cc33dd45";

/// Stores a session under a server name on a connection of its own.
async fn stored(daemon: &TestDaemon, session_id: &str, server_name: &str) {
    let calls = Worker(daemon);
    let id = calls.open(worker(pb::Role::Server)).await.id;
    let request = pb::PutSessionRequest {
        server_name: server_name.into(),
        ..put(&id, session_id)
    };
    assert_eq!(calls.put(request).await.reason, "");
}

async fn ids(daemon: &TestDaemon, filter: &str) -> Vec<String> {
    let json = ask(daemon, &format!("sessions list -o json{filter}"))
        .await
        .json();
    let listed = json["sessions"].as_array().unwrap().clone();
    let mut found: Vec<_> = listed
        .iter()
        .map(|held| held["id"].as_str().unwrap().to_owned())
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn sessions_are_listed_and_filtered() {
    let daemon = TestDaemon::start().await;
    assert!(ids(&daemon, "").await.is_empty());
    stored(&daemon, FIRST, "a.test").await;
    stored(&daemon, SECOND, "b.test").await;
    assert_eq!(ids(&daemon, "").await, [FIRST, SECOND]);
    assert_eq!(ids(&daemon, " --server-name b.test").await, [SECOND]);
    assert_eq!(
        ids(&daemon, " --role server --context default").await,
        [FIRST, SECOND]
    );
    assert!(ids(&daemon, " --role client").await.is_empty());

    let table = ask(&daemon, "sessions list --server-name a.test")
        .await
        .ok();
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        row[..9],
        [
            &FIRST[..16],
            "default",
            "server",
            "TLS",
            "1.2",
            "a.test",
            "openssl",
            "many",
            "1"
        ]
    );
    let ran = ask(&daemon, "sessions list --limit 1").await;
    assert!(
        ran.status == 0 && ran.err.contains("only the first 1 sessions"),
        "{ran:?}"
    );
    let err = ask(&daemon, "sessions list --context nowhere")
        .await
        .failed(1);
    assert!(err.contains("CONTEXT_NOT_FOUND"), "{err}");
}

#[tokio::test]
async fn a_session_is_shown_by_its_first_digits() {
    let daemon = TestDaemon::start().await;
    stored(&daemon, FIRST, "a.test").await;
    let text = ask(&daemon, "sessions show AA:11:B").await.ok();
    for line in [
        format!("id                {FIRST}"),
        "server name       a.test".into(),
        "format            openssl".into(),
        "open connections  1".into(),
    ] {
        assert!(text.lines().any(|held| held == line), "{line}:\n{text}");
    }
    stored(&daemon, SECOND, "a.test").await;
    let err = ask(&daemon, "sessions show aa11").await.failed(1);
    for said in ["names 2 sessions", FIRST, SECOND, "--role server"] {
        assert!(err.contains(said), "{said}: {err}");
    }
    let json = ask(&daemon, &format!("sessions show {SECOND} -o json"))
        .await
        .json();
    assert_eq!(json["id"], SECOND);
    let err = ask(&daemon, "sessions show bb").await.failed(1);
    assert!(err.contains("no session has the id `bb`"), "{err}");
    ask(&daemon, "sessions show aa11 --role client")
        .await
        .failed(1);
}

#[tokio::test]
async fn an_id_is_explained_before_and_after_its_removal() {
    let daemon = TestDaemon::start().await;
    stored(&daemon, FIRST, "a.test").await;
    for spelled in [
        FIRST.to_owned(),
        FIRST.to_uppercase(),
        "aa1".into(),
        "aa".into(),
    ] {
        let json = ask(&daemon, &format!("sessions explain {spelled} -o json"))
            .await
            .json();
        assert_eq!(json["resumable"], true, "{spelled}");
        assert_eq!(json["session"]["id"], FIRST, "{spelled}");
    }
    let text = ask(&daemon, "sessions explain aa1").await.ok();
    assert!(text.contains("\nresumable  yes\n"), "{text}");

    let out = ask(&daemon, "sessions remove aa1").await.ok();
    assert_eq!(out, format!("removed {FIRST}\n"));
    assert!(!Worker(&daemon).found(FIRST).await);
    let explain = format!("sessions explain {FIRST} --role server -o json");
    let json = ask(&daemon, &explain).await.json();
    assert_eq!(json["resumable"], false);
    assert_eq!(json["removalReason"], "REMOVAL_REASON_REMOVED");
    let text = ask(&daemon, &format!("sessions explain {FIRST}"))
        .await
        .ok();
    assert!(text.contains("\nremoval    removed\n"), "{text}");

    // An id that was never there: the daemon's summary, and the answer no.
    let ran = ask(&daemon, "sessions explain bbbb").await;
    assert_eq!((ran.status, &*ran.err), (1, ""), "{ran:?}");
    assert!(ran.out.contains("miss       unknown"), "{ran:?}");
    ask(&daemon, "sessions explain bbb").await.failed(1);
    let err = ask(&daemon, &format!("sessions remove {FIRST}"))
        .await
        .failed(1);
    assert!(err.contains("no session has the id"), "{err}");
}

/// The session of a client's connection is not among those of servers, where the id is tried first.
#[tokio::test]
async fn a_session_of_a_client_is_found_without_its_role() {
    let daemon = TestDaemon::start().await;
    let calls = Worker(&daemon);
    let request = pb::NewRequest {
        engine: pb::Engine::Worker.into(),
        ..new("", pb::Role::Client)
    };
    let connection = calls.open(request).await.id;
    let request = pb::PutSessionRequest {
        server_name: "localhost".into(),
        ..put(&connection, "")
    };
    let id = calls.put(request).await.session.unwrap().id;
    let json = ask(&daemon, &format!("sessions explain {id} -o json"))
        .await
        .json();
    assert_eq!(json["session"]["role"], "ROLE_CLIENT");
    ask(&daemon, &format!("sessions remove {}", &id[..5]))
        .await
        .ok();
    assert!(ids(&daemon, "").await.is_empty());
}

#[tokio::test]
async fn sessions_are_revoked_with_a_confirmation_only() {
    let daemon = TestDaemon::start().await;
    stored(&daemon, FIRST, "a.test").await;
    stored(&daemon, SECOND, "b.test").await;
    let err = ask(&daemon, "sessions revoke --server-name a.test")
        .await
        .failed(2);
    assert!(err.contains("--yes"), "{err}");
    assert_eq!(ids(&daemon, "").await.len(), 2);

    let out = ask(&daemon, "sessions revoke --server-name a.test --yes")
        .await
        .ok();
    assert!(out.contains("with the server name a.test"), "{out}");
    assert!(out.contains("1 were removed at once"), "{out}");
    assert_eq!(ids(&daemon, "").await, [SECOND]);

    // The session is younger than this time.
    let before = "sessions revoke --all --context default --before 2001-01-01T00:00:00Z --yes";
    let json = ask(&daemon, &format!("{before} -o json")).await.json();
    assert_eq!(json["removed"], "0");
    assert_eq!(json["before"], "2001-01-01T00:00:00Z");
    let json = ask(&daemon, "sessions revoke --all --yes -o json")
        .await
        .json();
    assert_eq!(json["removed"], "1");
    assert!(ids(&daemon, "").await.is_empty());

    let err = ask(&daemon, "sessions revoke --certificate-sha256 abc --yes")
        .await
        .failed(1);
    assert!(err.contains("CERTIFICATE_SHA256_MALFORMED"), "{err}");
    for selector in ["--uri spiffe://example.org/a", "--dns-name a.test"] {
        ask(&daemon, &format!("sessions revoke {selector} --yes"))
            .await
            .ok();
    }
}
