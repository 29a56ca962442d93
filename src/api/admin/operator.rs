//! What an administrator changes while the daemon runs: reload, drain, level of the log.
//!
//! The parts that own these things are given when the daemon starts. A daemon without them, as tests
//! embed it, refuses the calls.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use tls_sessiond_core::{clock::WallTime, context::Dropped};
use tls_sessiond_proto as pb;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    api::error::Refusal,
    config::{Config, Filter},
    log::Log,
};

/// A reload that was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedReload {
    /// Number of contexts now.
    pub contexts: usize,
    /// The keys whose values have changed.
    pub changed: Vec<String>,
    /// How many sessions were dropped because a scope changed, by context.
    pub dropped: Dropped,
    /// What is valid and seldom meant.
    pub warnings: Vec<String>,
}

/// The outcome of a reload, or the reason why it was refused.
pub type ReloadAnswer = Result<AppliedReload, String>;

/// A reload that a caller asks for, with the way back for its outcome.
pub type AskedReload = oneshot::Sender<ReloadAnswer>;

/// Most reloads that wait for the one before them.
const WAITING_MAX: usize = 8;

/// The time that remaining sockets have after a drain, before the process ends.
const END: Duration = Duration::from_secs(5);

/// What AdminService changes.
#[derive(Debug)]
pub struct Operator {
    running: ArcSwap<Config>,
    /// Held while the configuration is replaced.
    turn: Mutex<()>,
    reloads: OnceLock<mpsc::Sender<AskedReload>>,
    log: OnceLock<Log>,
    stop: CancellationToken,
    /// When the daemon ends at the latest, once a caller has asked for a drain.
    ends: OnceLock<WallTime>,
}

/// The turn of one reload. Concurrent reloads run one after the other.
pub struct Replacing<'o> {
    running: &'o ArcSwap<Config>,
    _turn: MutexGuard<'o, ()>,
}

impl Replacing<'_> {
    /// Returns the configuration that the daemon runs.
    pub fn running(&self) -> Arc<Config> {
        self.running.load_full()
    }

    /// Makes another configuration the one that the daemon runs.
    pub fn finish(self, config: Arc<Config>) {
        self.running.store(config);
    }
}

impl Operator {
    /// Creates the operator of a daemon that runs this configuration.
    pub fn new(config: Arc<Config>) -> Self {
        Self {
            running: ArcSwap::new(config),
            turn: Mutex::new(()),
            reloads: OnceLock::new(),
            log: OnceLock::new(),
            stop: CancellationToken::new(),
            ends: OnceLock::new(),
        }
    }

    /// Begins to replace the configuration. Waits for other reloads to end.
    pub fn replacing(&self) -> Replacing<'_> {
        Replacing {
            running: &self.running,
            _turn: self.turn.lock(),
        }
    }

    /// Makes this log the one whose level callers change.
    pub fn give_log(&self, log: Log) {
        // A second log is impossible: a process has one.
        let _ = self.log.set(log);
    }

    /// Returns the reloads that callers ask for from now on. `None`: they were returned before.
    pub fn asked_reloads(&self) -> Option<mpsc::Receiver<AskedReload>> {
        let (asks, asked) = mpsc::channel(WAITING_MAX);
        self.reloads.set(asks).ok()?;
        Some(asked)
    }

    /// Waits until a caller asks for a drain. Returns at once if one has asked before.
    pub async fn stop_asked(&self) {
        self.stop.cancelled().await;
    }

    /// Returns the directives of the log's level, or none without a log.
    pub(crate) fn log_level(&self) -> String {
        self.log.get().map(Log::level).unwrap_or_default()
    }

    /// Returns the number of log lines that were dropped.
    pub(crate) fn log_lines_dropped(&self) -> u64 {
        self.log.get().map_or(0, Log::dropped)
    }

    /// Returns the configuration that the daemon runs. Never waits: a reload may hang in a file.
    pub fn running(&self) -> Arc<Config> {
        self.running.load_full()
    }

    pub(super) fn config(&self) -> pb::GetConfigResponse {
        let config = self.running();
        let values = config.values().into_iter().map(|value| pb::ConfigValue {
            key: value.key,
            value: value.value,
            origin: value.origin,
        });
        pb::GetConfigResponse {
            values: values.collect(),
            digest: config.digest(),
        }
    }

    /// Asks for a reload, and waits for its outcome. `refused` is called with the error if the reload
    /// does not begin, because earlier ones still wait.
    pub(super) async fn reload(
        &self,
        owner: &str,
        refused: impl FnOnce(&str),
    ) -> Result<pb::ReloadResponse, Refusal> {
        tracing::info!(target: "audit", owner, "reload asked for by an administrator");
        let reloads = self.reloads.get().ok_or(Refusal::ReloadUnavailable)?;
        let (tells, told) = oneshot::channel();
        if reloads.try_send(tells).is_err() {
            let why = "earlier reloads still wait";
            tracing::error!("reload refused: {why}");
            refused(why);
            return Err(Refusal::ReloadRefused(why.into()));
        }
        let applied = told
            .await
            .map_err(|_| Refusal::ReloadRefused("the daemon is about to stop".into()))?
            .map_err(Refusal::ReloadRefused)?;
        let dropped = applied.dropped.iter();
        Ok(pb::ReloadResponse {
            contexts: u32::try_from(applied.contexts).unwrap_or(u32::MAX),
            changed: applied.changed,
            dropped: dropped
                .map(|(context, sessions)| pb::DroppedSessions {
                    context: context.to_string(),
                    sessions: *sessions,
                })
                .collect(),
            warnings: applied.warnings,
        })
    }

    /// Begins a drain, unless one has begun. Returns when the daemon ends at the latest.
    pub(super) fn drain(&self, owner: &str, now: WallTime) -> WallTime {
        tracing::info!(target: "audit", owner, "drain asked for by an administrator");
        let ends = *self.ends.get_or_init(|| {
            let drain = self.running().drain;
            now.after(drain.delay + drain.timeout + END)
        });
        self.stop.cancel();
        ends
    }

    pub(super) fn set_log_level(
        &self,
        owner: &str,
        level: &str,
    ) -> Result<pb::SetLogLevelResponse, Refusal> {
        let log = self.log.get().ok_or(Refusal::LogUnavailable)?;
        let filter =
            Filter::read(level).map_err(|err| Refusal::LogLevelInvalid(err.to_string()))?;
        let previous = log.level();
        log.set_level(&filter);
        tracing::info!(target: "audit", owner, %previous, level = log.level(), "level of the log changed by an administrator");
        Ok(pb::SetLogLevelResponse { previous })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reload_behind_too_many_others_is_refused_and_told() {
        let operator = Arc::new(Operator::new(Arc::new(Config::defaults())));
        let waiting = operator.asked_reloads().expect("the first taker");
        let asked: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let operator = Arc::clone(&operator);
                tokio::spawn(async move { operator.reload("one", |_| ()).await })
            })
            .collect();
        while waiting.len() < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        let mut told = None;
        let answer = operator.reload("other", |why| told = Some(why.to_owned()));
        answer.await.unwrap_err();
        assert_eq!(told.as_deref(), Some("earlier reloads still wait"));
        asked.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
