//! Sockets that listen: TCP, and Unix sockets with their files.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, flock},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt},
    process::umask,
};
use tokio::net::{TcpListener, UnixListener};

use crate::config::UnixFile;

/// Most connections that the system queues until they are accepted (listen(2)).
const BACKLOG: i32 = 1024;

/// The file of a Unix socket. Dropping it removes the file if the process created it.
pub(crate) struct SocketFile {
    path: PathBuf,
    made: Option<FileNumber>,
}

/// Device and inode number of a file. They tell whether the file at a path is still the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileNumber(u64, u64);

impl FileNumber {
    fn of(path: &Path) -> io::Result<Self> {
        fs::symlink_metadata(path).map(|there| Self(there.dev(), there.ino()))
    }
}

impl SocketFile {
    /// A file that this process did not create, and does not remove.
    pub(super) fn passed(path: PathBuf) -> Self {
        Self { path, made: None }
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(made) = self.made else { return };
        let removed = match FileNumber::of(&self.path) {
            Ok(there) if there == made => fs::remove_file(&self.path),
            // Another process has created its own socket there since.
            Ok(_) => Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
        };
        if let Err(err) = removed {
            tracing::warn!(path = %self.path.display(), %err, "cannot remove the file of the Unix socket");
        }
    }
}

fn named(err: io::Error, what: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(err.kind(), format!("cannot listen on {what}: {err}"))
}

/// Binds an address. `scheme` is that of its endpoint, for the error. `only_ipv6`: an address of IPv6
/// does not serve IPv4 too.
///
/// # Errors
/// Those of the system, with the address.
pub(crate) fn tcp(scheme: &str, address: SocketAddr, only_ipv6: bool) -> io::Result<TcpListener> {
    let bind = || {
        let family = if address.is_ipv6() {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() && only_ipv6 {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bind().map_err(|err| named(err, &format_args!("{scheme}://{address}")))
}

/// Binds a Unix socket with the configured owner and mode. Replaces the socket file of a dead
/// daemon, but not a socket that a process listens on.
pub(crate) fn unix(path: &Path, file: UnixFile) -> io::Result<(SocketFile, UnixListener)> {
    let bind = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // The lock orders two daemons that start at once. The later one then sees the socket of the
        // earlier.
        let _looking = lock_folder(path)?;
        if let Ok(there) = fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "the path exists and is not a socket",
                ));
            }
            match is_served(path)? {
                true => {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        "another daemon answers there",
                    ));
                }
                false => fs::remove_file(path)?,
            }
        }
        // No client may connect before the file has its owner and mode.
        let others = umask(Mode::from_raw_mode(0o777));
        let listener = UnixListener::bind(path);
        umask(others);
        let listener = listener?;
        // From here on, an error drops this value and so removes the file.
        let made = SocketFile {
            path: path.to_owned(),
            made: Some(FileNumber::of(path)?),
        };
        if let Some((user, group)) = file.owner {
            chown(path, Some(user), Some(group))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(file.mode))?;
        Ok((made, listener))
    };
    bind().map_err(|err| named(err, &format_args!("unix://{}", path.display())))
}

/// Returns whether a process listens on a socket's file. Does not block. A socket whose backlog is
/// full has a listener.
fn is_served(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

/// How long to wait for the lock of the folder.
const LOCKED: Duration = Duration::from_secs(2);

/// Locks the folder of a socket's file with flock(2). The lock is held until the returned file is
/// dropped.
fn lock_folder(path: &Path) -> io::Result<fs::File> {
    let folder = fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let until = Instant::now() + LOCKED;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(LOCKED / 100),
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process holds the lock of the folder of the socket",
                ));
            }
            Err(err) => return Err(err.into()),
        }
    }
}
