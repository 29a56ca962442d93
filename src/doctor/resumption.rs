//! Why clients do not resume.

use std::collections::BTreeSet;

use tls_sessiond_proto as pb;

use super::{Evidence, Finding, Level, percent};

/// The fewest handshakes, lookups or sessions of which a share tells something.
const ENOUGH: u64 = 20;
/// From this share on, something is wrong. In per cent.
const MANY: u64 = 10;
/// From this share of evictions on, a cache is too small. In per cent of the sessions made.
const EVICTIONS: u64 = 5;

pub(super) fn examine(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    for context in &evidence.status.contexts {
        let Some(stats) = &context.stats else {
            continue;
        };
        let context = Figures::of(context, stats);
        context.offers(findings);
        context.cache(findings);
        context.misses(findings);
        context.ends(findings);
        context.failures(findings);
    }
    scopes(evidence, findings);
    owners(evidence, findings);
}

/// The counters of one context.
struct Figures<'e> {
    context: &'e pb::Context,
    stats: &'e pb::SessionStats,
    /// Lookups and handshakes that asked for a session.
    asked: u64,
}

impl<'e> Figures<'e> {
    fn of(context: &'e pb::Context, stats: &'e pb::SessionStats) -> Self {
        Self {
            context,
            stats,
            asked: stats.hits + stats.misses + stats.timeouts,
        }
    }

    fn warning(&self, name: &'static str, text: &str, remedy: &'static str) -> Finding {
        Finding {
            level: Level::Warning,
            name,
            text: format!("Context {}: {text}", self.context.name),
            remedy,
        }
    }

    /// Returns the number of handshakes as server.
    fn handshakes(&self, version: pb::ProtocolVersion, resumed: bool) -> u64 {
        let kinds = self.stats.handshakes.iter().filter(|kind| {
            kind.role() == pb::Role::Server && kind.version() == version && kind.resumed == resumed
        });
        kinds.map(|kind| kind.count).sum()
    }

    fn missed(&self, reason: pb::MissReason) -> u64 {
        let misses = self.stats.misses_by_reason.iter();
        let of_reason = misses.filter(|miss| miss.reason() == reason);
        of_reason.map(|miss| miss.count).sum()
    }

    fn removed(&self, reason: pb::RemovalReason) -> u64 {
        let removals = self.stats.removals_by_reason.iter();
        let of_reason = removals.filter(|removal| removal.reason() == reason);
        of_reason.map(|removal| removal.count).sum()
    }

    /// What clients offer, and what they are given to offer.
    fn offers(&self, findings: &mut Vec<Finding>) {
        use pb::ProtocolVersion::{Tls12, Tls13};
        let has_option = |name: &str| self.context.options.iter().any(|option| option == name);
        let finished: u64 = [Tls12, Tls13]
            .map(|version| self.handshakes(version, false) + self.handshakes(version, true))
            .iter()
            .sum();
        if has_option("no-session-cache") {
            if finished >= ENOUGH || self.missed(pb::MissReason::CacheOff) > 0 {
                let text = format!(
                    "it keeps no sessions (option no-session-cache), after {finished} handshakes."
                );
                findings.push(self.warning(
                    "cache-off",
                    &text,
                    "Remove no-session-cache from the options of the context.",
                ));
            }
            return;
        }
        let full_13 = self.handshakes(Tls13, false);
        if self.context.tickets == 0 && full_13 >= ENOUGH {
            let text =
                format!("tickets = 0, so no client of {full_13} TLS 1.3 handshakes can return.");
            findings.push(self.warning(
                "tickets-off",
                &text,
                "Set tickets = 2: TLS 1.3 resumes by tickets alone.",
            ));
        } else if finished >= ENOUGH && self.asked == 0 {
            let text = format!("none of {finished} handshakes has offered a session.");
            findings.push(self.warning(
                "clients-offer-nothing",
                &text,
                "Clients are new each time, or keep no sessions: look whether they share one TLS context and read \
                 the server's tickets before they close.",
            ));
        }
        let (full_12, resumed_12) = (self.handshakes(Tls12, false), self.handshakes(Tls12, true));
        if full_12 >= ENOUGH && resumed_12 == 0 && self.handshakes(Tls13, true) > 0 {
            let text = format!(
                "none of {full_12} TLS 1.2 handshakes has resumed, while clients of TLS 1.3 do."
            );
            findings.push(self.warning(
                "tls12-never-resumes",
                &text,
                "Clients in Go offer no session id in TLS 1.2, only tickets: let them speak TLS 1.3.",
            ));
        }
    }

    /// How large the cache is.
    fn cache(&self, findings: &mut Vec<Finding>) {
        let removals = self.stats.removals_by_reason.iter();
        let gone: u64 = removals.map(|removal| removal.count).sum();
        let made = gone + self.stats.sessions;
        let evicted = self.stats.cache_full;
        if evicted >= ENOUGH && percent(evicted, made) >= EVICTIONS {
            let text = format!(
                "the cache was full, and {evicted} of {made} sessions were evicted ({} %).",
                percent(evicted, made)
            );
            findings.push(self.warning(
                "cache-too-small",
                &text,
                "Raise cache_entries_max and cache_bytes_max, or limits.sessions and limits.session_bytes.",
            ));
        }
        let dropped = self.removed(pb::RemovalReason::ScopeChanged);
        if dropped >= ENOUGH {
            let text = format!("a reload changed its scope, and {dropped} sessions were dropped.");
            findings.push(self.warning(
                "renewal-emptied-cache",
                &text,
                "Set scope_by = \"names\": then a renewed certificate for the same names keeps the cache.",
            ));
        }
    }

    /// Why lookups miss.
    fn misses(&self, findings: &mut Vec<Finding>) {
        if self.asked < ENOUGH {
            return;
        }
        let asked = self.asked;
        let mut check = |count: u64, name, why: &str, remedy| {
            if count >= ENOUGH / 2 && percent(count, asked) >= MANY {
                let text = format!("{count} of {asked} sessions that were asked for {why}.");
                findings.push(self.warning(name, &text, remedy));
            }
        };
        check(
            self.stats.timeouts,
            "timeout-too-short",
            "had expired",
            "Raise session_timeout: clients return later than that.",
        );
        check(
            self.missed(pb::MissReason::Scope),
            "sessions-do-not-fit",
            "were there and did not fit: their format, binding, version, server name or cipher suite differs",
            "Let all workers of the context use the same format, binding and settings.",
        );
        check(
            self.missed(pb::MissReason::Revoked),
            "sessions-revoked",
            "were revoked",
            "Look whether the revocation was meant so wide (audit log: RevokeSessions).",
        );
        check(
            self.missed(pb::MissReason::StoreUnavailable),
            "store-missed",
            "could not be read from the shared store",
            "Look at the shared store and its latency.",
        );
        check(
            self.missed(pb::MissReason::HolderLost),
            "holders-lost",
            "were held open by a daemon that is lost",
            "Look why daemons end without a drain: SIGKILL, out of memory, a cut network.",
        );
        check(
            self.missed(pb::MissReason::Unknown),
            "sessions-unknown",
            "were never seen here, or long ago",
            "Clients come from another daemon or from before a restart: share a store, or send them to one daemon.",
        );
    }

    /// How connections end.
    fn ends(&self, findings: &mut Vec<Finding>) {
        let finished = self.stats.accept_good + self.stats.connect_good;
        let unclosed = self.stats.unclosed;
        if unclosed >= ENOUGH && percent(unclosed, finished.max(unclosed)) >= MANY {
            let text = format!(
                "{unclosed} sessions were removed because their connections ended unclosed, after {finished} handshakes."
            );
            findings.push(self.warning(
                "connections-end-unclosed",
                &text,
                "Let workers call Shutdown before Free, also when the peer has closed first (tls-sessiond owners lists them).",
            ));
        }
    }

    /// How handshakes fail.
    fn failures(&self, findings: &mut Vec<Finding>) {
        let failures = &self.stats.failures_by_alert;
        let failed: u64 = failures.iter().map(|failure| failure.count).sum();
        let begun = self.stats.accept + self.stats.connect;
        if failed < ENOUGH || percent(failed, begun.max(failed)) < MANY {
            return;
        }
        if let Some(most) = failures.iter().max_by_key(|failure| failure.count) {
            let alert = most.alert.as_ref();
            let name = alert.map_or("no alert", |alert| alert.name.as_str());
            let side = match alert {
                Some(alert) if alert.received => " from the peer",
                Some(_) => " to the peer",
                None => "",
            };
            let text = format!(
                "{failed} of {begun} handshakes failed, {} of them with {name}{side}.",
                most.count
            );
            let remedy = match (name, alert.is_some_and(|alert| alert.received)) {
                ("unknown_ca" | "bad_certificate" | "certificate_unknown", true) => {
                    "Clients do not trust the certificate: send the whole chain, or give them its authority."
                }
                ("certificate_expired", _) => "Renew the certificate and reload.",
                ("protocol_version", _) => {
                    "Both sides speak different versions: look at `versions`."
                }
                ("handshake_failure", _) => {
                    "Both sides have no cipher suite, group or certificate type in common."
                }
                ("no_application_protocol", _) => {
                    "Both sides have no ALPN protocol in common: look at `alpn`."
                }
                ("certificate_required" | "unknown_ca", false) => {
                    "Clients show no certificate of `ca`: look at client_auth and ca."
                }
                _ => "tls-sessiond failures lists the latest with their peers.",
            };
            findings.push(self.warning("handshakes-fail", &text, remedy));
        }
        let spent = self
            .removed(pb::RemovalReason::Taken)
            .saturating_sub(self.handshakes(pb::ProtocolVersion::Tls13, true));
        if spent >= ENOUGH / 2 && percent(spent, self.asked.max(spent)) >= MANY {
            let text = format!(
                "{spent} single-use sessions were taken by handshakes that did not finish."
            );
            findings.push(self.warning(
                "sessions-spent-by-failures",
                &text,
                "Look at tls-sessiond failures: a ticket is spent by the handshake that offers it, also if it fails.",
            ));
        }
    }
}

/// Contexts that should share their sessions, and do not.
fn scopes(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    let elsewhere = evidence
        .misses
        .iter()
        .filter(|miss| !miss.other_context.is_empty());
    let pairs: BTreeSet<_> = elsewhere
        .clone()
        .map(|miss| (&miss.context, &miss.other_context))
        .collect();
    let count = elsewhere.count();
    if let Some((context, other)) = pairs.first() {
        findings.push(Finding {
            level: Level::Warning,
            name: "scope-not-shared",
            text: format!(
                "Context {context}: {count} of the last {} sessions that missed are in the cache of another context, {other} \
                 for example.",
                evidence.misses.len()
            ),
            remedy: "Give both contexts the same certificate, trust anchors, ALPN and session_id_context, or let clients \
                     return to the context that they come from.",
        });
    }
}

/// Workers that do something wrong.
fn owners(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    let owners = &evidence.status.owners;
    let unclosed: u64 = owners.iter().map(|owner| owner.unclosed).sum();
    for owner in owners {
        let name = &owner.owner;
        // With one owner, the finding about the context says it all.
        let is_one_of_many = owners.iter().filter(|owner| owner.stored > 0).count() > 1;
        if is_one_of_many && owner.unclosed >= ENOUGH && percent(owner.unclosed, unclosed) >= 80 {
            findings.push(Finding {
                level: Level::Warning,
                name: "owner-ends-unclosed",
                text: format!(
                    "{} of {unclosed} connections that ended unclosed are those of {name}.",
                    owner.unclosed
                ),
                remedy: "Look how this worker ends its connections: it dies, or frees them without Shutdown.",
            });
        }
        if owner.misses >= ENOUGH && owner.stored == 0 {
            findings.push(Finding {
                level: Level::Warning,
                name: "looks-up-never-stores",
                text: format!(
                    "{name} has looked up {} sessions in vain, and stored none.",
                    owner.misses
                ),
                remedy: "Let the worker call PutSession for every session that its library makes.",
            });
        }
    }
}
