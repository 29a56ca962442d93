//! A Redis or Valkey that a test starts on a free port, and its configuration for a daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redis::{Connection, cmd};
use tempfile::TempDir;
use tls_sessiond_core::fleet::Failure;
use tls_sessiond_store::{
    layout::Layout,
    script::{Answer, Request, Value},
};

use crate::process::PATIENCE;

/// A sealing key for tests.
pub(crate) const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Redis,
    Valkey,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Redis, Self::Valkey];

    fn program(self) -> PathBuf {
        match self {
            Self::Redis => "redis-server".into(),
            Self::Valkey => Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/bin/valkey-server"),
        }
    }
}

/// A running server. Dropping it ends the process.
pub(crate) struct StoreServer {
    kind: Kind,
    pub(crate) folder: TempDir,
    child: Child,
    pub(crate) port: u16,
    arguments: Vec<String>,
}

impl StoreServer {
    pub(crate) fn start(kind: Kind) -> Self {
        Self::with(kind, &[])
    }

    /// Starts a server with this configuration and this list of users.
    pub(crate) fn by_file(kind: Kind, file: &Path, users: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = Self::free_port();
        let child = Command::new(kind.program())
            .arg(file)
            .args(["--port", &port.to_string(), "--aclfile"])
            .arg(users)
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|err| panic!("cannot start {kind:?}: {err}; run tests/peers.sh"));
        let server = Self {
            kind,
            folder,
            child,
            port,
            arguments: Vec::new(),
        };
        server.wait();
        server
    }

    /// Starts a server with further arguments.
    pub(crate) fn with(kind: Kind, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("keys"), KEY).unwrap();
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let port = Self::free_port();
        let child = run(kind, folder.path(), port, &arguments);
        let server = Self {
            kind,
            folder,
            child,
            port,
            arguments,
        };
        server.wait();
        server
    }

    pub(crate) fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    fn wait(&self) {
        let begun = Instant::now();
        loop {
            let up = self
                .client()
                .and_then(|mut client| cmd("PING").exec(&mut client));
            match up {
                Ok(()) => return,
                // A password or a file that is being read: the server answers.
                Err(err) if err.code().is_some_and(|code| code != "LOADING") => return,
                Err(err) => assert!(begun.elapsed() < PATIENCE, "{err}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the part of a daemon's configuration that names this server.
    pub(crate) fn config(&self) -> String {
        self.config_at(self.port, "")
    }

    /// Returns the configuration for a server or a proxy at this port, with more keys of
    /// `[store.redis]`.
    pub(crate) fn config_at(&self, port: u16, keys: &str) -> String {
        let sealing_keys = self.folder.path().join("keys");
        // The deadline is long, because tests share a busy machine.
        format!(
            "[store]\nkind = \"redis\"\ndeadline = \"1s\"\n[store.redis]\nurls = [\"redis://127.0.0.1:{port}\"]\n\
             sealing_keys = {sealing_keys:?}\n{keys}\n"
        )
    }

    fn client(&self) -> redis::RedisResult<Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        client.get_connection_with_timeout(Duration::from_secs(5))
    }

    /// Runs a command.
    pub(crate) fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = cmd(words[0]);
        words[1..].iter().for_each(|word| _ = command.arg(*word));
        command.query(&mut self.client().unwrap()).unwrap()
    }

    /// Runs a request of a daemon.
    pub(crate) fn ask(&self, request: &Request) -> Result<Answer, Failure> {
        let mut command = cmd("EVAL");
        let keys = request.keys(&Layout::new("tsd1").unwrap());
        command.arg(&request.script().text).arg(keys.len());
        command.arg(keys).arg(request.arguments());
        let value = command.query(&mut self.client().unwrap());
        Answer::read(&read(value.map_err(|_| Failure::NotRun)?)).map_err(|_| Failure::NoAnswer)
    }

    /// Sets a key to these bytes.
    pub(crate) fn set(&self, key: &str, bytes: &[u8]) {
        cmd("SET")
            .arg(key)
            .arg(bytes)
            .exec(&mut self.client().unwrap())
            .unwrap();
    }

    /// Adds a name to a pool, as its newest.
    pub(crate) fn add_to_pool(&self, pool: &str, name: &[u8]) {
        cmd("ZADD")
            .arg(pool)
            .arg(u64::MAX >> 12)
            .arg(name)
            .exec(&mut self.client().unwrap())
            .unwrap();
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Kills the process.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the killed server again, on the same port, from its files.
    pub(crate) fn restart(&mut self) {
        self.child = run(self.kind, self.folder.path(), self.port, &self.arguments);
        self.wait();
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        // It may have ended before.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read(from: redis::Value) -> Value {
    match from {
        redis::Value::BulkString(bytes) => Value::Bytes(bytes),
        redis::Value::Int(number) => Value::Integer(number),
        redis::Value::Array(all) => Value::List(all.into_iter().map(read).collect()),
        _ => Value::Other,
    }
}

fn run(kind: Kind, folder: &Path, port: u16, arguments: &[String]) -> Child {
    Command::new(kind.program())
        .args(["--port", &port.to_string()])
        .args(["--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
        .arg("--dir")
        .arg(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|err| panic!("cannot start {kind:?}: {err}; run tests/peers.sh"))
}
