//! Tests of ExplainSession, WatchSessions, and the reasons in the statistics.

use std::time::Duration;

use tls_sessiond_core::session::events::{EVENTS_MAX, WATCHERS_MAX};
use tls_sessiond_proto::{
    self as pb, revoke_sessions_request::Selector, watch_sessions_response::Event,
};
use tonic::{Code, Streaming};

use crate::{
    calls::{Worker, lookup, put, worker},
    harness::{TestDaemon, reason},
};

impl Worker<'_> {
    async fn explain(&self, session_id: &str) -> pb::ExplainSessionResponse {
        let request = pb::ExplainSessionRequest {
            session_id: session_id.into(),
            role: pb::Role::Server.into(),
            ..Default::default()
        };
        self.0
            .sessions()
            .explain_session(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn watch(&self, context: &str) -> Streaming<pb::WatchSessionsResponse> {
        let request = pb::WatchSessionsRequest {
            context: context.into(),
        };
        self.0
            .sessions()
            .watch_sessions(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn stats(&self, context: &str) -> pb::SessionStats {
        let request = pb::GetContextRequest {
            name: context.into(),
        };
        self.0
            .contexts()
            .get_context(request)
            .await
            .unwrap()
            .into_inner()
            .context
            .unwrap()
            .stats
            .unwrap()
    }
}

fn ticket(connection_id: &str, session_id: &str) -> pb::PutSessionRequest {
    pb::PutSessionRequest {
        single_use: true,
        version: pb::ProtocolVersion::Tls13.into(),
        ..put(connection_id, session_id)
    }
}

/// Three contexts: `default` holds four sessions, `other` has the default limits, `off` has no
/// session cache.
const SMALL: &str = "[[context]]\ncache_entries_max = 4\nsession_timeout = \"100s\"\n\
                     [[context]]\nname = \"other\"\n[[context]]\nname = \"off\"\noptions = [\"no-session-cache\"]\n";

// Invariant 17.
#[tokio::test]
async fn every_removal_is_explained_counted_and_watched() {
    use pb::{MissReason as Miss, RemovalReason as Reason};

    let daemon = TestDaemon::with(SMALL).await;
    let w = Worker(&daemon);
    let mut watch = w.watch("").await;
    let closed = async |request: pb::PutSessionRequest| {
        let id = w.open(worker(pb::Role::Server)).await.id;
        w.put(pb::PutSessionRequest {
            connection_id: id.clone(),
            ..request
        })
        .await;
        w.shutdown(&id).await;
        w.free(&id).await;
    };
    let alert = async |id: &str| {
        let alert = Some(pb::Alert {
            code: 40,
            ..Default::default()
        });
        let request = pb::ReportAlertRequest {
            connection_id: id.into(),
            alert,
        };
        daemon.connections().report_alert(request).await.unwrap();
    };
    let mut expected = Vec::new();

    let id = w.established("a1").await;
    w.free(&id).await;
    expected.push(("a1", Reason::Unclosed, Miss::Removed));
    let id = w.established("a2").await;
    alert(&id).await;
    expected.push(("a2", Reason::FatalAlert, Miss::Removed));
    closed(ticket("", "a3")).await;
    assert!(w.explain("a3").await.resumable);
    assert!(w.found("a3").await);
    expected.push(("a3", Reason::Taken, Miss::Removed));
    closed(put("", "a4")).await;
    let request = pb::RemoveSessionRequest {
        session_id: "a4".into(),
        role: pb::Role::Server.into(),
        ..Default::default()
    };
    daemon.sessions().remove_session(request).await.unwrap();
    expected.push(("a4", Reason::Removed, Miss::Removed));
    closed(put("", "a5")).await;
    let all = pb::RevokeSessionsRequest {
        selector: Some(Selector::All(true)),
        ..Default::default()
    };
    daemon.sessions().revoke_sessions(all).await.unwrap();
    expected.push(("a5", Reason::Revoked, Miss::Revoked));
    daemon.clock.advance(Duration::from_secs(1));
    for id in ["a6", "b1", "b2", "b3", "b4"] {
        closed(put("", id)).await;
    }
    expected.push(("a6", Reason::CacheFull, Miss::Removed));
    let held = w.explain("b1").await;
    assert_eq!(
        (held.resumable, held.session.unwrap().id.as_str()),
        (true, "b1")
    );
    assert!(held.summary.contains("100 s"), "{}", held.summary);
    daemon.clock.advance(Duration::from_secs(100));
    let over = w.explain("b1").await;
    // The sweep may have removed it already. The answer is the same.
    assert_eq!(
        (over.resumable, over.miss_reason()),
        (false, Miss::Expired),
        "{over:?}"
    );
    daemon.clock.advance(Duration::from_secs(5));
    daemon
        .until("the sweep removes them", async |daemon| {
            daemon.server_cache_len() == 0
        })
        .await;
    expected.push(("b1", Reason::Expired, Miss::Expired));

    for (id, why, miss) in &expected {
        let told = w.explain(id).await;
        assert_eq!(
            (told.resumable, told.session.is_none()),
            (false, true),
            "{id}"
        );
        assert_eq!(
            (told.removal_reason(), told.miss_reason()),
            (*why, *miss),
            "{id}: {}",
            told.summary
        );
        assert!(
            told.remove_time.is_some() && told.summary.contains("context `default`"),
            "{}",
            told.summary
        );
        assert_eq!(w.lookup(lookup(id)).await.miss_reason(), *miss, "{id}");
    }
    let unknown = w.explain("ff").await;
    assert_eq!(
        (unknown.miss_reason(), unknown.removal_reason()),
        (Miss::Unknown, Reason::Unspecified)
    );

    let stats = w.stats("").await;
    let removals: Vec<_> = stats
        .removals_by_reason
        .iter()
        .map(|it| (it.reason(), it.count))
        .collect();
    let mut counted = vec![
        (Reason::Unclosed, 1),
        (Reason::FatalAlert, 1),
        (Reason::Expired, 4),
        (Reason::CacheFull, 1),
        (Reason::Taken, 1),
        (Reason::Removed, 1),
        (Reason::Revoked, 1),
    ];
    assert_eq!(removals, counted);
    let misses: Vec<_> = stats
        .misses_by_reason
        .iter()
        .map(|it| (it.reason(), it.count))
        .collect();
    assert_eq!(
        misses,
        [(Miss::Expired, 1), (Miss::Removed, 5), (Miss::Revoked, 1)]
    );
    assert_eq!(
        (
            stats.misses,
            stats.timeouts,
            stats.cache_full,
            stats.unclosed
        ),
        (6, 1, 1, 1)
    );

    // The watcher saw every session that was added and every one that was removed.
    let mut added = 0;
    let mut hits = 0;
    while !counted.iter().all(|(_, left)| *left == 0) {
        let told = watch.message().await.unwrap().unwrap();
        match told.event.as_ref().unwrap() {
            Event::Added(_) => added += 1,
            Event::Hit(session) => {
                assert_eq!(session.id, "a3");
                hits += 1;
            }
            Event::Removed(session) => {
                let (_, left) = counted
                    .iter_mut()
                    .find(|(why, _)| *why == told.reason())
                    .unwrap();
                *left -= 1;
                if let Some((_, why, _)) = expected.iter().find(|(id, ..)| *id == session.id) {
                    assert_eq!(*why, told.reason());
                }
            }
            Event::Missed(miss) => assert!(!miss.session_id_prefix.is_empty()),
            Event::Dropped(_) => panic!("nothing was dropped"),
        }
        assert!(told.time.is_some());
    }
    assert_eq!((added, hits), (10, 1));
    daemon.stop().await;
}

#[tokio::test]
async fn explain_tells_another_scope_from_an_unknown_session() {
    let daemon = TestDaemon::with(SMALL).await;
    let w = Worker(&daemon);
    let id = w
        .open(pb::NewRequest {
            context: "other".into(),
            ..worker(pb::Role::Server)
        })
        .await
        .id;
    w.put(put(&id, "aa")).await;
    let told = w.explain("aa").await;
    assert_eq!(
        (told.miss_reason(), told.session.is_none()),
        (pb::MissReason::Scope, true),
        "{}",
        told.summary
    );
    let request = |context: &str, session_id: &str, role: pb::Role| pb::ExplainSessionRequest {
        context: context.into(),
        session_id: session_id.into(),
        role: role.into(),
    };
    let explain = async |request| daemon.sessions().explain_session(request).await;
    let here = explain(request("other", "aa", pb::Role::Server))
        .await
        .unwrap()
        .into_inner();
    assert!(here.resumable && here.session.is_some());
    let off = explain(request("off", "aa", pb::Role::Server))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (off.resumable, off.miss_reason()),
        (false, pb::MissReason::CacheOff)
    );
    for (request, why) in [
        (request("none", "aa", pb::Role::Server), "CONTEXT_NOT_FOUND"),
        (request("", "aa", pb::Role::Unspecified), "ROLE_REQUIRED"),
        (request("", "", pb::Role::Server), "SESSION_ID_REQUIRED"),
        (request("", "ag", pb::Role::Server), "SESSION_ID_MALFORMED"),
        (
            request("", &"aa".repeat(65), pb::Role::Server),
            "SESSION_ID_MALFORMED",
        ),
    ] {
        assert_eq!(reason(&explain(request).await.unwrap_err()), why);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn watcher_sees_its_context_and_counts_of_dropped_events() {
    let daemon = TestDaemon::with(SMALL).await;
    let w = Worker(&daemon);
    let mut watch = w.watch("other").await;
    let mut idle = w.watch("off").await;
    let id = w.open(worker(pb::Role::Server)).await.id;
    w.put(put(&id, "aa")).await;
    let context = daemon.core.registry().get("other").unwrap().clone();
    let lookups = EVENTS_MAX as u64 + 10_000;
    // These lookups are too fast for the watcher: it reads over a socket, and they run in this
    // process.
    let there = pb::NewRequest {
        context: "other".into(),
        ..worker(pb::Role::Server)
    };
    let id = w.open(there).await.id;
    w.put(put(&id, "bb")).await;
    let format = tls_sessiond_core::session::Format::Worker("openssl".into());
    let terms = tls_sessiond_core::session::ResumeCriteria {
        format: &format,
        binding: &[],
        versions: &context.versions,
        server_name: &tls_sessiond_types::server_name::ServerName::NONE,
        cipher_suite: None,
    };
    let bb = tls_sessiond_core::session::SessionId::new(&[0xbb]).unwrap();
    for _ in 0..lookups {
        context
            .server_cache
            .find(&bb, &terms, daemon.core.now())
            .unwrap();
    }
    let (mut hits, mut dropped) = (0, 0);
    while hits + dropped < lookups {
        match watch.message().await.unwrap().unwrap().event.unwrap() {
            Event::Added(session) => {
                assert_eq!(session.id, "bb", "only events of the watched context");
            }
            Event::Hit(_) => hits += 1,
            Event::Removed(_) => panic!("nothing was removed"),
            Event::Missed(_) => panic!("nothing was missed"),
            Event::Dropped(count) => dropped += count,
        }
    }
    assert_eq!(
        hits + dropped,
        lookups,
        "each event was delivered or counted as dropped"
    );
    assert!(
        dropped > 0 && hits >= EVENTS_MAX as u64 - 1,
        "{hits} delivered, {dropped} dropped"
    );
    // The stream goes on after dropped events.
    w.free(&id).await;
    match watch.message().await.unwrap().unwrap() {
        pb::WatchSessionsResponse {
            event: Some(Event::Removed(session)),
            reason,
            ..
        } => {
            assert_eq!(
                (session.id.as_str(), reason),
                ("bb", pb::RemovalReason::Unclosed.into())
            );
        }
        other => panic!("{other:?}"),
    }
    let mut daemon = daemon;
    daemon.begin_stop();
    for watch in [&mut watch, &mut idle] {
        let ended = watch.message().await.unwrap_err();
        assert_eq!(
            (ended.code(), reason(&ended).as_str()),
            (Code::Unavailable, "DRAINING")
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn watchers_are_bounded_and_a_closed_one_frees_its_place() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let mut watches = Vec::new();
    // The limit of one identity is half of the daemon's.
    for _ in 0..WATCHERS_MAX / 2 {
        watches.push(w.watch("").await);
    }
    let request = || pb::WatchSessionsRequest::default();
    let refused = daemon
        .sessions()
        .watch_sessions(request())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "WATCHER_LIMIT")
    );
    watches.pop();
    daemon
        .until("a place is free", async |daemon| {
            daemon.sessions().watch_sessions(request()).await.is_ok()
        })
        .await;
    let unknown = pb::WatchSessionsRequest {
        context: "none".into(),
    };
    assert_eq!(
        reason(&daemon.sessions().watch_sessions(unknown).await.unwrap_err()),
        "CONTEXT_NOT_FOUND"
    );
    drop(watches);
    let short = || crate::harness::within("100m", request());
    daemon
        .until("all is free", async |daemon| {
            daemon.sessions().watch_sessions(short()).await.is_ok()
        })
        .await;
    let mut watch = daemon
        .sessions()
        .watch_sessions(short())
        .await
        .unwrap()
        .into_inner();
    let ended = watch.message().await.unwrap_err();
    assert!(
        matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{ended:?}"
    );
    daemon.stop().await;
}
