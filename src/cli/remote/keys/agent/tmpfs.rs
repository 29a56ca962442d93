//! Whether a folder is in memory.

use std::os::fd::AsFd;

use rustix::fs::fstatfs;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Returns whether an open file or folder is on tmpfs or ramfs. If the system does not say, it is on a
/// disk.
pub(super) fn is_in_memory(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|system| IN_MEMORY.contains(&system.f_type))
}
