//! Real servers, which the tests start on Unix sockets in folders of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redis::{Cmd, Connection, RedisResult, cmd};
use tempfile::TempDir;
use tls_sessiond_store::{
    layout::{Bucket, Layout, Name, RingName},
    script::{Answer, Holder, Request, Value},
};

use super::Store;

/// The prefix of all keys.
pub(crate) const PREFIX: &str = "tsd1";
/// How long a busy machine may take to start a server.
const PATIENCE: Duration = Duration::from_secs(20);

/// A kind of server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Server {
    Redis,
    Valkey,
}

impl Server {
    pub(crate) const ALL: [Self; 2] = [Self::Redis, Self::Valkey];

    fn program(self) -> PathBuf {
        match self {
            Self::Redis => "redis-server".into(),
            Self::Valkey => {
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.peers/bin/valkey-server")
            }
        }
    }
}

/// A running server. Dropping it ends the process.
pub(crate) struct RawServer {
    kind: Server,
    folder: TempDir,
    child: Child,
    connection: Connection,
    layout: Layout,
}

impl RawServer {
    pub(crate) fn start(kind: Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (child, connection) = run(kind, folder.path(), false);
        Self {
            kind,
            folder,
            child,
            connection,
            layout: Layout::new(PREFIX).unwrap(),
        }
    }

    /// Kills the server and starts it again from its append-only file.
    pub(crate) fn restart(&mut self) {
        // With `everysec` a killed server loses a second. SHUTDOWN would be kinder than a crash, but
        // `always` makes both equal here.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.connection) = run(self.kind, self.folder.path(), true);
    }

    pub(crate) fn configure(&mut self, key: &str, value: &str) {
        cmd("CONFIG")
            .arg("SET")
            .arg(key)
            .arg(value)
            .exec(&mut self.connection)
            .unwrap();
    }

    /// Waits until a file that was just switched on is complete.
    pub(crate) fn wait_for_rewrite(&mut self) {
        let begun = Instant::now();
        loop {
            let info: String = cmd("INFO")
                .arg("persistence")
                .query(&mut self.connection)
                .unwrap();
            if info.contains("aof_rewrite_in_progress:0") && info.contains("aof_enabled:1") {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{info}");
            std::thread::yield_now();
        }
    }

    /// Ends the look of a daemon after a ring, and its lease if it has it, as time does.
    pub(crate) fn lapse_ring(&mut self, ring: RingName, daemon: Holder) {
        let look = [&b"d"[..], &daemon.0].concat();
        cmd("HSET")
            .arg(self.layout.ring(ring))
            .arg(look)
            .arg("1:0")
            .arg("e")
            .arg("1")
            .exec(&mut self.connection)
            .unwrap();
    }

    /// Loses the list of the spent tickets of a ring, as an eviction does.
    pub(crate) fn lose_spent(&mut self, ring: RingName) {
        cmd("DEL")
            .arg(self.layout.spent(ring))
            .exec(&mut self.connection)
            .unwrap();
    }

    pub(crate) fn flush_scripts(&mut self) {
        cmd("SCRIPT")
            .arg("FLUSH")
            .exec(&mut self.connection)
            .unwrap();
    }

    pub(crate) fn empty(&mut self) {
        cmd("FLUSHALL").exec(&mut self.connection).unwrap();
    }

    /// Runs a request. The error is the server's code.
    pub(crate) fn try_run(&mut self, request: &Request) -> Result<Answer, String> {
        let (script, keys) = (request.script(), request.keys(&self.layout));
        let call = |name: &str, script: &str| {
            let mut call = cmd(name);
            call.arg(script).arg(keys.len());
            keys.iter().for_each(|key| _ = call.arg(key.as_slice()));
            for argument in request.arguments() {
                call.arg(argument);
            }
            call
        };
        let mut answer: RedisResult<redis::Value> =
            call("EVALSHA", &script.sha1).query(&mut self.connection);
        if answer
            .as_ref()
            .is_err_and(|err| err.code() == Some("NOSCRIPT"))
        {
            answer = call("EVAL", &script.text).query(&mut self.connection);
        }
        let answer = answer.map_err(|err| match err.code() {
            Some(code) => code.to_owned(),
            None => err.to_string(),
        })?;
        Answer::read(&value(answer)).map_err(|err| err.to_string())
    }

    pub(crate) fn set_entry(&mut self, name: Name, value: &[u8]) {
        cmd("SET")
            .arg(self.layout.entry(name))
            .arg(value)
            .exec(&mut self.connection)
            .unwrap();
    }

    pub(crate) fn set_wrong_type(&mut self, name: Name) {
        cmd("LPUSH")
            .arg(self.layout.entry(name))
            .arg("a")
            .exec(&mut self.connection)
            .unwrap();
    }

    /// Returns the whole store, as its file has it.
    pub(crate) fn dump(&mut self) -> Vec<u8> {
        cmd("SAVE").exec(&mut self.connection).unwrap();
        fs::read(self.folder.path().join("dump.rdb")).unwrap()
    }

    fn beats(&self, bucket: Bucket) -> Cmd {
        let mut call = cmd("HSET");
        call.arg(self.layout.beats(bucket));
        call
    }
}

impl Store for RawServer {
    fn run(&mut self, request: &Request) -> Answer {
        self.try_run(request)
            .unwrap_or_else(|err| panic!("{:?}: {request:?}: {err}", self.kind))
    }

    fn now(&mut self) -> u64 {
        let (seconds, micros): (u64, u64) = cmd("TIME").query(&mut self.connection).unwrap();
        seconds * 1_000 + micros / 1_000
    }

    fn lapse(&mut self, bucket: Bucket, holder: Holder) {
        self.beats(bucket)
            .arg(&holder.0)
            .arg("1")
            .exec(&mut self.connection)
            .unwrap();
    }

    fn lose_beat(&mut self, bucket: Bucket, holder: Holder) {
        cmd("HDEL")
            .arg(self.layout.beats(bucket))
            .arg(&holder.0)
            .exec(&mut self.connection)
            .unwrap();
    }

    fn lose_list(&mut self, bucket: Bucket) {
        cmd("DEL")
            .arg(self.layout.tickets(bucket))
            .exec(&mut self.connection)
            .unwrap();
    }

    fn tick(&mut self) {
        std::thread::yield_now();
    }

    fn lose_entry(&mut self, name: Name) {
        cmd("DEL")
            .arg(self.layout.entry(name))
            .exec(&mut self.connection)
            .unwrap();
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn run(kind: Server, folder: &Path, from_file: bool) -> (Child, Connection) {
    let socket = folder.join("s");
    drop(fs::remove_file(&socket));
    let log = fs::File::create(folder.join("log")).unwrap();
    let mut child = Command::new(kind.program())
        .args(["--port", "0", "--save", "", "--appendfsync", "always"])
        .args(["--appendonly", if from_file { "yes" } else { "no" }])
        .arg("--dir")
        .arg(folder)
        .arg("--unixsocket")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(log)
        .spawn()
        .unwrap_or_else(|err| panic!("{}: {err}; run tests/peers.sh", kind.program().display()));
    let client = redis::Client::open(format!("redis+unix://{}", socket.display())).unwrap();
    let begun = Instant::now();
    loop {
        let connection = client
            .get_connection()
            .and_then(|mut connection| cmd("PING").exec(&mut connection).map(|()| connection));
        match connection {
            Ok(connection) => return (child, connection),
            Err(err) => {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                assert!(
                    begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(),
                    "{kind:?}: {err}\n{log}"
                );
                std::thread::yield_now();
            }
        }
    }
}

fn value(from: redis::Value) -> Value {
    match from {
        redis::Value::BulkString(bytes) => Value::Bytes(bytes),
        redis::Value::SimpleString(text) => Value::Bytes(text.into_bytes()),
        redis::Value::Int(number) => Value::Integer(number),
        redis::Value::Array(all) => Value::List(all.into_iter().map(value).collect()),
        _ => Value::Other,
    }
}
