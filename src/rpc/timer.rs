//! hyper's clock. It asks for the time at every turn of a connection and for every frame, to know for how long the
//! connection was silent; what it compares that with is a minute, and a clock that is exact costs as much as a lookup in
//! the cache.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer as HyperTimer};
use hyper_util::rt::TokioTimer;
use rustix::time::{ClockId, clock_gettime};

/// tokio's timer, and the time as of the system's last tick: some milliseconds.
#[derive(Clone)]
pub(super) struct Timer {
    tokio: TokioTimer,
    began: Instant,
    began_coarse: Duration,
}

impl Timer {
    pub(super) fn new() -> Self {
        Self { tokio: TokioTimer::new(), began: Instant::now(), began_coarse: coarse() }
    }
}

/// Since the system has started.
fn coarse() -> Duration {
    Duration::try_from(clock_gettime(ClockId::MonotonicCoarse)).unwrap_or_default()
}

impl HyperTimer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.tokio.sleep(duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.tokio.sleep_until(deadline)
    }

    fn now(&self) -> Instant {
        self.began + coarse().saturating_sub(self.began_coarse)
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        self.tokio.reset(sleep, deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_that_of_the_exact_clock_but_for_a_tick() {
        let timer = Timer::new();
        let before = Instant::now();
        let now = timer.now();
        // The two clocks that it began with differ by a tick at most, and so do those of now; a tick has 10 ms where it is longest.
        assert!(now + Duration::from_millis(21) > before && now < before + Duration::from_secs(5), "{now:?}");
    }
}
