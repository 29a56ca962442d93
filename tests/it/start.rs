//! Start and stop of the process: signals, hanging files, socket files, the command line, exit
//! statuses.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command as StdCommand, Stdio},
    time::{Duration, Instant},
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tls_sessiond::{
    config::{Config, Endpoint},
    daemon::Daemon,
};
use tls_sessiond_client::{Options, Worker};
use tls_sessiond_core::clock::Clock;
use tls_sessiond_proto::{self as pb, context_service_client::ContextServiceClient};
use tokio::{net::TcpStream, process::Command, time::timeout};

use crate::{
    doors::{Guest, over, rule},
    pki::{self, Authority},
    process::{PATIENCE, Process, example, run},
};

pub(crate) fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

fn daemon(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"])
        .args(["--set", "listen.admin="])
        .args(args)
        .env_remove("RUST_LOG");
    command
}

async fn signal(id: u32, name: &str) {
    assert!(
        Command::new("kill")
            .args(["-s", name, &id.to_string()])
            .status()
            .await
            .unwrap()
            .success()
    );
}

/// Opens a pipe for writing. That waits for its reader.
pub(crate) async fn open_for(reader: &Path) -> fs::File {
    let path = reader.to_owned();
    let open =
        tokio::task::spawn_blocking(move || fs::File::options().write(true).open(path).unwrap());
    timeout(PATIENCE, open)
        .await
        .expect("the daemon does not read the pipe")
        .unwrap()
}

#[tokio::test]
async fn stop_during_a_hanging_start_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    fifo(&config);
    for name in ["TERM", "INT"] {
        let mut child = daemon(&["--config", config.to_str().unwrap()])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let held = open_for(&config).await;
        signal(child.id().unwrap(), name).await;
        let ended = timeout(PATIENCE, child.wait())
            .await
            .expect("it ends")
            .unwrap();
        assert_eq!(ended.code(), Some(0), "{name}");
        drop(held);
    }
}

#[tokio::test]
async fn sighup_during_the_start_reloads_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("config"), folder.path().join("log"));
    fifo(&config);
    let mut command = daemon(&["--config", config.to_str().unwrap()]);
    let mut process = Process::logging(&mut command, fs::File::create(&log).unwrap());
    let mut held = open_for(&config).await;
    // The daemon has read nothing of its configuration yet.
    process.signal("HUP").await;
    held.write_all(b"[log]\nlevel = \"info\"\n").unwrap();
    drop(held);
    let address = process.says("listening on tcp://").await;
    // The reload requested by the signal opens the pipe again.
    let mut held = open_for(&config).await;
    held.write_all(b"[log]\nlevel = \"info\"\n").unwrap();
    drop(held);
    let until = Instant::now() + PATIENCE;
    while !fs::read_to_string(&log)
        .unwrap()
        .contains("configuration reloaded")
    {
        assert!(
            Instant::now() < until,
            "{}",
            fs::read_to_string(&log).unwrap()
        );
        tokio::task::yield_now().await;
    }
    Guest::new(&over(TcpStream::connect(&address).await.unwrap()).await)
        .open("")
        .await
        .unwrap();
}

// Invariant 24.
#[tokio::test]
async fn hanging_reload_delays_neither_calls_nor_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    fs::write(&config, "").unwrap();
    let mut process = Process::start(&mut daemon(&["--config", config.to_str().unwrap()]));
    let address = process.says("listening on tcp://").await;
    fs::remove_file(&config).unwrap();
    fifo(&config);
    process.signal("HUP").await;
    let held = open_for(&config).await;
    let mut guest = Guest::new(&over(TcpStream::connect(&address).await.unwrap()).await);
    guest.open("").await.unwrap();
    drop(guest);
    let began = Instant::now();
    process.signal("TERM").await;
    assert!(process.succeeds().await, "status 0");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    drop(held);
}

#[tokio::test]
async fn stopping_daemon_keeps_the_socket_of_its_successor() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let bind = || {
        let set = format!("listen.api=[\"unix://{}\"]", socket.display());
        let config = Config::load(None, std::iter::empty(), &[set]).unwrap();
        Daemon::bind(&config, Clock::System).unwrap()
    };
    let first = bind();
    fs::remove_file(&socket).unwrap();
    let second = bind();
    drop(first);
    assert!(socket.exists(), "the file of the second daemon was removed");
    drop(second);
    assert!(!socket.exists());
    // A file of another kind at the path does not belong to the daemon, and a missing file is no
    // error.
    let third = bind();
    fs::remove_file(&socket).unwrap();
    let other = UnixListener::bind(&socket).unwrap();
    drop(third);
    assert!(socket.exists());
    drop(other);
}

#[tokio::test]
async fn both_wildcards_listen_on_one_port() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("workers");
    authority
        .leaf(&["localhost"])
        .write(folder.path(), "server");
    fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    let file = folder.path().join("c.toml");
    let text = "[listen.tls]\ncertificate = \"server.crt\"\nkey = \"server.key\"\nclient_ca = \"ca.pem\"\n"
        .to_owned();
    fs::write(&file, text + &rule("dns:a", "*", "worker")).unwrap();
    let bind = |api: &str| {
        let config = Config::load(
            Some(&file),
            std::iter::empty(),
            &[format!("listen.api={api}")],
        )
        .unwrap();
        Daemon::bind(&config, Clock::System)
    };
    // Another test may take a free port before the daemon binds it.
    let mut tries = 0;
    let (port, daemon) = loop {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        match bind(&format!(
            "[\"tls://0.0.0.0:{port}\", \"tls://[::]:{port}\"]"
        )) {
            Ok(daemon) => break (port, daemon),
            Err(err) => assert!(tries < 5, "{err}"),
        }
        tries += 1;
    };
    for address in [
        SocketAddr::from(([127, 0, 0, 1], port)),
        SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)),
    ] {
        assert!(TcpStream::connect(address).await.is_ok(), "{address}");
    }
    drop(daemon);
    // A single [::] serves both families.
    let daemon = bind("[\"tls://[::]:0\"]").unwrap();
    let [Endpoint::Tls(address)] = daemon.endpoints()[..] else {
        panic!("one endpoint")
    };
    assert!(
        TcpStream::connect(("127.0.0.1", address.port()))
            .await
            .is_ok()
    );
}

#[test]
fn default_socket_is_optional_while_listen_api_is_unset() {
    let socket = |set: &[String]| {
        let config = Config::load(None, std::iter::empty(), set).unwrap();
        let unix = config
            .api
            .into_iter()
            .find(|endpoint| matches!(endpoint, Endpoint::Unix { .. }));
        match unix {
            Some(Endpoint::Unix { path, optional }) => (path.display().to_string(), optional),
            _ => panic!("no socket"),
        }
    };
    let (path, optional) = socket(&[]);
    assert!(optional);
    assert_eq!(
        socket(&[format!("listen.api=[\"unix://{path}\"]")]),
        (path, false)
    );
}

#[tokio::test]
async fn configured_socket_that_fails_ends_the_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let api = format!(
        "listen.api=[\"tcp://127.0.0.1:0\", \"unix://{}/file/api.sock\"]",
        folder.path().display()
    );
    let (written, good) = run(
        Command::new(env!("CARGO_BIN_EXE_tls-sessiond")).args(["--set", &api]),
        "",
    )
    .await;
    assert!(
        !good && written.contains("cannot listen on unix://"),
        "{written}"
    );
}

#[test]
fn options_stand_before_or_after_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (good, bad) = (
        path("good.toml", ""),
        path("bad.toml", "[limits]\nstreams = 0\n"),
    );
    let nowhere = "listen.api=[\"unix:///proc/nowhere/api.sock\"]";
    for (args, status) in [
        // If it cannot listen, the daemon ends with 1 if its file is valid, and with 78 if it is
        // invalid.
        (&["--config", &good, "--set", nowhere][..], 1),
        (&["--config", &good, "--set", nowhere, "serve"], 1),
        (&["serve", "--config", &good, "--set", nowhere], 1),
        (&["--set", nowhere, "serve", "--config", &good], 1),
        (&["--config", &bad, "serve"], 78),
        (&["serve", "--config", &bad], 78),
        (&["check", &good], 0),
        (&["check", &bad], 78),
        (&["--config", &good, "check"], 0),
        (&["check", "--config", &bad], 78),
        (&["--config", &bad, "check", &good], 0),
        (&["check", &good, "--set", "limits.streams=0"], 78),
        (&["--set", "limits.streams=0", "check", &good], 78),
        (&["check"], 2),
        (&["serve", &good], 2),
        (&["--set"], 2),
    ] {
        let output = StdCommand::new(env!("CARGO_BIN_EXE_tls-sessiond"))
            .args(args)
            .env_remove("TLS_SESSIOND_CONFIG")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(status),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test]
async fn second_signal_exits_with_the_documented_status() {
    let (help, _) = run(daemon(&["--help"]).env_clear(), "").await;
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("0 stopped by a signal, 1 cannot listen or failed while running, 2 wrong usage, 78 bad configuration, 128 + N ended at once by a second signal N"), "{help}");
    let mut child = daemon(&["--set", "drain.delay=1h"])
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    while !lines
        .next_line()
        .await
        .unwrap()
        .expect("it greets")
        .starts_with("listening")
    {}
    let until = Instant::now() + PATIENCE;
    // The process may receive both signals as one if the second comes too early.
    let ended = loop {
        signal(child.id().unwrap(), "INT").await;
        if let Ok(ended) = timeout(Duration::from_millis(100), child.wait()).await {
            break ended.unwrap();
        }
        assert!(Instant::now() < until, "the process does not end");
    };
    assert_eq!(ended.code(), Some(128 + 2));
}

#[tokio::test]
async fn client_takes_the_endpoints_that_the_daemon_prints() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command.args([
        "--set",
        &format!(
            "listen.api=[\"tcp://127.0.0.1:0\", \"unix://{}\"]",
            socket.display()
        ),
    ]);
    let mut process = Process::start(&mut command);
    for _ in 0..2 {
        let endpoint = process.says("listening on ").await;
        let worker = Worker::connect(Options::new(&endpoint, "test").unwrap());
        assert!(worker.attached(PATIENCE).await, "{endpoint}");
    }
}

#[tokio::test]
async fn examples_print_the_text_of_an_error() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let bad = ["--daemon", "gopher://nowhere"];
    for (name, args) in [
        ("tls_server", &["--listen", "127.0.0.1:0"][..]),
        (
            "tls_client",
            &["--connect", "127.0.0.1:1", "--server-name", "a"],
        ),
        (
            "rustls_worker",
            &[
                "--certificate",
                certificate,
                "--key",
                key,
                "--listen",
                "127.0.0.1:0",
            ],
        ),
        (
            "openssl_server",
            &[
                "--certificate",
                certificate,
                "--key",
                key,
                "--listen",
                "127.0.0.1:0",
            ],
        ),
        (
            "openssl_client",
            &["--connect", "127.0.0.1:1", "--ca", certificate],
        ),
    ] {
        let (written, good) = run(example(name).args(bad).args(args), "").await;
        assert!(!good, "{name}: {written}");
        assert!(
            written.starts_with(&format!("{name}: ")),
            "{name}: {written}"
        );
        assert!(
            !written.contains("Error:")
                && !written.contains('(')
                && written.contains("gopher://nowhere"),
            "{name}: {written}"
        );
    }
}

#[tokio::test]
async fn full_backlog_of_another_daemon_does_not_hang_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let socket = listen_for_nothing(&path);
    // Fills the backlog. No connection is accepted.
    let mut waiting = Vec::new();
    while let Ok(stream) = connect_at_once(&path) {
        waiting.push(stream);
    }
    let api = format!("listen.api=[\"unix://{}\"]", path.display());
    let (written, good) = run(
        Command::new(env!("CARGO_BIN_EXE_tls-sessiond")).args(["--set", &api]),
        "",
    )
    .await;
    assert!(
        !good && written.contains("another daemon answers there"),
        "{written}"
    );
    drop((socket, waiting));
}

fn unix_socket() -> rustix::fd::OwnedFd {
    let flags = rustix::net::SocketFlags::NONBLOCK;
    let (family, kind) = (
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
    );
    rustix::net::socket_with(family, kind, flags, None).unwrap()
}

/// Returns a listener with the shortest backlog that accepts nothing.
fn listen_for_nothing(path: &Path) -> rustix::fd::OwnedFd {
    let socket = unix_socket();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    socket
}

fn connect_at_once(path: &Path) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let socket = unix_socket();
    rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path).unwrap()).map(|()| socket)
}

#[tokio::test]
async fn one_of_many_starting_daemons_gets_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    for round in 0..10 {
        // The socket file of a dead daemon.
        drop(UnixListener::bind(&path).unwrap());
        let start = std::sync::Arc::new(std::sync::Barrier::new(4));
        let starting: Vec<_> = (0..4)
            .map(|_| {
                let (start, set) = (
                    start.clone(),
                    format!("listen.api=[\"unix://{}\"]", path.display()),
                );
                tokio::task::spawn_blocking(move || {
                    let config = Config::load(None, std::iter::empty(), &[set]).unwrap();
                    start.wait();
                    Daemon::bind(&config, Clock::System).ok()
                })
            })
            .collect();
        let mut live = Vec::new();
        for daemon in starting {
            live.extend(daemon.await.unwrap());
        }
        assert_eq!(live.len(), 1, "round {round}");
        assert!(
            tokio::net::UnixStream::connect(&path).await.is_ok(),
            "round {round}: it cannot be reached"
        );
        drop(live);
        assert!(!path.exists());
    }
}

/// Returns whether a thread of the daemon is reading configuration files.
fn reads_files(process: &Process) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok())
        .any(|name| name == "files\n")
}

#[tokio::test]
async fn reload_supersedes_a_hanging_one() {
    // The superseded reload is void when its file arrives at last, although it would add a context.
    reload_that_hangs_is_void("[[context]]\nname = \"default\"\n[[context]]\nname = \"late\"\n")
        .await;
}

#[tokio::test]
async fn superseded_reload_of_a_broken_file_logs_nothing() {
    reload_that_hangs_is_void("[[context]\n").await;
}

async fn reload_that_hangs_is_void(late: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("config"), folder.path().join("log"));
    fs::write(&config, "").unwrap();
    let mut command = daemon(&["--config", config.to_str().unwrap()]);
    let mut process = Process::logging(&mut command, fs::File::create(&log).unwrap());
    let address = process.says("listening on tcp://").await;
    fs::remove_file(&config).unwrap();
    fifo(&config);
    process.signal("HUP").await;
    let mut held = open_for(&config).await;
    fs::remove_file(&config).unwrap();
    fs::write(&config, "").unwrap();
    process.signal("HUP").await;
    let until = Instant::now() + PATIENCE;
    while !fs::read_to_string(&log)
        .unwrap()
        .contains("configuration reloaded")
    {
        assert!(
            Instant::now() < until,
            "{}",
            fs::read_to_string(&log).unwrap()
        );
        tokio::task::yield_now().await;
    }
    std::io::Write::write_all(&mut held, late.as_bytes()).unwrap();
    drop(held);
    let until = Instant::now() + PATIENCE;
    while reads_files(&process) {
        assert!(Instant::now() < until, "the hanging reload never ends");
        tokio::task::yield_now().await;
    }
    let mut contexts = ContextServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let late = contexts
        .get_context(pb::GetContextRequest {
            name: "late".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(late.code(), tonic::Code::NotFound, "{late:?}");
    let listed = contexts
        .list_contexts(pb::ListContextsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(
        listed.last_reload.unwrap().applied,
        "the last reload is not the one that applied"
    );
    process.signal("TERM").await;
    assert!(process.succeeds().await);
    let log = fs::read_to_string(&log).unwrap();
    assert_eq!(log.matches("configuration reloaded").count(), 1, "{log}");
}

#[test]
fn key_in_an_argument_is_not_printed() {
    let key = Authority::new("any").leaf(&["a"]).key;
    let body: String = key
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    for args in [
        &["--set", &key][..],
        &[&key],
        &["check", "x", &body],
        &["--port", &key],
        &["serve", &body],
    ] {
        let output = StdCommand::new(env!("CARGO_BIN_EXE_tls-sessiond"))
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(matches!(output.status.code(), Some(2 | 78)), "{said}");
        assert!(
            !said.contains(&body[8..40]),
            "a part of the key was printed: {said}"
        );
    }
}

#[test]
fn endless_or_deeply_nested_configuration_is_refused() {
    let deep = format!("a{}=1", ".a".repeat(30_000));
    for (args, said) in [
        (&["check", "/dev/zero"][..], "cannot read /dev/zero"),
        (&["check", "/dev/null", "--set", &deep], "--set a.a.a"),
    ] {
        let output = StdCommand::new(env!("CARGO_BIN_EXE_tls-sessiond"))
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains(said), "{text}");
    }
}
