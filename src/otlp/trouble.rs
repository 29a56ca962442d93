//! What the log says about one signal that the collector does not take.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::collector::NotTaken;

/// Shortest time between two lines about spans that were dropped, or that the collector warns of.
const AGAIN: Duration = Duration::from_secs(60);

/// Traces or metrics.
pub(super) struct Trouble {
    signal: &'static str,
    address: String,
    /// Spans that the queue had no room for.
    dropped: Arc<AtomicU64>,
    /// Spans that were lost and that no line has told.
    lost: u64,
    /// Whether the last transmission failed.
    is_failing: bool,
    /// Whether the collector does not know this signal. Nothing of it is sent again.
    pub(super) is_unknown: bool,
    /// When a line may be written again.
    quiet_until: Option<Instant>,
}

impl Trouble {
    pub(super) fn new(signal: &'static str, address: &str, dropped: Arc<AtomicU64>) -> Self {
        Self {
            signal,
            address: address.to_owned(),
            dropped,
            lost: 0,
            is_failing: false,
            is_unknown: false,
            quiet_until: None,
        }
    }

    /// Counts spans that are lost.
    pub(super) fn lose(&mut self, count: u64) {
        self.lost = self.lost.saturating_add(count);
    }

    fn take_lost(&mut self) -> u64 {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        std::mem::take(&mut self.lost).saturating_add(dropped)
    }

    /// A transmission failed. Tells the first one.
    pub(super) fn fails(&mut self, err: &NotTaken) {
        let (signal, address) = (self.signal, &self.address);
        if err.is_unknown() {
            self.is_unknown = true;
            tracing::warn!(
                signal,
                address,
                "the collector does not know this signal: it is not sent again"
            );
        } else if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(%err, signal, address, "the collector does not take this signal; the daemon tries again");
        }
    }

    /// The collector took a part, or all with a warning.
    pub(super) fn warns(&mut self, err: &NotTaken, lost: u64) {
        self.works();
        self.lose(lost);
        if self.may_tell() {
            let lost_spans = self.take_lost();
            let (signal, address) = (self.signal, &self.address);
            tracing::warn!(%err, signal, address, lost_spans, "the collector warns");
        }
    }

    /// A transmission was taken. Tells it after a failure, and tells what was lost.
    pub(super) fn works(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            let lost_spans = self.take_lost();
            let (signal, address) = (self.signal, &self.address);
            tracing::info!(
                signal,
                address,
                lost_spans,
                "the collector takes this signal again"
            );
            return;
        }
        let is_lost = self.lost > 0 || self.dropped.load(Ordering::Relaxed) > 0;
        if is_lost && self.may_tell() {
            let lost_spans = self.take_lost();
            let address = &self.address;
            tracing::warn!(
                address,
                lost_spans,
                "more spans than can be sent: these were dropped"
            );
        }
    }

    /// Tells what is lost when the daemon ends.
    pub(super) fn tell_the_end(&mut self) {
        let lost_spans = self.take_lost();
        if lost_spans > 0 {
            let address = &self.address;
            tracing::warn!(
                address,
                lost_spans,
                "the daemon ends: these spans were not sent"
            );
        }
    }

    fn may_tell(&mut self) -> bool {
        let now = Instant::now();
        let may = self.quiet_until.is_none_or(|until| until <= now);
        if may {
            self.quiet_until = Some(now + AGAIN);
        }
        may
    }
}
