//! The journal of systemd, if it is this process's stderr: lines go to its own socket, with level and
//! values as fields (systemd.journal-fields(7)).

use std::{io, os::fd::AsFd, os::unix::net::UnixDatagram, path::Path};

use rustix::{fs::fstat, io::Errno};

/// The socket of the journal.
const SOCKET: &str = "/run/systemd/journal/socket";

/// A way to the journal. The socket is found again for each line, so the journal may restart.
pub(super) struct Journal(UnixDatagram);

impl Journal {
    /// Returns the way to the journal, if stderr leads there: `JOURNAL_STREAM` names the device and the
    /// inode of stderr, and the journal has a socket.
    pub(super) fn of_stderr() -> Option<Self> {
        let named = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = fstat(io::stderr().as_fd()).ok()?;
        if named != format!("{}:{}", stderr.st_dev, stderr.st_ino) || !Path::new(SOCKET).exists() {
            return None;
        }
        UnixDatagram::unbound().ok().map(Self)
    }

    /// Sends the fields of one event. Waits while the journal takes nothing.
    pub(super) fn send(&self, fields: &[u8]) -> rustix::io::Result<usize> {
        self.0.send_to(fields, SOCKET).map_err(|err| {
            let number = err.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            Errno::from_raw_os_error(number)
        })
    }
}
