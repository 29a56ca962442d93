//! Servers that read a file for each key, when they are told to.

use std::{path::PathBuf, time::Duration};

use tokio::time::sleep;

use super::{
    order::KeyOrder, pid_file::SignalTo, program::Program, replace::FileRules, sink::NotRun,
};

/// A file for each key: PREFIX.1 encrypts, and PREFIX.2 opens.
#[derive(Debug)]
pub(super) struct KeyFiles {
    pub(super) prefix: PathBuf,
    /// How many there are. The server's configuration names all of them.
    pub(super) count: usize,
    pub(super) rules: FileRules,
}

impl KeyFiles {
    /// Replaces all files. With fewer keys than files, the last key is repeated: a server needs all files
    /// of its configuration.
    ///
    /// # Errors
    /// There are more keys than files, or a file cannot be written.
    pub(super) fn write(&self, order: &KeyOrder) -> Result<(), NotRun> {
        let (keys, count) = (&order.keys, self.count);
        let Some(last) = keys.last().filter(|_| keys.len() <= count) else {
            return Err(NotRun(format!("{} keys for {count} files", keys.len())));
        };
        let mut files: Vec<(PathBuf, &[u8])> = Vec::new();
        for place in 0..count {
            let mut path = self.prefix.clone().into_os_string();
            path.push(format!(".{}", place + 1));
            let key = keys.get(place).unwrap_or(last);
            files.push((path.into(), &key.bytes));
        }
        // The file that encrypts is the last: a server that reloads by itself in between does not encrypt with a new key
        // before it has the others.
        files.reverse();
        self.rules.replace(&files)
    }
}

/// What follows the files.
#[derive(Debug)]
pub(super) enum AfterFiles {
    /// A command, whose end acknowledges.
    Run(Program),
    /// A signal, and a time after which the agent supposes that the server runs the keys.
    Signal(SignalTo, Duration),
}

/// A server whose keys the agent cannot see.
#[derive(Debug)]
pub(super) struct PlainFiles {
    pub(super) files: KeyFiles,
    pub(super) after: AfterFiles,
}

impl PlainFiles {
    /// Tells the server to read its files.
    ///
    /// # Errors
    /// The command fails, or the signal cannot be sent.
    pub(super) async fn after(&self) -> Result<(), NotRun> {
        match &self.after {
            AfterFiles::Run(program) => program.run().await,
            AfterFiles::Signal(signal, settle) => {
                signal.send()?;
                sleep(*settle).await;
                Ok(())
            }
        }
    }
}
