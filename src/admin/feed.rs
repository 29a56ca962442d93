//! The events of the status page, as server-sent events: the history once, then a snapshot every two
//! seconds.

mod rings;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    http::StatusCode,
    response::{IntoResponse, Response, Sse, sse::Event},
};
use futures_util::{Stream, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tls_sessiond_proto as pb;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use super::{
    history::{DAY_STEP, HOUR_STEP, History, Point},
    metrics::word,
    places::Place,
    routes::Visitor,
};
use crate::{
    api::admin::{Admin, Snapshot, Totals},
    doctor::{self, Evidence},
};

/// The time between two snapshots.
const BEAT: Duration = Duration::from_secs(2);
/// Most pages that are open at a time.
const VIEWERS_MAX: usize = 16;
/// How many events a snapshot has.
const EVENTS: usize = 20;
/// How many steps of the history are the last minute.
const MINUTE: usize = 2;

/// What all open pages share.
pub(crate) struct Feed {
    admin: Arc<Admin>,
    history: Mutex<History>,
    viewers: Arc<Semaphore>,
    /// The last snapshot. Pages that are open together share it.
    latest: tokio::sync::Mutex<Option<Made>>,
}

/// A snapshot that was made.
struct Made {
    at: Instant,
    /// The version of the rules that decided what it shows.
    rules: u64,
    value: Value,
}

impl Feed {
    pub(crate) fn new(admin: Arc<Admin>) -> Self {
        Self {
            admin,
            history: Mutex::default(),
            viewers: Arc::new(Semaphore::new(VIEWERS_MAX)),
            latest: tokio::sync::Mutex::new(None),
        }
    }

    /// Ends a step of the history.
    pub(crate) fn step(&self) {
        let totals = self.admin.totals();
        self.history.lock().step(self.admin.unix_time(), totals);
    }

    /// Returns the history, and the time of its last point.
    fn history(&self) -> (Value, u64) {
        let history = self.history.lock();
        let points =
            |points: &mut dyn Iterator<Item = &Point>| Value::Array(points.map(point).collect());
        let last = history.hour().last().map_or(0, |point| point.time);
        let value = json!({
            "step_seconds": {"hour": HOUR_STEP, "day": DAY_STEP},
            "hour": points(&mut history.hour()),
            "day": points(&mut history.day()),
        });
        (value, last)
    }

    /// Returns the points that ended after this time.
    fn points_since(&self, time: u64) -> Option<(Value, u64)> {
        let history = self.history.lock();
        let last = history.hour().last().filter(|point| point.time > time)?;
        let mut value = json!({"hour": point(last)});
        if let Some(day) = history.day().last().filter(|day| day.time == last.time) {
            value["day"] = point(day);
        }
        Some((value, last.time))
    }

    /// Returns the state of the daemon, at most a beat old.
    async fn snapshot(&self, visitor: &Visitor) -> Value {
        let mut latest = self.latest.lock().await;
        let rules = self.admin.rules_version();
        if let Some(made) = &*latest
            && made.rules == rules
            && made.at.elapsed() < BEAT / 2
        {
            return made.value.clone();
        }
        let snapshot = self.admin.snapshot(visitor.peer()).await;
        let totals = self.admin.totals();
        let resumption = {
            let history = self.history.lock();
            let share = |counts: Totals| counts.resumption();
            json!({
                "minute": share(history.latest(MINUTE, totals)),
                "hour": share(history.last_hour(totals)),
                "day": share(history.last_day(totals)),
            })
        };
        let (misses, failures) = match visitor.peer().filter(|_| snapshot.names) {
            Some(peer) => self.admin.recent(peer),
            None => (Vec::new(), Vec::new()),
        };
        let evidence = Evidence {
            status: &snapshot.status,
            misses: &misses,
            failures: &failures,
            clock_offset: None,
        };
        let mut value = shown(&snapshot, &totals, &evidence);
        value["resumption"] = resumption;
        *latest = Some(Made {
            at: Instant::now(),
            rules,
            value: value.clone(),
        });
        value
    }
}

/// One open page.
struct Viewer {
    feed: Arc<Feed>,
    visitor: Visitor,
    /// The place of its connection: a page that takes events uses it.
    connection: Arc<Place>,
    _place: OwnedSemaphorePermit,
    next: Instant,
    /// The time of the last point that the page has. `None`: the page has no history yet.
    last: Option<u64>,
}

impl Viewer {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        self.connection.touch();
        let Some(last) = self.last else {
            let (history, last) = self.feed.history();
            self.last = Some(last);
            let event = Event::default().event("history").data(history.to_string());
            return Some((Ok(event), self));
        };
        sleep_until(self.next).await;
        self.next = Instant::now() + BEAT;
        let mut snapshot = self.feed.snapshot(&self.visitor).await;
        if let Some((points, last)) = self.feed.points_since(last) {
            snapshot["point"] = points;
            self.last = Some(last);
        }
        let event = Event::default()
            .event("snapshot")
            .data(snapshot.to_string());
        Some((Ok(event), self))
    }
}

/// Answers /events.
pub(crate) async fn answer(
    Extension(feed): Extension<Arc<Feed>>,
    Extension(visitor): Extension<Visitor>,
    Extension(connection): Extension<Arc<Place>>,
) -> Response {
    let Ok(place) = Arc::clone(&feed.viewers).try_acquire_owned() else {
        let why = format!("{VIEWERS_MAX} pages are open already\n");
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    let viewer = Viewer {
        feed,
        visitor,
        connection,
        _place: place,
        next: Instant::now(),
        last: None,
    };
    Sse::new(events(viewer)).into_response()
}

fn events(viewer: Viewer) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(viewer, Viewer::next)
}

fn point(point: &Point) -> Value {
    let counts = &point.counts;
    json!({
        "time": point.time,
        "full": counts.full,
        "resumed": counts.resumed,
        "failed": counts.failed,
        "hits": counts.hits,
        "misses": counts.misses,
    })
}

fn time(time: Option<&prost_types::Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds)
}

/// Returns a snapshot as the page reads it.
fn shown(snapshot: &Snapshot, totals: &Totals, evidence: &Evidence<'_>) -> Value {
    let status = &snapshot.status;
    let process = status.process.unwrap_or_default();
    let findings = doctor::examine(evidence);
    let level = findings
        .first()
        .map_or("ok", |finding| finding.level.name());
    let findings: Vec<_> = findings
        .iter()
        .filter(|_| snapshot.names)
        .map(|finding| {
            json!({
                "level": finding.level.name(),
                "name": finding.name,
                "text": finding.text,
                "remedy": finding.remedy,
            })
        })
        .collect();
    let mut value = json!({
        "names": snapshot.names,
        "time": time(status.time.as_ref()),
        "version": status.version,
        "build": status.build,
        "started": time(status.start_time.as_ref()),
        "state": word(status.state().as_str_name(), "DAEMON_STATE_"),
        "verdict": {"level": level, "findings": findings},
        "handshakes": {"full": totals.full, "resumed": totals.resumed, "failed": totals.failed},
        "lookups": {"hits": totals.hits, "misses": misses(status)},
        "contexts": contexts(snapshot),
        "connections": connections(status),
        "failures": failures(status),
        "certificates": [],
        "rings": [],
        "unclosed": [],
        "events": [],
        "store": store(snapshot),
        "reload": reload(snapshot),
        "process": {
            "memory_bytes": process.memory_bytes,
            "cpu_seconds": cpu_seconds(&process),
            "threads": process.threads,
            "open_files": process.open_files,
            "sockets": process.sockets,
            "sockets_max": process.sockets_max,
            "calls": process.calls,
            "calls_max": process.calls_max,
        },
    });
    if snapshot.names {
        value["certificates"] = certificates(status);
        value["rings"] = rings::rings(status);
        value["unclosed"] = unclosed(status);
        value["events"] = events_of(evidence);
    }
    value
}

fn cpu_seconds(process: &pb::ProcessUsage) -> f64 {
    let time = Duration::try_from(process.cpu_time.unwrap_or_default()).unwrap_or_default();
    time.as_secs_f64()
}

fn stats(status: &pb::GetStatusResponse) -> impl Iterator<Item = &pb::SessionStats> {
    status
        .contexts
        .iter()
        .filter_map(|context| context.stats.as_ref())
}

/// Adds up rows with equal keys. Returns the largest first.
fn added_up<K: Ord>(rows: impl Iterator<Item = (K, u64)>) -> Vec<(K, u64)> {
    let mut sums = std::collections::BTreeMap::new();
    for (key, count) in rows {
        *sums.entry(key).or_insert(0) += count;
    }
    let mut all: Vec<_> = sums.into_iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    all
}

fn misses(status: &pb::GetStatusResponse) -> Value {
    let rows = stats(status).flat_map(|stats| &stats.misses_by_reason);
    let rows = rows.map(|miss| {
        (
            word(miss.reason().as_str_name(), "MISS_REASON_"),
            miss.count,
        )
    });
    let all = added_up(rows).into_iter();
    all.map(|(reason, count)| json!({"reason": reason, "count": count}))
        .collect()
}

fn failures(status: &pb::GetStatusResponse) -> Value {
    let rows = stats(status).flat_map(|stats| &stats.failures_by_alert);
    let rows = rows.map(|failure| {
        let alert = failure.alert.as_ref();
        let name = alert.map_or("none", |alert| alert.name.as_str());
        (
            (name, alert.is_some_and(|alert| alert.received)),
            failure.count,
        )
    });
    let all = added_up(rows).into_iter();
    all.map(
        |((alert, received), count)| json!({"alert": alert, "received": received, "count": count}),
    )
    .collect()
}

fn connections(status: &pb::GetStatusResponse) -> Value {
    let rows = status.connections.iter();
    let rows = rows.map(|count| {
        (
            word(count.state().as_str_name(), "CONNECTION_STATE_"),
            count.count,
        )
    });
    let all = added_up(rows).into_iter();
    all.map(|(state, count)| json!({"state": state, "count": count}))
        .collect()
}

fn contexts(snapshot: &Snapshot) -> Value {
    let mut rows = Vec::new();
    for context in &snapshot.status.contexts {
        let stats = context.stats.clone().unwrap_or_default();
        let row = |role: pb::Role, sessions: u64, bytes: u64| {
            let kinds = || stats.handshakes.iter().filter(|kind| kind.role() == role);
            let count = |is_resumed| {
                let kinds = kinds().filter(|kind| kind.resumed == is_resumed);
                kinds.map(|kind| kind.count).sum()
            };
            let totals = Totals {
                full: count(false),
                resumed: count(true),
                ..Totals::default()
            };
            let name = match (snapshot.names, role) {
                (false, _) => String::new(),
                (true, pb::Role::Client) => format!("{} (clients)", context.name),
                (true, _) => context.name.clone(),
            };
            json!({
                "name": name,
                "sessions": sessions,
                "sessions_max": context.cache_entries_max,
                "bytes": bytes,
                "bytes_max": context.cache_bytes_max,
                "resumed": totals.resumption(),
            })
        };
        rows.push(row(
            pb::Role::Server,
            stats.server_sessions,
            stats.server_session_bytes,
        ));
        // A context without connections of clients has no row for them.
        if stats.connect > 0 || stats.sessions > stats.server_sessions {
            rows.push(row(
                pb::Role::Client,
                stats.sessions.saturating_sub(stats.server_sessions),
                stats
                    .session_bytes
                    .saturating_sub(stats.server_session_bytes),
            ));
        }
    }
    if snapshot.names {
        return Value::Array(rows);
    }
    let sum = |field: &str| {
        rows.iter()
            .filter_map(|row| row[field].as_u64())
            .sum::<u64>()
    };
    json!([{
        "name": "",
        "sessions": sum("sessions"),
        "sessions_max": sum("sessions_max"),
        "bytes": sum("bytes"),
        "bytes_max": sum("bytes_max"),
        "resumed": null,
    }])
}

fn certificates(status: &pb::GetStatusResponse) -> Value {
    let each = status.certificates.iter().map(|certificate| {
        json!({
            "key": certificate.key,
            "days_left": certificate.days_left,
            "expires": time(certificate.expire_time.as_ref()),
        })
    });
    each.collect()
}

fn unclosed(status: &pb::GetStatusResponse) -> Value {
    let rows = status.owners.iter().filter(|owner| owner.unclosed > 0);
    let all = added_up(rows.map(|owner| (owner.owner.as_str(), owner.unclosed)));
    all.into_iter()
        .map(|(owner, count)| json!({"owner": owner, "count": count}))
        .collect()
}

fn store(snapshot: &Snapshot) -> Value {
    let daemon = snapshot.status.daemon.as_ref();
    let Some(store) = daemon.and_then(|daemon| daemon.shared_store.as_ref()) else {
        return Value::Null;
    };
    let address = match snapshot.names {
        true => store.address.as_str(),
        false => "",
    };
    json!({
        "address": address,
        "open_parts": store.open_parts,
        "parts": 64,
        "requests": store.requests,
        "failures": store.failures,
    })
}

fn reload(snapshot: &Snapshot) -> Value {
    let Some(reload) = &snapshot.status.last_reload else {
        return Value::Null;
    };
    let error = match snapshot.names {
        true => reload.error.as_str(),
        false => "",
    };
    json!({"time": time(reload.time.as_ref()), "applied": reload.applied, "error": error})
}

/// Returns the latest misses and failures, newest first.
fn events_of(evidence: &Evidence<'_>) -> Value {
    let misses = evidence.misses.iter().map(|miss| {
        let reason = word(miss.reason().as_str_name(), "MISS_REASON_");
        let text = format!(
            "lookup missed: {reason}, context {}, owner {}",
            miss.context, miss.owner
        );
        (time(miss.time.as_ref()), "miss", text)
    });
    let failures = evidence.failures.iter().map(|failure| {
        let text = format!(
            "handshake failed: {}, context {}, owner {}",
            failure.reason, failure.context, failure.owner
        );
        (time(failure.time.as_ref()), "failure", text)
    });
    let mut all: Vec<_> = misses.chain(failures).collect();
    all.sort_by_key(|(time, ..)| std::cmp::Reverse(*time));
    all.truncate(EVENTS);
    all.into_iter()
        .map(|(time, kind, text)| json!({"time": time, "kind": kind, "text": text}))
        .collect()
}
