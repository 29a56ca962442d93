//! What a worker's calls came to.

use std::sync::atomic::{AtomicU64, Ordering};

/// Plain numbers since [`super::Worker::connect`].
///
/// A lookup counts in one of `hits`, `misses`, `timeouts`, `away` and `lookups_dropped`, or in none where its
/// future was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Lookups that found a session.
    pub hits: u64,
    /// Lookups that the daemon answered with no session.
    pub misses: u64,
    /// Lookups that got no answer by the deadline.
    pub timeouts: u64,
    /// Lookups that were a miss at once, or as soon as the stream broke: no stream, or the breaker was open.
    pub away: u64,
    /// Lookups that were a miss because the queue was full.
    pub lookups_dropped: u64,
    /// Connections and reports that were not sent because the queue was full, or that were too large.
    pub reports_dropped: u64,
    /// Calls that the daemon refused; the first thing to look at is the format.
    pub refused: u64,
    /// Messages sent. Fewer than calls: calls that are ready together share one.
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
        /// The numbers while they are counted.
        #[derive(Default)]
        pub(super) struct Tallies {
            $(pub(super) $name: Tally,)*
            /// Streams, the first one too.
            pub(super) streams: Tally,
        }

        impl Tallies {
            /// As they are now, each for itself.
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
