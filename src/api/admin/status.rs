//! GetStatus: what the daemon is and does now.

use std::{cmp::Reverse, collections::BTreeMap, env::consts, sync::Arc};

use tls_sessiond_core::{context::Registry, state::CoreState};
use tls_sessiond_proto as pb;

use super::{Admin, census::Census, process::ProcessUse};
use crate::api::{
    access::{Caller, Grants, Peer},
    contexts::daemon_stats,
    convert,
    health::Serving,
    role::Roles,
    ticket_keys,
};

/// Maximum number of identities and of HTTP/2 connections in an answer.
const LISTED_MAX: usize = 100;

const DAY: i64 = 86_400;

/// Returns how the daemon was built: target, profile and features.
pub(crate) fn build() -> String {
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let features = match (cfg!(feature = "redis"), cfg!(feature = "otel")) {
        (true, true) => "otel, redis",
        (true, false) => "redis",
        (false, true) => "otel",
        (false, false) => "none",
    };
    format!(
        "{}-{}, {profile}, features: {features}",
        consts::ARCH,
        consts::OS
    )
}

/// The part of the daemon that one caller sees.
pub(crate) struct View {
    pub(crate) registry: Arc<Registry>,
    pub(crate) grants: Arc<Grants>,
}

impl View {
    /// Returns the part that this caller sees now.
    pub(super) fn of(by: &Caller, state: &CoreState) -> Self {
        let registry = Arc::clone(&state.registry());
        let grants = by.grants(&registry);
        Self { registry, grants }
    }

    /// Returns the part that this peer sees now.
    pub(super) fn of_peer(peer: &Peer, state: &CoreState) -> Self {
        let registry = Arc::clone(&state.registry());
        let grants = Arc::new(Grants::of(registry.rules(), peer));
        Self { registry, grants }
    }

    /// Returns whether this context is shown where only `wanted` is asked for, or all if it is empty.
    pub(super) fn shows_only(&self, wanted: &str, context: &str) -> bool {
        (wanted.is_empty() || wanted == context) && self.shows(context)
    }

    pub(super) fn shows(&self, context: &str) -> bool {
        self.grants.in_context(Roles::OBSERVER, context)
    }

    /// Returns whether the caller sees all contexts, and so the daemon as a whole.
    fn shows_all(&self) -> bool {
        self.grants.in_all(Roles::OBSERVER)
    }
}

impl Admin {
    /// Returns what a caller sees of the daemon.
    pub(crate) async fn status(&self, view: &View) -> pb::GetStatusResponse {
        let table = self.state.connections();
        let census = Census::take(table, |context| view.shows(context)).await;
        let now = self.state.now();
        let uptime = now.at.since(self.started);
        let contexts = view.registry.all().iter();
        let contexts: Vec<_> = contexts
            .filter(|context| view.shows(&context.name))
            .map(|context| convert::context(context, uptime))
            .collect();
        let stats = daemon_stats(&self.stream_totals, self.store.as_deref(), true, now);
        pb::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            build: build(),
            start_time: Some(convert::timestamp(now.offset.wall(self.started))),
            time: Some(convert::timestamp(now.wall())),
            state: match self.health.serving() {
                Serving::Starting => pb::DaemonState::Starting,
                Serving::Yes => pb::DaemonState::Serving,
                Serving::Draining => pb::DaemonState::Draining,
            }
            .into(),
            config_digest: self.operator.running().digest(),
            last_reload: self
                .reloads
                .last(|context| view.shows(context), view.shows_all()),
            connections: census.counts(),
            owners: owners(view, &census),
            streams: match view.shows_all() {
                true => self.stream_totals.largest(LISTED_MAX),
                false => Vec::new(),
            },
            process: Some(self.process()),
            certificates: self.certificates(view, &contexts, now.wall().as_secs()),
            contexts,
            daemon: Some(stats),
            log_level: self.operator.log_level(),
            log_lines_dropped: self.operator.log_lines_dropped(),
            rings: self.rings_of(view),
        }
    }

    fn rings_of(&self, view: &View) -> Vec<pb::Ring> {
        let all = self.rings.all();
        let seen = all.iter().filter(|ring| match ring.context() {
            Some(context) => view.shows(context),
            None => view.shows_all(),
        });
        seen.map(|ring| ticket_keys::shown(ring)).collect()
    }

    fn process(&self) -> pb::ProcessUsage {
        let used = ProcessUse::now();
        let running = self.operator.running();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        pb::ProcessUsage {
            memory_bytes: used.memory_bytes,
            cpu_time: Some(convert::duration(used.cpu_time)),
            threads: used.threads,
            open_files: used.open_files,
            open_files_max: used.open_files_max.unwrap_or(0),
            sockets: number(self.accounts.connections()),
            sockets_max: number(self.sockets_max),
            calls: number(self.accounts.calls()),
            calls_max: number(running.limits.calls_in_flight),
            connections: number(self.state.connections().len()),
            connections_max: number(running.limits.connections),
            sockets_configured: number(running.limits.sockets),
        }
    }

    /// Returns the certificates that a caller may see, the first to expire first.
    fn certificates(
        &self,
        view: &View,
        contexts: &[pb::Context],
        now: u64,
    ) -> Vec<pb::CertificateStatus> {
        let of_contexts = contexts.iter().filter_map(|context| {
            let ends = context.certificate_expire_time?;
            Some((format!("context {}", context.name), ends))
        });
        let of_api = (self.listen_ends)()
            .filter(|_| view.shows_all())
            .map(|ends| ("listen.tls".to_owned(), convert::timestamp(ends)));
        let mut all: Vec<_> = of_contexts.chain(of_api).collect();
        all.sort_by_key(|(_, ends)| ends.seconds);
        all.into_iter()
            .map(|(key, ends)| {
                let left = ends.seconds - i64::try_from(now).unwrap_or(i64::MAX);
                pb::CertificateStatus {
                    key,
                    expire_time: Some(ends),
                    days_left: i32::try_from(left.div_euclid(DAY)).unwrap_or(i32::MAX),
                }
            })
            .collect()
    }
}

/// Returns the identities with the largest totals and those with the most connections, by connections,
/// largest first. The totals are of all contexts,
/// so only a caller that sees all of them gets these.
fn owners(view: &View, census: &Census) -> Vec<pb::OwnerUsage> {
    let mut all: BTreeMap<Arc<str>, pb::OwnerUsage> = BTreeMap::new();
    for (owner, connections) in census.owners() {
        all.entry(Arc::clone(owner)).or_default().connections = *connections;
    }
    if view.shows_all() {
        view.registry.ledger().owners.each(|owner, totals| {
            let usage = all.entry(Arc::clone(owner)).or_default();
            usage.unclosed = totals.unclosed.get();
            usage.failures = totals.failures.get();
            usage.misses = totals.misses.get();
            usage.stored = totals.stored.get();
        });
    }
    let mut all: Vec<_> = all
        .into_iter()
        .map(|(owner, usage)| pb::OwnerUsage {
            owner: owner.to_string(),
            ..usage
        })
        .collect();
    let totals = |usage: &pb::OwnerUsage| usage.unclosed + usage.failures + usage.misses;
    all.sort_by_key(|usage| Reverse((totals(usage), usage.connections)));
    // The worst ones stay, however many connections others have.
    let worst = all.drain(..all.len().min(LISTED_MAX)).collect::<Vec<_>>();
    all.sort_by_key(|usage| Reverse(usage.connections));
    all.truncate(LISTED_MAX);
    all.extend(worst);
    all.sort_by_key(|usage| Reverse((usage.connections, totals(usage))));
    all
}
