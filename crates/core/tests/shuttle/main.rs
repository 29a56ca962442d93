//! The core under a scheduler that tries the interleavings of its threads: at each lock and each counter another one may
//! go on.
//!
//! Feature `shuttle` puts the scheduler's primitives in the place of those of parking_lot. Schedules are the same at every run;
//! `TLS_SESSIOND_SEED=n` plays others. There is no test harness, so that no unit test runs here, outside of a schedule.
//!
//! No client caches: their pool asks the store while it holds a guard of a map that the scheduler does not know.

// Always so here; clippy allows unwrap where it is said.
#![allow(clippy::unwrap_used)]

use std::{process::ExitCode, time::Instant};

use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler},
};

mod caches;
mod history;
mod stores;

/// What is checked in every schedule.
type Check = (&'static str, fn());

/// Runs those whose names have one of the arguments in them; without arguments all.
fn main() -> ExitCode {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in [stores::CHECKS, caches::CHECKS].concat() {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(&**part)) {
            let start = Instant::now();
            let holds = std::panic::catch_unwind(|| schedules(check)).is_ok();
            println!("test {name} ... {}, {:?}", if holds { "ok" } else { "FAILED" }, start.elapsed());
            *(if holds { &mut passed } else { &mut failed }) += 1;
        }
    }
    println!("test result: {passed} passed; {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a check under some thousand schedules: random ones, and such as find what takes few changes of thread.
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

/// Runs these at the same time, to their end.
fn together<const N: usize>(all: [Box<dyn FnOnce() + Send>; N]) {
    let running = all.map(|one| shuttle::thread::spawn(one));
    running.into_iter().for_each(|one| one.join().unwrap());
}
