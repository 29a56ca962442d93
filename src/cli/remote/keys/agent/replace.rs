//! Files that are replaced as a whole: written beside the old one, and renamed.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use super::{super::super::failure::Failure, sink::NotRun, tmpfs::is_in_memory};

/// How files with keys are written.
#[derive(Clone, Debug)]
pub(super) struct FileRules {
    /// Their permissions.
    pub(super) mode: u32,
    /// Their user and group. `None`: those of the agent.
    pub(super) owner: Option<(u32, u32)>,
    /// Whether they may be on a disk.
    pub(super) allow_disk: bool,
}

/// The remedy for a folder on a disk.
const ON_A_DISK: &str = "is on a disk, where keys can be read long after they were replaced; use a folder of a tmpfs \
                         such as /run, or --allow-disk";

impl FileRules {
    /// Checks the folder of a file, before the agent begins. A folder that is missing may come later.
    ///
    /// # Errors
    /// [`Failure::Usage`]: it is on a disk, and may not be.
    pub(super) fn check(&self, file: &Path) -> Result<(), Failure> {
        let folder = folder_of(file);
        match File::open(folder) {
            Ok(open) if !self.allow_disk && !is_in_memory(&open) => {
                Err(Failure::Usage(format!("{} {ON_A_DISK}", folder.display())))
            }
            _ => Ok(()),
        }
    }

    /// Replaces files, in this order. All are written before the first one is replaced, so a full disk
    /// changes none.
    ///
    /// # Errors
    /// A file cannot be written, or would be on a disk.
    pub(super) fn replace(&self, files: &[(PathBuf, &[u8])]) -> Result<(), NotRun> {
        let mut written = Vec::new();
        for (path, bytes) in files {
            match self.write_beside(path, bytes) {
                Ok(beside) => written.push((beside, path)),
                Err(why) => {
                    written.iter().for_each(|(beside, _)| remove(beside));
                    return Err(why);
                }
            }
        }
        for (beside, path) in written {
            fs::rename(&beside, path).map_err(|err| {
                remove(&beside);
                cannot_write(path, &err)
            })?;
        }
        Ok(())
    }

    fn write_beside(&self, path: &Path, bytes: &[u8]) -> Result<PathBuf, NotRun> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        // A file that a crash has left may have other permissions.
        remove(&beside);
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside);
        let file = created.map_err(|err| cannot_write(path, &err))?;
        let written = if self.allow_disk || is_in_memory(&file) {
            self.fill(file, bytes)
                .map_err(|err| cannot_write(path, &err))
        } else {
            let folder = folder_of(path).display();
            Err(NotRun(format!("{folder} {ON_A_DISK}")))
        };
        if let Err(why) = written {
            remove(&beside);
            return Err(why);
        }
        Ok(beside)
    }

    fn fill(&self, mut file: File, bytes: &[u8]) -> io::Result<()> {
        if let Some((user, group)) = self.owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Removes a file, if it is there. A file that stays is replaced by the next attempt.
fn remove(file: &Path) {
    drop(fs::remove_file(file));
}

fn cannot_write(path: &Path, err: &io::Error) -> NotRun {
    NotRun(format!("cannot write {}: {err}", path.display()))
}
