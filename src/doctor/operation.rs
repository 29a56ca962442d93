//! Limits, certificates, store, log and clocks.

use tls_sessiond_proto as pb;

use super::{Evidence, Finding, Level, percent};

/// From this share of a limit on, it is about to be reached. In per cent.
const NEARLY: u64 = 90;
/// Days before the end of a certificate: a warning, and a critical finding.
const CERTIFICATE_WARNING: i32 = 14;
const CERTIFICATE_CRITICAL: i32 = 3;
/// Seconds by which two clocks may differ.
const CLOCK_MAX: i64 = 5;
/// Parts of a shared store.
const STORE_PARTS: u32 = 64;
/// Failed requests to the store, in per cent, and the fewest requests that tell something.
const STORE_FAILURES: u64 = 1;
const STORE_REQUESTS: u64 = 100;

pub(super) fn examine(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    let status = evidence.status;
    state(status, findings);
    certificates(status, findings);
    if let Some(store) = status
        .daemon
        .as_ref()
        .and_then(|daemon| daemon.shared_store.as_ref())
    {
        shared_store(store, findings);
    }
    limits(status, findings);
    if let Some(offset) = evidence
        .clock_offset
        .filter(|offset| offset.abs() > CLOCK_MAX)
    {
        findings.push(Finding {
            level: Level::Warning,
            name: "clocks-apart",
            text: format!(
                "The clock of the daemon is {} s {} that of this host.",
                offset.abs(),
                if offset > 0 { "ahead of" } else { "behind" }
            ),
            remedy: "Let NTP set both clocks: lifetimes of sessions and revocations follow them.",
        });
    }
    rings(status, findings);
    if status.log_lines_dropped > 0 {
        findings.push(Finding {
            level: Level::Warning,
            name: "log-lines-dropped",
            text: format!(
                "{} lines of the log could not be written in time and were dropped.",
                status.log_lines_dropped
            ),
            remedy: "Look at the reader of stderr or the disk of log.audit, or set a higher log.level.",
        });
    }
}

fn state(status: &pb::GetStatusResponse, findings: &mut Vec<Finding>) {
    if status.state() == pb::DaemonState::Draining {
        findings.push(Finding {
            level: Level::Critical,
            name: "draining",
            text: "The daemon drains: it takes no new work and is about to end.".into(),
            remedy: "Start it again, unless this stop is wanted.",
        });
    }
    if let Some(last) = status.last_reload.as_ref().filter(|last| !last.applied) {
        findings.push(Finding {
            level: Level::Warning,
            name: "reload-refused",
            text: format!(
                "The last reload was refused, and the daemon runs the configuration from before: {}",
                last.error
            ),
            remedy: "Correct the key that the error names, and reload again.",
        });
    }
}

fn certificates(status: &pb::GetStatusResponse, findings: &mut Vec<Finding>) {
    for certificate in &status.certificates {
        let (days, key) = (certificate.days_left, &certificate.key);
        if days >= CERTIFICATE_WARNING {
            continue;
        }
        findings.push(Finding {
            level: if days < CERTIFICATE_CRITICAL {
                Level::Critical
            } else {
                Level::Warning
            },
            name: "certificate-ends",
            text: match days {
                ..0 => format!("The certificate of {key} has expired {} days ago.", -days),
                _ => format!("The certificate of {key} expires in {days} days."),
            },
            remedy: "Renew it and reload. With scope_by = \"names\" a renewal keeps the cache.",
        });
    }
}

/// Most members that a finding names.
const NAMED_MAX: usize = 5;

fn rings(status: &pb::GetStatusResponse, findings: &mut Vec<Finding>) {
    for ring in &status.rings {
        let name = &ring.name;
        if !ring.trouble.is_empty() {
            findings.push(Finding {
                level: Level::Warning,
                name: "ring-away",
                text: format!("The ticket keys `{name}` are not rotated: {}.", ring.trouble),
                remedy: "Look at the store, at the rights of its user and at the other daemons. Servers go on with their keys.",
            });
        }
        let late: Vec<_> = ring.members.iter().filter(|member| member.late).collect();
        if !late.is_empty() {
            let named: Vec<_> = late
                .iter()
                .take(NAMED_MAX)
                .map(|member| match member.attached {
                    true => format!("`{}`", member.name),
                    false => format!("`{}` (not attached)", member.name),
                })
                .collect();
            findings.push(Finding {
                level: Level::Warning,
                name: "ring-member-late",
                text: format!(
                    "The rotation of the ticket keys `{name}` waits for {} of {} members: {}{}.",
                    late.len(),
                    ring.members.len(),
                    named.join(", "),
                    if late.len() > NAMED_MAX { ", ..." } else { "" }
                ),
                remedy: "Look at the agent of that server. If the server is gone for good: tls-sessiond keys fence.",
            });
        }
        if let Some(member) = ring
            .members
            .iter()
            .find(|member| !member.trouble.is_empty())
        {
            findings.push(Finding {
                level: Level::Warning,
                name: "ring-member-refuses",
                text: format!(
                    "Member `{}` of the ticket keys `{name}` does not run its keys: {}",
                    member.name, member.trouble
                ),
                remedy: "Correct what the member says. It goes on with the keys from before.",
            });
        }
    }
}

fn shared_store(store: &pb::SharedStore, findings: &mut Vec<Finding>) {
    if store.open_parts < STORE_PARTS {
        findings.push(Finding {
            level: if store.open_parts == 0 {
                Level::Critical
            } else {
                Level::Warning
            },
            name: "store-away",
            text: format!(
                "The shared store answers in {} of {STORE_PARTS} parts: no session is resumed in the others.",
                store.open_parts
            ),
            remedy: "Look at the store, and at the log of the daemon for its own words.",
        });
    }
    if store.requests >= STORE_REQUESTS && percent(store.failures, store.requests) >= STORE_FAILURES
    {
        findings.push(Finding {
            level: Level::Warning,
            name: "store-slow",
            text: format!(
                "The shared store has not answered {} of {} requests within the deadline.",
                store.failures, store.requests
            ),
            remedy: "Look at the latency of the store and of the way to it, or raise store.deadline.",
        });
    }
    if store.unopened > 0 {
        findings.push(Finding {
            level: Level::Warning,
            name: "store-unopened",
            text: format!(
                "{} values of the shared store were sealed with a key that this daemon does not have.",
                store.unopened
            ),
            remedy: "Give all daemons the same sealing keys before the first of them seals with a new one.",
        });
    }
}

fn limits(status: &pb::GetStatusResponse, findings: &mut Vec<Finding>) {
    let process = status.process.unwrap_or_default();
    let mut check = |level, name, used: u64, most: u64, what: &str, remedy| {
        if most > 0 && percent(used, most) >= NEARLY {
            findings.push(Finding {
                level,
                name,
                text: format!("{used} of {most} {what} are in use."),
                remedy,
            });
        }
    };
    check(
        Level::Critical,
        "connections-full",
        process.connections.into(),
        process.connections_max.into(),
        "connection objects",
        "Look which identity holds them (tls-sessiond owners), or raise limits.connections.",
    );
    check(
        Level::Critical,
        "calls-full",
        process.calls.into(),
        process.calls_max.into(),
        "calls in flight",
        "Look which identity makes them (tls-sessiond owners), or raise limits.calls_in_flight.",
    );
    check(
        Level::Critical,
        "sockets-full",
        process.sockets.into(),
        process.sockets_max.into(),
        "sockets of the API",
        "Let workers share connections, or raise limits.sockets.",
    );
    check(
        Level::Critical,
        "open-files-full",
        process.open_files.into(),
        process.open_files_max,
        "open files",
        "Raise the limit of open files (LimitNOFILE=, ulimit -n).",
    );
    if process.sockets_max < process.sockets_configured {
        findings.push(Finding {
            level: Level::Warning,
            name: "open-files-limit",
            text: format!(
                "The system allows the daemon {} open files, so it serves {} sockets instead of {}.",
                process.open_files_max, process.sockets_max, process.sockets_configured
            ),
            remedy: "Raise the limit of open files (LimitNOFILE=, ulimit -n).",
        });
    }
    if let Some(fullest) = status
        .streams
        .iter()
        .find(|usage| percent(usage.streams.into(), usage.limit.into()) >= NEARLY)
    {
        findings.push(Finding {
            level: Level::Warning,
            name: "stream-limit",
            text: format!(
                "A connection of {} has {} of {} streams open: its further calls wait in the client.",
                fullest.owner, fullest.streams, fullest.limit
            ),
            remedy: "Let the worker open another connection earlier, or raise limits.streams.",
        });
    }
}
