//! The daemon's binary, run as a child process.

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Time-out of every wait. It is far longer than any step needs, so that a hang fails the test and
/// does not block the gate.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The binary, killed when it is dropped.
pub(crate) struct Binary {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    /// Standard output up to and including the line `listening on`.
    pub(crate) greeting: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Binary {
    /// Starts the daemon on a free loopback port, with further arguments.
    pub(crate) async fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"))
            .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
            .args(["--set", "listen.admin="])
            .args(args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        let address = loop {
            let before = greeting.len();
            let read = timeout(PATIENCE, stdout.read_line(&mut greeting))
                .await
                .expect("no line printed")
                .unwrap();
            assert_ne!(read, 0, "the daemon ended before it listened");
            if let Some(address) = greeting[before..]
                .trim()
                .strip_prefix("listening on tcp://")
            {
                break address.to_owned();
            }
        };
        Self {
            address,
            greeting,
            child,
            stdout,
        }
    }

    /// Returns the next line of standard output.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.stdout.read_line(&mut line)).await;
        assert_ne!(read.expect("no line printed").unwrap(), 0, "no more lines");
        line
    }

    /// Returns the process id, for example to read from /proc.
    pub(crate) fn process(&self) -> String {
        self.child.id().expect("the daemon is running").to_string()
    }

    /// Sends SIGTERM.
    pub(crate) async fn terminate(&self) {
        self.signal("-TERM").await;
    }

    /// Sends a signal, as kill(1) names it.
    pub(crate) async fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill")
                .args([signal, &self.process()])
                .status()
                .await
                .unwrap()
                .success()
        );
    }

    /// Kills the daemon with SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until the daemon exits. Returns the exit status and the output after the greeting.
    pub(crate) async fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        timeout(PATIENCE, self.stdout.read_to_string(&mut rest))
            .await
            .expect("no exit in time")
            .unwrap();
        (
            timeout(PATIENCE, self.child.wait())
                .await
                .expect("no exit in time")
                .unwrap(),
            rest,
        )
    }
}
