//! How many lines of one kind the log gets in a while: no more than a person can read, and a count of the rest.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines that many callers can cause, as often as they like.
#[derive(Debug)]
pub(super) struct LineBudget {
    most: u32,
    span: Duration,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    began: Instant,
    left: u32,
    /// Since a line told of it.
    left_out: u64,
}

impl LineBudget {
    /// At most `most` lines in each `span`.
    pub(super) fn new(most: u32, span: Duration) -> Self {
        Self { most, span, held: Mutex::new(Held { began: Instant::now(), left: most, left_out: 0 }) }
    }

    /// Asks for a line. Answers how many were left out since the last one; `None`: this one is left out as well.
    pub(super) fn take(&self, now: Instant) -> Option<u64> {
        let mut held = self.held.lock();
        self.begin(&mut held, now);
        if held.left == 0 {
            held.left_out += 1;
            return None;
        }
        held.left -= 1;
        Some(std::mem::take(&mut held.left_out))
    }

    /// Asks for a line of one identity, which has a budget of its own: it takes no line of others. Both have to allow it, and this
    /// one counts what either leaves out.
    pub(super) fn take_of_one(&self, of_one: &Self, now: Instant) -> Option<u64> {
        if of_one.take(now).is_some() {
            return self.take(now);
        }
        let mut held = self.held.lock();
        self.begin(&mut held, now);
        held.left_out += 1;
        None
    }

    /// How many were left out, where the span is over in which they came and no line has told of them.
    pub(super) fn left_out(&self, now: Instant) -> Option<u64> {
        let mut held = self.held.lock();
        self.begin(&mut held, now);
        match held.left_out {
            left_out if left_out > 0 && held.left == self.most => Some(std::mem::take(&mut held.left_out)),
            _ => None,
        }
    }

    fn begin(&self, held: &mut Held, now: Instant) {
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
        assert_eq!(budget.left_out(now), None, "the span is not over");
        now += span;
        assert_eq!(budget.take(now), Some(3), "the next line tells");
        assert_eq!((budget.take(now), budget.take(now), budget.take(now)), (Some(0), None, None));
        now += span;
        assert_eq!((budget.left_out(now), budget.left_out(now)), (Some(2), None));
    }

    #[test]
    fn one_identity_takes_no_line_of_others() {
        let now = Instant::now();
        let all = LineBudget::new(5, Duration::from_secs(1));
        let [one, other] = [(); 2].map(|()| LineBudget::new(2, Duration::from_secs(1)));
        let taken = (0..100).filter(|_| all.take_of_one(&one, now).is_some()).count();
        assert_eq!(taken, 2);
        assert_eq!(all.take_of_one(&other, now), Some(98), "its line tells of what was left out");
    }
}
