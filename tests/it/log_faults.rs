//! The daemon goes on when standard error fails: on a full disk, without a reader, with a stalled
//! reader, and as a full non-blocking pipe.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, Read, Write},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::io::ioctl_fionbio;
use tempfile::TempDir;
use tls_sessiond_proto::{self as pb, revoke_sessions_request::Selector};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    process::Command,
};
use tokio_rustls::TlsConnector;

use crate::{
    doors::{Guest, client, denied, over, rule, why},
    pki::Authority,
    process::{PATIENCE, Process},
};

/// A daemon with mutual TLS and rules. The test controls its log.
struct Daemon {
    process: Process,
    folder: TempDir,
    authority: Authority,
    tcp: String,
    tls: String,
}

/// The file behind standard error.
enum Behind {
    FullDisk,
    NoReader,
    /// A full pipe that is not read.
    Stalled,
    /// A full pipe that is not read, with non-blocking writes.
    WouldBlock,
}

impl Behind {
    fn open(&self) -> (Stdio, Option<PipeReader>) {
        if matches!(self, Self::FullDisk) {
            return (
                OpenOptions::new()
                    .write(true)
                    .open("/dev/full")
                    .unwrap()
                    .into(),
                None,
            );
        }
        let (reader, mut writer) = io::pipe().unwrap();
        if matches!(self, Self::NoReader) {
            return (writer.into(), None);
        }
        ioctl_fionbio(&writer, true).unwrap();
        while writer.write(&[b'\n'; 4096]).is_ok() {}
        while writer.write(b"\n").is_ok() {}
        ioctl_fionbio(&writer, matches!(self, Self::WouldBlock)).unwrap();
        (writer.into(), Some(reader))
    }
}

fn write_config(folder: &Path, rules: &str) {
    let config = format!(
        "[listen]\napi = [\"tcp://127.0.0.1:0\", \"tls://127.0.0.1:0\", \"unix://{socket}\"]\n\
         [listen.tls]\ncertificate = \"server.crt\"\nkey = \"server.key\"\nclient_ca = \"ca.pem\"\n\
         [drain]\ntimeout = \"1s\"\n{rules}",
        socket = folder.join("api.sock").display()
    );
    fs::write(folder.join("daemon.toml"), config).unwrap();
}

fn rules(local: &str) -> String {
    rule(
        &format!("uid:{}", rustix::process::getuid().as_raw()),
        "*",
        "admin",
    ) + &rule("local", "*", local)
}

impl Daemon {
    async fn start(stderr: Stdio, set: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("workers");
        authority
            .leaf(&["localhost"])
            .write(folder.path(), "server");
        fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        write_config(folder.path(), &rules("worker"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        command
            .arg("--config")
            .arg(folder.path().join("daemon.toml"))
            .args(set)
            .args(["--set", "listen.admin="])
            .env_remove("RUST_LOG");
        let mut process = Process::logging(&mut command, stderr);
        let tcp = process.says("listening on tcp://").await;
        let tls = process.says("listening on tls://").await;
        Self {
            process,
            folder,
            authority,
            tcp,
            tls,
        }
    }

    async fn worker(&self) -> Guest {
        Guest::new(&over(TcpStream::connect(&self.tcp).await.unwrap()).await)
    }

    async fn admin(&self) -> Guest {
        Guest::new(
            &over(
                UnixStream::connect(self.folder.path().join("api.sock"))
                    .await
                    .unwrap(),
            )
            .await,
        )
    }

    /// Connects over TLS without a certificate, which makes a line in the log.
    async fn stranger(&self) {
        let socket = TcpStream::connect(&self.tls).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client(&self.authority.pem, None)));
        let name = "localhost".try_into().unwrap();
        if let Ok(mut stream) = connector.connect(name, socket).await {
            // In TLS 1.3 the refusal comes with the first read.
            let mut bytes = Vec::new();
            drop(stream.write_all(b"PRI").await);
            drop(stream.read_to_end(&mut bytes).await);
        }
    }

    /// Reloads with another role of local callers, and waits until New succeeds or fails as
    /// `lets_in` says.
    async fn reload(&self, local: &str, lets_in: bool) {
        write_config(self.folder.path(), &rules(local));
        self.process.signal("HUP").await;
        let until = Instant::now() + PATIENCE;
        while self.worker().await.open("").await.is_ok() != lets_in {
            assert!(Instant::now() < until, "the reload never took effect");
        }
    }

    /// Sends SIGTERM. The daemon must exit with status 0 within 15 s.
    async fn stop(self) {
        let began = Instant::now();
        self.process.signal("TERM").await;
        assert!(self.process.succeeds().await, "status 0");
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
    }
}

fn revoke(uri: &str) -> pb::RevokeSessionsRequest {
    pb::RevokeSessionsRequest {
        selector: Some(Selector::Uri(uri.into())),
        ..Default::default()
    }
}

/// Runs everything that writes log lines. It must work although they cannot be written.
async fn endures(behind: Behind) {
    let (stderr, _reader) = behind.open();
    let daemon = Daemon::start(stderr, &[]).await;
    for _ in 0..3 {
        daemon.stranger().await;
        let mut worker = daemon.worker().await;
        for _ in 0..200 {
            assert_eq!(
                why(worker.sessions.revoke_sessions(revoke("a://b")).await),
                denied()
            );
        }
        worker.open("").await.unwrap();
    }
    daemon
        .admin()
        .await
        .sessions
        .revoke_sessions(revoke("a://b"))
        .await
        .expect("the revocation is answered");
    daemon.reload("observer", false).await;
    daemon.reload("worker", true).await;
    daemon.stop().await;
}

// Invariant 24.
#[tokio::test]
async fn full_disk_behind_the_log_ends_nothing() {
    endures(Behind::FullDisk).await;
}

// Invariant 24.
#[tokio::test]
async fn dead_reader_of_the_log_ends_nothing() {
    endures(Behind::NoReader).await;
}

// Invariant 24.
#[tokio::test]
async fn stalled_reader_of_the_log_blocks_nothing() {
    endures(Behind::Stalled).await;
}

// Invariant 24.
#[tokio::test]
async fn log_that_would_block_blocks_nothing() {
    endures(Behind::WouldBlock).await;
}

/// Reads a pipe on a thread until its text has this word.
async fn read_until(mut reader: PipeReader, word: &'static str) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let (mut text, mut bytes) = (String::new(), [0; 65536]);
        while !text.contains(word) {
            let length = reader.read(&mut bytes).unwrap();
            assert_ne!(length, 0, "the log ended without `{word}`: {}", text.trim());
            text += &String::from_utf8_lossy(&bytes[..length]);
        }
        text
    });
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the log goes on")
        .unwrap()
}

#[tokio::test]
async fn dropped_lines_are_counted_and_reported_afterwards() {
    for behind in [Behind::Stalled, Behind::WouldBlock] {
        let (stderr, reader) = behind.open();
        let daemon = Daemon::start(stderr, &[]).await;
        let mut admin = daemon.admin().await;
        // Each audit line has about a kilobyte, and the queue a megabyte.
        let uri = format!("a://{}", "x".repeat(2000));
        let revocations = 1500;
        for _ in 0..revocations {
            admin.sessions.revoke_sessions(revoke(&uri)).await.unwrap();
        }
        let text = read_until(reader.unwrap(), "failed_writes").await;
        let notice = text
            .lines()
            .find(|line| line.contains("the log could not be written for a while"))
            .unwrap();
        let dropped = |name: &str| -> u64 {
            let (_, rest) = notice.split_once(&format!("\"{name}\":")).unwrap();
            rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap()]
                .parse()
                .unwrap()
        };
        let lost = dropped("dropped_audit_lines");
        assert!((1..revocations).contains(&lost), "{notice}");
        assert_eq!(
            dropped("dropped_lines"),
            0,
            "other lines have their own queue: {notice}"
        );
        daemon.stop().await;
    }
}

#[tokio::test]
async fn daemon_serves_without_a_writable_output() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command
        .args([
            "--set",
            &format!("listen.api=[\"unix://{}\"]", socket.display()),
        ])
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(full())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    let stream = loop {
        match UnixStream::connect(&socket).await {
            Ok(stream) => break stream,
            Err(err) => assert!(Instant::now() < until, "the daemon never listened: {err}"),
        }
        tokio::task::yield_now().await;
    };
    Guest::new(&over(stream).await).open("").await.unwrap();
    let id = child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .arg(&id)
            .status()
            .await
            .unwrap()
            .success()
    );
    assert!(child.wait().await.unwrap().success());

    // Commands that only print still return their exit status.
    let config = folder.path().join("c.toml");
    fs::write(&config, "").unwrap();
    for (args, status) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["check", config.to_str().unwrap()], 0),
        (&["check", "/nowhere"], 78),
        (&["chekc"], 2),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        let ended = command
            .args(args)
            .stdout(full())
            .stderr(full())
            .status()
            .await
            .unwrap();
        assert_eq!(ended.code(), Some(status), "{args:?}");
    }
}

#[tokio::test]
async fn file_size_limit_of_the_log_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("daemon.toml"), folder.path().join("log"));
    fs::write(&config, rule("local", "*", "worker")).unwrap();
    // One block, of 512 or 1024 bytes: a few lines.
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -f 1 && exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_tls-sessiond"),
        "--config",
    ]);
    command
        .arg(&config)
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
        .args(["--set", "listen.admin="]);
    let mut process = Process::logging(&mut command, File::create(&log).unwrap());
    let address = process.says("listening on tcp://").await;
    let mut worker = Guest::new(&over(TcpStream::connect(&address).await.unwrap()).await);
    for _ in 0..100 {
        assert_eq!(
            why(worker.sessions.revoke_sessions(revoke("a://b")).await),
            denied()
        );
    }
    worker.open("").await.unwrap();
    drop(worker);
    process.signal("TERM").await;
    assert!(process.succeeds().await, "status 0");
    let written = fs::metadata(&log).unwrap().len();
    assert!(
        (512..=1024).contains(&written),
        "the limit was reached: {written}"
    );
}
