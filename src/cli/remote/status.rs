//! `status` and `owners`: the state of the daemon.

use std::collections::BTreeMap;

use tls_sessiond_proto as pb;

use super::{
    Console, Verdict, admin, contexts,
    failure::Failure,
    screen::{Cell, Screen, Table, Tone},
    words::{self, Words},
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond status
  tls-sessiond status --address unix:///run/tls-sessiond/api.sock
  tls-sessiond status --address tls://10.0.0.5:50551 --ca ca.crt --certificate me.crt --key me.key
  tls-sessiond status -o json | jq .configDigest      equal on daemons with the same configuration";

pub(super) const OWNERS_EXAMPLES: &str = "\
Examples:
  tls-sessiond owners
  tls-sessiond owners -o json | jq '.owners[] | select(.misses != \"0\")'";

/// How many owners `status` shows. `owners` shows all that the daemon sends.
const TOP_OWNERS: usize = 10;
/// Below this number of days, a certificate is shown as one that expires soon.
const DAYS_LEFT_LOW: i32 = 14;

pub(super) async fn status(console: &Console) -> Result<Verdict, Failure> {
    let answer = get(console).await?;
    console
        .printer
        .message(&answer, |screen| screen_of(screen, &answer))?;
    Ok(Verdict::Yes)
}

pub(super) async fn owners(console: &Console) -> Result<Verdict, Failure> {
    let answer = get(console).await?;
    console.printer.field(&answer, "owners", |screen| {
        owners_table(screen, &answer.owners);
    })?;
    Ok(Verdict::Yes)
}

/// Returns the status of the daemon.
pub(super) async fn get(console: &Console) -> Result<pb::GetStatusResponse, Failure> {
    let daemon = console.daemon().await?;
    daemon
        .call(admin(&daemon).get_status(pb::GetStatusRequest {}))
        .await
}

fn screen_of(screen: &mut Screen, status: &pb::GetStatusResponse) {
    screen.fields([
        (
            "version",
            format!("{} ({})", status.version, status.build).into(),
        ),
        ("state", state(status.state())),
        ("uptime", uptime_and_start(status).into()),
        ("configuration", status.config_digest.as_str().into()),
        ("last reload", reload(status.last_reload.as_ref())),
        (
            "reload time",
            reload_time(status.last_reload.as_ref()).into(),
        ),
        ("log level", log_level(status).into()),
        ("connections", connections(&status.connections).into()),
    ]);
    screen.heading("CONTEXTS");
    contexts::table(screen, &status.contexts);
    if !status.owners.is_empty() {
        screen.heading("OWNERS");
        let top = status.owners.len().min(TOP_OWNERS);
        owners_table(screen, &status.owners[..top]);
    }
    if !status.streams.is_empty() {
        screen.heading("LONG STREAMS");
        streams_table(screen, &status.streams);
    }
    if let Some(process) = &status.process {
        screen.heading("PROCESS");
        process_fields(screen, process);
    }
    if !status.certificates.is_empty() {
        screen.heading("CERTIFICATES");
        certificates_table(screen, &status.certificates);
    }
    let daemon = status.daemon.as_ref();
    if let Some(store) = daemon.and_then(|daemon| daemon.shared_store.as_ref()) {
        screen.heading("SHARED STORE");
        store_fields(screen, store);
    }
}

fn state(state: pb::DaemonState) -> Cell {
    Cell::toned(&state.word(), tone(state))
}

/// Returns the colour of a state of the daemon.
pub(super) fn tone(state: pb::DaemonState) -> Tone {
    match state {
        pb::DaemonState::Serving => Tone::Good,
        pb::DaemonState::Starting | pb::DaemonState::Draining => Tone::Passing,
        pb::DaemonState::Unspecified => Tone::Plain,
    }
}

/// Returns how long the daemon has run by its own clock.
pub(super) fn uptime(status: &pb::GetStatusResponse) -> String {
    match (&status.time, &status.start_time) {
        (Some(now), Some(start)) => words::seconds(now.seconds.saturating_sub(start.seconds)),
        _ => "-".into(),
    }
}

/// Returns how long the daemon has run, and since when.
fn uptime_and_start(status: &pb::GetStatusResponse) -> String {
    let start = words::time(status.start_time.as_ref());
    format!("{} (since {start})", uptime(status))
}

fn reload(reload: Option<&pb::Reload>) -> Cell {
    match reload {
        None => "none".into(),
        Some(reload) if reload.applied => Cell::toned("applied", Tone::Good),
        Some(_) => Cell::toned("refused", Tone::Bad),
    }
}

/// Returns when the last reload was, and why it was refused.
fn reload_time(reload: Option<&pb::Reload>) -> String {
    let Some(reload) = reload else {
        return "-".into();
    };
    let time = words::time(reload.time.as_ref());
    match &*reload.error {
        "" => time,
        error => format!("{time} ({error})"),
    }
}

fn log_level(status: &pb::GetStatusResponse) -> String {
    let level = match &*status.log_level {
        "" => "no log",
        level => level,
    };
    match status.log_lines_dropped {
        0 => level.to_owned(),
        dropped => format!("{level} ({dropped} lines dropped)"),
    }
}

/// Returns the number of connections, in all and by state.
fn connections(counts: &[pb::ConnectionCount]) -> String {
    let mut by_state = BTreeMap::new();
    let mut total: u64 = 0;
    for count in counts {
        *by_state.entry(count.state).or_insert(0_u64) += count.count;
        total += count.count;
    }
    if total == 0 {
        return "0".into();
    }
    let by_state: Vec<_> = by_state
        .iter()
        .map(|(state, count)| format!("{count} {}", words::word::<pb::ConnectionState>(*state)))
        .collect();
    format!("{total} ({})", by_state.join(", "))
}

fn owners_table(screen: &mut Screen, owners: &[pb::OwnerUsage]) {
    let mut table = Table::new([
        "OWNER",
        "CONNECTIONS",
        "UNCLOSED",
        "FAILURES",
        "MISSES",
        "STORED",
    ]);
    for owner in owners {
        table.row([
            owner.owner.as_str().into(),
            owner.connections.into(),
            owner.unclosed.into(),
            owner.failures.into(),
            owner.misses.into(),
            owner.stored.into(),
        ]);
    }
    screen.table(&table);
}

fn streams_table(screen: &mut Screen, streams: &[pb::StreamUsage]) {
    let mut table = Table::new(["OWNER", "STREAMS", "LIMIT"]);
    for usage in streams {
        table.row([
            usage.owner.as_str().into(),
            u64::from(usage.streams).into(),
            u64::from(usage.limit).into(),
        ]);
    }
    screen.table(&table);
}

fn process_fields(screen: &mut Screen, process: &pb::ProcessUsage) {
    let of = |used: u32, limit: u64| match limit {
        0 => used.to_string(),
        limit => format!("{used} of {limit}"),
    };
    screen.fields([
        ("memory", words::bytes(process.memory_bytes).into()),
        (
            "cpu time",
            words::duration(process.cpu_time.as_ref()).into(),
        ),
        ("threads", u64::from(process.threads).into()),
        (
            "open files",
            of(process.open_files, process.open_files_max).into(),
        ),
        (
            "sockets",
            of(process.sockets, process.sockets_max.into()).into(),
        ),
        ("calls", of(process.calls, process.calls_max.into()).into()),
        (
            "connections",
            of(process.connections, process.connections_max.into()).into(),
        ),
    ]);
}

fn certificates_table(screen: &mut Screen, certificates: &[pb::CertificateStatus]) {
    let mut table = Table::new(["KEY", "STATE", "DAYS LEFT", "EXPIRES"]);
    for certificate in certificates {
        let days = certificate.days_left;
        let state = match days {
            ..0 => Cell::toned("expired", Tone::Bad),
            0..DAYS_LEFT_LOW => Cell::toned("expires soon", Tone::Passing),
            DAYS_LEFT_LOW.. => Cell::toned("valid", Tone::Good),
        };
        table.row([
            certificate.key.as_str().into(),
            state,
            days.to_string().into(),
            words::time(certificate.expire_time.as_ref()).into(),
        ]);
    }
    screen.table(&table);
}

fn store_fields(screen: &mut Screen, store: &pb::SharedStore) {
    screen.fields([
        ("address", words::or_dash(&store.address).into()),
        ("open parts", format!("{} of 64", store.open_parts).into()),
        ("requests", store.requests.into()),
        ("failures", store.failures.into()),
        ("shed", store.shed.into()),
        ("unopened", store.unopened.into()),
        ("losses", store.losses.into()),
        ("abandoned", store.abandoned.into()),
        ("keys", store.keys.as_str().into()),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_one_screen() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 7 });
        let status = pb::GetStatusResponse {
            version: "0.1.0".into(),
            build: "x86_64, dist".into(),
            start_time: at(0),
            time: at(7_260),
            state: pb::DaemonState::Draining.into(),
            config_digest: "0123456789abcdef".into(),
            last_reload: Some(pb::Reload {
                time: at(60),
                error: "c.toml:2: listen.port: unknown field".into(),
                ..Default::default()
            }),
            connections: [1, 3, 3]
                .map(|state| pb::ConnectionCount {
                    state,
                    count: 2,
                    ..Default::default()
                })
                .to_vec(),
            owners: vec![pb::OwnerUsage {
                owner: "uid:1000".into(),
                connections: 4,
                ..Default::default()
            }],
            process: Some(pb::ProcessUsage {
                memory_bytes: 3 << 20,
                open_files: 9,
                sockets: 1,
                sockets_max: 100,
                ..Default::default()
            }),
            certificates: vec![pb::CertificateStatus {
                key: "context.web.certificate".into(),
                expire_time: at(0),
                days_left: -1,
            }],
            daemon: Some(pb::DaemonStats {
                shared_store: Some(pb::SharedStore {
                    open_parts: 63,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            log_lines_dropped: 5,
            ..Default::default()
        };
        let mut screen = Screen::new(false);
        screen_of(&mut screen, &status);
        let text = screen.into_text();
        for line in [
            "version        0.1.0 (x86_64, dist)",
            "state          draining",
            "uptime         2h 1m (since 1970-01-01T00:00:00Z)",
            "last reload    refused",
            "reload time    1970-01-01T00:01:00Z (c.toml:2: listen.port: unknown field)",
            "log level      no log (5 lines dropped)",
            "connections    6 (2 before, 4 established)",
            "uid:1000            4         0         0       0       0",
            "memory       3 MiB",
            "open files   9",
            "sockets      1 of 100",
            "context.web.certificate  expired  -1         1970-01-01T00:00:00Z",
            "open parts  63 of 64",
        ] {
            assert!(text.lines().any(|held| held == line), "{line}:\n{text}");
        }
    }
}
