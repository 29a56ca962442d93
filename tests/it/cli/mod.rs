//! The operator's command line, through the binary and against a daemon.

mod admin;
#[cfg(feature = "peers")]
mod completions;
mod connections;
mod contexts;
mod doctor;
mod keys;
mod proxy_health;
mod reach;
mod scripted;
mod sessions;
#[cfg(feature = "peers")]
mod top;
mod usage;
mod watch;

use std::{path::Path, process::Stdio};

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::{binary::PATIENCE, harness::TestDaemon};

/// A finished command.
#[derive(Debug)]
struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Returns stdout of a command that must have succeeded, without a word on stderr.
    fn ok(self) -> String {
        assert!(self.status == 0 && self.err.is_empty(), "{self:?}");
        self.out
    }

    /// Returns stdout of a command that must have succeeded, as JSON.
    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Returns stderr of a command that must have ended with this status.
    fn failed(self, status: i32) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.err.starts_with("tls-sessiond: "), "{self:?}");
        self.err
    }
}

/// Returns the binary with these arguments, no environment and no stdin.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end.
async fn finish(command: &mut Command) -> Ran {
    let child = command.spawn().unwrap();
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("the command does not end")
        .unwrap();
    Ran {
        status: output.status.code().expect("no signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the binary with these arguments.
async fn run(args: &[&str]) -> Ran {
    finish(&mut command(args)).await
}

/// Runs the binary with these arguments, split at spaces, against a daemon.
async fn ask(daemon: &TestDaemon, args: &str) -> Ran {
    let address = format!("tcp://{}", daemon.address);
    let args: Vec<_> = args.split(' ').collect();
    finish(command(&args).env("TLS_SESSIOND_ADDRESS", address)).await
}

/// Returns a path as text.
fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
