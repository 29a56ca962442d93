//! Real processes: our examples, and peers that tests/peers.sh installed.

use std::{ffi::OsStr, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::harness::TestDaemon;

/// How long anything may take that a process does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A process that runs beside the test, and is killed when this is dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Held open: openssl s_server ends with its standard input.
    _stdin: ChildStdin,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::logging(command, Stdio::null())
    }

    /// With its standard error there.
    pub(crate) fn logging(command: &mut Command, to: impl Into<Stdio>) -> Self {
        let name = name(command);
        let mut child = spawn(command.stderr(to));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take().unwrap();
        Self { name, child, lines, _stdin: stdin }
    }

    /// What follows `prefix` in the first line that begins with it.
    pub(crate) async fn says(&mut self, prefix: &str) -> String {
        let find = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(prefix) {
                    return rest.to_owned();
                }
            }
            panic!("{} ended and never said `{prefix}`", self.name);
        };
        timeout(PATIENCE, find).await.unwrap_or_else(|_| panic!("{} never said `{prefix}`", self.name))
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal.
    pub(crate) async fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status().await.unwrap();
        assert!(sent.success());
    }

    /// SIGKILL, which no process can answer.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Whether it ends well, by itself.
    pub(crate) async fn succeeds(mut self) -> bool {
        timeout(PATIENCE, self.child.wait()).await.expect("it ends by itself").unwrap().success()
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
        let args = ["--daemon", &daemon, "--listen", "127.0.0.1:0", "--name", name];
        let mut process = Process::start(example("tls_server").args(args));
        let address = process.says("listening on ").await;
        Self { address, process }
    }
}

/// Runs a process to its end; tells what it wrote, stderr first, and whether it succeeded.
pub(crate) async fn run(command: &mut Command, stdin: &str) -> (String, bool) {
    let name = name(command);
    let mut child = spawn(command.stderr(Stdio::piped()));
    let mut input = child.stdin.take().unwrap();
    // A process may end without having read everything.
    drop(input.write_all(stdin.as_bytes()).await);
    drop(input);
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{name} did not end"))
        .unwrap();
    let written = [output.stderr, output.stdout].concat();
    (String::from_utf8_lossy(&written).into_owned(), output.status.success())
}

/// One of our examples, built by the same cargo.
pub(crate) fn example(name: &str) -> Command {
    let folder = Path::new(env!("CARGO_BIN_EXE_tls-sessiond")).parent().unwrap().join("examples");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    Command::new(path)
}

/// Something that tests/peers.sh put into .peers/bin.
pub(crate) fn peer(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/bin").join(name))
}

fn spawn(command: &mut Command) -> Child {
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn();
    spawned.unwrap_or_else(|err| panic!("cannot start {}: {err}; run tests/peers.sh", name(command)))
}

fn name(command: &Command) -> String {
    OsStr::to_string_lossy(command.as_std().get_program()).into_owned()
}
