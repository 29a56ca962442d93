//! `doctor` against daemons in which something is wrong.

use std::{fs, time::Duration};

use rcgen::date_time_ymd;
use tls_sessiond_proto as pb;

use super::{Ran, ask};
use crate::{
    calls::{Worker, lookup, put, worker},
    doors::Guest,
    harness::{TestDaemon, now},
    pki,
};

/// Returns the names of the findings.
async fn names(daemon: &TestDaemon) -> Vec<String> {
    let json = ask(daemon, "doctor -o json").await.json();
    let findings = json["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| finding["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Makes connections with a session each, and closes them cleanly.
async fn closed(daemon: &TestDaemon, version: pb::ProtocolVersion, ids: std::ops::Range<u32>) {
    let call = Worker(daemon);
    for number in ids {
        let made = call.open(worker(pb::Role::Server)).await.id;
        let request = pb::PutSessionRequest {
            version: version.into(),
            ..put(&made, &format!("{number:08x}"))
        };
        call.put(request).await;
        let closed = pb::ShutdownRequest {
            connection_id: made.clone(),
        };
        daemon.connections().shutdown(closed).await.unwrap();
        call.free(&made).await;
    }
}

/// Looks these sessions up. Returns how many were found.
async fn looked_up(daemon: &TestDaemon, ids: std::ops::Range<u32>) -> usize {
    let mut found = 0;
    for number in ids {
        let answer = Worker(daemon)
            .lookup(lookup(&format!("{number:08x}")))
            .await;
        found += usize::from(answer.found);
    }
    found
}

use pb::ProtocolVersion::{Tls12, Tls13};

#[tokio::test]
async fn healthy_daemon_is_told_to_be_well() {
    let daemon = TestDaemon::start().await;
    assert_eq!(ask(&daemon, "doctor").await.ok(), "All is well.\n");
    closed(&daemon, Tls12, 0..30).await;
    for number in 0..30 {
        let resumed = pb::NewRequest {
            session_id: format!("{number:08x}"),
            ..worker(pb::Role::Server)
        };
        assert_eq!(looked_up(&daemon, number..number + 1).await, 1);
        let made = Worker(&daemon).open(resumed).await.id;
        let closed = pb::ShutdownRequest {
            connection_id: made.clone(),
        };
        daemon.connections().shutdown(closed).await.unwrap();
        Worker(&daemon).free(&made).await;
    }
    assert_eq!(
        ask(&daemon, "doctor --fail-on warning").await.ok(),
        "All is well.\n"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn findings_fail_the_command_only_if_asked_to() {
    let daemon = TestDaemon::start().await;
    closed(&daemon, Tls13, 0..25).await;
    let out = ask(&daemon, "doctor").await.ok();
    assert!(out.starts_with("warning: clients-offer-nothing\n"), "{out}");
    assert!(
        out.contains("none of 25 handshakes has offered a session"),
        "{out}"
    );
    let Ran { status, out, err } = ask(&daemon, "doctor --fail-on warning").await;
    assert!(
        (status, err.as_str()) == (1, "") && !out.is_empty(),
        "{out}{err}"
    );
    ask(&daemon, "doctor --fail-on critical").await.ok();
    daemon.stop().await;
}

#[tokio::test]
async fn planted_causes_of_misses_are_named() {
    let daemon = TestDaemon::start().await;
    assert_eq!(looked_up(&daemon, 0..30).await, 0);
    assert_eq!(
        names(&daemon).await,
        ["sessions-unknown", "looks-up-never-stores"]
    );
    daemon.stop().await;

    let daemon = TestDaemon::start().await;
    closed(&daemon, Tls12, 0..30).await;
    daemon.clock.advance(Duration::from_secs(3 * 3600));
    assert_eq!(looked_up(&daemon, 0..30).await, 0);
    assert!(names(&daemon).await.contains(&"timeout-too-short".into()));
    daemon.stop().await;

    let daemon = TestDaemon::start().await;
    let call = Worker(&daemon);
    for number in 0..30 {
        let made = call.open(worker(pb::Role::Server)).await.id;
        call.put(put(&made, &format!("{number:08x}"))).await;
        call.free(&made).await;
    }
    let named = names(&daemon).await;
    assert!(
        named.contains(&"connections-end-unclosed".into()),
        "{named:?}"
    );
    daemon.stop().await;

    let daemon = TestDaemon::start().await;
    closed(&daemon, Tls12, 0..30).await;
    for number in 0..30 {
        let other = pb::LookupSessionRequest {
            format: "boringssl".into(),
            ..lookup(&format!("{number:08x}"))
        };
        assert!(!Worker(&daemon).lookup(other).await.found);
    }
    assert_eq!(names(&daemon).await, ["sessions-do-not-fit"]);
    daemon.stop().await;
}

#[tokio::test]
async fn planted_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let folder = folder.path().display();
    let context = |name: &str, more: &str| {
        format!(
            "[[context]]\nname = \"{name}\"\ncertificate = \"{folder}/tls.crt\"\nkey = \"{folder}/tls.key\"\n\
             ca = \"{folder}/ca.pem\"\n{more}\n"
        )
    };
    let daemon = TestDaemon::with(&context("default", "tickets = 0")).await;
    closed(&daemon, Tls13, 0..25).await;
    assert_eq!(names(&daemon).await, ["tickets-off"]);
    daemon.stop().await;

    let daemon = TestDaemon::with(&context("default", "options = [\"no-session-cache\"]")).await;
    looked_up(&daemon, 0..1).await;
    assert_eq!(names(&daemon).await, ["cache-off"]);
    daemon.stop().await;

    let daemon = TestDaemon::with(&context("default", "cache_entries_max = 10")).await;
    closed(&daemon, Tls12, 0..60).await;
    assert_eq!(
        names(&daemon).await,
        ["clients-offer-nothing", "cache-too-small"]
    );
    daemon.stop().await;

    // Two contexts that a client may meet in turn, with scopes of their own.
    let both = context("default", "") + &context("other", "session_id_context = \"other\"");
    let daemon = TestDaemon::with(&both).await;
    closed(&daemon, Tls12, 0..1).await;
    let elsewhere = pb::LookupSessionRequest {
        context: "other".into(),
        ..lookup("00000000")
    };
    assert!(!Worker(&daemon).lookup(elsewhere).await.found);
    assert_eq!(names(&daemon).await, ["scope-not-shared"]);

    // A reload that is refused, and one that changes the scope.
    closed(&daemon, Tls12, 1..30).await;
    looked_up(&daemon, 0..30).await;
    assert!(daemon.reload("[limits]\nsockets = 20\n").is_err());
    let named = names(&daemon).await;
    assert_eq!(named[0], "reload-refused");
    let changed =
        context("default", "alpn = [\"h2\"]") + &context("other", "session_id_context = \"other\"");
    daemon.reload(&changed).unwrap();
    let named = names(&daemon).await;
    assert!(named.contains(&"renewal-emptied-cache".into()), "{named:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn planted_limits_are_named() {
    let daemon =
        TestDaemon::with("[limits]\nconnections = 10\nstreams = 2\nstreams_non_worker = 1\n").await;
    for _ in 0..9 {
        daemon.open(pb::Role::Server).await;
    }
    assert_eq!(names(&daemon).await, ["connections-full"]);
    daemon.stop().await;

    let daemon = TestDaemon::with(
        "[drain]\ntimeout = \"100ms\"\n[limits]\nstreams = 2\nstreams_non_worker = 1\n",
    )
    .await;
    let mut guest = Guest::new(&daemon.channel);
    let _streams = (guest.attach().await, guest.attach().await);
    assert_eq!(names(&daemon).await, ["stream-limit"]);
    daemon.stop().await;
}

#[tokio::test]
async fn planted_failures_and_certificates_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = pki::Authority::new("soon");
    let ends = now()
        .after(Duration::from_secs(2 * 86_400 + 3_600))
        .as_secs();
    authority
        .sign(&["localhost"], |params| {
            params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(ends);
        })
        .write(folder.path(), "tls");
    fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    let shown = folder.path().display();
    let context = format!(
        "[[context]]\ncertificate = \"{shown}/tls.crt\"\nkey = \"{shown}/tls.key\"\nca = \"{shown}/ca.pem\"\n"
    );
    let daemon = TestDaemon::with(&context).await;
    assert_eq!(names(&daemon).await, ["certificate-ends"]);
    for _ in 0..25 {
        let id = daemon.open(pb::Role::Server).await;
        let garbage = daemon.exchange(&id, b"GET / HTTP/1.1\r\n\r\n", b"").await;
        assert!(garbage.unwrap().alert.is_some());
    }
    assert_eq!(
        names(&daemon).await,
        ["certificate-ends", "handshakes-fail"]
    );
    daemon.stop().await;
}
