//! The long streams of one HTTP/2 connection, with counters and a log line about its limit.
//!
//! A client delays a call beyond SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113 section 5.1.2), and the
//! daemon does not learn of it. So the daemon counts the streams that hold a place for long:
//! `Drive`, `Attach` and `WatchSessions`. Calls that are answered at once also release their place
//! at once, and are not counted.

use std::{
    cmp::Reverse,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;
use tls_sessiond_proto as pb;

use super::line_budget::LineBudget;

/// Limits of concurrent streams on one HTTP/2 connection, by the roles of its caller.
#[derive(Debug)]
pub(crate) struct StreamLimits {
    /// The limit of a caller with the role worker in any context.
    worker: AtomicU32,
    /// The limit of any other caller.
    non_worker: AtomicU32,
}

impl StreamLimits {
    pub(crate) fn new(worker: u32, non_worker: u32) -> Self {
        Self {
            worker: worker.into(),
            non_worker: non_worker.into(),
        }
    }

    /// Changes the limits of later HTTP/2 connections.
    pub(crate) fn resize(&self, worker: u32, non_worker: u32) {
        self.worker.store(worker, Ordering::Relaxed);
        self.non_worker.store(non_worker, Ordering::Relaxed);
    }
}

/// Class of a caller by its roles. Decides the HTTP/2 limits of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The caller has the role worker in some context.
    Worker,
    /// The caller has only other roles.
    OtherRole,
    /// The caller has no role. It may call only health and reflection.
    NoRole,
}

/// Most concurrent streams of a connection whose caller has no role.
const STREAMS_NO_ROLE: u32 = 16;

/// Counters over all connections since the daemon started, and the budget of log lines.
#[derive(Debug)]
pub(crate) struct StreamTotals {
    /// The long streams of each open connection that has or had one.
    open: DashMap<u64, OpenStreams>,
    numbers: AtomicU64,
    connections: AtomicU64,
    reached: AtomicU64,
    lines: LineBudget,
}

/// The long streams of one open connection.
#[derive(Debug)]
struct OpenStreams {
    owner: Arc<str>,
    held: Arc<AtomicU32>,
    limit: u32,
}

/// Log lines per second about a reached limit. The counters count every time.
const LINES: u32 = 10;

impl StreamTotals {
    pub(crate) fn new() -> Self {
        Self {
            open: DashMap::new(),
            numbers: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            reached: AtomicU64::new(0),
            lines: LineBudget::new(LINES, Duration::from_secs(1)),
        }
    }

    /// Returns the connections with the most streams, largest first, at most this many.
    pub(crate) fn largest(&self, most: usize) -> Vec<pb::StreamUsage> {
        let mut open: Vec<_> = self
            .open
            .iter()
            .map(|open| pb::StreamUsage {
                owner: open.owner.to_string(),
                streams: open.held.load(Ordering::Relaxed),
                limit: open.limit,
            })
            .filter(|usage| usage.streams > 0)
            .collect();
        open.sort_by_key(|usage| Reverse(usage.streams));
        open.truncate(most);
        open
    }

    /// Returns the number of connections that reached their limit at least once.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns how often any connection reached its limit.
    pub(crate) fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }
}

/// The streams of one HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct Streams {
    class: Class,
    limit: u32,
    /// The configuration key that sets the limit, or text for a limit that no key sets.
    key: &'static str,
    /// Its key among the open connections, once it has had a stream.
    number: OnceLock<u64>,
    held: Arc<AtomicU32>,
    /// Whether the current reach of the limit was counted. Reset once a quarter of the limit is
    /// free.
    told: AtomicBool,
    ever: AtomicBool,
    totals: Arc<StreamTotals>,
}

impl Streams {
    /// Creates the state of one connection, with the limit of this class.
    pub(crate) fn new(limits: &StreamLimits, class: Class, totals: &Arc<StreamTotals>) -> Self {
        let worker = limits.worker.load(Ordering::Relaxed);
        let non_worker = limits.non_worker.load(Ordering::Relaxed);
        let (limit, key) = match class {
            Class::Worker => (worker, "limits.streams"),
            Class::OtherRole => (non_worker, "limits.streams_non_worker"),
            Class::NoRole => (
                non_worker.min(STREAMS_NO_ROLE),
                "fixed for callers without a role",
            ),
        };
        Self {
            class,
            limit,
            key,
            number: OnceLock::new(),
            held: Arc::default(),
            told: AtomicBool::new(false),
            ever: AtomicBool::new(false),
            totals: Arc::clone(totals),
        }
    }

    /// Returns the class that its caller had when the connection began.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// Returns SETTINGS_MAX_CONCURRENT_STREAMS of its connection.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    pub(crate) fn hold(&self, owner: &Arc<str>) {
        self.number.get_or_init(|| {
            let number = self.totals.numbers.fetch_add(1, Ordering::Relaxed);
            let open = OpenStreams {
                owner: Arc::clone(owner),
                held: Arc::clone(&self.held),
                limit: self.limit,
            };
            self.totals.open.insert(number, open);
            number
        });
        let held = self.held.fetch_add(1, Ordering::Relaxed) + 1;
        if held < self.limit || self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        if !self.ever.swap(true, Ordering::Relaxed) {
            self.totals.connections.fetch_add(1, Ordering::Relaxed);
        }
        let reached = self.totals.reached.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(left_out) = self.totals.lines.take(Instant::now()) {
            let key = self.key;
            tracing::warn!(
                owner = &**owner,
                limit = self.limit,
                reached,
                left_out,
                "an HTTP/2 connection has reached its limit of streams ({key}), and its further calls wait: \
                 open another connection earlier, or raise the limit"
            );
        }
    }

    pub(crate) fn release(&self) {
        let held = self.held.fetch_sub(1, Ordering::Relaxed) - 1;
        if held <= self.limit - self.limit.div_ceil(4) {
            self.told.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(number) = self.number.get() {
            self.totals.open.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_with_streams_are_listed_until_they_end() {
        let totals = Arc::new(StreamTotals::new());
        let limits = StreamLimits::new(8, 2);
        let few = Streams::new(&limits, Class::OtherRole, &totals);
        let many = Streams::new(&limits, Class::Worker, &totals);
        assert_eq!(totals.largest(10), []);
        few.hold(&"few".into());
        (0..3).for_each(|_| many.hold(&"many".into()));
        let shown = |usage: &pb::StreamUsage| (usage.owner.clone(), usage.streams, usage.limit);
        let listed: Vec<_> = totals.largest(10).iter().map(shown).collect();
        assert_eq!(listed, [("many".into(), 3, 8), ("few".into(), 1, 2)]);
        assert_eq!(totals.largest(1).len(), 1);
        few.release();
        drop(many);
        assert_eq!(totals.largest(10), []);
    }

    #[test]
    fn limit_is_told_once_until_a_quarter_is_free() {
        let totals = Arc::new(StreamTotals::new());
        let streams = Streams::new(&StreamLimits::new(8, 1), Class::Worker, &totals);
        (0..7).for_each(|_| streams.hold(&"test".into()));
        assert_eq!((totals.connections(), totals.reached()), (0, 0));
        // A place is released and taken again at the limit.
        for _ in 0..5 {
            streams.hold(&"test".into());
            streams.release();
        }
        assert_eq!((totals.connections(), totals.reached()), (1, 1));
        streams.release();
        (0..2).for_each(|_| streams.hold(&"test".into()));
        assert_eq!(
            (totals.connections(), totals.reached()),
            (1, 2),
            "two of eight were free"
        );
    }

    #[test]
    fn lines_of_one_second_are_bounded_and_counters_are_not() {
        let totals = Arc::new(StreamTotals::new());
        let limits = StreamLimits::new(8, 1);
        let now = Instant::now();
        let lines = (0..100)
            .filter(|_| totals.lines.take(now).is_some())
            .count();
        assert_eq!(lines, LINES as usize);
        for _ in 0..100 {
            let streams = Streams::new(&limits, Class::OtherRole, &totals);
            streams.hold(&"test".into());
            streams.release();
        }
        assert_eq!((totals.connections(), totals.reached()), (100, 100));
    }
}
