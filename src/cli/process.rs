//! Settings of the process before it serves: no core files, and the highest possible limit of open
//! files.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Keeps the process's memory private: no core file contains the secrets of a fleet, and no other
/// process of this user can read them (prctl(2), PR_SET_DUMPABLE).
pub(super) fn keep_memory_private() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let private = setrlimit(Resource::Core, none)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(err) = private {
        tracing::warn!(%err, "cannot switch core files off");
    }
}

/// Raises the soft limit of open files to the hard one (setrlimit(2), RLIMIT_NOFILE).
///
/// Returns the limit in force; `None` means that there is no limit.
pub(super) fn raise_open_files() -> Option<u64> {
    let held = getrlimit(Resource::Nofile);
    if held.current == held.maximum {
        return held.current;
    }
    let raised = Rlimit {
        current: held.maximum,
        maximum: held.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => held.maximum,
        Err(err) => {
            tracing::warn!(%err, open_files = held.current, "cannot raise the limit of open files (RLIMIT_NOFILE)");
            held.current
        }
    }
}
