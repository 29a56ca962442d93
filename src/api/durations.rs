//! How long calls take, by method and status, and how many calls are refused.

use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use http::HeaderMap;
use tls_sessiond_core::session::{
    histogram::{Histogram, HistogramCounts},
    stats::Counter,
};
use tokio::time::Instant;
use tonic::Code;

use super::access::RIGHTS;
use crate::trace::{CallSpan, SpanScope, Tracer};

/// The number of gRPC status codes: 0 to 16.
const CODES: usize = 17;

/// The names of the status codes, in the order of their numbers.
pub(crate) const CODE_NAMES: [&str; CODES] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The durations of calls since the daemon started. Methods that the daemon does not have are
/// counted together.
#[derive(Debug)]
pub(crate) struct CallDurations {
    /// By method, in the order of [`RIGHTS`], and status.
    calls: Vec<[OnceLock<Box<Histogram>>; CODES]>,
    /// From the arrival of a message of an Attach until its last call is answered.
    pub(crate) batches: Histogram,
    /// By reason: calls that were refused before they began.
    refused: DashMap<&'static str, Counter>,
    tracer: Tracer,
}

/// The place of a method in the table of rights, or one after the last for any other.
fn place(path: &str) -> usize {
    let listed = RIGHTS.iter().position(|(listed, _)| *listed == path);
    listed.unwrap_or(RIGHTS.len())
}

/// Returns the full name of the method in this place, or `_OTHER`, as OpenTelemetry has it.
fn name(place: usize) -> &'static str {
    RIGHTS.get(place).map_or("_OTHER", |(path, _)| &path[1..])
}

/// Returns whether a call with this status failed by a fault of the daemon, as the conventions of
/// OpenTelemetry for spans of servers say.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

impl CallDurations {
    pub(crate) fn new(tracer: Tracer) -> Self {
        let calls = (0..=RIGHTS.len()).map(|_| std::array::from_fn(|_| OnceLock::new()));
        Self {
            calls: calls.collect(),
            batches: Histogram::default(),
            refused: DashMap::new(),
            tracer,
        }
    }

    /// Begins to time a call of the method with this path.
    pub(crate) fn begin(self: &Arc<Self>, path: &str, now: Instant) -> TimedCall {
        TimedCall {
            durations: Arc::clone(self),
            method: place(path),
            begun: now,
            code: Code::Cancelled,
            span: CallSpan::default(),
        }
    }

    /// Counts a call that was refused before it began.
    pub(crate) fn refuse(&self, reason: &'static str) {
        self.refused.entry(reason).or_default().count();
    }

    /// Returns the durations of the calls that have ended: the method without its first slash,
    /// `_OTHER` for unknown ones, the name of the status, and the counts.
    pub(crate) fn calls(
        &self,
    ) -> impl Iterator<Item = (&'static str, &'static str, HistogramCounts)> {
        self.calls.iter().enumerate().flat_map(|(method, codes)| {
            let ended = codes.iter().zip(CODE_NAMES);
            ended.filter_map(move |(histogram, code)| {
                Some((name(method), code, histogram.get()?.counts()))
            })
        })
    }

    /// Returns the numbers of refused calls by the reason of their ErrorInfo, sorted.
    pub(crate) fn refused(&self) -> Vec<(&'static str, u64)> {
        let refused = self.refused.iter();
        let mut all: Vec<_> = refused.map(|entry| (*entry.key(), entry.get())).collect();
        all.sort_unstable();
        all
    }
}

/// A call that is timed until it is dropped. One that is dropped without a status was cancelled.
#[derive(Debug)]
pub(crate) struct TimedCall {
    durations: Arc<CallDurations>,
    method: usize,
    begun: Instant,
    code: Code,
    span: CallSpan,
}

impl TimedCall {
    /// Begins the span of a call that was admitted. `headers` may name the trace of the caller. A call
    /// that is refused has none, so that a caller without rights takes no place of others.
    pub(crate) fn trace(&mut self, headers: &HeaderMap) {
        self.span = self.durations.tracer.call(name(self.method), headers);
    }

    /// Returns a handle for parts of the call.
    pub(crate) fn scope(&self) -> SpanScope {
        self.span.scope()
    }

    /// Sets the status with which the call ends.
    pub(crate) fn ends_with(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for TimedCall {
    fn drop(&mut self) {
        let code = usize::try_from(i32::from(self.code)).unwrap_or(0);
        let code = code.min(CODES - 1);
        self.span.ends_with(CODE_NAMES[code], is_fault(self.code));
        let cell = &self.durations.calls[self.method][code];
        cell.get_or_init(Box::default).count(self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_codes() {
        for (number, name) in (0..).zip(CODE_NAMES) {
            let debug = format!("{:?}", Code::from_i32(number));
            let plain = |text: &str| text.replace('_', "").to_lowercase();
            assert_eq!(plain(name), plain(&debug));
        }
    }

    #[test]
    fn calls_are_counted_by_method_and_status() {
        let durations = Arc::new(CallDurations::new(Tracer::default()));
        let (known, _) = RIGHTS[3];
        let mut ended = durations.begin(known, Instant::now());
        ended.ends_with(Code::NotFound);
        drop(ended);
        drop(durations.begin("/any.Thing/Else", Instant::now()));
        let calls: Vec<_> = durations
            .calls()
            .map(|(path, code, counts)| (path, code, counts.total()))
            .collect();
        assert_eq!(
            calls,
            [(&known[1..], "NOT_FOUND", 1), ("_OTHER", "CANCELLED", 1)]
        );
    }
}
