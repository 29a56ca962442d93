//! Many streams on one HTTP/2 connection: the limit, its log line and counters, and the memory of
//! quiet streams.

use std::{
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};

use rustls::{ClientConnection, version::TLS13};
use tempfile::TempDir;
use tls_sessiond::config::Config;
use tls_sessiond_client::{Lookup, Options, Worker};
use tls_sessiond_proto::{
    self as pb, connection_service_client::ConnectionServiceClient,
    context_service_client::ContextServiceClient, drive_request::Event as Request,
    drive_response::Event as Answer,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    process::Command,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    binary::Binary,
    doors::{over, rule},
    harness,
    process::{PATIENCE, Process, example},
    returning::{Certificate, Returning},
};

/// The daemon as a process, with its log in a file.
struct Logged {
    _process: Process,
    address: String,
    socket: PathBuf,
    log: PathBuf,
    _folder: TempDir,
}

impl Logged {
    async fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (file, log, socket) = (path("daemon.toml"), path("log"), path("api.sock"));
        fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        let api = format!(
            "listen.api=[\"tcp://127.0.0.1:0\", \"unix://{}\"]",
            socket.display()
        );
        command.arg("--config").arg(&file).args(["--set", &api]);
        let mut process = Process::logging(&mut command, File::create(&log).unwrap());
        let address = process.says("listening on tcp://").await;
        process.says("listening on unix://").await;
        Self {
            _process: process,
            address,
            socket,
            log,
            _folder: folder,
        }
    }

    async fn channel(&self) -> Channel {
        channel(&self.address).await
    }

    /// Returns the log lines about the limit.
    fn lines(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap();
        // A read may see the beginning of a line that the daemon is writing.
        let whole = log
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'));
        whole
            .filter(|line| line.contains("limits.streams"))
            .map(str::to_owned)
            .collect()
    }

    /// Waits for this many log lines about the limit.
    async fn until_lines(&self, count: usize) -> Vec<String> {
        let wait = async {
            while self.lines().len() < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("never {count} lines: {:?}", self.lines()));
        self.lines()
    }
}

/// Opens one HTTP/2 connection.
async fn channel(address: &str) -> Channel {
    let socket = TcpStream::connect(address).await.unwrap();
    // A call that waits for an acknowledgement costs 40 ms.
    socket.set_nodelay(true).unwrap();
    over(socket).await
}

/// Returns the daemon's counters of connections that reached their limit, and how often they did.
async fn reached(channel: &Channel) -> (u64, u64) {
    let mut contexts = ContextServiceClient::new(channel.clone());
    let request = contexts.list_contexts(pb::ListContextsRequest {});
    let listed = timeout(PATIENCE, request)
        .await
        .expect("an answer")
        .unwrap()
        .into_inner();
    let daemon = listed.daemon.unwrap();
    (daemon.stream_limit_connections, daemon.stream_limit_reached)
}

async fn until_reached(channel: &Channel, wanted: (u64, u64)) {
    let wait = async {
        while reached(channel).await != wanted {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never {wanted:?}"));
}

/// A Drive that stays open.
struct Drive {
    requests: mpsc::Sender<pb::DriveRequest>,
    answers: Streaming<pb::DriveResponse>,
}

impl Drive {
    async fn open(channel: &Channel) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        let event = Some(Request::New(harness::new("", pb::Role::Server)));
        requests.send(pb::DriveRequest { event }).await.unwrap();
        let opened = ConnectionServiceClient::new(channel.clone())
            .drive(ReceiverStream::new(receiver))
            .await;
        let mut drive = Self {
            requests,
            answers: opened.unwrap().into_inner(),
        };
        assert!(matches!(drive.next().await, Some(Answer::Opened(_))));
        drive
    }

    async fn next(&mut self) -> Option<Answer> {
        let answer = timeout(PATIENCE, self.answers.message())
            .await
            .expect("an answer")
            .unwrap();
        answer.and_then(|answer| answer.event)
    }

    async fn send(&self, ciphertext: Vec<u8>) {
        let event = Some(Request::Ciphertext(ciphertext.into()));
        self.requests
            .send(pb::DriveRequest { event })
            .await
            .unwrap();
    }

    /// Runs a handshake with a client.
    async fn meet(&mut self, tls: &mut ClientConnection) {
        let mut established = false;
        while !established || tls.is_handshaking() {
            let records = written(tls);
            if !records.is_empty() {
                self.send(records).await;
            }
            match self
                .next()
                .await
                .expect("the stream ended in the handshake")
            {
                Answer::Ciphertext(records) => feed(tls, &records),
                Answer::Established(_) => established = true,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Ends the worker's half and waits for the end of the stream.
    async fn end(mut self) {
        drop(self.requests);
        let rest = timeout(PATIENCE, self.answers.message())
            .await
            .expect("the end")
            .unwrap();
        assert_eq!(rest, None);
    }
}

fn written(tls: &mut ClientConnection) -> Vec<u8> {
    let mut records = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut records).unwrap();
    }
    records
}

fn feed(tls: &mut ClientConnection, mut records: &[u8]) {
    while !records.is_empty() {
        tls.read_tls(&mut records).unwrap();
        tls.process_new_packets().unwrap();
    }
}

#[tokio::test]
async fn call_beyond_the_stream_limit_is_logged_and_counted() {
    let daemon = Logged::start("[limits]\nstreams = 4\n").await;
    let (full, other) = (daemon.channel().await, daemon.channel().await);
    let mut drives = Vec::new();
    for _ in 0..3 {
        drives.push(Drive::open(&full).await);
    }
    assert_eq!(
        reached(&full).await,
        (0, 0),
        "one more stream is free for calls"
    );
    drives.push(Drive::open(&full).await);
    let mut waits = tokio::spawn({
        let full = full.clone();
        async move { reached(&full).await }
    });
    until_reached(&other, (1, 1)).await;
    let lines = daemon.until_lines(1).await;
    for part in [
        "WARN",
        "limits.streams",
        "\"owner\":\"local\"",
        "\"limit\":4",
        "open another connection",
    ] {
        assert!(lines[0].contains(part), "{part} in {lines:?}");
    }
    // Calls on the other connection are answered meanwhile.
    assert!(
        timeout(Duration::from_millis(200), &mut waits)
            .await
            .is_err(),
        "a call beyond the limit was answered"
    );
    drives.pop().unwrap().end().await;
    assert_eq!(
        timeout(PATIENCE, waits)
            .await
            .expect("no stream is free")
            .unwrap(),
        (1, 1)
    );
}

#[tokio::test]
async fn limit_is_logged_again_only_after_streams_have_ended() {
    let daemon = Logged::start("[limits]\nstreams = 8\n").await;
    let (full, other) = (daemon.channel().await, daemon.channel().await);
    let mut drives = Vec::new();
    for _ in 0..8 {
        drives.push(Drive::open(&full).await);
    }
    // One stream is ended and opened again, over and over.
    for _ in 0..20 {
        drives.pop().unwrap().end().await;
        drives.push(Drive::open(&full).await);
    }
    until_reached(&other, (1, 1)).await;
    for _ in 0..2 {
        drives.pop().unwrap().end().await;
    }
    for _ in 0..2 {
        drives.push(Drive::open(&full).await);
    }
    until_reached(&other, (1, 2)).await;
    assert_eq!(daemon.until_lines(2).await.len(), 2);
}

#[tokio::test]
async fn attach_and_watch_count_towards_the_stream_limit() {
    let daemon = Logged::start("[limits]\nstreams = 3\n").await;
    let (full, other) = (daemon.channel().await, daemon.channel().await);
    let mut guest = crate::doors::Guest::new(&full);
    let _attached = guest.attach().await;
    let _watched = guest.watch("").await;
    assert_eq!(reached(&other).await, (0, 0));
    let _drive = Drive::open(&full).await;
    until_reached(&other, (1, 1)).await;
}

/// Returns the SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_INITIAL_WINDOW_SIZE that the daemon
/// sends on a new connection.
async fn settings<S: AsyncRead + tokio::io::AsyncWrite + Unpin>(mut socket: S) -> (u32, u32) {
    let preface = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
        &[0, 0, 0, 4, 0, 0, 0, 0, 0],
    ]
    .concat();
    socket.write_all(&preface).await.unwrap();
    let mut header = [0; 9];
    timeout(PATIENCE, socket.read_exact(&mut header))
        .await
        .expect("SETTINGS")
        .unwrap();
    assert_eq!(
        header[3], 4,
        "the first frame is SETTINGS (RFC 9113 section 3.4)"
    );
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
    let mut values = vec![0; usize::try_from(length).unwrap()];
    socket.read_exact(&mut values).await.unwrap();
    let value = |wanted: u16| {
        let setting = values
            .chunks(6)
            .find(|setting| setting[..2] == wanted.to_be_bytes())
            .unwrap();
        u32::from_be_bytes(setting[2..].try_into().unwrap())
    };
    (value(3), value(4))
}

#[tokio::test]
async fn stream_limit_depends_on_the_callers_roles() {
    let uid = rustix::process::getuid().as_raw();
    let rules = rule(&format!("uid:{uid}"), "*", "admin") + &rule("local", "*", "worker");
    let limits = Config::defaults().limits;
    for (config, tcp, unix) in [
        (String::new(), limits.streams, limits.streams),
        (rules.clone(), limits.streams, limits.streams_non_worker),
        (
            format!("[limits]\nstreams = 20\nstreams_non_worker = 7\n{rules}"),
            20,
            7,
        ),
        (format!("[limits]\nstreams = 20\n{rules}"), 20, 20),
    ] {
        let daemon = Logged::start(&config).await;
        let over_tcp = settings(TcpStream::connect(&daemon.address).await.unwrap()).await;
        let over_unix = settings(UnixStream::connect(&daemon.socket).await.unwrap()).await;
        assert_eq!((over_tcp.0, over_unix.0), (tcp, unix), "{config}");
        // The window of workers does not shrink as the limit grows, so their streams stay fast.
        // Requests of other callers are short.
        let window_of_others = if config.contains("[[access]]") {
            (64 << 10) - 1
        } else {
            256 << 10
        };
        assert_eq!(
            (over_tcp.1, over_unix.1),
            (256 << 10, window_of_others),
            "{config}"
        );
    }
}

#[tokio::test]
async fn example_opens_more_channels_beyond_the_stream_limit() {
    const LIMIT: usize = 4;
    const CLIENTS: usize = 3 * LIMIT + 1;
    let certificate = Certificate::new();
    let daemon = Logged::start(&format!(
        "[limits]\nstreams = {LIMIT}\n{}",
        certificate.context()
    ))
    .await;
    let url = format!("http://{}", daemon.address);
    let streams = (LIMIT - 1).to_string();
    let args = [
        "--daemon",
        &url,
        "--listen",
        "127.0.0.1:0",
        "--name",
        "one",
        "--streams",
        &streams,
    ];
    let mut server = Process::start(example("tls_server").args(args));
    let address = server.says("listening on ").await;
    let client = Returning::new(&certificate, &TLS13);
    // All clients are connected and quiet at the same time.
    let mut quiet = Vec::new();
    for _ in 0..CLIENTS {
        quiet.push(client.connect(&address).await);
    }
    for mut tls in quiet {
        tls.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut page = String::new();
        timeout(PATIENCE, tls.read_to_string(&mut page))
            .await
            .expect("a page")
            .unwrap();
        assert!(page.contains("one:"), "{page}");
    }
    assert_eq!(
        reached(&daemon.channel().await).await,
        (0, 0),
        "a channel reached its limit"
    );
}

#[tokio::test]
async fn rust_client_needs_one_stream_of_its_connection() {
    let daemon = Logged::start("[limits]\nstreams = 1\n").await;
    let url = format!("http://{}", daemon.address);
    let mut options = Options::new(&url, "openssl").unwrap();
    options.lookup_deadline = PATIENCE;
    let worker = Worker::connect(options);
    assert!(worker.attached(PATIENCE).await);
    for id in 0..100_u8 {
        assert!(worker.lookup(Lookup::server(&[id; 32])).await.is_none());
    }
    let counters = worker.counters();
    assert_eq!((counters.misses, counters.timeouts), (100, 0));
}

/// Returns the resident memory of a process in bytes (proc_pid_status(5), VmRSS).
fn resident(process: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        << 10
}

/// The most bytes that the daemon may use for a quiet connection: as a bare object, established by
/// Exchange, and by Drive.
const BARE_MAX: usize = 3 << 10;
const EXCHANGED_MAX: usize = 12 << 10;
const DRIVEN_MAX: usize = 24 << 10;

#[tokio::test]
async fn quiet_connections_take_bounded_memory() {
    /// Bare objects, established objects, Drives.
    const COUNTS: [usize; 3] = [4_000, 800, 800];
    let certificate = Certificate::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("daemon.toml");
    fs::write(&file, certificate.context()).unwrap();
    let daemon = Binary::start(&["--config", file.to_str().unwrap()]).await;
    let channel = channel(&daemon.address).await;
    let process = daemon.process();
    let client = Returning::new(&certificate, &TLS13);
    let mut connections = ConnectionServiceClient::new(channel.clone());
    let mut drives = Vec::new();
    let mut sizes = Vec::new();
    for (kind, count) in COUNTS.into_iter().enumerate() {
        // The first round fills the memory that all connections share: pools, tables and pages of
        // code.
        let mut before = 0;
        for number in 0..count * 5 / 4 {
            if number == count / 4 {
                before = resident(&process);
            }
            let mut tls = client.tls();
            match kind {
                2 => {
                    let mut drive = Drive::open(&channel).await;
                    drive.meet(&mut tls).await;
                    drives.push(drive);
                }
                _ => {
                    let new = harness::new("", pb::Role::Server);
                    let made = connections.new_connection(new).await.unwrap().into_inner();
                    let connection_id = made.connection.unwrap().id;
                    let mut established = kind == 0;
                    while !established {
                        let ciphertext = written(&mut tls).into();
                        let connection_id = connection_id.clone();
                        let request = pb::ExchangeRequest {
                            connection_id,
                            ciphertext,
                            ..Default::default()
                        };
                        let answer = connections.exchange(request).await.unwrap().into_inner();
                        feed(&mut tls, &answer.ciphertext);
                        let state = answer.connection.unwrap().state();
                        established = state == pb::ConnectionState::Established;
                    }
                }
            }
        }
        sizes.push((resident(&process) - before) / count);
    }
    println!(
        "bare {}, by Exchange {}, by Drive {} bytes",
        sizes[0], sizes[1], sizes[2]
    );
    for (size, most) in sizes.into_iter().zip([BARE_MAX, EXCHANGED_MAX, DRIVEN_MAX]) {
        assert!(size <= most, "{size} of {most} bytes");
    }
}
