//! A circuit breaker for many threads. While all lookups succeed, it costs one atomic load.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{Breaker, Outcome, Permit};

pub(crate) struct Gate {
    breaker: Mutex<Breaker>,
    /// The breaker is closed without a timeout, so all lookups are admitted and an answer changes
    /// nothing. A thread that reads an outdated value acts as if it had come a moment earlier.
    quiet: AtomicBool,
}

impl Gate {
    pub(crate) fn new(threshold: u32, pauses: (Duration, Duration)) -> Self {
        Self {
            breaker: Mutex::new(Breaker::new(threshold, pauses)),
            quiet: AtomicBool::new(true),
        }
    }

    /// Admits a lookup. `None`: the breaker is open.
    pub(crate) fn admit(&self, now: Instant) -> Option<Permit> {
        if self.quiet.load(Ordering::Relaxed) {
            return Some(Permit::Plain);
        }
        self.with(|breaker| breaker.admit(now))
    }

    /// Records the outcome of a lookup. Returns whether it opened the breaker. `now` is called only
    /// if the time matters.
    pub(crate) fn settle(
        &self,
        permit: Permit,
        outcome: Outcome,
        now: impl FnOnce() -> Instant,
    ) -> bool {
        if outcome != Outcome::TimedOut && self.quiet.load(Ordering::Relaxed) {
            return false;
        }
        let now = now();
        self.with(|breaker| breaker.settle(permit, outcome, now))
    }

    /// Closes the breaker because a new stream has shown that the daemon answers.
    pub(crate) fn close(&self) {
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
        assert!(
            !settle(plain, Outcome::Answered) && quiet(),
            "the timeouts are not consecutive"
        );
        assert!(!settle(plain, Outcome::TimedOut) && settle(plain, Outcome::TimedOut));
        assert_eq!(gate.admit(now), None);
        let probe = gate.admit(now + pause).unwrap();
        assert!(probe == Permit::Probe && !quiet());
        assert!(!settle(probe, Outcome::Answered) && quiet());
        assert_eq!(gate.admit(now), Some(Permit::Plain));
    }
}
