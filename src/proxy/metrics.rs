//! Every metric of the command `proxy`.

use std::{fmt, sync::atomic::Ordering};

use tls_sessiond_client::Counters;
use tls_sessiond_core::clock::WallTime;
use tls_sessiond_types::Version;

use super::{
    sight::Sight,
    tally::{End, Unserved},
};
use crate::{
    admin::metrics::{
        BUILD, BYTES, CERTIFICATE_EXPIRY, CPU, Kind, LAST_RELOAD, LAST_RELOAD_APPLIED,
        LOG_LINES_DROPPED, Labels, MEMORY, Metric, Metrics, OPEN_FILES, OPEN_FILES_LIMIT, Out,
        READY, RELOADS, STARTED, THREADS, VIRTUAL_MEMORY, Values, metric,
    },
    api::admin::{build, process::ProcessUse},
};

const CONNECTIONS: Metric = metric(
    "tls_sessiond_proxy_connections",
    Kind::Gauge,
    None,
    "Open connections of a proxy, by state: handshake or established",
);
const CONNECTIONS_LIMIT: Metric = metric(
    "tls_sessiond_proxy_connections_limit",
    Kind::Gauge,
    None,
    "connections of the proxy, or less if the system allows fewer open files",
);
const HANDSHAKES: Metric = metric(
    "tls_sessiond_proxy_handshakes",
    Kind::Counter,
    None,
    "Handshakes that finished, by version and kind (full or resumed)",
);
const FAILURES: Metric = metric(
    "tls_sessiond_proxy_handshake_failures",
    Kind::Counter,
    None,
    "Handshakes that failed, by alert and by the side that sent it",
);
const UNSERVED: Metric = metric(
    "tls_sessiond_proxy_unserved",
    Kind::Counter,
    None,
    "Connections that came to no handshake, by reason",
);
const ENDS: Metric = metric(
    "tls_sessiond_proxy_ends",
    Kind::Counter,
    None,
    "Ends of established connections; only closed keeps the session",
);
const TRAFFIC: Metric = metric(
    "tls_sessiond_proxy_traffic",
    Kind::Counter,
    BYTES,
    "Plaintext that passed, to the backend (sent) and from it (received)",
);
const ATTACHED: Metric = metric(
    "tls_sessiond_proxy_attached",
    Kind::Gauge,
    None,
    "1 while the daemon that has the sessions takes calls, 0 while handshakes are full ones",
);
const LOOKUPS: Metric = metric(
    "tls_sessiond_proxy_lookups",
    Kind::Counter,
    None,
    "Lookups in the daemon, by result",
);
const REPORTS_DROPPED: Metric = metric(
    "tls_sessiond_proxy_reports_dropped",
    Kind::Counter,
    None,
    "Reports to the daemon that were dropped because too many waited",
);

const REPORTS_REFUSED: Metric = metric(
    "tls_sessiond_proxy_reports_refused",
    Kind::Counter,
    None,
    "Calls that the daemon refused, for example because the context does not exist",
);

/// A result of lookups, and its count.
type LookupResult = (&'static str, fn(&Counters) -> u64);

/// All results of lookups.
const RESULTS: [LookupResult; 5] = [
    ("hit", |counters| counters.hits),
    ("miss", |counters| counters.misses),
    ("timeout", |counters| counters.timeouts),
    ("away", |counters| counters.away),
    ("dropped", |counters| counters.lookups_dropped),
];

/// All of them, in the order in which they are written.
#[cfg(test)]
const ALL: [Metric; 11] = [
    CONNECTIONS,
    CONNECTIONS_LIMIT,
    HANDSHAKES,
    FAILURES,
    UNSERVED,
    ENDS,
    TRAFFIC,
    ATTACHED,
    LOOKUPS,
    REPORTS_DROPPED,
    REPORTS_REFUSED,
];

impl Metrics for Sight {
    fn write(&self, write: &mut dyn FnMut(Metric, Values) -> fmt::Result) -> fmt::Result {
        let mut to = Out(write);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        to.info(BUILD, vec![("version", version), ("build", build())])?;
        to.counts(READY, one(u64::from(self.is_ready())))?;
        self.connections(&mut to)?;
        self.daemons(&mut to)?;
        let reloads = self.reloads();
        let result = |word: &str| vec![("result", word.to_owned())];
        let rows = [
            (result("applied"), reloads.applied),
            (result("refused"), reloads.refused),
        ];
        to.counts(RELOADS, rows)?;
        if let Some((at, is_applied)) = reloads.last {
            to.counts(LAST_RELOAD, one(seconds(at)))?;
            to.counts(LAST_RELOAD_APPLIED, one(u64::from(is_applied)))?;
        }
        let expiry = self.proxies().filter_map(|proxy| {
            let ends = proxy.live().ends?;
            Some((vec![("proxy", self.name(proxy))], seconds(ends)))
        });
        to.counts(CERTIFICATE_EXPIRY, expiry)?;
        to.counts(LOG_LINES_DROPPED, one(self.log_lines_dropped()))?;
        let process = ProcessUse::now();
        to.seconds(CPU, process.cpu_time)?;
        to.counts(MEMORY, one(process.memory_bytes))?;
        to.counts(VIRTUAL_MEMORY, one(process.virtual_bytes))?;
        to.counts(OPEN_FILES, one(process.open_files.into()))?;
        to.counts(OPEN_FILES_LIMIT, one(process.open_files_max.unwrap_or(0)))?;
        to.counts(THREADS, one(process.threads.into()))?;
        to.counts(STARTED, one(seconds(self.started())))
    }
}

impl Sight {
    fn connections(&self, to: &mut Out<'_>) -> fmt::Result {
        let rows = |of: &dyn Fn(&super::door::ProxyDoor) -> Vec<(Labels, u64)>| {
            let all = self.proxies().flat_map(|proxy| {
                let rows = of(proxy).into_iter();
                rows.map(|(mut labels, value)| {
                    labels.insert(0, ("proxy", self.name(proxy)));
                    (labels, value)
                })
                .collect::<Vec<_>>()
            });
            all.collect::<Vec<_>>()
        };
        let label = |name, value: &str| vec![(name, value.to_owned())];
        let connections = rows(&|proxy| {
            let states = [
                ("handshake", &proxy.tally.handshaking),
                ("established", &proxy.tally.open),
            ];
            let row = |(state, gauge): (&str, &std::sync::atomic::AtomicUsize)| {
                (label("state", state), gauge.load(Ordering::Relaxed) as u64)
            };
            states.map(row).to_vec()
        });
        to.counts(CONNECTIONS, connections)?;
        to.counts(
            CONNECTIONS_LIMIT,
            rows(&|proxy| vec![(Labels::new(), proxy.live().config.connections as u64)]),
        )?;
        let kinds = [(Version::Tls12, "1.2"), (Version::Tls13, "1.3")];
        let handshakes = rows(&|proxy| {
            let all = kinds.iter().flat_map(|&(version, text)| {
                [("full", false), ("resumed", true)].map(|(kind, is_resumed)| {
                    let labels = vec![("version", text.to_owned()), ("kind", kind.to_owned())];
                    (labels, proxy.tally.handshakes(version, is_resumed))
                })
            });
            all.collect()
        });
        to.counts(HANDSHAKES, handshakes)?;
        let failures = rows(&|proxy| {
            let all = proxy.tally.failures.all().filter(|(_, count)| *count > 0);
            let row = all.map(|(alert, count)| {
                let (alert, side) = match alert {
                    None => ("none", "none"),
                    Some(alert) if alert.received => (alert.name(), "received"),
                    Some(alert) => (alert.name(), "sent"),
                };
                (
                    vec![("alert", alert.to_owned()), ("side", side.to_owned())],
                    count,
                )
            });
            row.collect()
        });
        to.counts(FAILURES, failures)?;
        let unserved = |proxy: &super::door::ProxyDoor| {
            let row = |why: Unserved| (label("reason", why.word()), proxy.tally.unserved_by(why));
            Unserved::ALL.map(row).to_vec()
        };
        to.counts(UNSERVED, rows(&unserved))?;
        let ends = |proxy: &super::door::ProxyDoor| {
            let row = |end: End| (label("end", end.word()), proxy.tally.ended_by(end));
            End::ALL.map(row).to_vec()
        };
        to.counts(ENDS, rows(&ends))?;
        let traffic = |proxy: &super::door::ProxyDoor| {
            let ways = [
                ("sent", &proxy.tally.sent),
                ("received", &proxy.tally.received),
            ];
            ways.map(|(way, count)| (label("direction", way), count.load(Ordering::Relaxed)))
                .to_vec()
        };
        to.counts(TRAFFIC, rows(&traffic))
    }

    fn daemons(&self, to: &mut Out<'_>) -> fmt::Result {
        let workers: Vec<_> = self
            .desks()
            .map(|(name, desk)| (name, &desk.worker, desk))
            .collect();
        let label = |sessions: &str| vec![("sessions", sessions.to_owned())];
        let attached = workers
            .iter()
            .map(|(sessions, _, desk)| (label(sessions), u64::from(desk.trouble().is_none())));
        to.counts(ATTACHED, attached)?;
        let lookups = workers.iter().flat_map(|(sessions, worker, _)| {
            let counters = worker.counters();
            RESULTS.map(|(result, of)| {
                let mut labels = label(sessions);
                labels.push(("result", result.to_owned()));
                (labels, of(&counters))
            })
        });
        to.counts(LOOKUPS, lookups.collect::<Vec<_>>())?;
        let dropped = workers
            .iter()
            .map(|(sessions, worker, _)| (label(sessions), worker.counters().reports_dropped));
        to.counts(REPORTS_DROPPED, dropped)?;
        let refused = workers
            .iter()
            .map(|(sessions, worker, _)| (label(sessions), worker.counters().refused));
        to.counts(REPORTS_REFUSED, refused)
    }
}

fn one(value: u64) -> [(Labels, u64); 1] {
    [(Labels::new(), value)]
}

fn seconds(at: WallTime) -> u64 {
    at.since(WallTime::from_secs(0)).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::metrics::row;

    #[test]
    fn documents_have_every_metric_of_the_proxy_and_no_other() {
        let document = include_str!("../../docs/proxy.md");
        let wanted: Vec<_> = ALL.iter().map(row).collect();
        let (_, table) = document
            .split_once("| metric | kind | meaning |")
            .expect("a table of metrics");
        let found = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        assert_eq!(
            found.collect::<Vec<_>>(),
            wanted,
            "write these rows:\n{}",
            wanted.join("\n")
        );
    }
}
