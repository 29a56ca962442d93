//! Every metric: its name, its unit, its meaning and its labels.
//!
//! * `openmetrics`: the text that Prometheus reads

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use prometheus_client::registry::Unit;
use tls_sessiond_core::session::histogram::HistogramCounts;
use tls_sessiond_proto as pb;

use crate::api::admin::{Admin, Snapshot};

pub(crate) mod openmetrics;

/// A kind of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// A metric. A counter gets the suffix `_total`, and a unit is the suffix before that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) unit: Option<&'static Unit>,
    pub(crate) help: &'static str,
}

/// The values of a metric by their labels. No two have equal labels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    /// Those of an [`Kind::Info`]: labels alone.
    Info(Labels),
    /// Whole numbers of a counter or a gauge.
    Counts(BTreeMap<Labels, u64>),
    /// A counter of seconds, without labels.
    Seconds(Duration),
    /// Those of a histogram.
    Histograms(BTreeMap<Labels, HistogramCounts>),
}

/// Metrics at one time.
pub(crate) trait Metrics: fmt::Debug + Send + Sync + 'static {
    /// Passes each metric on with its values, in the order in which they are written.
    ///
    /// # Errors
    /// Those of `write`.
    fn write(&self, write: &mut dyn FnMut(Metric, Values) -> fmt::Result) -> fmt::Result;
}

impl<M: Metrics> Metrics for Arc<M> {
    fn write(&self, write: &mut dyn FnMut(Metric, Values) -> fmt::Result) -> fmt::Result {
        M::write(self, write)
    }
}

pub(crate) const fn metric(
    name: &'static str,
    kind: Kind,
    unit: Option<&'static Unit>,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        unit,
        help,
    }
}

static BYTES_UNIT: Unit = Unit::Bytes;
static SECONDS_UNIT: Unit = Unit::Seconds;
pub(crate) const BYTES: Option<&Unit> = Some(&BYTES_UNIT);
pub(crate) const SECONDS: Option<&Unit> = Some(&SECONDS_UNIT);

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident, $unit:expr, $help:literal;)*) => {
        $(pub(crate) const $constant: Metric = metric($name, Kind::$kind, $unit, $help);)*
        /// All metrics, in the order in which they are written.
        #[cfg(test)]
        const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    BUILD = "tls_sessiond_build", Info, None, "Version and build of the daemon";
    READY = "tls_sessiond_ready", Gauge, None, "1 while the daemon takes work, 0 while it starts or drains";
    HANDSHAKES = "tls_sessiond_handshakes", Counter, None, "Handshakes that finished, by role, version and kind (full or resumed)";
    HANDSHAKE_FAILURES = "tls_sessiond_handshake_failures", Counter, None, "Handshakes that failed, by alert and by the side that sent it";
    HANDSHAKE_DURATION = "tls_sessiond_handshake_duration", Histogram, SECONDS, "Duration of handshakes of the daemon's engine, with network and peer";
    LOOKUPS = "tls_sessiond_lookups", Counter, None, "Sessions resumed (hit), and lookups that found nothing to resume (miss) by reason";
    REMOVALS = "tls_sessiond_removals", Counter, None, "Sessions removed from the cache, by reason; cache_full is an eviction";
    SESSIONS = "tls_sessiond_sessions", Gauge, None, "Sessions in the memory of this daemon, by role";
    SESSIONS_LIMIT = "tls_sessiond_sessions_limit", Gauge, None, "cache_entries_max of the context, for each role";
    SESSION_SIZE = "tls_sessiond_session_size", Gauge, BYTES, "Bytes of the sessions in the memory of this daemon, by role";
    SESSION_SIZE_LIMIT = "tls_sessiond_session_size_limit", Gauge, BYTES, "cache_bytes_max of the context, for each role";
    REFUSED_TICKETS = "tls_sessiond_refused_tickets", Gauge, None, "Sealed tickets that are remembered because they are no longer good, of contexts with ticket_kind sealed";
    REFUSED_TICKETS_LIMIT = "tls_sessiond_refused_tickets_limit", Gauge, None, "How many of them there is room for; one more, and no ticket of before is resumed";
    CONNECTIONS = "tls_sessiond_connections", Gauge, None, "Live connection objects by state, role and engine";
    CONNECTIONS_LIMIT = "tls_sessiond_connections_limit", Gauge, None, "limits.connections";
    UNCLOSED = "tls_sessiond_unclosed_connections", Counter, None, "Connections that ended unclosed, by identity; at most 200 identities, those with the largest totals among them";
    SOCKETS = "tls_sessiond_sockets", Gauge, None, "Connections of the API whose caller is known";
    SOCKETS_LIMIT = "tls_sessiond_sockets_limit", Gauge, None, "limits.sockets, or less if the system allows fewer open files";
    STREAM_LIMIT_REACHED = "tls_sessiond_stream_limit_reached", Counter, None, "How often a connection of the API has reached its limit of streams";
    CALLS = "tls_sessiond_calls_in_flight", Gauge, None, "Calls that have begun and are not answered";
    CALLS_LIMIT = "tls_sessiond_calls_limit", Gauge, None, "limits.calls_in_flight";
    CALLS_REFUSED = "tls_sessiond_calls_refused", Counter, None, "Calls refused before they began, by the reason of their error";
    CALL_DURATION = "rpc_server_call_duration", Histogram, SECONDS, "Duration of calls by method and status, from the first byte to the last";
    BATCH_DURATION = "tls_sessiond_attach_batch_duration", Histogram, SECONDS, "Duration of a message of an Attach, until its last call is answered";
    RELOADS = "tls_sessiond_reloads", Counter, None, "Reloads of the configuration, by result";
    LAST_RELOAD = "tls_sessiond_last_reload_time", Gauge, SECONDS, "When the last reload ended, in seconds since the Unix epoch";
    LAST_RELOAD_APPLIED = "tls_sessiond_last_reload_applied", Gauge, None, "1 if the last reload was applied, 0 if it was refused";
    CERTIFICATE_EXPIRY = "tls_sessiond_certificate_expiry_time", Gauge, SECONDS, "When a certificate expires, in seconds since the Unix epoch";
    LOG_LINES_DROPPED = "tls_sessiond_log_lines_dropped", Counter, None, "Log lines dropped because they could not be written in time";
    STORE_OPEN_PARTS = "tls_sessiond_store_open_parts", Gauge, None, "Parts of the shared store, of 64, in which sessions are found now";
    STORE_REQUESTS = "tls_sessiond_store_requests", Counter, None, "Lookups and puts sent to the shared store";
    STORE_FAILURES = "tls_sessiond_store_failures", Counter, None, "Lookups and puts that the shared store did not answer, or answered with an error";
    STORE_SHED = "tls_sessiond_store_shed", Counter, None, "Lookups and puts not sent, because that part of the shared store was away";
    STORE_UNOPENED = "tls_sessiond_store_unopened", Counter, None, "Values of the shared store that no sealing key of this daemon opens";
    STORE_LOSSES = "tls_sessiond_store_losses", Counter, None, "How often a part of the shared store had lost the heartbeat of this daemon";
    STORE_ABANDONED = "tls_sessiond_store_abandoned", Counter, None, "How often this daemon gave up what it held in a part of the shared store";
    RING_EPOCH = "tls_sessiond_ticket_key_epoch", Gauge, None, "The epoch that a ring of ticket keys encrypts with";
    RING_AGE = "tls_sessiond_ticket_key_age", Gauge, SECONDS, "How long ago the epoch of a ring was activated";
    RING_AGE_MAX = "tls_sessiond_ticket_key_age_max", Gauge, SECONDS, "max_key_age of a ring";
    RING_MEMBERS = "tls_sessiond_ticket_key_members", Gauge, None, "Members of a ring, by state: running, joining, behind, away or late";
    RING_ROTATIONS = "tls_sessiond_ticket_key_rotations", Counter, None, "Rotations of a ring";
    RING_FENCED = "tls_sessiond_ticket_key_members_fenced", Counter, None, "Members that a ring no longer waited for";
    RING_SEALED = "tls_sessiond_ticket_key_tickets_sealed", Counter, None, "Tickets that this daemon has sealed with a ring";
    RING_OPENED = "tls_sessiond_ticket_key_tickets_opened", Counter, None, "Tickets that this daemon has opened with a ring";
    CPU = "process_cpu", Counter, SECONDS, "CPU time of the process";
    MEMORY = "process_resident_memory", Gauge, BYTES, "Resident memory of the process";
    VIRTUAL_MEMORY = "process_virtual_memory", Gauge, BYTES, "Virtual memory of the process";
    OPEN_FILES = "process_open_fds", Gauge, None, "Open files of the process";
    OPEN_FILES_LIMIT = "process_max_fds", Gauge, None, "Limit of open files of the process, 0 if there is none";
    THREADS = "process_threads", Gauge, None, "Threads of the process";
    STARTED = "process_start_time", Gauge, SECONDS, "When the daemon started, in seconds since the Unix epoch";
}

/// Names and values of labels.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// The durations of calls at one time.
#[derive(Debug)]
struct Calls {
    durations: Vec<(&'static str, &'static str, HistogramCounts)>,
    batches: HistogramCounts,
    refused: Vec<(&'static str, u64)>,
}

/// All metrics at one time.
pub(crate) struct Everything {
    snapshot: Snapshot,
    calls: Calls,
}

impl fmt::Debug for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Everything")
    }
}

impl Everything {
    /// Returns the metrics as `snapshot` and `admin` have them now.
    pub(crate) fn of(snapshot: Snapshot, admin: &Admin) -> Self {
        let durations = admin.durations();
        let calls = Calls {
            durations: durations.calls().collect(),
            batches: durations.batches.counts(),
            refused: durations.refused(),
        };
        Self { snapshot, calls }
    }
}

impl Metrics for Everything {
    fn write(&self, write: &mut dyn FnMut(Metric, Values) -> fmt::Result) -> fmt::Result {
        let mut to = Out(write);
        let status = &self.snapshot.status;
        let build = vec![
            ("version", status.version.clone()),
            ("build", status.build.clone()),
        ];
        to.info(BUILD, build)?;
        let ready = status.state() == pb::DaemonState::Serving;
        to.counts(READY, [(Labels::new(), u64::from(ready))])?;
        self.contexts(&mut to)?;
        self.api(&mut to)?;
        self.reloads(&mut to)?;
        if let Some(store) = status
            .daemon
            .as_ref()
            .and_then(|daemon| daemon.shared_store.as_ref())
        {
            shared_store(store, &mut to)?;
        }
        self.rings(&mut to)?;
        self.process(&mut to)
    }
}

impl Everything {
    fn rings(&self, to: &mut Out<'_>) -> fmt::Result {
        let rings = &self.snapshot.status.rings;
        if rings.is_empty() {
            return Ok(());
        }
        let label = |ring: &pb::Ring| match self.snapshot.names {
            true => vec![("ring", ring.name.clone())],
            false => Labels::new(),
        };
        let age = |age: &Option<prost_types::Duration>| {
            let seconds = age.as_ref().map_or(0, |age| age.seconds);
            u64::try_from(seconds).unwrap_or(0)
        };
        // Numbers of several rings cannot be added up.
        if self.snapshot.names {
            to.counts(
                RING_EPOCH,
                rings.iter().map(|ring| (label(ring), ring.epoch)),
            )?;
            let ages = rings.iter().map(|ring| (label(ring), age(&ring.epoch_age)));
            to.counts(RING_AGE, ages)?;
            let most = rings
                .iter()
                .map(|ring| (label(ring), age(&ring.max_key_age)));
            to.counts(RING_AGE_MAX, most)?;
        }
        let members = rings.iter().flat_map(|ring| {
            MEMBER_STATES.map(|state| {
                let mut labels = label(ring);
                labels.push(("state", state.to_owned()));
                let members = ring.members.iter();
                let count = members
                    .filter(|member| member_state(member) == state)
                    .count();
                (labels, count as u64)
            })
        });
        to.counts(RING_MEMBERS, members.collect::<Vec<_>>())?;
        let rotations = rings.iter().map(|ring| (label(ring), ring.rotations));
        to.counts(RING_ROTATIONS, rotations)?;
        let fenced = rings.iter().map(|ring| (label(ring), ring.fenced));
        to.counts(RING_FENCED, fenced)?;
        let sealed = rings.iter().map(|ring| (label(ring), ring.tickets_sealed));
        to.counts(RING_SEALED, sealed)?;
        let opened = rings.iter().map(|ring| (label(ring), ring.tickets_opened));
        to.counts(RING_OPENED, opened)
    }

    /// Adds the label of a context, where names are shown.
    fn label(&self, context: &str, mut labels: Labels) -> Labels {
        if self.snapshot.names {
            labels.insert(0, ("context", context.to_owned()));
        }
        labels
    }

    fn contexts(&self, to: &mut Out<'_>) -> fmt::Result {
        let contexts = &self.snapshot.status.contexts;
        let each = |rows: &dyn Fn(&pb::SessionStats) -> Vec<(Labels, u64)>| {
            let all = contexts.iter().filter_map(|context| {
                let stats = context.stats.as_ref()?;
                Some((context.name.as_str(), rows(stats)))
            });
            all.flat_map(|(context, rows)| {
                rows.into_iter()
                    .map(|(labels, count)| (self.label(context, labels), count))
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
        };
        to.counts(HANDSHAKES, each(&handshakes))?;
        to.counts(HANDSHAKE_FAILURES, each(&failures))?;
        let durations = contexts.iter().zip(&self.snapshot.handshakes);
        to.histogram(
            HANDSHAKE_DURATION,
            durations.map(|(context, counts)| (self.label(&context.name, Labels::new()), *counts)),
        )?;
        to.counts(LOOKUPS, each(&lookups))?;
        to.counts(REMOVALS, each(&removals))?;
        to.counts(
            SESSIONS,
            self.roles(|stats, _| (stats.server_sessions, stats.sessions)),
        )?;
        let entries = |_: &pb::SessionStats, context: &pb::Context| {
            (context.cache_entries_max, 2 * context.cache_entries_max)
        };
        to.counts(SESSIONS_LIMIT, self.roles(entries))?;
        let bytes = |stats: &pb::SessionStats, _: &pb::Context| {
            (stats.server_session_bytes, stats.session_bytes)
        };
        to.counts(SESSION_SIZE, self.roles(bytes))?;
        let most = |_: &pb::SessionStats, context: &pb::Context| {
            (context.cache_bytes_max, 2 * context.cache_bytes_max)
        };
        to.counts(SESSION_SIZE_LIMIT, self.roles(most))?;
        let sealed = |of: &dyn Fn(&pb::SessionStats) -> u64| {
            let contexts = contexts
                .iter()
                .filter(|context| !context.ticket_ring.is_empty());
            let rows = contexts.filter_map(|context| {
                let stats = context.stats.as_ref()?;
                Some((self.label(&context.name, Labels::new()), of(stats)))
            });
            rows.collect::<Vec<_>>()
        };
        to.counts(REFUSED_TICKETS, sealed(&|stats| stats.refused_tickets))?;
        to.counts(
            REFUSED_TICKETS_LIMIT,
            sealed(&|stats| stats.refused_tickets_max),
        )
    }

    /// Returns a row for each role of each context. `of` returns the value of servers, and that of
    /// both roles.
    fn roles(
        &self,
        of: impl Fn(&pb::SessionStats, &pb::Context) -> (u64, u64),
    ) -> Vec<(Labels, u64)> {
        let contexts = self.snapshot.status.contexts.iter();
        let rows = contexts.flat_map(|context| {
            let stats = context.stats.clone().unwrap_or_default();
            let (servers, both) = of(&stats, context);
            [
                ("server", servers),
                ("client", both.saturating_sub(servers)),
            ]
            .map(|(role, value)| {
                (
                    self.label(&context.name, vec![("role", role.to_owned())]),
                    value,
                )
            })
        });
        rows.collect()
    }

    fn api(&self, to: &mut Out<'_>) -> fmt::Result {
        let status = &self.snapshot.status;
        let process = status.process.unwrap_or_default();
        let one = |value: u32| [(Labels::new(), u64::from(value))];
        to.counts(
            CONNECTIONS,
            status.connections.iter().map(|count| {
                let labels = vec![
                    (
                        "state",
                        word(count.state().as_str_name(), "CONNECTION_STATE_"),
                    ),
                    ("role", word(count.role().as_str_name(), "ROLE_")),
                    ("engine", word(count.engine().as_str_name(), "ENGINE_")),
                ];
                (self.label(&count.context, labels), count.count)
            }),
        )?;
        to.counts(CONNECTIONS_LIMIT, one(process.connections_max))?;
        if self.snapshot.names {
            let owners = status.owners.iter().filter(|owner| owner.unclosed > 0);
            to.counts(
                UNCLOSED,
                owners.map(|owner| (vec![("owner", owner.owner.clone())], owner.unclosed)),
            )?;
        }
        to.counts(SOCKETS, one(process.sockets))?;
        to.counts(SOCKETS_LIMIT, one(process.sockets_max))?;
        let reached = status
            .daemon
            .as_ref()
            .map_or(0, |daemon| daemon.stream_limit_reached);
        to.counts(STREAM_LIMIT_REACHED, [(Labels::new(), reached)])?;
        to.counts(CALLS, one(process.calls))?;
        to.counts(CALLS_LIMIT, one(process.calls_max))?;
        to.counts(
            CALLS_REFUSED,
            self.calls
                .refused
                .iter()
                .map(|(reason, count)| (vec![("reason", reason.to_lowercase())], *count)),
        )?;
        to.histogram(
            CALL_DURATION,
            self.calls.durations.iter().map(|(method, code, counts)| {
                let labels = vec![
                    ("rpc_method", (*method).to_owned()),
                    ("rpc_response_status_code", (*code).to_owned()),
                ];
                (labels, *counts)
            }),
        )?;
        to.histogram(BATCH_DURATION, [(Labels::new(), self.calls.batches)])
    }

    fn reloads(&self, to: &mut Out<'_>) -> fmt::Result {
        let status = &self.snapshot.status;
        let result = |result: &str, count| (vec![("result", result.to_owned())], count);
        let totals = self.snapshot.reloads;
        to.counts(
            RELOADS,
            [
                result("applied", totals.applied),
                result("refused", totals.refused),
            ],
        )?;
        if let Some(last) = &status.last_reload {
            to.counts(LAST_RELOAD, [(Labels::new(), seconds(last.time.as_ref()))])?;
            to.counts(
                LAST_RELOAD_APPLIED,
                [(Labels::new(), u64::from(last.applied))],
            )?;
        }
        let named = |certificate: &pb::CertificateStatus| {
            let labels = vec![("certificate", certificate.key.clone())];
            (labels, seconds(certificate.expire_time.as_ref()))
        };
        let first = || status.certificates.first().map(named);
        let expiries: Vec<_> = match self.snapshot.names {
            true => status.certificates.iter().map(named).collect(),
            // Without names: the first one to expire.
            false => first()
                .map(|(_, expiry)| (Labels::new(), expiry))
                .into_iter()
                .collect(),
        };
        to.counts(CERTIFICATE_EXPIRY, expiries)?;
        to.counts(
            LOG_LINES_DROPPED,
            [(Labels::new(), status.log_lines_dropped)],
        )
    }

    fn process(&self, to: &mut Out<'_>) -> fmt::Result {
        let status = &self.snapshot.status;
        let process = status.process.unwrap_or_default();
        let one = |value: u64| [(Labels::new(), value)];
        let cpu = process.cpu_time.unwrap_or_default();
        let cpu = Duration::try_from(cpu).unwrap_or_default();
        to.seconds(CPU, cpu)?;
        to.counts(MEMORY, one(process.memory_bytes))?;
        to.counts(VIRTUAL_MEMORY, one(self.snapshot.virtual_bytes))?;
        to.counts(OPEN_FILES, one(process.open_files.into()))?;
        to.counts(OPEN_FILES_LIMIT, one(process.open_files_max))?;
        to.counts(THREADS, one(process.threads.into()))?;
        to.counts(STARTED, one(seconds(status.start_time.as_ref())))
    }
}

fn shared_store(store: &pb::SharedStore, to: &mut Out<'_>) -> fmt::Result {
    let one = |value: u64| [(Labels::new(), value)];
    to.counts(STORE_OPEN_PARTS, one(store.open_parts.into()))?;
    to.counts(STORE_REQUESTS, one(store.requests))?;
    to.counts(STORE_FAILURES, one(store.failures))?;
    to.counts(STORE_SHED, one(store.shed))?;
    to.counts(STORE_UNOPENED, one(store.unopened))?;
    to.counts(STORE_LOSSES, one(store.losses))?;
    to.counts(STORE_ABANDONED, one(store.abandoned))
}

fn handshakes(stats: &pb::SessionStats) -> Vec<(Labels, u64)> {
    // A kind that has not occurred is zero, so that its first occurrence is an increase.
    let zeros = ["server", "client"].into_iter().flat_map(|role| {
        ["1.2", "1.3"].into_iter().flat_map(move |version| {
            ["full", "resumed"].map(|kind| {
                let labels = [("role", role), ("version", version), ("kind", kind)];
                (
                    labels
                        .map(|(name, value)| (name, value.to_owned()))
                        .to_vec(),
                    0,
                )
            })
        })
    });
    let row = |count: &pb::HandshakeCount| {
        let version = match count.version() {
            pb::ProtocolVersion::Unspecified => "unknown",
            pb::ProtocolVersion::Tls12 => "1.2",
            pb::ProtocolVersion::Tls13 => "1.3",
        };
        let kind = if count.resumed { "resumed" } else { "full" };
        let labels = vec![
            ("role", word(count.role().as_str_name(), "ROLE_")),
            ("version", version.to_owned()),
            ("kind", kind.to_owned()),
        ];
        (labels, count.count)
    };
    stats.handshakes.iter().map(row).chain(zeros).collect()
}

fn failures(stats: &pb::SessionStats) -> Vec<(Labels, u64)> {
    let row = |failure: &pb::AlertCount| {
        let (alert, side) = match &failure.alert {
            None => ("none", "none"),
            Some(alert) if alert.received => (alert.name.as_str(), "received"),
            Some(alert) => (alert.name.as_str(), "sent"),
        };
        let labels = vec![("alert", alert.to_owned()), ("side", side.to_owned())];
        (labels, failure.count)
    };
    stats.failures_by_alert.iter().map(row).collect()
}

fn lookups(stats: &pb::SessionStats) -> Vec<(Labels, u64)> {
    let labels =
        |result: &str, reason: String| vec![("result", result.to_owned()), ("reason", reason)];
    let hits = (labels("hit", "found".into()), stats.hits);
    let misses = stats.misses_by_reason.iter().map(|miss| {
        let reason = word(miss.reason().as_str_name(), "MISS_REASON_");
        (labels("miss", reason), miss.count)
    });
    let all = (1..).map_while(|number| pb::MissReason::try_from(number).ok());
    let zeros = all.map(|reason| {
        (
            labels("miss", word(reason.as_str_name(), "MISS_REASON_")),
            0,
        )
    });
    std::iter::once(hits).chain(misses).chain(zeros).collect()
}

fn removals(stats: &pb::SessionStats) -> Vec<(Labels, u64)> {
    let row = |removal: &pb::RemovalCount| {
        let reason = word(removal.reason().as_str_name(), "REMOVAL_REASON_");
        (vec![("reason", reason)], removal.count)
    };
    let all = (1..).map_while(|number| pb::RemovalReason::try_from(number).ok());
    let zeros = all.map(|reason| {
        let reason = word(reason.as_str_name(), "REMOVAL_REASON_");
        (vec![("reason", reason)], 0)
    });
    stats
        .removals_by_reason
        .iter()
        .map(row)
        .chain(zeros)
        .collect()
}

/// The states of a member, as [`member_state`] returns them.
const MEMBER_STATES: [&str; 5] = ["running", "joining", "behind", "away", "late"];

/// Returns the state of a member in one word.
fn member_state(member: &pb::RingMember) -> &'static str {
    match member {
        _ if !member.counted => "joining",
        _ if member.late => "late",
        _ if !member.attached => "away",
        _ if member.behind.is_some() => "behind",
        _ => "running",
    }
}

/// Returns the value of an enum of the contract as a label has it: in lower case, without the name
/// of its enum.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

fn seconds(time: Option<&prost_types::Timestamp>) -> u64 {
    time.and_then(|time| u64::try_from(time.seconds).ok())
        .unwrap_or(0)
}

/// Passes metrics on. Rows with equal labels are added up, so that no metric has one twice.
pub(crate) struct Out<'w>(pub(crate) &'w mut dyn FnMut(Metric, Values) -> fmt::Result);

impl Out<'_> {
    pub(crate) fn info(&mut self, metric: Metric, labels: Labels) -> fmt::Result {
        (self.0)(metric, Values::Info(labels))
    }

    pub(crate) fn counts(
        &mut self,
        metric: Metric,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let rows = added_up(rows, |sum, count| *sum += count);
        (self.0)(metric, Values::Counts(rows))
    }

    pub(crate) fn seconds(&mut self, metric: Metric, time: Duration) -> fmt::Result {
        (self.0)(metric, Values::Seconds(time))
    }

    fn histogram(
        &mut self,
        metric: Metric,
        rows: impl IntoIterator<Item = (Labels, HistogramCounts)>,
    ) -> fmt::Result {
        let rows = added_up(rows, |sum: &mut HistogramCounts, counts| sum.add(&counts));
        (self.0)(metric, Values::Histograms(rows))
    }
}

fn added_up<V: Default>(
    rows: impl IntoIterator<Item = (Labels, V)>,
    add: impl Fn(&mut V, V),
) -> BTreeMap<Labels, V> {
    let mut sums = BTreeMap::new();
    for (labels, value) in rows {
        add(sums.entry(labels).or_default(), value);
    }
    sums
}

/// Returns the row of a metric in its document.
#[cfg(test)]
pub(crate) fn row(metric: &Metric) -> String {
    let unit = metric.unit.map_or("", |unit| match unit {
        Unit::Bytes => "_bytes",
        _ => "_seconds",
    });
    let (suffix, kind) = match metric.kind {
        Kind::Counter => ("_total", "counter"),
        Kind::Gauge => ("", "gauge"),
        Kind::Histogram => ("", "histogram"),
        Kind::Info => ("_info", "info"),
    };
    format!(
        "| `{}{unit}{suffix}` | {kind} | {} |",
        metric.name, metric.help
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_every_metric_and_no_other() {
        let document = include_str!("../../../docs/operations.md");
        let wanted: Vec<_> = ALL.iter().map(row).collect();
        let begin = document
            .split_once("| metric | kind | meaning |")
            .expect("a table of metrics");
        let found: Vec<_> = begin
            .1
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(found, wanted, "write these rows:\n{}", wanted.join("\n"));
    }
}
