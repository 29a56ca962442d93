//! Log lines: filters, audit lines, their length and number, and the influence of a peer on them.

use std::{
    fs,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command as StdCommand, Output},
    time::Instant,
};

use serde_json::Value;
use tempfile::TempDir;
use tls_sessiond_proto as pb;
use tokio::{net::TcpStream, process::Command};

use crate::{
    doors::{Guest, denied, over, rule, why},
    harness::new,
    process::{PATIENCE, Process},
};

/// A daemon whose standard error is a file.
pub(crate) struct Logging {
    process: Process,
    address: String,
    folder: TempDir,
}

impl Logging {
    pub(crate) async fn start(rust_log: Option<&str>, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("daemon.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        command
            .current_dir(folder.path())
            .args([
                "--config",
                "daemon.toml",
                "--set",
                "listen.api=[\"tcp://127.0.0.1:0\"]",
                "--set",
                "listen.admin=",
            ])
            .env_remove("RUST_LOG");
        if let Some(filter) = rust_log {
            command.env("RUST_LOG", filter);
        }
        let log = fs::File::create(folder.path().join("stderr")).unwrap();
        let mut process = Process::logging(&mut command, log);
        let address = process.says("listening on tcp://").await;
        Self {
            process,
            address,
            folder,
        }
    }

    #[cfg(feature = "peers")]
    pub(crate) async fn reload(&self) {
        self.process.signal("HUP").await;
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    async fn guest(&self) -> Guest {
        Guest::new(&over(TcpStream::connect(&self.address).await.unwrap()).await)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits until a file contains a word.
    pub(crate) async fn until(&self, name: &str, word: &str) {
        let until = Instant::now() + PATIENCE;
        while !fs::read_to_string(self.path(name))
            .unwrap_or_default()
            .contains(word)
        {
            assert!(Instant::now() < until, "{name} never has `{word}`");
            tokio::task::yield_now().await;
        }
    }

    /// Stops the daemon. Returns the lines of its standard error.
    pub(crate) async fn end(self) -> Vec<Value> {
        self.process.signal("TERM").await;
        assert!(self.process.succeeds().await);
        lines(&self.folder.path().join("stderr"))
    }
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}")))
        .collect()
}

/// Returns the lines that have been written completely.
fn whole_lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    text.split_inclusive('\n')
        .filter_map(|line| serde_json::from_str(line.strip_suffix('\n')?).ok())
        .collect()
}

fn of_target<'l>(lines: &'l [Value], target: &str) -> Vec<&'l Value> {
    lines
        .iter()
        .filter(|line| line["target"] == target)
        .collect()
}

async fn refused(guest: &mut Guest) {
    let request = pb::RemoveSessionRequest {
        session_id: "00".into(),
        role: pb::Role::Server.into(),
        ..Default::default()
    };
    assert_eq!(why(guest.sessions.remove_session(request).await), denied());
}

#[tokio::test]
async fn no_filter_silences_audit_lines() {
    for filter in [
        "off",
        "warn",
        "tls_sessiond=debug",
        "audit=off",
        "tls_sessiond=off,audit=error",
    ] {
        for of_file in [false, true] {
            let config = rule("local", "*", "worker");
            let daemon = match of_file {
                true => {
                    Logging::start(None, &format!("{config}[log]\nlevel = \"{filter}\"\n")).await
                }
                false => Logging::start(Some(filter), &config).await,
            };
            refused(&mut daemon.guest().await).await;
            let lines = daemon.end().await;
            let audit = of_target(&lines, "audit");
            assert_eq!(audit.len(), 1, "{filter}: {lines:?}");
            assert_eq!(audit[0]["fields"]["owner"], "local");
        }
    }
}

#[tokio::test]
async fn rust_log_overrides_the_level_of_the_file() {
    for (rust_log, level, stops) in [
        (Some("off"), "info", false),
        (Some("info"), "off", true),
        (None, "off", false),
        (Some(""), "info", true),
    ] {
        let daemon = Logging::start(rust_log, &format!("[log]\nlevel = \"{level}\"\n")).await;
        let lines = daemon.end().await;
        let told = lines
            .iter()
            .any(|line| line["fields"]["message"] == "stopping");
        assert_eq!(told, stops, "{rust_log:?} over {level}: {lines:?}");
    }
}

fn run(args: &[&str], variable: &str, value: &[u8]) -> Output {
    StdCommand::new(env!("CARGO_BIN_EXE_tls-sessiond"))
        .args(args)
        .env(variable, std::ffi::OsStr::from_bytes(value))
        .output()
        .unwrap()
}

#[test]
fn filter_with_a_typo_is_refused_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::write(&file, "\n[log]\nlevel = \"inof\"\n").unwrap();
    let path = file.to_str().unwrap();
    for args in [&["check", path][..], &["--config", path]] {
        let output = run(args, "UNRELATED", b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(
            said.contains("c.toml:3: log.level: invalid directive `inof`"),
            "{said}"
        );
        // The variable overrides the file, so the error names the variable.
        let output = run(args, "RUST_LOG", b"tls_sessiond=dbug");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(
            said.contains("RUST_LOG: log.level: invalid directive `tls_sessiond=dbug`"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn environment_that_is_not_utf8_is_refused_or_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::write(&file, "").unwrap();
    let path = file.to_str().unwrap();
    for variable in ["TLS_SESSIOND__LIMITS__STREAMS", "RUST_LOG"] {
        for args in [&["check", path][..], &["--config", path]] {
            let output = run(args, variable, b"a\xffb");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(78), "{said}");
            assert!(
                said.contains(&format!(
                    "environment variable {variable}: the value is not UTF-8"
                )),
                "{said}"
            );
        }
    }
    assert_eq!(
        run(&["check", path], "UNRELATED", b"\xff\xfe")
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        run(&["check", path], "TLS_SESSIOND_CONFIG", b"/nowhere/\xff")
            .status
            .code(),
        Some(0)
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
        .args(["--set", "listen.admin="])
        .env("UNRELATED", std::ffi::OsStr::from_bytes(b"\xff\xfe"))
        .env(std::ffi::OsStr::from_bytes(b"\xff"), "x");
    let mut daemon = Process::start(&mut command);
    daemon.says("listening on tcp://").await;
    daemon.signal("TERM").await;
    assert!(daemon.succeeds().await);
}

/// Returns a ClientHello in records, which is well formed except for the server name in it.
fn hello(name: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8], width: usize| {
        let all = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&all[4 - width..], bytes].concat()
    };
    let entry = [&[0][..], &length(name, 2)].concat();
    let extension = [&[0, 0][..], &length(&length(&entry, 2), 2)].concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 2, 0x13, 0x01],
        &[1, 0],
        &length(&extension, 2),
    ]
    .concat();
    let message = [&[1][..], &length(&body, 3)].concat();
    message
        .chunks(16_000)
        .flat_map(|part| [&[22, 3, 1][..], &length(part, 2)].concat())
        .collect()
}

#[tokio::test]
async fn peer_injects_no_log_line_and_long_names_are_cut() {
    for (filter, has_foreign) in [("trace", false), ("trace,rustls=trace,h2=trace", true)] {
        let daemon = Logging::start(Some(filter), "").await;
        let mut guest = daemon.guest().await;
        for name in [
            &[b'a'; 60_000][..],
            &[0xff; 60_000],
            b"a\n{\"target\":\"audit\"}\x1b[31m\n",
            &[b'.'; 300],
        ] {
            let request = new("", pb::Role::Server);
            let made = guest
                .connections
                .new_connection(request)
                .await
                .unwrap()
                .into_inner()
                .connection
                .unwrap();
            let request = pb::ExchangeRequest {
                connection_id: made.id,
                ciphertext: hello(name).into(),
                ..Default::default()
            };
            guest
                .connections
                .exchange(request)
                .await
                .expect("a failed handshake is an answer");
        }
        // `end` parses every line as JSON, which fails if a value broke out of its line.
        let lines = daemon.end().await;
        let longest = lines
            .iter()
            .map(|line| line.to_string().len())
            .max()
            .unwrap();
        assert!(longest < 20_000, "{longest}");
        let foreign = lines
            .iter()
            .filter(|line| !line["target"].as_str().unwrap().starts_with("tls_sessiond"))
            .count();
        assert_eq!(foreign > 0, has_foreign, "{filter}: {foreign}");
    }
}

#[tokio::test]
async fn refusals_have_a_budget_and_the_rest_is_counted() {
    let daemon = Logging::start(None, &rule("local", "*", "worker")).await;
    let guest = daemon.guest().await;
    // Concurrent calls make more refusals in a second than the log has lines for.
    let calls = 3000;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..calls {
        let mut guest = guest.clone();
        asking.spawn(async move { refused(&mut guest).await });
    }
    asking.join_all().await;
    let until = Instant::now() + PATIENCE;
    loop {
        let lines = whole_lines(&daemon.path("stderr"));
        let audit = of_target(&lines, "audit");
        let told = audit
            .iter()
            .filter(|line| line["fields"]["message"] == "a call was refused")
            .count() as u64;
        let left_out: u64 = audit
            .iter()
            .filter_map(|line| line["fields"]["left_out"].as_u64())
            .sum();
        if told + left_out == calls {
            assert!(
                left_out > 0 && told < calls,
                "3,000 refusals take less than 30 seconds"
            );
            break;
        }
        assert!(
            Instant::now() < until,
            "every refusal has a line or is counted: {told} + {left_out}"
        );
        tokio::task::yield_now().await;
    }
    daemon.end().await;
}

#[tokio::test]
async fn flood_of_one_identity_hides_no_refusal_of_another() {
    let uid = rustix::process::getuid().as_raw();
    let rules = rule(&format!("uid:{uid}"), "*", "observer") + &rule("local", "*", "worker");
    let folder = tempfile::tempdir().unwrap();
    let (config, log, socket) = (
        folder.path().join("daemon.toml"),
        folder.path().join("stderr"),
        folder.path().join("api.sock"),
    );
    fs::write(&config, rules).unwrap();
    let api = format!(
        "listen.api=[\"tcp://127.0.0.1:0\", \"unix://{}\"]",
        socket.display()
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command
        .arg("--config")
        .arg(&config)
        .args(["--set", &api, "--set", "listen.admin="])
        .env_remove("RUST_LOG");
    let mut process = Process::logging(&mut command, fs::File::create(&log).unwrap());
    let address = process.says("listening on tcp://").await;
    let began = Instant::now();
    // The flood uses many connections. The budget belongs to the identity and not to the
    // connection.
    let rounds = 12;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..rounds {
        let flooding = Guest::new(&over(TcpStream::connect(&address).await.unwrap()).await);
        for _ in 0..100 {
            let mut guest = flooding.clone();
            asking.spawn(async move { refused(&mut guest).await });
        }
    }
    let mut other =
        Guest::new(&over(tokio::net::UnixStream::connect(&socket).await.unwrap()).await);
    for _ in 0..5 {
        refused(&mut other).await;
    }
    asking.join_all().await;
    drop(other);
    process.signal("TERM").await;
    assert!(process.succeeds().await);
    let lines = lines(&log);
    let of = |owner: &str| {
        of_target(&lines, "audit")
            .iter()
            .filter(|line| line["fields"]["owner"] == owner)
            .count()
    };
    assert_eq!(
        of(&format!("uid:{uid}")),
        5,
        "every refusal of the quiet identity has its line"
    );
    // The flood has at most 20 lines per second, over all its connections.
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    assert!(
        of("local") <= 20 * seconds,
        "{} lines in {seconds} seconds",
        of("local")
    );
}

#[tokio::test]
async fn reload_reopens_the_audit_file_and_changes_the_level() {
    let config = |level: &str| {
        rule("local", "*", "worker")
            + &format!("[log]\naudit = \"audit.log\"\nlevel = \"{level}\"\n")
    };
    let daemon = Logging::start(None, &config("info")).await;
    refused(&mut daemon.guest().await).await;
    daemon.until("audit.log", "a call was refused").await;
    // The test rotates the file as logrotate does.
    fs::rename(daemon.path("audit.log"), daemon.path("audit.log.1")).unwrap();
    fs::write(daemon.path("daemon.toml"), config("off")).unwrap();
    daemon.process.signal("HUP").await;
    let until = Instant::now() + PATIENCE;
    while !daemon.path("audit.log").exists() {
        assert!(Instant::now() < until, "the audit file is not opened again");
        tokio::task::yield_now().await;
    }
    refused(&mut daemon.guest().await).await;
    daemon.until("audit.log", "a call was refused").await;
    let (old, new) = (daemon.path("audit.log.1"), daemon.path("audit.log"));
    assert_eq!((lines(&old).len(), lines(&new).len()), (1, 1));
    assert_eq!(
        std::os::unix::fs::MetadataExt::mode(&fs::metadata(&new).unwrap()) & 0o777,
        0o600
    );
    let stderr = daemon.end().await;
    assert!(of_target(&stderr, "audit").is_empty(), "{stderr:?}");
    assert!(
        !stderr
            .iter()
            .any(|line| line["fields"]["message"] == "stopping"),
        "the level is off: {stderr:?}"
    );
}

#[test]
fn audit_file_that_cannot_be_opened_is_an_error_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let mut written = fs::File::create(&file).unwrap();
    written
        .write_all(b"[log]\naudit = \"nowhere/audit.log\"\n")
        .unwrap();
    let path = file.to_str().unwrap();
    for args in [&["check", path][..], &["--config", path]] {
        let output = run(args, "UNRELATED", b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("c.toml:2: log.audit: cannot open "), "{said}");
    }
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "check makes no file"
    );
    // Opening a named pipe would block the start until a process reads it.
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    fs::write(&file, "[log]\naudit = \"fifo\"\n").unwrap();
    for args in [&["check", path][..], &["--config", path]] {
        let output = run(args, "UNRELATED", b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("c.toml:2: log.audit: cannot open "), "{said}");
    }
}

#[tokio::test]
async fn text_format_has_one_line_for_each_event() {
    let daemon = Logging::start(
        None,
        &(rule("local", "*", "worker") + "[log]\nformat = \"text\"\n"),
    )
    .await;
    refused(&mut daemon.guest().await).await;
    daemon.process.signal("TERM").await;
    assert!(daemon.process.succeeds().await);
    let text = fs::read_to_string(daemon.folder.path().join("stderr")).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains(" INFO audit: a call was refused owner=local "))
        .unwrap();
    assert!(
        line.contains(" path=/tls.sessiond.v1.SessionService/RemoveSession ")
            && line.contains(" refusal=\""),
        "{line}"
    );
}
