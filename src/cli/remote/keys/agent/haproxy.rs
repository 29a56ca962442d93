//! HAProxy: a file of three keys for its next start, and the runtime socket for the running process.
//!
//! A push makes the third key encrypt, drops the first, and appends the new one. `show tls-keys` lists
//! the keys that run.

use std::{io, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use zeroize::Zeroizing;

use super::{order::KeyOrder, replace::FileRules, sink::NotRun};

/// How long an answer of the socket may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest answer in bytes. A line of `show tls-keys` has a path.
const ANSWER_MAX: usize = 256 << 10;

/// One HAProxy on this host.
#[derive(Debug)]
pub(super) struct Haproxy {
    /// The file, as HAProxy's configuration names it.
    pub(super) file: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) rules: FileRules,
}

impl Haproxy {
    /// Writes the file. This comes before the push, so a process that starts in between reads the newest
    /// keys.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, order: &KeyOrder) -> Result<(), NotRun> {
        let wanted = order.base64();
        let length = wanted.iter().map(|key| key.len() + 1).sum();
        let mut lines = Zeroizing::new(String::with_capacity(length));
        for key in &wanted {
            lines.push_str(key);
            lines.push('\n');
        }
        self.rules.replace(&[(self.file.clone(), lines.as_bytes())])
    }

    /// Pushes the keys that the running process does not have, and compares all keys that it runs.
    ///
    /// # Errors
    /// The socket does not answer as HAProxy does, or the process runs other keys.
    pub(super) async fn push(&self, order: &KeyOrder) -> Result<(), NotRun> {
        let wanted = order.base64();
        let id = self.find().await?;
        let running = self.running(&id).await?;
        let missing = missing(&running, &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        for key in missing {
            let command = Zeroizing::new(format!("set ssl tls-key #{id} {}\n", **key));
            let answer = self.ask(&command).await?;
            if !answer.contains("updated") {
                return Err(self.said_no("set ssl tls-key", &answer));
            }
        }
        match self.running(&id).await? == wanted {
            true => Ok(()),
            false => Err(NotRun(
                "HAProxy lists other keys than it was given; does another program push keys?"
                    .into(),
            )),
        }
    }

    /// Returns the number of the file in the running process.
    async fn find(&self) -> Result<String, NotRun> {
        let answer = self.ask("show tls-keys\n").await?;
        if !answer.starts_with("# id (file)") {
            return Err(self.said_no("show tls-keys", &answer));
        }
        let file = self.file.display().to_string();
        let id = answer.lines().find_map(|line| {
            let (id, path) = line.split_once(" (")?;
            (path.strip_suffix(')')? == file).then(|| id.to_owned())
        });
        id.ok_or_else(|| {
            NotRun(format!(
                "HAProxy at {} has no tls-ticket-keys {file}; write it so in its configuration, and start it again",
                self.socket.display()
            ))
        })
    }

    /// Returns the keys that run, in order.
    async fn running(&self, id: &str) -> Result<Vec<Zeroizing<String>>, NotRun> {
        let answer = self.ask(&format!("show tls-keys #{id}\n")).await?;
        if !answer.starts_with("# id secret") {
            return Err(self.said_no("show tls-keys #ID", &answer));
        }
        let keys = answer.lines().filter_map(|line| {
            let (place, key) = line.split_once(' ')?;
            place.strip_prefix(id)?.strip_prefix('.')?;
            Some(Zeroizing::new(key.trim().to_owned()))
        });
        Ok(keys.collect())
    }

    /// Returns why a command was not carried out. The answer may have a key, so it is not quoted.
    fn said_no(&self, command: &str, answer: &str) -> NotRun {
        let socket = self.socket.display();
        let answer = answer.to_ascii_lowercase();
        NotRun(if answer.contains("permission denied") {
            format!("{socket} refuses `{command}`: the socket needs `level admin`")
        } else if answer.contains("wrong size") {
            format!(
                "{socket} refuses `{command}`: the file had keys of another size when HAProxy started"
            )
        } else if answer.trim().is_empty() {
            format!("{socket} closed without an answer to `{command}`")
        } else {
            format!("the answer of {socket} to `{command}` is not that of HAProxy")
        })
    }

    async fn ask(&self, command: &str) -> Result<Zeroizing<String>, NotRun> {
        let socket = self.socket.display();
        match timeout(ANSWER, self.exchange(command)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(err)) => Err(NotRun(format!("the socket {socket} of HAProxy: {err}"))),
            Err(_) => Err(NotRun(format!(
                "the socket {socket} of HAProxy gave no answer within {ANSWER:?}"
            ))),
        }
    }

    async fn exchange(&self, command: &str) -> io::Result<Zeroizing<String>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(command.as_bytes()).await?;
        // With its final capacity, so that no shorter copy is left behind.
        let mut answer = Zeroizing::new(vec![0; ANSWER_MAX]);
        let mut length = 0;
        loop {
            match stream.read(&mut answer[length..]).await? {
                0 if length == ANSWER_MAX => {
                    return Err(io::Error::other("the answer is too long"));
                }
                0 => break,
                read => length += read,
            }
        }
        // Other characters are not in an answer of HAProxy.
        let text = std::str::from_utf8(&answer[..length]).unwrap_or("not text");
        Ok(Zeroizing::new(text.to_owned()))
    }
}

/// Returns the keys to push, so that the last pushes leave the wanted keys. None: they run already.
fn missing<'k>(
    running: &[Zeroizing<String>],
    wanted: &'k [Zeroizing<String>],
) -> &'k [Zeroizing<String>] {
    let kept = (0..=wanted.len().min(running.len()))
        .rev()
        .find(|&kept| running[running.len() - kept..] == wanted[..kept]);
    &wanted[kept.unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<Zeroizing<String>> {
        text.chars().map(|c| Zeroizing::new(c.into())).collect()
    }

    #[test]
    fn only_keys_that_do_not_run_are_pushed() {
        for (running, wanted, pushed) in [
            ("abc", "abc", ""),
            ("abc", "bcd", "d"),
            ("abc", "cde", "de"),
            ("abc", "def", "def"),
            ("", "abc", "abc"),
            ("aab", "abc", "c"),
            ("bcd", "abc", "abc"),
        ] {
            let (running, wanted) = (keys(running), keys(wanted));
            assert_eq!(missing(&running, &wanted), keys(pushed));
        }
    }
}
