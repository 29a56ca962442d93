//! A ring on disk: sealed, replaced as a whole, readable by the daemon alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tls_sessiond_keys::saved::{CREDENTIAL_MIN, SAVED_MAX, SavingKey};
use zeroize::Zeroizing;

use crate::config::SavedRing;

/// Most bytes of a credential.
const CREDENTIAL_MAX: u64 = 4096;

/// Where a ring is saved, and the key.
pub(super) struct Saving {
    pub(super) key: SavingKey,
    path: Arc<Path>,
}

impl Saving {
    /// Reads the credential.
    ///
    /// # Errors
    /// What is wrong with its file.
    pub(super) fn read(saved: &SavedRing) -> Result<Self, String> {
        let named = |why: String| format!("{}: {why}", saved.credential.display());
        let metadata = fs::metadata(&saved.credential).map_err(|err| named(err.to_string()))?;
        if !metadata.is_file() || metadata.len() > CREDENTIAL_MAX {
            return Err(named(format!(
                "expected a file of {CREDENTIAL_MIN} to {CREDENTIAL_MAX} bytes"
            )));
        }
        let bytes =
            Zeroizing::new(fs::read(&saved.credential).map_err(|err| named(err.to_string()))?);
        let key = SavingKey::of(&bytes).ok_or_else(|| {
            named(format!(
                "it has {} bytes, and at least {CREDENTIAL_MIN} are needed, for example from `openssl rand 32`",
                bytes.len()
            ))
        })?;
        Ok(Self {
            key,
            path: saved.state.as_path().into(),
        })
    }

    /// Returns the saved ring. `None`: there is no file yet.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn load(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::metadata(&self.path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
            Ok(metadata) if !metadata.is_file() || metadata.len() > SAVED_MAX as u64 => {
                Err(io::Error::other("it is not a saved ring"))
            }
            Ok(_) => fs::read(&self.path).map(Some),
        }
    }

    /// Returns the path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a function that replaces the file. It blocks, and belongs on a thread of its own.
    pub(super) fn writer(&self) -> impl Fn(&[u8]) -> io::Result<()> + use<> {
        let path = Arc::clone(&self.path);
        move |bytes| replace(&path, bytes)
    }
}

/// Replaces a file as a whole: a crash leaves the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // A file that a crash has left may have other rights.
    match fs::remove_file(&beside) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}
