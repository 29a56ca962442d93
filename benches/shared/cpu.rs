//! CPU clocks, in seconds.

use std::{fs, path::Path};

use rustix::time::{ClockId, clock_gettime};

/// Returns the CPU time of this thread.
pub(crate) fn this_thread() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs `work` and adds its CPU time on this thread to `sum`.
pub(crate) fn add<T>(sum: &mut f64, work: impl FnOnce() -> T) -> T {
    let before = this_thread();
    let done = work();
    *sum += this_thread() - before;
    done
}

/// Returns the CPU time of all threads of a process, including the kernel's part. Exact for threads
/// that sleep.
pub(crate) fn process(id: u32) -> f64 {
    fs::read_dir(format!("/proc/{id}/task"))
        .unwrap()
        .map(|thread| of_thread(&thread.unwrap().path()))
        .sum()
}

/// Reads nanoseconds from schedstat, see proc(5). Kernels without CONFIG_SCHED_INFO have the same
/// time in milliseconds with six decimals, in sched.
fn of_thread(folder: &Path) -> f64 {
    if let Ok(stat) = fs::read_to_string(folder.join("schedstat")) {
        return stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9;
    }
    let stat = fs::read_to_string(folder.join("sched"))
        .expect("this kernel has neither schedstat nor sched for threads in /proc");
    let line = stat
        .lines()
        .find(|line| line.starts_with("se.sum_exec_runtime"))
        .unwrap();
    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() / 1e3
}
