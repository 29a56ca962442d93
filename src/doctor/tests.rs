//! Each rule names its situation, and a healthy busy daemon gets no complaint.

use tls_sessiond_proto as pb;

use super::{Evidence, Level, examine};
use pb::ProtocolVersion::{Tls12, Tls13};

fn handshakes(version: pb::ProtocolVersion, resumed: bool, count: u64) -> pb::HandshakeCount {
    pb::HandshakeCount {
        role: pb::Role::Server.into(),
        version: version.into(),
        resumed,
        count,
    }
}

fn missed(reason: pb::MissReason, count: u64) -> pb::MissCount {
    pb::MissCount {
        reason: reason.into(),
        count,
    }
}

fn removed(reason: pb::RemovalReason, count: u64) -> pb::RemovalCount {
    pb::RemovalCount {
        reason: reason.into(),
        count,
    }
}

fn owner(name: &str, stored: u64) -> pb::OwnerUsage {
    pb::OwnerUsage {
        owner: name.into(),
        connections: 100,
        stored,
        ..pb::OwnerUsage::default()
    }
}

/// A daemon with much work, few misses and few failures.
fn healthy() -> pb::GetStatusResponse {
    let stats = pb::SessionStats {
        sessions: 9_000,
        session_bytes: 9 << 20,
        accept: 10_050,
        accept_good: 10_000,
        hits: 7_000,
        misses: 300,
        timeouts: 100,
        unclosed: 200,
        handshakes: vec![
            handshakes(Tls12, false, 500),
            handshakes(Tls12, true, 1_500),
            handshakes(Tls13, false, 2_500),
            handshakes(Tls13, true, 5_500),
        ],
        misses_by_reason: vec![
            missed(pb::MissReason::Unknown, 250),
            missed(pb::MissReason::Removed, 50),
            missed(pb::MissReason::Expired, 100),
        ],
        removals_by_reason: vec![
            removed(pb::RemovalReason::Taken, 5_505),
            removed(pb::RemovalReason::Unclosed, 200),
            removed(pb::RemovalReason::Expired, 500),
        ],
        failures_by_alert: vec![pb::AlertCount {
            alert: None,
            count: 50,
        }],
        ..pb::SessionStats::default()
    };
    pb::GetStatusResponse {
        rings: vec![pb::Ring {
            name: "web".into(),
            members: vec![pb::RingMember {
                name: "nginx-1".into(),
                attached: true,
                counted: true,
                ..Default::default()
            }],
            ..Default::default()
        }],
        state: pb::DaemonState::Serving.into(),
        contexts: vec![pb::Context {
            name: "web".into(),
            versions: vec![Tls12.into(), Tls13.into()],
            tickets: 2,
            cache_entries_max: 20_480,
            stats: Some(stats),
            ..pb::Context::default()
        }],
        owners: vec![owner("uid:1", 5_000), owner("uid:2", 5_000)],
        streams: vec![pb::StreamUsage {
            owner: "uid:1".into(),
            streams: 1_000,
            limit: 8_000,
        }],
        process: Some(pb::ProcessUsage {
            open_files: 300,
            open_files_max: 20_000,
            sockets: 20,
            sockets_max: 10_000,
            sockets_configured: 10_000,
            calls: 100,
            calls_max: 10_000,
            connections: 2_000,
            connections_max: 100_000,
            ..pb::ProcessUsage::default()
        }),
        certificates: vec![pb::CertificateStatus {
            key: "context web".into(),
            days_left: 60,
            ..pb::CertificateStatus::default()
        }],
        daemon: Some(pb::DaemonStats {
            shared_store: Some(pb::SharedStore {
                open_parts: 64,
                requests: 100_000,
                failures: 10,
                ..pb::SharedStore::default()
            }),
            ..pb::DaemonStats::default()
        }),
        last_reload: Some(pb::Reload {
            applied: true,
            ..pb::Reload::default()
        }),
        ..pb::GetStatusResponse::default()
    }
}

fn names(status: &pb::GetStatusResponse) -> Vec<&'static str> {
    let evidence = Evidence {
        status,
        misses: &[],
        failures: &[],
        clock_offset: Some(0),
    };
    examine(&evidence)
        .iter()
        .map(|finding| finding.name)
        .collect()
}

#[test]
fn healthy_busy_daemon_gets_no_complaint() {
    assert_eq!(names(&healthy()), [""; 0]);
}

#[test]
fn idle_daemon_gets_no_complaint() {
    let mut idle = healthy();
    idle.contexts[0].stats = Some(pb::SessionStats::default());
    idle.owners.clear();
    assert_eq!(names(&idle), [""; 0]);
    assert_eq!(names(&pb::GetStatusResponse::default()), [""; 0]);
}

type Plant = fn(&mut pb::GetStatusResponse);

fn stats(status: &mut pb::GetStatusResponse) -> &mut pb::SessionStats {
    status.contexts[0].stats.as_mut().unwrap()
}

fn store(status: &mut pb::GetStatusResponse) -> &mut pb::SharedStore {
    let daemon = status.daemon.as_mut().unwrap();
    daemon.shared_store.as_mut().unwrap()
}

fn process(status: &mut pb::GetStatusResponse) -> &mut pb::ProcessUsage {
    status.process.as_mut().unwrap()
}

fn fail(status: &mut pb::GetStatusResponse, name: &str, received: bool) {
    stats(status).failures_by_alert = vec![pb::AlertCount {
        alert: Some(pb::Alert {
            code: 48,
            name: name.into(),
            received,
        }),
        count: 5_000,
    }];
}

/// Situations, each with the one finding that names it.
const PLANTED: &[(&str, Plant)] = &[
    ("clients-offer-nothing", |status| {
        let stats = stats(status);
        (stats.hits, stats.misses, stats.timeouts) = (0, 0, 0);
        stats.misses_by_reason.clear();
        stats.handshakes = vec![handshakes(Tls13, false, 10_000)];
        stats.removals_by_reason.clear();
    }),
    ("tickets-off", |status| {
        status.contexts[0].tickets = 0;
    }),
    ("cache-off", |status| {
        status.contexts[0].options = vec!["no-session-cache".into()];
    }),
    ("tls12-never-resumes", |status| {
        stats(status).handshakes = vec![
            handshakes(Tls12, false, 2_000),
            handshakes(Tls13, false, 2_500),
            handshakes(Tls13, true, 5_500),
        ];
    }),
    ("renewal-emptied-cache", |status| {
        let dropped = removed(pb::RemovalReason::ScopeChanged, 9_000);
        stats(status).removals_by_reason.push(dropped);
    }),
    ("connections-end-unclosed", |status| {
        stats(status).unclosed = 4_000;
    }),
    ("cache-too-small", |status| {
        let stats = stats(status);
        stats.cache_full = 3_000;
        stats
            .removals_by_reason
            .push(removed(pb::RemovalReason::CacheFull, 3_000));
    }),
    ("timeout-too-short", |status| {
        stats(status).timeouts = 4_000;
    }),
    ("sessions-do-not-fit", |status| {
        let stats = stats(status);
        stats.misses = 3_000;
        stats.misses_by_reason = vec![missed(pb::MissReason::Scope, 3_000)];
    }),
    ("sessions-unknown", |status| {
        let stats = stats(status);
        stats.misses = 6_000;
        stats.misses_by_reason = vec![missed(pb::MissReason::Unknown, 6_000)];
    }),
    ("sessions-revoked", |status| {
        let stats = stats(status);
        stats.misses = 6_000;
        stats.misses_by_reason = vec![missed(pb::MissReason::Revoked, 6_000)];
    }),
    ("store-missed", |status| {
        let stats = stats(status);
        stats.misses = 6_000;
        stats.misses_by_reason = vec![missed(pb::MissReason::StoreUnavailable, 6_000)];
    }),
    ("holders-lost", |status| {
        let stats = stats(status);
        stats.misses = 6_000;
        stats.misses_by_reason = vec![missed(pb::MissReason::HolderLost, 6_000)];
    }),
    ("handshakes-fail", |status| fail(status, "unknown_ca", true)),
    ("owner-ends-unclosed", |status| {
        status.owners[1].unclosed = 190;
        status.owners[0].unclosed = 10;
    }),
    ("looks-up-never-stores", |status| {
        status.owners[1].stored = 0;
        status.owners[1].misses = 300;
    }),
    ("store-away", |status| store(status).open_parts = 0),
    ("store-slow", |status| store(status).failures = 2_000),
    ("store-unopened", |status| store(status).unopened = 1),
    ("stream-limit", |status| status.streams[0].streams = 8_000),
    ("connections-full", |status| {
        process(status).connections = 99_000;
    }),
    ("calls-full", |status| process(status).calls = 9_990),
    ("sockets-full", |status| process(status).sockets = 9_990),
    ("open-files-full", |status| {
        process(status).open_files = 19_000;
    }),
    ("open-files-limit", |status| {
        process(status).sockets_configured = 20_000;
    }),
    ("certificate-ends", |status| {
        status.certificates[0].days_left = 2;
    }),
    ("log-lines-dropped", |status| status.log_lines_dropped = 7),
    ("ring-away", |status| {
        status.rings[0].trouble = "the shared store does not answer".into();
    }),
    ("ring-member-late", |status| {
        status.rings[0].members[0].late = true;
    }),
    ("ring-member-refuses", |status| {
        status.rings[0].members[0].trouble = "wrong length".into();
    }),
    ("reload-refused", |status| {
        status.last_reload.as_mut().unwrap().applied = false;
    }),
    ("draining", |status| {
        status.state = pb::DaemonState::Draining.into();
    }),
];

#[test]
fn planted_situations_are_named_right() {
    for (name, plant) in PLANTED {
        let mut status = healthy();
        plant(&mut status);
        assert_eq!(names(&status), [*name]);
    }
}

#[test]
fn sessions_spent_by_failures_are_told_beside_the_failures() {
    let mut status = healthy();
    fail(&mut status, "decrypt_error", false);
    stats(&mut status).removals_by_reason[0].count = 8_000;
    assert_eq!(
        names(&status),
        ["handshakes-fail", "sessions-spent-by-failures"]
    );
}

#[test]
fn clocks_and_scopes_are_compared() {
    let status = healthy();
    let miss = pb::RecentMiss {
        context: "web".into(),
        other_context: "mail".into(),
        ..pb::RecentMiss::default()
    };
    let evidence = Evidence {
        status: &status,
        misses: &[miss],
        failures: &[],
        clock_offset: Some(-90),
    };
    let findings = examine(&evidence);
    let names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
    assert_eq!(names, ["clocks-apart", "scope-not-shared"]);
    assert!(
        findings[0].text.contains("90 s behind"),
        "{}",
        findings[0].text
    );
}

#[test]
fn worst_finding_comes_first_and_has_its_figure() {
    let mut status = healthy();
    stats(&mut status).timeouts = 4_000;
    status.certificates[0].days_left = -3;
    let evidence = Evidence {
        status: &status,
        misses: &[],
        failures: &[],
        clock_offset: None,
    };
    let findings = examine(&evidence);
    assert_eq!(
        (findings[0].level, findings[0].name),
        (Level::Critical, "certificate-ends")
    );
    assert!(findings[0].text.contains("has expired 3 days ago"));
    assert!(
        findings[1].text.contains("4000 of 11300"),
        "{}",
        findings[1].text
    );
}

#[test]
fn documents_explain_every_finding() {
    let document = include_str!("../../docs/operations.md");
    let others = [
        "clocks-apart",
        "scope-not-shared",
        "sessions-spent-by-failures",
    ];
    let planted = PLANTED.iter().map(|(name, _)| *name);
    for name in planted.chain(others) {
        assert!(document.contains(&format!("`{name}`")), "{name}");
    }
}
