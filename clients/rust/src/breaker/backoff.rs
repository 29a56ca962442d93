//! Exponential back-off with jitter.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// The pauses between attempts. Each is twice the one before it, up to a maximum, and is shortened
/// at random by up to a half.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
    jitter: RandomState,
    count: u64,
}

impl Backoff {
    pub(crate) fn new((first, max): (Duration, Duration)) -> Self {
        Self {
            first,
            max,
            next: first.min(max),
            jitter: RandomState::new(),
            count: 0,
        }
    }

    /// Returns the pause before the next attempt.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.max);
        self.count += 1;
        // RandomState is randomly seeded. This suffices to spread workers and needs no dependency.
        let random = u32::try_from(self.jitter.hash_one(self.count) % 1024).unwrap_or_default();
        whole - whole / 2048 * random
    }

    /// Restarts with the first pause, after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.first.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum_and_differ_by_up_to_a_half() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new((seconds(2), seconds(10)));
        for whole in [2, 4, 8, 10, 10] {
            let pause = backoff.pause();
            assert!(
                (seconds(whole) / 2..=seconds(whole)).contains(&pause),
                "{whole}: {pause:?}"
            );
        }
        backoff.reset();
        assert!(backoff.pause() <= seconds(2));
    }
}
