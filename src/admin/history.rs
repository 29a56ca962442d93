//! The history of handshakes and lookups: the last hour and the last day, in a fixed size.

use std::collections::VecDeque;

use crate::api::admin::Totals;

/// How many seconds a point of the last hour and one of the last day count.
pub(crate) const HOUR_STEP: u64 = 30;
pub(crate) const DAY_STEP: u64 = 900;
/// How many points the last hour and the last day have.
const HOUR_POINTS: usize = 120;
const DAY_POINTS: usize = 96;
/// How many points of the last hour make one of the last day.
const STEPS: usize = (DAY_STEP / HOUR_STEP) as usize;

/// What was counted in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// When the step ended, in seconds since the Unix epoch.
    pub(crate) time: u64,
    pub(crate) counts: Totals,
}

/// The points of the last hour and of the last day, oldest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    before: Totals,
    hour: VecDeque<Point>,
    day: VecDeque<Point>,
    /// What was counted in the steps that do not yet make a point of the day, and their number.
    begun: (Totals, usize),
}

impl History {
    /// Adds the point of a step that ends now. `totals` are the counters since the start.
    pub(crate) fn step(&mut self, time: u64, totals: Totals) -> Point {
        let point = Point {
            time,
            counts: totals.since(&self.before),
        };
        self.before = totals;
        push(&mut self.hour, HOUR_POINTS, point);
        let (counts, steps) = &mut self.begun;
        counts.add(&point.counts);
        *steps += 1;
        if *steps == STEPS {
            let (counts, _) = std::mem::take(&mut self.begun);
            push(&mut self.day, DAY_POINTS, Point { time, counts });
        }
        point
    }

    pub(crate) fn hour(&self) -> impl Iterator<Item = &Point> {
        self.hour.iter()
    }

    pub(crate) fn day(&self) -> impl Iterator<Item = &Point> {
        self.day.iter()
    }

    /// Returns what was counted in the last `points` steps and since then.
    pub(crate) fn latest(&self, points: usize, totals: Totals) -> Totals {
        let mut sum = totals.since(&self.before);
        for point in self.hour.iter().rev().take(points) {
            sum.add(&point.counts);
        }
        sum
    }

    /// Returns what was counted in the last hour.
    pub(crate) fn last_hour(&self, totals: Totals) -> Totals {
        self.latest(HOUR_POINTS, totals)
    }

    /// Returns what was counted in the last day.
    pub(crate) fn last_day(&self, totals: Totals) -> Totals {
        let mut sum = totals.since(&self.before);
        sum.add(&self.begun.0);
        for point in &self.day {
            sum.add(&point.counts);
        }
        sum
    }
}

fn push(points: &mut VecDeque<Point>, most: usize, point: Point) {
    if points.len() == most {
        points.pop_front();
    }
    points.push_back(point);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(count: u64) -> Totals {
        Totals {
            full: count,
            ..Totals::default()
        }
    }

    #[test]
    fn two_days_keep_their_last_hour_and_last_day() {
        let mut history = History::default();
        let steps = 2 * 86_400 / HOUR_STEP;
        for step in 1..=steps {
            history.step(step * HOUR_STEP, full(step * 2));
        }
        assert_eq!((history.hour().count(), history.day().count()), (120, 96));
        assert!(history.hour().all(|point| point.counts == full(2)));
        assert!(history.day().all(|point| point.counts == full(60)));
        let first = history.day().next().unwrap().time;
        assert_eq!(first, 86_400 + DAY_STEP);
        let now = full(steps * 2 + 5);
        assert_eq!(history.last_hour(now), full(245));
        assert_eq!(history.last_day(now), full(5_765));
        assert_eq!(history.latest(2, now), full(9));
    }

    #[test]
    fn day_is_whole_before_its_first_point() {
        let mut history = History::default();
        history.step(30, full(3));
        assert_eq!(history.last_day(full(4)), full(4));
        assert_eq!(history.day().count(), 0);
    }
}
