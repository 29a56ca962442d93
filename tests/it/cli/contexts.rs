//! `contexts` and `health`, in every form of output.

use super::ask;
use crate::{
    calls::{Worker, put, worker},
    harness::TestDaemon,
};
use tls_sessiond_proto as pb;

#[tokio::test]
async fn contexts_are_listed_with_their_counters() {
    let daemon = TestDaemon::start().await;
    let worker = Worker(&daemon);
    worker.established("abcd").await;
    assert!(worker.found("abcd").await);

    let table = ask(&daemon, "contexts list").await.ok();
    let lines: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0][..3], ["NAME", "SESSIONS", "MAX/ROLE"]);
    assert_eq!(lines[1][..2], ["default", "1"]);
    assert_eq!(lines.len(), 2);

    let json = ask(&daemon, "contexts list -o json").await.json();
    assert_eq!(json["contexts"][0]["stats"]["sessions"], "1");
    assert_eq!(json["contexts"].as_array().unwrap().len(), 1);
    assert_eq!(json["daemon"]["streamLimitReached"], "0");
    let yaml = ask(&daemon, "contexts list --output yaml").await.ok();
    assert!(
        yaml.starts_with("contexts:\n  -\n    name: default\n"),
        "{yaml}"
    );
    assert!(yaml.contains("      sessions: \"1\"\n"), "{yaml}");
}

#[tokio::test]
async fn one_context_is_shown_with_its_settings() {
    let daemon = TestDaemon::start().await;
    let worker_calls = Worker(&daemon);
    let id = worker_calls.open(worker(pb::Role::Server)).await.id;
    worker_calls.put(put(&id, "ab")).await;
    worker_calls.free(&id).await;

    let text = ask(&daemon, "contexts show default").await.ok();
    for line in [
        "name                  default",
        "versions              TLS 1.2, TLS 1.3",
        "close policy          flag",
        "unclosed              1",
        "unclosed      1",
    ] {
        assert!(text.lines().any(|held| held == line), "{line}:\n{text}");
    }
    assert!(text.contains("\nREMOVALS\n"), "{text}");
    let json = ask(&daemon, "contexts show default -o json").await.json();
    assert_eq!(json["name"], "default");
    assert_eq!(
        json["stats"]["removalsByReason"][0]["reason"],
        "REMOVAL_REASON_UNCLOSED"
    );

    let err = ask(&daemon, "contexts show nowhere").await.failed(1);
    assert!(err.contains("NOT_FOUND CONTEXT_NOT_FOUND: "), "{err}");
}

#[tokio::test]
async fn health_is_a_word_and_a_status() {
    let mut daemon = TestDaemon::with("[drain]\ndelay = \"60s\"\ntimeout = \"1ms\"\n").await;
    assert_eq!(ask(&daemon, "health").await.ok(), "serving\n");
    let json = ask(&daemon, "health -o json").await.json();
    assert_eq!(json["status"], "SERVING");
    let session = "tls.sessiond.v1.SessionService";
    let out = ask(&daemon, &format!("health --service {session}"))
        .await
        .ok();
    assert_eq!(out, "serving\n");
    let err = ask(&daemon, "health --service no.such.Service")
        .await
        .failed(1);
    assert!(err.contains("NOT_FOUND"), "{err}");

    daemon.begin_stop();
    daemon
        .until("health turns", async |daemon| {
            let ran = ask(daemon, "health").await;
            assert_eq!(ran.err, "", "{ran:?}");
            ran.status == 1 && ran.out == "not serving\n"
        })
        .await;
}

#[tokio::test]
async fn states_are_coloured_on_request_only() {
    let daemon = TestDaemon::start().await;
    let colored = ask(&daemon, "health --color always").await.ok();
    assert_eq!(colored, "\x1b[32mserving\x1b[0m\n");
    for args in ["health --color never", "health --color auto", "health"] {
        assert_eq!(ask(&daemon, args).await.ok(), "serving\n", "{args}");
    }
    let json = ask(&daemon, "health --color always -o json").await.ok();
    assert!(!json.contains('\x1b'), "{json}");
}
