//! Sockets that systemd has bound and passed (sd_listen_fds(3)).

use std::{io, net::SocketAddr, path::Path};

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use super::bind::SocketFile;

/// Most sockets that a process takes from systemd.
const PASSED_MAX: u32 = 64;

/// A socket that listens.
pub(crate) enum PassedSocket {
    Tcp(TcpListener, SocketAddr),
    /// The file comes first, so it is dropped first.
    Unix(SocketFile, UnixListener),
}

/// The sockets that were passed and not taken, each with its name (systemd.socket(5),
/// FileDescriptorName=).
pub(crate) struct PassedSockets(Vec<(String, PassedSocket)>);

impl PassedSockets {
    /// Takes the sockets of this process. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// There are too many, or one of them is no socket that listens.
    pub(crate) fn of_environment() -> io::Result<Self> {
        // listenfd adds to this number without a check, so a large one would overflow.
        let count = std::env::var("LISTEN_FDS")
            .ok()
            .and_then(|count| count.parse::<u32>().ok());
        if count.is_some_and(|count| count > PASSED_MAX) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "invalid LISTEN_FDS: at most {PASSED_MAX} sockets can be taken from systemd"
                ),
            ));
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for number in 0..passed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            if let Some(socket) = take(&mut passed, number)? {
                sockets.push((name, socket));
            }
        }
        Ok(Self(sockets))
    }

    /// Returns all of them.
    pub(crate) fn into_all(self) -> impl Iterator<Item = PassedSocket> {
        self.0.into_iter().map(|(_, socket)| socket)
    }

    /// Takes the first one of this name. `None`: there is none.
    pub(crate) fn take(&mut self, name: &str) -> Option<PassedSocket> {
        let place = self.0.iter().position(|(held, _)| held == name)?;
        Some(self.0.remove(place).1)
    }
}

fn take(passed: &mut ListenFd, number: usize) -> io::Result<Option<PassedSocket>> {
    if let Ok(Some(listener)) = passed.take_unix_listener(number) {
        let path = listener
            .local_addr()?
            .as_pathname()
            .map(Path::to_owned)
            .unwrap_or_default();
        listener.set_nonblocking(true)?;
        let file = SocketFile::passed(path);
        let socket = UnixListener::from_std(listener)?;
        return Ok(Some(PassedSocket::Unix(file, socket)));
    }
    let Some(listener) = passed.take_tcp_listener(number)? else {
        return Ok(None);
    };
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let socket = TcpListener::from_std(listener)?;
    Ok(Some(PassedSocket::Tcp(socket, address)))
}
