//! A breaker for many threads. While nothing is wrong, which is nearly always, it costs a look.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::breaker::{Breaker, Outcome, Permit};

pub(super) struct Gate {
    breaker: Mutex<Breaker>,
    /// As the breaker was last: all are let out, and no answer changes anything. Who reads it a moment too late came a
    /// moment earlier.
    quiet: AtomicBool,
}

impl Gate {
    pub(super) fn new(threshold: u32, pauses: (Duration, Duration)) -> Self {
        Self { breaker: Mutex::new(Breaker::new(threshold, pauses)), quiet: AtomicBool::new(true) }
    }

    /// `None`: do not ask.
    pub(super) fn admit(&self, now: Instant) -> Option<Permit> {
        if self.quiet.load(Ordering::Relaxed) {
            return Some(Permit::Plain);
        }
        self.with(|breaker| breaker.admit(now))
    }

    /// Answers whether the breaker opened with it. What time it is, is asked only where it matters.
    pub(super) fn settle(&self, permit: Permit, outcome: Outcome, now: impl FnOnce() -> Instant) -> bool {
        if outcome != Outcome::TimedOut && self.quiet.load(Ordering::Relaxed) {
            return false;
        }
        let now = now();
        self.with(|breaker| breaker.settle(permit, outcome, now))
    }

    /// The daemon has just answered otherwise.
    pub(super) fn close(&self) {
        self.with(Breaker::close);
    }

    fn with<T>(&self, change: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.lock();
        let changed = change(&mut breaker);
        self.quiet.store(breaker.is_quiet(), Ordering::Relaxed);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_until_a_timeout_and_again_after_an_answer() {
        let now = Instant::now();
        let pause = Duration::from_secs(1);
        let gate = Gate::new(2, (pause, pause));
        let quiet = || gate.quiet.load(Ordering::Relaxed);
        let settle = |permit, outcome| gate.settle(permit, outcome, || now);
        let plain = gate.admit(now).unwrap();
        assert!(quiet() && !settle(plain, Outcome::Answered) && !settle(plain, Outcome::Unknown));
        assert!(!settle(plain, Outcome::TimedOut) && !quiet());
        assert!(!settle(plain, Outcome::Answered) && quiet(), "not in a row");
        assert!(!settle(plain, Outcome::TimedOut) && settle(plain, Outcome::TimedOut));
        assert_eq!(gate.admit(now), None);
        let probe = gate.admit(now + pause).unwrap();
        assert!(probe == Permit::Probe && !quiet());
        assert!(!settle(probe, Outcome::Answered) && quiet());
        assert_eq!(gate.admit(now), Some(Permit::Plain));
    }
}
