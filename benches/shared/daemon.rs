//! The daemon as a separate process.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// A running daemon. Dropping it ends the process.
pub(crate) struct Daemon {
    child: Child,
    /// The TCP endpoint, as a client writes it.
    pub(crate) tcp: String,
    pub(crate) unix: String,
}

impl Daemon {
    /// Starts the daemon. Its configuration must list one TCP address and then one Unix socket.
    pub(crate) fn run(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"))
            .arg("--config")
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let mut endpoint = |scheme: &str| {
            let line = lines.find(|line| line.contains(scheme)).unwrap();
            line.trim_start_matches("listening on ").to_owned()
        };
        let tcp = endpoint("tcp://").replace("tcp://", "http://");
        let unix = endpoint("unix://");
        Self { child, tcp, unix }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
