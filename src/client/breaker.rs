//! When not to ask a daemon that does not answer.
//!
//! ```text
//!          N timeouts in a row            pause over
//!   Closed ──────────────────→ Open ──────────────────→ Probing
//!      ↑                        ↑                          │
//!      │                        └──── timeout, longer ─────┤
//!      └─────────────────────── answer ────────────────────┘
//! ```

use std::time::{Duration, Instant};

use super::backoff::Backoff;

/// Decides whether a lookup may go out. The time comes from outside.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    threshold: u32,
    backoff: Backoff,
}

#[derive(Debug)]
enum State {
    /// So many timeouts in a row.
    Closed(u32),
    /// Nothing goes out before then.
    Open(Instant),
    /// One lookup is out; the others wait for what becomes of it.
    Probing,
}

/// What became of a lookup that was let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The daemon answered in time, whatever it said.
    Answered,
    /// It did not.
    TimedOut,
    /// Nobody waited for the answer, or the lookup never left.
    Unknown,
}

/// A lookup that was let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// One of many.
    Plain,
    /// The one that finds out whether the daemon is back.
    Probe,
}

impl Breaker {
    pub(super) fn new(threshold: u32, pauses: (Duration, Duration)) -> Self {
        Self { state: State::Closed(0), threshold: threshold.max(1), backoff: Backoff::new(pauses) }
    }

    /// `None`: do not ask.
    pub(super) fn admit(&mut self, now: Instant) -> Option<Permit> {
        match self.state {
            State::Closed(_) => Some(Permit::Plain),
            State::Open(until) if now >= until => {
                self.state = State::Probing;
                Some(Permit::Probe)
            }
            State::Open(_) | State::Probing => None,
        }
    }

    /// Answers whether the breaker opened with it.
    pub(super) fn settle(&mut self, permit: Permit, outcome: Outcome, now: Instant) -> bool {
        match (&mut self.state, permit, outcome) {
            (State::Closed(row), _, Outcome::Answered) => *row = 0,
            (State::Closed(row), Permit::Plain, Outcome::TimedOut) => {
                *row += 1;
                if *row >= self.threshold {
                    self.state = State::Open(now + self.backoff.pause());
                    return true;
                }
            }
            (State::Probing, Permit::Probe, Outcome::Answered) => self.close(),
            (State::Probing, Permit::Probe, Outcome::TimedOut) => {
                self.state = State::Open(now + self.backoff.pause());
            }
            // The next lookup is the probe.
            (State::Probing, Permit::Probe, Outcome::Unknown) => self.state = State::Open(now),
            // What was let out before it opened says nothing of now.
            _ => {}
        }
        false
    }

    /// Lets everything out, and no answer changes that.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.state, State::Closed(0))
    }

    /// The daemon has just answered otherwise.
    pub(super) fn close(&mut self) {
        self.state = State::Closed(0);
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
        assert_eq!(breaker.admit(later), None, "one is enough");
        // Stragglers from before change nothing.
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
        assert_eq!(breaker.admit(later + PAUSE / 2), None, "two seconds less a half at most");
        assert_eq!(breaker.admit(later + 2 * PAUSE), Some(Permit::Probe));
    }

    #[test]
    fn an_answer_between_timeouts_keeps_it_closed() {
        let now = Instant::now();
        let mut breaker = Breaker::new(2, (PAUSE, PAUSE));
        for outcome in [Outcome::TimedOut, Outcome::Answered, Outcome::TimedOut, Outcome::Unknown] {
            let permit = breaker.admit(now).unwrap();
            assert!(!breaker.settle(permit, outcome, now), "{outcome:?}");
        }
    }
}
