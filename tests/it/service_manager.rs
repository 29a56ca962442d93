//! systemd as the daemon sees it: messages to NOTIFY_SOCKET, and a journal as stderr.

use std::{collections::HashMap, fs, os::unix::net::UnixDatagram, time::Duration};

use tempfile::TempDir;
use tls_sessiond_proto as pb;
use tokio::process::Command;

use crate::{
    calls::{Worker, worker},
    harness::TestDaemon,
    process::{PATIENCE, Process},
};

/// A socket that takes messages of sd_notify(3), and a daemon that was started with it.
struct Service {
    folder: TempDir,
    manager: UnixDatagram,
    process: Process,
    address: String,
}

type Message = HashMap<String, String>;

impl Service {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        fs::write(folder.path().join("daemon.toml"), "").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        command
            .args(["--config", "daemon.toml", "--set", "listen.admin="])
            .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
            .current_dir(folder.path())
            .env("NOTIFY_SOCKET", &path)
            .envs(variables.iter().copied());
        let mut process = Process::start(&mut command);
        let address = process.says("listening on tcp://").await;
        Self {
            folder,
            manager,
            process,
            address,
        }
    }

    /// Returns the next message that has this assignment. Others are passed over.
    fn next_with(&self, name: &str) -> Message {
        loop {
            let mut bytes = [0; 4096];
            let length = self
                .manager
                .recv(&mut bytes)
                .unwrap_or_else(|err| panic!("no message with {name}: {err}"));
            let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
            let assignments = text.lines().map(|line| line.split_once('=').unwrap());
            let message: Message = assignments
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            if message.contains_key(name) {
                return message;
            }
        }
    }

    fn write(&self, config: &str) {
        fs::write(self.folder.path().join("daemon.toml"), config).unwrap();
    }
}

#[tokio::test]
async fn service_manager_is_told_every_change() {
    let service = Service::start(&[("WATCHDOG_USEC", "200000")]).await;
    assert_eq!(
        service.next_with("STATUS")["STATUS"],
        "reading the configuration"
    );
    let ready = service.next_with("READY");
    assert_eq!(ready["READY"], "1");
    assert_eq!(ready["STATUS"], "serving; contexts: 1");
    // It serves by then.
    let daemon = TestDaemon::at(&service.address).await;
    Worker(&daemon).open(worker(pb::Role::Server)).await;
    for _ in 0..3 {
        assert_eq!(service.next_with("WATCHDOG")["WATCHDOG"], "1");
    }
    // A reload, and one that is refused: the daemon is ready after both.
    for (config, status) in [
        ("limits.streams = 50\n", "serving; contexts: 1"),
        ("limits.streams = 0\n", "reload refused: "),
    ] {
        service.write(config);
        service.process.signal("HUP").await;
        let reloading = service.next_with("RELOADING");
        let micros: u64 = reloading["MONOTONIC_USEC"].parse().unwrap();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = u64::try_from(now.tv_sec).unwrap() * 1_000_000;
        assert!(micros <= now + 1_000_000 && micros + 60_000_000 > now);
        let ready = service.next_with("READY");
        assert!(ready["STATUS"].starts_with(status), "{ready:?}");
    }
    service.process.signal("TERM").await;
    let stopping = service.next_with("STOPPING");
    // drain.timeout, and what comes after.
    assert_eq!(stopping["EXTEND_TIMEOUT_USEC"], "45000000");
    assert!(service.process.succeeds().await);
}

#[tokio::test]
async fn daemon_is_not_watched_for_another_process() {
    let variables = [("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")];
    let service = Service::start(&variables).await;
    service.next_with("READY");
    service.process.signal("TERM").await;
    loop {
        let message = service.next_with("STATUS");
        assert!(!message.contains_key("WATCHDOG"), "{message:?}");
        if message.contains_key("STOPPING") {
            break;
        }
    }
    assert!(service.process.succeeds().await);
}

#[tokio::test]
async fn service_manager_that_reads_nothing_delays_nothing() {
    // Far more messages than the socket takes.
    let service = Service::start(&[("WATCHDOG_USEC", "200")]).await;
    let daemon = TestDaemon::at(&service.address).await;
    for _ in 0..500 {
        Worker(&daemon).open(worker(pb::Role::Server)).await;
    }
    service.process.signal("TERM").await;
    let begun = std::time::Instant::now();
    assert!(service.process.succeeds().await);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[cfg(feature = "peers")]
#[tokio::test]
async fn journal_gets_level_and_values_as_fields() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "python3"])
        .arg(root.join("tests/clients/journal.py"))
        .arg(env!("CARGO_BIN_EXE_tls-sessiond"))
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
        .args(["--set", "listen.admin=", "--set", "limits.sockets=9999999"])
        .env_remove("RUST_LOG");
    let (said, good) = crate::process::run(&mut command, "").await;
    assert!(good, "{said}");
    let events: Vec<Vec<(String, String)>> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |message: &str| {
        let event = events.iter().find(|event| {
            let is =
                |(name, value): &&(String, String)| name == "MESSAGE" && value.starts_with(message);
            event.iter().any(|field| is(&field))
        });
        let event = event.unwrap_or_else(|| panic!("no `{message}`: {said}"));
        event.iter().cloned().collect::<HashMap<_, _>>()
    };
    let warning = of("limits.sockets cannot be reached");
    assert_eq!(warning["PRIORITY"], "4");
    assert_eq!(warning["SYSLOG_IDENTIFIER"], "tls-sessiond");
    assert_eq!(warning["TARGET"], "tls_sessiond::daemon");
    assert_eq!(warning["TLS_SESSIOND_LIMITS_SOCKETS"], "9999999");
    let stopping = of("stopping");
    assert_eq!(stopping["PRIORITY"], "6");
    assert_eq!(stopping["MESSAGE"], "stopping connections=0");
}
