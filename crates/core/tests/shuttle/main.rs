//! The core under a scheduler that tries the interleavings of its threads. At each lock and each
//! atomic access another thread may run.
//!
//! Feature `shuttle` puts the scheduler's primitives in the place of those of parking_lot. Schedules are
//! the same at every run; `TLS_SESSIOND_SEED=n` selects others. There is no test harness: the locks of
//! the scheduler work only within a schedule.
//!
//! Client caches are not tested: their pool calls the store while it holds a guard of a map that
//! the scheduler does not know.

// Always a test. Clippy allows `unwrap` in tests only where `cfg(test)` is written.
#![allow(clippy::unwrap_used)]
#![allow(
    clippy::disallowed_methods,
    reason = "the time that a check takes is printed"
)]

use std::{process::ExitCode, time::Instant};

use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler},
};

mod caches;
mod history;
mod stores;

/// A check that every schedule must pass, with its name.
type Check = (&'static str, fn());

/// Runs the checks whose names contain one of the arguments, or all checks without arguments.
fn main() -> ExitCode {
    let wanted: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in [stores::CHECKS, caches::CHECKS].concat() {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(&**part)) {
            let start = Instant::now();
            let holds = std::panic::catch_unwind(|| schedules(check)).is_ok();
            println!(
                "test {name} ... {}, {:?}",
                if holds { "ok" } else { "FAILED" },
                start.elapsed()
            );
            *(if holds { &mut passed } else { &mut failed }) += 1;
        }
    }
    println!("test result: {passed} passed; {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a check under some thousand schedules: random ones, and ones that find faults with few
/// thread switches.
fn schedules(check: fn()) {
    let seed = std::env::var("TLS_SESSIOND_SEED").map_or(0, |seed| seed.parse().unwrap());
    let config = || {
        let mut config = Config::new();
        config.silence_warnings = true;
        config
    };
    Runner::new(RandomScheduler::new_from_seed(seed, 3_000), config()).run(check);
    Runner::new(PctScheduler::new_from_seed(seed, 3, 3_000), config()).run(check);
}

/// Runs these functions at the same time and waits for their ends.
fn together<const N: usize>(all: [Box<dyn FnOnce() + Send>; N]) {
    let running = all.map(|one| shuttle::thread::spawn(one));
    running.into_iter().for_each(|one| one.join().unwrap());
}
