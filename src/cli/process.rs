//! What the process asks of the system before it serves: no core files, and as many open files as it may have.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Keeps the memory private: no core file has the secrets of a fleet in it, and no other process of this user reads them
/// (prctl(2), PR_SET_DUMPABLE).
pub(super) fn keep_memory_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let private =
        setrlimit(Resource::Core, none).and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(err) = private {
        tracing::warn!(%err, "cannot switch core files off");
    }
}

/// Raises the soft limit of open files to the hard one (setrlimit(2), RLIMIT_NOFILE). Returns the limit that holds then;
/// none: there is none.
pub(super) fn raise_open_files() -> Option<u64> {
    let held = getrlimit(Resource::Nofile);
    if held.current == held.maximum {
        return held.current;
    }
    let raised = Rlimit { current: held.maximum, maximum: held.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => held.maximum,
        Err(err) => {
            tracing::warn!(%err, open_files = held.current, "cannot raise the limit of open files (RLIMIT_NOFILE)");
            held.current
        }
    }
}
