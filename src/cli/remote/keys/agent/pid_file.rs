//! Signals to the process that a pid file names.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::process::{Pid, Signal, kill_process};

use super::sink::NotRun;

/// A signal to a server: `PIDFILE:NAME`.
#[derive(Clone, Debug)]
pub(in crate::cli) struct SignalTo {
    pid_file: PathBuf,
    signal: Signal,
}

impl FromStr for SignalTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.rsplit_once(':').and_then(|(file, name)| {
            let signal = match name {
                "HUP" => Signal::HUP,
                "USR1" => Signal::USR1,
                "USR2" => Signal::USR2,
                _ => return None,
            };
            let pid_file = PathBuf::from(file);
            (!file.is_empty()).then_some(Self { pid_file, signal })
        });
        parsed.ok_or_else(|| "expected PIDFILE:HUP, PIDFILE:USR1 or PIDFILE:USR2".into())
    }
}

impl SignalTo {
    /// # Errors
    /// There is no such process, or the agent may not send it a signal.
    pub(super) fn send(&self) -> Result<(), NotRun> {
        let pid = read(&self.pid_file)?;
        send(pid, self.signal, &self.pid_file)
    }
}

/// Returns the process id in a pid file.
///
/// # Errors
/// The file cannot be read, or has no process id.
pub(super) fn read(file: &Path) -> Result<Pid, NotRun> {
    let text = fs::read_to_string(file).map_err(|err| {
        NotRun(format!(
            "cannot read the pid file {}: {err}",
            file.display()
        ))
    })?;
    // Process 1 is a server in a container of its own. 0 and negative numbers are groups.
    let pid = text.trim().parse().ok().filter(|pid: &i32| *pid > 0);
    pid.and_then(Pid::from_raw)
        .ok_or_else(|| NotRun(format!("the pid file {} has no process id", file.display())))
}

/// Sends a signal to the process of a pid file.
///
/// # Errors
/// There is no such process, or the agent may not send it a signal.
pub(super) fn send(pid: Pid, signal: Signal, file: &Path) -> Result<(), NotRun> {
    kill_process(pid, signal).map_err(|err| {
        let why = match err {
            rustix::io::Errno::SRCH => "the server does not run".into(),
            rustix::io::Errno::PERM => {
                "the agent may not send it a signal; run it as the same user".into()
            }
            err => err.to_string(),
        };
        NotRun(format!("process {pid} of {}: {why}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_a_pid_file_and_a_name() {
        let signal: SignalTo = "/run/a:b.pid:HUP".parse().unwrap();
        assert_eq!(signal.pid_file, Path::new("/run/a:b.pid"));
        for bad in ["", "/run/a.pid", ":HUP", "/run/a.pid:KILL", "/run/a.pid:"] {
            assert!(bad.parse::<SignalTo>().is_err(), "{bad}");
        }
    }

    #[test]
    fn process_groups_are_no_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        for bad in ["", "0", "-1", "x", "99999999999"] {
            fs::write(&file, bad).unwrap();
            assert!(
                read(&file).unwrap_err().0.contains("no process id"),
                "{bad}"
            );
        }
        fs::write(&file, "7\n").unwrap();
        assert_eq!(read(&file).unwrap().as_raw_nonzero().get(), 7);
    }
}
