//! Keeps the outcome of the last reload for ListContexts. The log tells it only at the time of the
//! reload.

use std::sync::Arc;

use parking_lot::Mutex;
use tls_sessiond_core::{
    clock::WallTime,
    context::Dropped,
    session::{recent::cut, stats::Counter},
};
use tls_sessiond_proto as pb;

use super::convert;

/// Holds the outcome of the last reload, the time of the last reload that was applied, and the numbers
/// of both.
#[derive(Debug, Default)]
pub struct Reloads {
    last: Mutex<Option<Last>>,
    applied: Counter,
    refused: Counter,
}

/// Numbers of reloads since the daemon started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReloadTotals {
    pub(crate) applied: u64,
    pub(crate) refused: u64,
}

#[derive(Clone, Debug)]
struct Last {
    at: WallTime,
    outcome: Outcome,
    applied: Option<WallTime>,
}

/// How a reload ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The new configuration is in force.
    Applied {
        /// How many sessions of each context were dropped because its scope changed.
        dropped: Dropped,
    },
    /// The old configuration stays in force.
    Refused {
        /// The error, as in the log.
        error: Arc<str>,
    },
}

/// The most bytes of an error that are kept.
const ERROR_MAX: usize = 1024;

impl Reloads {
    /// Records the outcome of a reload.
    pub fn tell(&self, at: WallTime, outcome: Outcome) {
        match outcome {
            Outcome::Applied { .. } => self.applied.count(),
            Outcome::Refused { .. } => self.refused.count(),
        }
        let mut last = self.last.lock();
        let before = last.as_ref().and_then(|last| last.applied);
        let applied = if matches!(outcome, Outcome::Applied { .. }) {
            Some(at)
        } else {
            before
        };
        *last = Some(Last {
            at,
            outcome,
            applied,
        });
    }

    /// Records a refused reload. Of the error, at most 1024 bytes are kept.
    pub fn refuse(&self, at: WallTime, error: &str) {
        self.tell(
            at,
            Outcome::Refused {
                error: cut(error, ERROR_MAX).into(),
            },
        );
    }

    /// Returns the numbers of reloads since the daemon started.
    pub(crate) fn totals(&self) -> ReloadTotals {
        ReloadTotals {
            applied: self.applied.get(),
            refused: self.refused.get(),
        }
    }

    /// Returns the last reload as a caller may see it, or `None` if there was none. The dropped
    /// sessions are those of contexts for which `shows` returns true. The error of a refused reload
    /// is included only if `sees_all` is set.
    pub(crate) fn last(&self, shows: impl Fn(&str) -> bool, sees_all: bool) -> Option<pb::Reload> {
        let Last {
            at,
            outcome,
            applied,
        } = self.last.lock().clone()?;
        let (error, dropped) = match outcome {
            Outcome::Applied { dropped } => (None, dropped),
            Outcome::Refused { error } => (Some(error), Dropped::new()),
        };
        let dropped = dropped
            .into_iter()
            .filter(|(context, _)| shows(context))
            .map(|(context, sessions)| pb::DroppedSessions {
                context: context.to_string(),
                sessions,
            });
        Some(pb::Reload {
            time: Some(convert::timestamp(at)),
            applied: error.is_none(),
            error: error
                .filter(|_| sees_all)
                .map(|error| error.to_string())
                .unwrap_or_default(),
            dropped: dropped.collect(),
            applied_time: applied.map(convert::timestamp),
        })
    }
}
