//! Programs that take keys, or tell a server to read them.

use std::{process::Stdio, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};
use zeroize::Zeroizing;

use super::{super::super::text::escaped, order::KeyOrder, sink::NotRun};

/// How many of the last bytes of stderr are kept.
const WORDS_MAX: usize = 4096;
/// How many characters of its last line become the reason of a refusal.
const LINE_MAX: usize = 160;
/// How long stderr may stay open after the program has ended: a child of it may hold it.
const REST: Duration = Duration::from_millis(200);

/// A program and its arguments.
#[derive(Debug)]
pub(super) struct Program {
    words: Vec<String>,
    /// How long it may take.
    wait: Duration,
}

impl Program {
    pub(super) fn new(words: Vec<String>, wait: Duration) -> Self {
        Self { words, wait }
    }

    /// Returns the shell with a command.
    pub(super) fn shell(command: &str, wait: Duration) -> Self {
        let words = ["/bin/sh", "-c", command].map(str::to_owned);
        Self::new(words.into(), wait)
    }

    /// Runs the program with the keys as JSON on stdin.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) async fn give(&self, order: &KeyOrder) -> Result<(), NotRun> {
        self.run_with(&json(order)).await
    }

    /// Runs the program without input.
    ///
    /// # Errors
    /// It cannot be started, does not end in time, or ends with another status than 0.
    pub(super) async fn run(&self) -> Result<(), NotRun> {
        self.run_with("").await
    }

    async fn run_with(&self, input: &str) -> Result<(), NotRun> {
        let name = self.words.first().map_or("", String::as_str);
        let spawned = Command::new(name)
            .args(self.words.iter().skip(1))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let child = spawned.map_err(|err| NotRun(format!("cannot run {name}: {err}")))?;
        let mut group = Group(child.id());
        match timeout(self.wait, ended(child, input)).await {
            Ok(done) => {
                // What the program has started and left behind, such as a server, goes on.
                group.0 = None;
                done.map_err(|why| NotRun(format!("{name}: {why}")))
            }
            Err(_) => Err(NotRun(format!(
                "{name}: it has not ended within {:?}, and was killed with the processes that it had started",
                self.wait
            ))),
        }
    }
}

/// The processes of a program. They are killed when it is dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let id = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            // It may have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Waits for the end of a program. The error is the last line of its stderr, or its status.
async fn ended(mut child: Child, input: &str) -> Result<(), String> {
    let words = Arc::new(Mutex::new(Vec::new()));
    let reads = child.stderr.take().map(|mut stderr| {
        let words = Arc::clone(&words);
        tokio::spawn(async move {
            let mut piece = [0; 1024];
            while let Ok(read @ 1..) = stderr.read(&mut piece).await {
                let mut words = words.lock();
                words.extend_from_slice(&piece[..read]);
                let surplus = words.len().saturating_sub(WORDS_MAX);
                words.drain(..surplus);
            }
        })
    });
    if let Some(mut stdin) = child.stdin.take() {
        // A program may end without reading all of its input.
        drop(stdin.write_all(input.as_bytes()).await);
    }
    let status = child.wait().await.map_err(|err| err.to_string())?;
    if status.success() {
        return Ok(());
    }
    if let Some(reads) = reads {
        drop(timeout(REST, reads).await);
    }
    let words = words.lock();
    let words = String::from_utf8_lossy(&words);
    let line = words.lines().rev().find(|line| !line.trim().is_empty());
    Err(match line {
        Some(line) => escaped(line.trim()).chars().take(LINE_MAX).collect(),
        None => status.to_string(),
    })
}

/// Returns the keys as JSON.
fn json(order: &KeyOrder) -> Zeroizing<String> {
    // With its final capacity, so that no shorter copy is left behind.
    let mut text = Zeroizing::new(String::with_capacity(512 + 256 * order.keys.len()));
    text.push_str(&format!(
        "{{\"ring\":{},\"sequence\":{},\"encryptEpoch\":{},\"ticketLifetime\":\"{}s\",\"keys\":[",
        serde_json::Value::from(order.ring.as_str()),
        order.sequence,
        order.encrypt_epoch,
        order.lifetime.seconds
    ));
    for (place, key) in order.keys.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        text.push_str(&format!("{comma}{{\"epoch\":{},\"key\":\"", key.epoch));
        text.push_str(&key.base64());
        text.push_str("\"}");
    }
    text.push_str("]}\n");
    text
}
