//! A circuit breaker: stops lookups to a daemon that does not answer.
//!
//! ```text
//!          N timeouts in a row          pause elapsed
//!   Closed ──────────────────→ Open ──────────────────→ Probing
//!      ↑                        ↑                          │
//!      │                        └──── timeout, longer ─────┤
//!      └─────────────────────── answer ────────────────────┘
//! ```

pub(crate) mod backoff;
pub(crate) mod shared;

use std::time::{Duration, Instant};

use crate::breaker::backoff::Backoff;

/// Decides whether a lookup is sent. The caller passes the time.
#[derive(Debug)]
pub(super) struct Breaker {
    state: BreakerState,
    threshold: u32,
    backoff: Backoff,
}

#[derive(Debug)]
enum BreakerState {
    /// The number of consecutive timeouts.
    Closed(u32),
    /// No lookup is sent before this time.
    Open(Instant),
    /// One lookup is sent. The others are refused until its outcome is known.
    Probing,
}

/// The outcome of a lookup that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The daemon answered in time, with any answer.
    Answered,
    /// The daemon did not answer by the deadline.
    TimedOut,
    /// The caller stopped waiting, the stream broke, or the lookup was not queued.
    Unknown,
}

/// The admission of one lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// A lookup while the breaker is closed.
    Plain,
    /// The only lookup while the breaker probes whether the daemon answers again.
    Probe,
}

impl Breaker {
    pub(super) fn new(threshold: u32, pauses: (Duration, Duration)) -> Self {
        Self {
            state: BreakerState::Closed(0),
            threshold: threshold.max(1),
            backoff: Backoff::new(pauses),
        }
    }

    /// Admits a lookup. `None`: the breaker is open.
    pub(super) fn admit(&mut self, now: Instant) -> Option<Permit> {
        match self.state {
            BreakerState::Closed(_) => Some(Permit::Plain),
            BreakerState::Open(until) if now >= until => {
                self.state = BreakerState::Probing;
                Some(Permit::Probe)
            }
            BreakerState::Open(_) | BreakerState::Probing => None,
        }
    }

    /// Records the outcome of a lookup. Returns whether it opened the breaker.
    pub(super) fn settle(&mut self, permit: Permit, outcome: Outcome, now: Instant) -> bool {
        match (&mut self.state, permit, outcome) {
            (BreakerState::Closed(row), _, Outcome::Answered) => *row = 0,
            (BreakerState::Closed(row), Permit::Plain, Outcome::TimedOut) => {
                *row += 1;
                if *row >= self.threshold {
                    self.state = BreakerState::Open(now + self.backoff.pause());
                    return true;
                }
            }
            (BreakerState::Probing, Permit::Probe, Outcome::Answered) => self.close(),
            (BreakerState::Probing, Permit::Probe, Outcome::TimedOut) => {
                self.state = BreakerState::Open(now + self.backoff.pause());
            }
            // The probe has no result, so the next lookup is the probe.
            (BreakerState::Probing, Permit::Probe, Outcome::Unknown) => {
                self.state = BreakerState::Open(now);
            }
            // A lookup that was admitted before the breaker opened does not count now.
            _ => {}
        }
        false
    }

    /// Returns whether the breaker is closed without a timeout. Then all lookups are admitted, and
    /// an answer changes nothing.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.state, BreakerState::Closed(0))
    }

    /// Closes the breaker because a new stream has shown that the daemon answers.
    pub(super) fn close(&mut self) {
        self.state = BreakerState::Closed(0);
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(3, (PAUSE, 4 * PAUSE));
        for expected in [false, false, true] {
            let permit = breaker.admit(now).unwrap();
            assert_eq!(breaker.settle(permit, Outcome::TimedOut, now), expected);
        }
        breaker
    }

    #[test]
    fn timeouts_in_a_row_open_it_and_one_probe_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now), None);
        let later = now + PAUSE;
        assert_eq!(breaker.admit(later), Some(Permit::Probe));
        assert_eq!(breaker.admit(later), None, "there is one probe at a time");
        // Late answers of lookups from before change nothing.
        breaker.settle(Permit::Plain, Outcome::Answered, later);
        assert_eq!(breaker.admit(later), None);
        breaker.settle(Permit::Probe, Outcome::Answered, later);
        assert_eq!(breaker.admit(later), Some(Permit::Plain));
    }

    #[test]
    fn probe_without_an_answer_opens_it_for_longer_and_one_without_an_end_is_repeated() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + PAUSE;
        assert_eq!(breaker.admit(later), Some(Permit::Probe));
        breaker.settle(Permit::Probe, Outcome::Unknown, later);
        assert_eq!(breaker.admit(later), Some(Permit::Probe));
        breaker.settle(Permit::Probe, Outcome::TimedOut, later);
        assert_eq!(
            breaker.admit(later + PAUSE / 2),
            None,
            "the pause is 2 s, shortened by at most a half"
        );
        assert_eq!(breaker.admit(later + 2 * PAUSE), Some(Permit::Probe));
    }

    #[test]
    fn an_answer_between_timeouts_keeps_it_closed() {
        let now = Instant::now();
        let mut breaker = Breaker::new(2, (PAUSE, PAUSE));
        for outcome in [
            Outcome::TimedOut,
            Outcome::Answered,
            Outcome::TimedOut,
            Outcome::Unknown,
        ] {
            let permit = breaker.admit(now).unwrap();
            assert!(!breaker.settle(permit, outcome, now), "{outcome:?}");
        }
    }
}
