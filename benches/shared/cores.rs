//! CPU affinity. Threads and processes inherit it from the thread that starts them.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Returns the cores that this thread may use.
pub(crate) fn all() -> Vec<usize> {
    let mine = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU)
        .filter(|&core| mine.is_set(core))
        .collect()
}

/// Restricts this thread to one core.
pub(crate) fn pin(core: usize) {
    allow(&[core]);
}

/// Lets this thread use these cores.
pub(crate) fn allow(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).unwrap();
}
