//! The limit of open files: the daemon raises it, logs it, and keeps a reserve for health checks
//! and reloads.

use std::{fs, process::Stdio, time::Instant};

use tempfile::TempDir;
use tls_sessiond_proto as pb;
use tokio::{net::TcpStream, process::Command};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    doors::{Guest, over, try_over},
    harness::{new, reason},
    process::{PATIENCE, Process},
};

/// The daemon started by a shell that limits its open files: `ulimit -S -n SOFT && ulimit -H -n
/// HARD`.
struct Limited {
    process: Process,
    address: String,
    folder: TempDir,
}

impl Limited {
    async fn start(soft: u32, hard: u32, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("daemon.toml"), config).unwrap();
        let log = fs::File::create(folder.path().join("stderr")).unwrap();
        let script = format!("ulimit -S -n {soft} && ulimit -H -n {hard} && exec \"$@\"");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &script,
            "sh",
            env!("CARGO_BIN_EXE_tls-sessiond"),
            "--config",
        ]);
        command.arg(folder.path().join("daemon.toml"));
        command
            .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
            .args(["--set", "listen.admin="])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        let mut process = Process::logging(&mut command, log);
        let address = process.says("listening on tcp://").await;
        Self {
            process,
            address,
            folder,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }

    /// Stops the daemon and returns its log.
    async fn end(self) -> String {
        self.process.signal("TERM").await;
        assert!(self.process.succeeds().await);
        fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }

    /// Returns the soft limit of the process.
    fn soft_limit(&self) -> u32 {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.process.id())).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    }

    /// Checks health over new sockets until one is answered. Few sockets beyond the limit are
    /// served at a time, and each is free again soon.
    async fn health(&self) -> ServingStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = async {
                let channel = try_over(self.connect().await)
                    .await
                    .map_err(|err| err.to_string())?;
                let answer = HealthClient::new(channel)
                    .check(HealthCheckRequest::default())
                    .await;
                answer
                    .map(|answer| answer.into_inner().status())
                    .map_err(|status| status.to_string())
            };
            match asked.await {
                Ok(status) => return status,
                Err(err) => assert!(
                    Instant::now() < until,
                    "no answer to the health check: {err}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let daemon = Limited::start(64, 1000, "").await;
    assert_eq!(daemon.soft_limit(), 1000);
    // The log is written a little later than it happens. It is complete once the daemon has ended.
    let log = daemon.end().await;
    assert!(
        log.contains("limits.sockets cannot be reached"),
        "10,000 sockets do not fit: {log}"
    );
    let log = Limited::start(64, 1000, "[limits]\nsockets = 500\n")
        .await
        .end()
        .await;
    assert!(
        log.contains("stopped") && !log.contains("limits.sockets cannot be reached"),
        "{log}"
    );
}

#[tokio::test]
async fn sockets_beyond_the_limit_are_served_health_only() {
    let daemon = Limited::start(1000, 1000, "[limits]\nsockets = 4\n").await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut guest = Guest::new(&over(daemon.connect().await).await);
        guest.open("").await.unwrap();
        held.push(guest);
    }
    let reached = Instant::now();
    for _ in 0..3 {
        let mut beyond = Guest::new(&over(daemon.connect().await).await);
        let refused = beyond
            .connections
            .new_connection(new("", pb::Role::Server))
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::ResourceExhausted, "SOCKET_LIMIT"),
            "{refused:?}"
        );
    }
    assert_eq!(daemon.health().await, ServingStatus::Serving);
    // A socket that takes a freed place may make all calls.
    drop(held.pop());
    let until = Instant::now() + PATIENCE;
    while Guest::new(&over(daemon.connect().await).await)
        .open("")
        .await
        .is_err()
    {
        assert!(Instant::now() < until, "the place is never freed");
    }
    drop(held);
    let began = Instant::now();
    let log = daemon.end().await;
    let lines = log.matches("limits.sockets is reached").count();
    let most = 1 + usize::try_from(began.duration_since(reached).as_secs() / 10).unwrap();
    assert!(
        (1..=most).contains(&lines),
        "at most one line in ten seconds: {log}"
    );
}

#[tokio::test]
async fn flood_of_sockets_leaves_files_for_health_and_reload() {
    let daemon = Limited::start(120, 120, "").await;
    let mut held = Vec::new();
    // Many more sockets than files. The daemon closes those that it refuses.
    for _ in 0..300 {
        held.push(daemon.connect().await);
    }
    assert_eq!(daemon.health().await, ServingStatus::Serving);
    let config = "[[context]]\nname = \"default\"\n[[context]]\nname = \"other\"\n";
    fs::write(daemon.folder.path().join("daemon.toml"), config).unwrap();
    daemon.process.signal("HUP").await;
    let until = Instant::now() + PATIENCE;
    while !daemon.log().contains("configuration reloaded") {
        assert!(
            Instant::now() < until && !daemon.log().contains("Too many open files"),
            "{}",
            daemon.log()
        );
        tokio::task::yield_now().await;
    }
    drop(held);
    let log = daemon.end().await;
    assert!(!log.contains("cannot accept"), "{log}");
}

#[tokio::test]
async fn too_few_open_files_fail_the_start() {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -n 40 && exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_tls-sessiond"),
    ]);
    command
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
        .args(["--set", "listen.admin="])
        .env_remove("RUST_LOG");
    let (written, good) = crate::process::run(&mut command, "").await;
    assert!(
        !good && written.contains("40 open files, and 80 are needed"),
        "{written}"
    );
}

/// Connects as the user 54321 as often as it can, prints the number of connections that are open, and holds
/// them until its standard input ends.
const HOLDS: &str = "
import socket, sys
held = []
for _ in range(40):
    one = socket.socket(socket.AF_UNIX)
    one.connect(sys.argv[1])
    held.append(one)
def is_open(one):
    try:
        one.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes(3) + bytes([4]) + bytes(5))
        one.settimeout(20)
        return one.recv(4096) != b''
    except OSError:
        return False
held = [one for one in held if is_open(one)]
print('open', len(held), flush=True)
sys.stdin.read()
";

#[tokio::test]
async fn other_users_leave_sockets_for_the_probe() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(0), Some(0)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).unwrap();
    let path = folder.path().join("api.sock").display().to_string();
    let listen = format!("listen.api=[\"tcp://127.0.0.1:0\",\"unix://{path}\"]");
    let binary = crate::binary::Binary::start(&[
        "--set",
        &listen,
        "--set",
        "listen.unix_mode=\"0666\"",
        "--set",
        "limits.sockets=4",
    ])
    .await;
    let mut other = tokio::process::Command::new("setpriv");
    other
        .args([
            "--reuid",
            "54321",
            "--regid",
            "54321",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            HOLDS,
        ])
        .arg(&path);
    let mut other = crate::process::Process::start(&mut other);
    // Four, and those beyond the limit that are for all users of this host.
    let open: usize = other.says("open ").await.parse().unwrap();
    assert_eq!(open, 4 + 12);
    let address = format!("unix://{path}");
    let probe = crate::command::run(&["health", "--address", &address]);
    assert!(probe.status.success(), "{probe:?}");
    other.kill().await;
    binary.kill().await;
}
