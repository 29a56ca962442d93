//! A rate limit for log lines of one kind. It allows as many lines as an operator can read, and
//! counts the rest.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A budget of log lines that callers can cause without limit.
#[derive(Debug)]
pub(crate) struct LineBudget {
    most: u32,
    span: Duration,
    held: Mutex<SpanCount>,
}

#[derive(Debug)]
struct SpanCount {
    began: Instant,
    left: u32,
    /// Lines left out since a line last reported their number.
    left_out: u64,
}

impl LineBudget {
    /// Creates a budget of `most` lines in each `span`.
    pub(crate) fn new(most: u32, span: Duration) -> Self {
        Self {
            most,
            span,
            held: Mutex::new(SpanCount {
                began: Instant::now(),
                left: most,
                left_out: 0,
            }),
        }
    }

    /// Takes one line from the budget. Returns how many lines were left out since the last one, or
    /// `None` if this line must be left out too.
    pub(crate) fn take(&self, now: Instant) -> Option<u64> {
        let mut held = self.held.lock();
        self.begin(&mut held, now);
        if held.left == 0 {
            held.left_out += 1;
            return None;
        }
        held.left -= 1;
        Some(std::mem::take(&mut held.left_out))
    }

    /// Counts a line that is left out for a reason other than this budget.
    pub(crate) fn leave_out(&self, now: Instant) {
        let mut held = self.held.lock();
        self.begin(&mut held, now);
        held.left_out += 1;
    }

    /// Returns how many lines were left out and not reported, if no line was taken in this span.
    pub(crate) fn left_out(&self, now: Instant) -> Option<u64> {
        let mut held = self.held.lock();
        self.begin(&mut held, now);
        match held.left_out {
            left_out if left_out > 0 && held.left == self.most => {
                Some(std::mem::take(&mut held.left_out))
            }
            _ => None,
        }
    }

    fn begin(&self, held: &mut SpanCount, now: Instant) {
        if now.saturating_duration_since(held.began) >= self.span {
            (held.began, held.left) = (now, self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_budget_are_counted_and_told_once() {
        let span = Duration::from_secs(10);
        let budget = LineBudget::new(2, span);
        let mut now = Instant::now();
        let taken: Vec<_> = (0..5).map(|_| budget.take(now)).collect();
        assert_eq!(taken, [Some(0), Some(0), None, None, None]);
        assert_eq!(budget.left_out(now), None, "the span has not passed");
        now += span;
        assert_eq!(budget.take(now), Some(3), "the next line reports them");
        assert_eq!(
            (budget.take(now), budget.take(now), budget.take(now)),
            (Some(0), None, None)
        );
        now += span;
        assert_eq!(
            (budget.left_out(now), budget.left_out(now)),
            (Some(2), None)
        );
    }

    #[test]
    fn line_tells_also_of_those_that_were_left_out_for_another_reason() {
        let now = Instant::now();
        let budget = LineBudget::new(5, Duration::from_secs(1));
        (0..98).for_each(|_| budget.leave_out(now));
        assert_eq!((budget.take(now), budget.take(now)), (Some(98), Some(0)));
    }
}
