//! nginx: files, SIGHUP, and the workers of its master process.
//!
//! nginx reads its configuration at SIGHUP. If that succeeds, the master starts new workers, and the old
//! ones accept no more connections: their title becomes `nginx: worker process is shutting down`. If it
//! does not, for example because of another error in the configuration, the old ones go on.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use rustix::process::{Pid, Signal};
use tokio::time::{sleep, timeout};

use super::{files::KeyFiles, pid_file, sink::NotRun};

/// How often the workers are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long the same workers must accept. nginx may still be at a reload that was asked for before the files were
/// written; another reload follows it then.
const STEADY: Duration = Duration::from_millis(300);

/// One nginx on this host.
#[derive(Debug)]
pub(super) struct Nginx {
    pub(super) files: KeyFiles,
    pub(super) pid_file: PathBuf,
    /// How long a reload may take.
    pub(super) wait: Duration,
}

/// A process: its id, and when it started, for ids are used again.
type Process = (i32, u64);

impl Nginx {
    /// Reloads, and waits until new workers have replaced all old ones.
    ///
    /// # Errors
    /// nginx does not run, the agent may not send it a signal, or the old workers go on.
    pub(super) async fn reload(&self) -> Result<(), NotRun> {
        let master = pid_file::read(&self.pid_file)?;
        let id = master.as_raw_nonzero().get();
        // An id that another program has now gets no signal.
        let title = title(id);
        if !title.starts_with("nginx: master process") {
            let why = match title.is_empty() {
                true => "the server does not run",
                false => "it is no nginx master process",
            };
            let file = self.pid_file.display();
            return Err(NotRun(format!("process {id} of {file}: {why}")));
        }
        let before = accepting(master);
        pid_file::send(master, Signal::HUP, &self.pid_file)?;
        timeout(self.wait, reloaded(master, &before))
            .await
            .map_err(|_| {
                NotRun(format!(
                    "nginx {id} still has its old workers {:?} after SIGHUP; see its error log",
                    self.wait
                ))
            })
    }
}

/// Waits until new workers accept, and none of the old ones.
async fn reloaded(master: Pid, before: &BTreeSet<Process>) {
    let mut seen = accepting(master);
    loop {
        let is_new = !seen.is_empty() && seen.is_disjoint(before);
        sleep(if is_new { STEADY } else { LOOK }).await;
        let now = accepting(master);
        if is_new && now == seen {
            return;
        }
        seen = now;
    }
}

/// Returns the workers of a master process that accept connections.
fn accepting(master: Pid) -> BTreeSet<Process> {
    let parent = master.as_raw_nonzero().get();
    let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = ids.filter_map(|id: i32| {
        let (of, started) = parent_and_start(id)?;
        (of == parent).then_some((id, started))
    });
    children
        .filter(|(id, _)| is_accepting(&title(*id)))
        .collect()
}

/// Returns whether a title is that of a worker that accepts connections.
fn is_accepting(title: &str) -> bool {
    title.starts_with("nginx: worker process") && !title.contains("is shutting down")
}

/// Returns the title of a process. Empty: there is none.
fn title(id: i32) -> String {
    let title = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&title).into_owned()
}

/// Returns the parent of a process, and when it started in ticks since boot (proc_pid_stat(5), fields 4 and 22).
fn parent_and_start(id: i32) -> Option<(i32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Field 2 is a name in parentheses, which may have any character.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let parent = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some((parent, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_parent_is_found() {
        let id = i32::try_from(std::process::id()).unwrap();
        let (parent, started) = parent_and_start(id).unwrap();
        assert_eq!(
            u32::try_from(parent).unwrap(),
            std::os::unix::process::parent_id()
        );
        assert!(started > 0);
        assert_eq!(parent_and_start(0), None);
    }

    #[test]
    fn workers_that_shut_down_do_not_accept() {
        assert!(is_accepting("nginx: worker process\0"));
        assert!(!is_accepting("nginx: worker process is shutting down\0"));
        assert!(!is_accepting("nginx: cache manager process"));
        assert!(!is_accepting(""));
    }
}
