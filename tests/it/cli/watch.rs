//! `sessions watch`: events as they happen, filters, and a daemon that ends.

use std::time::Duration;

use serde_json::Value;
use tls_sessiond_proto as pb;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

use super::command;
use crate::{
    binary::PATIENCE,
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
};

/// Time between two events that a test causes until the watch has seen one.
const POLL: Duration = Duration::from_millis(50);

/// A running watch.
struct Watch {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Watch {
    fn start(daemon: &TestDaemon, filters: &str) -> Self {
        let address = format!("tcp://{}", daemon.address);
        let args = format!("sessions watch --address {address}{filters}");
        let args: Vec<_> = args.split(' ').collect();
        let mut child = command(&args).spawn().unwrap();
        Self {
            out: BufReader::new(child.stdout.take().unwrap()).lines(),
            err: BufReader::new(child.stderr.take().unwrap()).lines(),
            child,
        }
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.out.next_line());
        line.await.expect("no event").unwrap().expect("it ended")
    }

    async fn note(&mut self) -> String {
        let line = timeout(PATIENCE, self.err.next_line());
        line.await.expect("no note").unwrap().expect("it ended")
    }

    async fn event(&mut self) -> Value {
        serde_json::from_str(&self.line().await).unwrap()
    }

    /// Causes misses until the watch prints one. The watch may not have begun.
    async fn begun(&mut self, daemon: &TestDaemon) -> String {
        let wait = async {
            loop {
                Worker(daemon).lookup(lookup("0123456789")).await;
                if let Ok(line) = timeout(POLL, self.out.next_line()).await {
                    return line.unwrap().expect("it ended");
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("no event")
    }

    async fn interrupted(mut self) -> Option<i32> {
        let id = self.child.id().unwrap().to_string();
        let mut kill = Command::new("kill");
        assert!(kill.args(["-INT", &id]).status().await.unwrap().success());
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it does not end").unwrap().code()
    }
}

#[tokio::test]
async fn events_are_lines_of_json_until_ctrl_c() {
    let daemon = TestDaemon::start().await;
    let mut watch = Watch::start(&daemon, " -o json");
    let miss: Value = serde_json::from_str(&watch.begun(&daemon).await).unwrap();
    assert_eq!(miss["missed"]["sessionIdPrefix"], "01234567");
    assert_eq!(miss["missed"]["reason"], "MISS_REASON_UNKNOWN");

    let calls = Worker(&daemon);
    let id = calls.open(worker(pb::Role::Server)).await.id;
    calls.put(put(&id, "abcd")).await;
    calls.free(&id).await;
    // Misses of `begun` may come first.
    let mut event = watch.event().await;
    while event.get("missed").is_some() {
        event = watch.event().await;
    }
    assert_eq!(event["added"]["id"], "abcd");
    let event = watch.event().await;
    assert_eq!(event["removed"]["id"], "abcd");
    assert_eq!(event["reason"], "REMOVAL_REASON_UNCLOSED");
    assert_eq!(watch.interrupted().await, Some(0));
}

#[tokio::test]
async fn filters_choose_events() {
    let daemon = TestDaemon::start().await;
    let mut watch = Watch::start(&daemon, " --kind removed,missed --reason unclosed,unknown");
    watch.begun(&daemon).await;
    let calls = Worker(&daemon);
    for session in ["a1", "a2"] {
        let id = calls.open(worker(pb::Role::Server)).await.id;
        calls.put(put(&id, session)).await;
        if session == "a1" {
            // A clean close keeps the session, and its removal has another reason.
            calls.shutdown(&id).await;
            let remove = pb::RemoveSessionRequest {
                session_id: session.into(),
                role: pb::Role::Server.into(),
                ..Default::default()
            };
            daemon.sessions().remove_session(remove).await.unwrap();
        }
        calls.free(&id).await;
    }
    let mut line = watch.line().await;
    while line.contains("  missed ") {
        line = watch.line().await;
    }
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        words[1..],
        ["removed", "unclosed", "default", "server", "a2", "-"]
    );
    assert!(words[0].ends_with('Z'), "{line}");
}

#[tokio::test]
async fn a_watch_continues_at_the_next_daemon() {
    let mut daemon = TestDaemon::with("[drain]\ntimeout = \"1ms\"\n").await;
    let address = daemon.address.clone();
    let mut watch = Watch::start(&daemon, "");
    watch.begun(&daemon).await;
    daemon.begin_stop();
    let note = watch.note().await;
    assert!(note.contains("connecting again in 250ms"), "{note}");
    daemon.stop().await;
    let next = TestDaemon::listening(&format!("[\"tcp://{address}\"]"), "").await;
    assert!(watch.begun(&next).await.contains("  missed "));
}

#[tokio::test]
async fn a_watch_that_is_refused_ends() {
    let daemon = TestDaemon::start().await;
    let address = format!("tcp://{}", daemon.address);
    let args = [
        "sessions",
        "watch",
        "--context",
        "nowhere",
        "--address",
        &address,
    ];
    let err = super::run(&args).await.failed(1);
    assert!(err.contains("CONTEXT_NOT_FOUND"), "{err}");
}
