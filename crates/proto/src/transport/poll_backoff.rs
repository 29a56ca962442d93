//! Adaptive busy polling: decides when an idle thread polls for I/O again instead of blocking.
//!
//! A request and its response over a socket on the same host take less time than putting a thread
//! to sleep and waking it on another core. So a few polls pay off when a response is about to come.
//! A poll takes about a microsecond. After polls that found nothing, the next idle moments are
//! skipped: 1, then 3, 7 and so on, up to a maximum.

/// The maximum number of idle moments that are skipped.
const PASSED_MAX: u64 = 1023;

/// The back-off of busy polling.
#[derive(Default)]
pub struct PollBackoff {
    passed: u64,
}

impl PollBackoff {
    /// Records whether the last poll found work. Returns how many idle moments to skip next.
    pub fn record(&mut self, found_work: bool) -> u64 {
        self.passed = if found_work {
            0
        } else {
            (2 * self.passed + 1).min(PASSED_MAX)
        };
        self.passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_in_vain_is_done_ever_less_and_success_makes_up_for_it() {
        let mut backoff = PollBackoff::default();
        let in_vain: Vec<u64> = (0..12).map(|_| backoff.record(false)).collect();
        assert_eq!(
            in_vain,
            [1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1023, 1023]
        );
        assert_eq!(
            (
                backoff.record(true),
                backoff.record(true),
                backoff.record(false)
            ),
            (0, 0, 1)
        );
    }
}
