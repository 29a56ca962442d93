//! What the process uses, as Linux tells it in /proc.

use std::{fs, time::Duration};

use rustix::{
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// What the process uses. A value that the system does not tell is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessUse {
    /// Memory in use (resident set), in bytes.
    pub(crate) memory_bytes: u64,
    /// Address space, in bytes.
    pub(crate) virtual_bytes: u64,
    /// CPU time since the start, of all threads.
    pub(crate) cpu_time: Duration,
    pub(crate) threads: u32,
    pub(crate) open_files: u32,
    /// The limit of open files. `None`: there is none.
    pub(crate) open_files_max: Option<u64>,
}

impl ProcessUse {
    pub(crate) fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(cpu.tv_nsec).unwrap_or(0);
        // The listing itself is one open file.
        let files = fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1));
        Self {
            memory_bytes: field(&status, "VmRSS:") << 10,
            virtual_bytes: field(&status, "VmSize:") << 10,
            cpu_time: Duration::new(seconds, nanos),
            threads: u32::try_from(field(&status, "Threads:")).unwrap_or(u32::MAX),
            open_files: u32::try_from(files).unwrap_or(u32::MAX),
            open_files_max: getrlimit(Resource::Nofile).current,
        }
    }
}

/// Returns the number of a line of /proc/self/status.
fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let number = value.and_then(|value| value.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let used = ProcessUse::now();
        assert!(used.memory_bytes > 1 << 20 && used.virtual_bytes >= used.memory_bytes);
        assert!(used.threads >= 1 && used.open_files >= 3 && used.cpu_time > Duration::ZERO);
    }

    #[test]
    fn missing_lines_are_zero() {
        assert_eq!(field("VmRSS:\t  12 kB\n", "VmRSS:"), 12);
        assert_eq!(field("VmRSS:\tmany\n", "VmRSS:"), 0);
        assert_eq!(field("", "Threads:"), 0);
    }
}
