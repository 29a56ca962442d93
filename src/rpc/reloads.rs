//! The outcome of the last reload, for ListContexts: what the log told at the time, long after.

use std::sync::Arc;

use parking_lot::Mutex;
use tls_sessiond_core::{clock::WallTime, context::Dropped};

use super::convert;
use crate::proto as pb;

/// The last reload, and the last one that was applied.
#[derive(Debug, Default)]
pub struct Reloads(Mutex<Option<Last>>);

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
        /// Sessions that it dropped, because the scope of their context changed.
        dropped: Dropped,
    },
    /// Nothing has changed.
    Refused {
        /// Why, as the log tells it.
        error: Arc<str>,
    },
}

/// Longest error that is kept, in bytes.
const ERROR_MAX: usize = 1024;

impl Reloads {
    /// A reload ended.
    pub fn tell(&self, at: WallTime, outcome: Outcome) {
        let mut last = self.0.lock();
        let before = last.as_ref().and_then(|last| last.applied);
        let applied = if matches!(outcome, Outcome::Applied { .. }) { Some(at) } else { before };
        *last = Some(Last { at, outcome, applied });
    }

    /// A reload was refused.
    pub fn refuse(&self, at: WallTime, error: &str) {
        let cut = (0..=ERROR_MAX.min(error.len())).rev().find(|&at| error.is_char_boundary(at)).unwrap_or(0);
        self.tell(at, Outcome::Refused { error: error[..cut].into() });
    }

    /// The last one, as a caller may see it: of the contexts that `shows` it, and with the error of a refusal where it `operates`
    /// the daemon.
    pub(super) fn last(&self, shows: impl Fn(&str) -> bool, operates: bool) -> Option<pb::Reload> {
        let Last { at, outcome, applied } = self.0.lock().clone()?;
        let (error, dropped) = match outcome {
            Outcome::Applied { dropped } => (None, dropped),
            Outcome::Refused { error } => (Some(error), Dropped::new()),
        };
        let dropped = dropped
            .into_iter()
            .filter(|(context, _)| shows(context))
            .map(|(context, sessions)| pb::DroppedSessions { context: context.to_string(), sessions });
        Some(pb::Reload {
            time: Some(convert::timestamp(at)),
            applied: error.is_none(),
            error: error.filter(|_| operates).map(|error| error.to_string()).unwrap_or_default(),
            dropped: dropped.collect(),
            applied_time: applied.map(convert::timestamp),
        })
    }
}
