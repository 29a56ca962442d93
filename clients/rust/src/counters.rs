//! Counters of a worker's calls.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since [`crate::Worker::connect`].
///
/// A lookup is counted in exactly one of `hits`, `misses`, `timeouts`, `away` and
/// `lookups_dropped`. If its future was dropped, it is counted in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Lookups that found a session.
    pub hits: u64,
    /// Lookups that the daemon answered with no session.
    pub misses: u64,
    /// Lookups that got no answer by the deadline.
    pub timeouts: u64,
    /// Lookups that were a miss because there was no stream, the stream broke, or the breaker was
    /// open.
    pub away: u64,
    /// Lookups that were a miss because the queue was full.
    pub lookups_dropped: u64,
    /// Connections and reports that were dropped because the queue was full or they were too large.
    pub reports_dropped: u64,
    /// Calls that the daemon refused. Check `Options::format` first.
    pub refused: u64,
    /// Messages sent. They are fewer than the calls: calls that are ready together share a message.
    pub messages: u64,
    /// Calls sent.
    pub calls: u64,
    /// Streams after the first.
    pub reconnects: u64,
    /// How often the breaker opened.
    pub breaker_openings: u64,
}

macro_rules! tallies {
    ($($name:ident),*) => {
        /// The counters as atomic integers.
        #[derive(Default)]
        pub(super) struct Tallies {
            $(pub(super) $name: Tally,)*
            /// All streams, including the first.
            pub(super) streams: Tally,
        }

        impl Tallies {
            /// Reads the counters one by one, not as one snapshot.
            pub(super) fn read(&self) -> Counters {
                let reconnects = self.streams.read().saturating_sub(1);
                Counters { $($name: self.$name.read(),)* reconnects }
            }
        }
    };
}

tallies!(
    hits,
    misses,
    timeouts,
    away,
    lookups_dropped,
    reports_dropped,
    refused,
    messages,
    calls,
    breaker_openings
);

#[derive(Default)]
pub(super) struct Tally(AtomicU64);

impl Tally {
    pub(super) fn count(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
