//! Real processes: the examples of this crate, and the peers that tests/peers.sh installed.

use std::{ffi::OsStr, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::harness::TestDaemon;

/// Time limit for anything that a process does. A run of promtool takes ten seconds of CPU, on a machine that
/// is shared with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A process that runs beside the test. Dropping it kills the process.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Held open, because openssl s_server ends with its standard input.
    _stdin: ChildStdin,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::logging(command, Stdio::null())
    }

    /// Starts a process whose standard error goes to `to`.
    pub(crate) fn logging(command: &mut Command, to: impl Into<Stdio>) -> Self {
        let name = name(command);
        let mut child = spawn(command.stderr(to));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take().unwrap();
        Self {
            name,
            child,
            lines,
            _stdin: stdin,
        }
    }

    /// Returns the rest of the first line that begins with `prefix`.
    pub(crate) async fn says(&mut self, prefix: &str) -> String {
        let find = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(prefix) {
                    return rest.to_owned();
                }
            }
            panic!("{} ended without the line `{prefix}`", self.name);
        };
        timeout(PATIENCE, find)
            .await
            .unwrap_or_else(|_| panic!("{} did not print `{prefix}`", self.name))
    }

    /// Returns the id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal.
    pub(crate) async fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &id])
            .status()
            .await
            .unwrap();
        assert!(sent.success());
    }

    /// Sends SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until the process ends by itself. Returns whether its status is 0.
    pub(crate) async fn succeeds(mut self) -> bool {
        timeout(PATIENCE, self.child.wait())
            .await
            .expect("the process does not end")
            .unwrap()
            .success()
    }
}

/// The example `tls_server`, listening.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) process: Process,
}

impl Server {
    pub(crate) async fn start(daemon: &TestDaemon, name: &str) -> Self {
        let daemon = format!("http://{}", daemon.address);
        let args = [
            "--daemon",
            &daemon,
            "--listen",
            "127.0.0.1:0",
            "--name",
            name,
        ];
        let mut process = Process::start(example("tls_server").args(args));
        let address = process.says("listening on ").await;
        Self { address, process }
    }
}

/// Runs a process to its end. Returns its output, stderr first, and whether it succeeded.
pub(crate) async fn run(command: &mut Command, stdin: &str) -> (String, bool) {
    let name = name(command);
    let mut child = spawn(command.stderr(Stdio::piped()));
    let mut input = child.stdin.take().unwrap();
    // A process may end without reading all of its input.
    drop(input.write_all(stdin.as_bytes()).await);
    drop(input);
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{name} did not end"))
        .unwrap();
    let written = [output.stderr, output.stdout].concat();
    (
        String::from_utf8_lossy(&written).into_owned(),
        output.status.success(),
    )
}

/// Returns an example of this crate, built by the same cargo.
pub(crate) fn example(name: &str) -> Command {
    let folder = Path::new(env!("CARGO_BIN_EXE_tls-sessiond"))
        .parent()
        .unwrap()
        .join("examples");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --examples`",
        path.display()
    );
    Command::new(path)
}

pub(crate) const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Returns a program that tests/peers.sh put into .peers/bin.
#[cfg(feature = "peers")]
pub(crate) fn peer(name: &str) -> Command {
    Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(".peers/bin")
            .join(name),
    )
}

fn spawn(command: &mut Command) -> Child {
    let spawned = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    spawned
        .unwrap_or_else(|err| panic!("cannot start {}: {err}; run tests/peers.sh", name(command)))
}

fn name(command: &Command) -> String {
    OsStr::to_string_lossy(command.as_std().get_program()).into_owned()
}
