//! Looks whether the daemons have the sessions of the proxies, and tells the log when that changes.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tls_sessiond_client::{Counters, Worker};
use tokio::time::{MissedTickBehavior, interval};

/// Time from one look to the next.
const LOOK: Duration = Duration::from_secs(1);
/// How many looks without a fault end it.
const CALM: u32 = 10;

/// The sessions of proxies: a worker, and what was found at the last look.
pub(super) struct SessionsDesk {
    /// Where they are, as the configuration has it.
    pub(super) name: String,
    pub(super) worker: Worker,
    trouble: Mutex<Option<Arc<str>>>,
}

impl SessionsDesk {
    pub(super) fn new(name: String, worker: Worker) -> Self {
        Self {
            name,
            worker,
            trouble: Mutex::default(),
        }
    }

    /// Returns why handshakes are full ones. `None`: the daemon takes calls.
    pub(super) fn trouble(&self) -> Option<Arc<str>> {
        if !self.worker.is_attached() {
            let why = self.worker.trouble();
            return Some(why.unwrap_or_else(|| "not connected yet".into()).into());
        }
        self.trouble.lock().clone()
    }

    /// Looks for as long as the proxies run.
    pub(super) async fn watch(&self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, and nothing was tried then.
        ticks.tick().await;
        let (mut before, mut calm, mut told) = (self.worker.counters(), 0, None);
        loop {
            ticks.tick().await;
            let now = self.worker.counters();
            match fault(&before, &now) {
                Some(why) => {
                    calm = 0;
                    *self.trouble.lock() = Some(why.into());
                }
                None if calm >= CALM => *self.trouble.lock() = None,
                None => calm += 1,
            }
            before = now;
            let trouble = self.trouble();
            match (&told, &trouble) {
                (None, Some(why)) => tracing::warn!(
                    sessions = self.name,
                    why = &**why,
                    "the daemon does not have the sessions: handshakes are full ones"
                ),
                (Some(_), None) => {
                    tracing::info!(sessions = self.name, "the daemon has the sessions");
                }
                (Some(old), Some(new)) if old != new => tracing::warn!(
                    sessions = self.name,
                    why = &**new,
                    "the daemon still does not have the sessions"
                ),
                _ => {}
            }
            told = trouble;
        }
    }
}

/// Returns what has failed between two looks.
fn fault(before: &Counters, now: &Counters) -> Option<&'static str> {
    if now.refused > before.refused {
        return Some(
            "the daemon refuses calls: does it have the context of the proxy, and this proxy the role worker there?",
        );
    }
    let answered = now.hits + now.misses > before.hits + before.misses;
    (now.timeouts > before.timeouts && !answered)
        .then_some("the daemon does not answer lookups in time")
}
