//! Measures the resources of a process, and the latency of calls.

use std::{fs, time::Duration};

use tokio::sync::{Mutex, MutexGuard};

static ALONE: Mutex<()> = Mutex::const_new(());

/// Runs one test at a time, because the tests measure.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// Returns a number of `/proc/PID/status`: `VmRSS` in KiB, or `Threads`.
pub(crate) fn status(process: &str, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Returns the resident memory in MiB.
pub(crate) fn memory(process: &str) -> u64 {
    status(process, "VmRSS") / 1024
}

/// Returns the processor time that a process has used on all cores.
pub(crate) fn cpu(process: &str) -> Duration {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // After the name in parentheses: utime and stime are the 14th and 15th field, in hundredths of
    // a second (proc(5)).
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let hundredths: u64 = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(hundredths * 10)
}

/// Returns the number of open file descriptors of this process.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Returns the 99th percentile.
pub(crate) fn p99(mut times: Vec<Duration>) -> Duration {
    assert!(
        times.len() >= 500,
        "{} samples are too few for a p99",
        times.len()
    );
    times.sort();
    times[times.len() * 99 / 100]
}
