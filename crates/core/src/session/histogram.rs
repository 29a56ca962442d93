//! Durations, counted in buckets.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// The upper bounds of the buckets, in microseconds. Longer durations are in a last bucket without a
/// bound.
pub const BOUNDS_MICROS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 10_000_000,
];

/// How many buckets there are.
pub const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// Counts durations since the daemon started.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

/// The counts of a histogram at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistogramCounts {
    /// How many durations were in each bucket, and not in the ones before it.
    pub buckets: [u64; BUCKETS],
    /// The sum of all durations.
    pub sum: Duration,
}

impl Histogram {
    /// Counts a duration.
    pub fn count(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Returns the counts. A duration that is counted meanwhile may be in part of them.
    pub fn counts(&self) -> HistogramCounts {
        let mut counts = HistogramCounts::default();
        for (count, bucket) in counts.buckets.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        counts.sum = Duration::from_micros(self.micros.load(Ordering::Relaxed));
        counts
    }
}

impl HistogramCounts {
    /// Returns the number of durations.
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds the counts of another histogram.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_counted_in_the_first_bucket_that_it_fits() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001] {
            histogram.count(Duration::from_micros(micros));
        }
        let mut counts = histogram.counts();
        assert_eq!(counts.buckets[..3], [2, 1, 0]);
        assert_eq!(counts.buckets[BUCKETS - 2..], [1, 1]);
        assert_eq!((counts.total(), counts.sum.as_micros()), (5, 20_000_202));
        counts.add(&histogram.counts());
        assert_eq!((counts.total(), counts.buckets[0]), (10, 4));
    }
}
