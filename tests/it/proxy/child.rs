//! Processes that all tests of this folder use, and that end with the process of the tests.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child as Process, Command, Stdio},
    sync::{
        Mutex,
        mpsc::{Receiver, channel},
    },
    thread,
};

use crate::process::PATIENCE;

/// Runs a command until its own standard input ends. The standard input is a pipe from this process, so it ends with this process,
/// in whichever way that ends. A static is not dropped, and a process that is killed drops nothing.
const KEEPER: &str = "\"$@\" </dev/null & child=$!; read -r _; kill $child; wait $child";
/// Runs a command by the real-time policy of the system, if that is allowed.
const FIRST: &str = "chrt --rr --pid 1 $$ 2>/dev/null; exec \"$@\"";
/// Removes a folder when this process has ended.
const REMOVER: &str = "read -r _; rm -rf \"$1\"";

/// A process.
pub(super) struct Child {
    name: String,
    lines: Mutex<Receiver<String>>,
    /// The shell around the process. It holds the pipe.
    _keeper: Process,
}

impl Child {
    /// Starts a process. Its standard error is discarded.
    pub(super) fn start(program: &str, change: impl FnOnce(&mut Command)) -> Self {
        Self::within(&[], program, change)
    }

    /// Starts a process that the system runs before all others if the tests run as root. A daemon has 20 ms to answer a lookup, and on
    /// a busy machine a process may wait longer than that for its turn.
    pub(super) fn first(program: &str, change: impl FnOnce(&mut Command)) -> Self {
        Self::within(&["sh", "-c", FIRST, "sh"], program, change)
    }

    fn within(words: &[&str], program: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).args(words).arg(program);
        change(&mut command);
        let mut keeper = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(keeper.stdout.take().unwrap());
        let (to, lines) = channel();
        thread::spawn(move || {
            // Reads to the end, so that a full pipe never stops the process.
            for line in stdout.lines().map_while(Result::ok) {
                drop(to.send(line));
            }
        });
        Self {
            name: program.to_owned(),
            lines: Mutex::new(lines),
            _keeper: keeper,
        }
    }

    /// Returns the rest of the first line that begins with `prefix`.
    pub(super) fn says(&self, prefix: &str) -> String {
        loop {
            let line = self.lines.lock().unwrap().recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("{} did not print `{prefix}`", self.name));
            if let Some(rest) = line.strip_prefix(prefix) {
                return rest.to_owned();
            }
        }
    }
}

/// Removes a folder when the process of the tests has ended. Returns the process that does it.
pub(super) fn remove_at_the_end(folder: &Path) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", REMOVER, "sh"]).arg(folder);
    command.stdin(Stdio::piped()).spawn().unwrap()
}
