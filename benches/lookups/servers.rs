//! The servers, each a separate process. Dropping them ends the processes, also when the bench
//! panics.

use std::{
    fs,
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::process::Daemon;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Socket {
    Unix,
    Tcp,
}

/// The three servers, all over the same kind of socket.
pub(crate) struct Servers {
    pub(crate) socket: Socket,
    pub(crate) daemon: Daemon,
    pub(crate) redis: Server,
    pub(crate) memcached: Server,
    /// Removed after the servers have ended.
    _folder: TempDir,
}

impl Servers {
    /// Starts the servers on the cores of this thread. The daemon has room for this number of
    /// sessions.
    pub(crate) fn start(socket: Socket, sessions: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("daemon.toml");
        let api = folder.path().join("api.sock");
        let text = format!(
            r#"
                listen.api = ["tcp://127.0.0.1:0", "unix://{}"]
                limits = {{ sessions = {sessions}, session_bytes = "16GiB" }}
                context = [{{ cache_entries_max = {sessions}, cache_bytes_max = "16GiB" }}]
            "#,
            api.display()
        );
        fs::write(&config, text).unwrap();
        Self {
            socket,
            daemon: Daemon::run(&config),
            redis: Server::redis(socket, folder.path()),
            memcached: Server::memcached(socket, folder.path()),
            _folder: folder,
        }
    }
}

/// Redis or memcached.
pub(crate) struct Server {
    child: Child,
    /// The address, as its client writes it.
    pub(crate) address: String,
}

/// The address that a server is to listen on.
enum Place {
    Unix(PathBuf),
    Tcp(u16),
}

impl Place {
    fn free(socket: Socket, folder: &Path, name: &str) -> Self {
        match socket {
            Socket::Unix => Self::Unix(folder.join(name)),
            // The server listens on this port next. The system gives a port that was just freed to
            // no other process.
            Socket::Tcp => Self::Tcp(
                TcpListener::bind("127.0.0.1:0")
                    .unwrap()
                    .local_addr()
                    .unwrap()
                    .port(),
            ),
        }
    }

    fn answers(&self) -> bool {
        match self {
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Tcp(port) => TcpStream::connect(("127.0.0.1", *port)).is_ok(),
        }
    }
}

impl Server {
    /// Starts Redis without persistence.
    fn redis(socket: Socket, folder: &Path) -> Self {
        let place = Place::free(socket, folder, "redis.sock");
        let mut command = Command::new("redis-server");
        command
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--bind",
                "127.0.0.1",
                "--dir",
            ])
            .arg(folder);
        match &place {
            Place::Unix(path) => command.args(["--port", "0", "--unixsocket"]).arg(path),
            Place::Tcp(port) => command.args(["--port", &port.to_string()]),
        };
        let address = match &place {
            Place::Unix(path) => format!("unix://{}", path.display()),
            Place::Tcp(port) => format!("redis://127.0.0.1:{port}"),
        };
        Self::run("redis-server", command, &place, address)
    }

    /// Starts memcached with one thread, because it has one core.
    fn memcached(socket: Socket, folder: &Path) -> Self {
        let place = Place::free(socket, folder, "memcached.sock");
        let mut command = Command::new("memcached");
        // memcached requires -u if it is started by root, and ignores it otherwise.
        command.args(["-t", "1", "-u", "root"]);
        match &place {
            Place::Unix(path) => command.arg("-s").arg(path),
            Place::Tcp(port) => command.args(["-l", "127.0.0.1", "-p", &port.to_string()]),
        };
        let address = match &place {
            Place::Unix(path) => format!("unix://{}", path.display()),
            Place::Tcp(port) => format!("tcp://127.0.0.1:{port}"),
        };
        Self::run("memcached", command, &place, address)
    }

    fn run(name: &str, mut command: Command, place: &Place, address: String) -> Self {
        let child = match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(err) if err.kind() == ErrorKind::NotFound => {
                panic!(
                    "{name} is not installed: run apt-get install -y --no-install-recommends {name}"
                )
            }
            Err(err) => panic!("cannot start {name}: {err}"),
        };
        let mut server = Self { child, address };
        let begun = Instant::now();
        while !place.answers() {
            assert!(
                server.child.try_wait().unwrap().is_none(),
                "{name} has exited"
            );
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "{name} does not listen after 5 s"
            );
            thread::sleep(Duration::from_millis(5));
        }
        server
    }
}

impl Server {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
