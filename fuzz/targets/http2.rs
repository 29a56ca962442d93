//! HTTP/2 as a peer may send it: any frames, in any order, to a running daemon.
//!
//! ```text
//! input: steps, each with a byte for its kind; see `step`
//! ```
//!
//! The target checks:
//!
//! * No thread panics.
//! * The daemon closes when the peer does.
//! * Answers are whole frames of an allowed size.
//! * The daemon serves the next caller. Its limits are low, so that lost places are noticed.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    panic,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tls_sessiond::{config::Config, daemon::Daemon};
use tls_sessiond_core::clock::Clock;

use super::choices::Choices;
use crate::pki;

const STEPS_MAX: usize = 200;
/// Maximum time that the daemon may take to close.
const PATIENCE: Duration = Duration::from_secs(10);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// SETTINGS_MAX_FRAME_SIZE of a peer that sends no other value (RFC 9113 section 6.5.2).
const FRAME_MAX: usize = 1 << 14;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;

const PATHS: [&str; 8] = [
    "/tls.sessiond.v1.ConnectionService/Drive",
    "/tls.sessiond.v1.WorkerService/Attach",
    "/tls.sessiond.v1.ConnectionService/New",
    "/tls.sessiond.v1.ContextService/ListContexts",
    "/tls.sessiond.v1.SessionService/WatchSessions",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/tls.sessiond.v1.SessionService/PutSession",
];

/// The socket of the daemon, which lives as long as the process.
static SOCKET: OnceLock<PathBuf> = OnceLock::new();
/// Whether a thread of the daemon has panicked.
static PANICKED: AtomicBool = AtomicBool::new(false);

pub(crate) fn run(data: &[u8]) {
    let socket = SOCKET.get_or_init(start);
    let mut peer = UnixStream::connect(socket).expect("the daemon listens");
    peer.set_read_timeout(Some(PATIENCE))
        .expect("a socket has time-outs");
    peer.set_write_timeout(Some(PATIENCE))
        .expect("a socket has time-outs");
    let mut reads = peer.try_clone().expect("a socket can be cloned");
    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        let ended = reads.read_to_end(&mut all);
        (all, ended.map_err(|err| err.kind()))
    });
    let mut choices = Choices(data);
    let shape = choices.byte();
    let mut sent = Vec::new();
    if shape & 1 == 0 {
        sent.extend(PREFACE);
        let window = [0, 4]
            .into_iter()
            .chain(u32::from(shape >> 1).pow(3).to_be_bytes());
        sent.extend(frame(SETTINGS, 0, 0, &window.collect::<Vec<u8>>()));
    }
    for _ in 0..STEPS_MAX {
        if choices.is_empty() {
            break;
        }
        sent.extend(step(&mut choices));
    }
    // The daemon may close before it has read everything.
    let _ = peer.write_all(&sent);
    let _ = peer.shutdown(Shutdown::Write);
    let (answered, ended) = reading.join().expect("the reader does not panic");
    assert!(
        matches!(ended, Ok(_) | Err(ErrorKind::ConnectionReset)),
        "the daemon does not close: {ended:?}"
    );
    // Not checked if another frame size may have been agreed on.
    if shape & 1 == 0 && !sent.windows(2).any(|setting| setting == [0, 5]) {
        frames_are_whole(&answered, ended.is_ok());
    }
    serves(socket);
    assert!(
        !PANICKED.load(Ordering::SeqCst),
        "a thread of the daemon panicked"
    );
}

/// Returns the bytes of one step: a call, a message, any frame, or any bytes.
fn step(choices: &mut Choices<'_>) -> Vec<u8> {
    let what = choices.byte();
    let stream = u32::from(choices.byte() % 16) * 2 + 1;
    match what % 8 {
        0 | 1 => frame(
            HEADERS,
            END_HEADERS,
            stream,
            &call(PATHS[choices.below(PATHS.len())]),
        ),
        2 | 3 => {
            let message = choices.vector();
            let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
            frame(
                DATA,
                what >> 7,
                stream,
                &[&[0][..], &length, message].concat(),
            )
        }
        4 => frame(DATA, what >> 7, stream, choices.vector()),
        5 | 6 => {
            let (kind, flags) = (choices.byte() % 12, choices.byte());
            frame(
                kind,
                flags,
                if what & 16 == 0 { stream } else { 0 },
                choices.vector(),
            )
        }
        _ => choices.vector().to_vec(),
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns the header block of a call, in literal fields without indexing (RFC 7541 section 6.2.2).
fn call(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap_or(0)], text.as_bytes()].concat();
    fields
        .iter()
        .flat_map(|(name, value)| [vec![0], text(name), text(value)].concat())
        .collect()
}

/// Checks that the daemon writes whole frames, of the size that every peer accepts. A connection
/// that was reset may end within a frame.
fn frames_are_whole(mut answered: &[u8], in_order: bool) {
    while let [high, middle, low, kind, _, stream @ ..] = answered {
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        assert!(
            length <= FRAME_MAX && *kind < 10,
            "a frame of {length} bytes, kind {kind}"
        );
        let Some(rest) = stream.get(4 + length..) else {
            break;
        };
        answered = rest;
    }
    assert!(
        answered.is_empty() || !in_order,
        "the last {} bytes are not a frame",
        answered.len()
    );
}

/// Checks that another caller gets its answer.
fn serves(socket: &PathBuf) {
    let mut other = UnixStream::connect(socket).expect("the daemon listens");
    other
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket has time-outs");
    let list = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &[]),
        &frame(HEADERS, END_HEADERS, 1, &call(PATHS[3])),
        &frame(DATA, 1, 1, &[0; 5]),
    ];
    other
        .write_all(&list.concat())
        .expect("the daemon accepts a call");
    let mut answered = Vec::new();
    loop {
        let mut head = [0; 9];
        other.read_exact(&mut head).expect("the daemon answers");
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        other.read_exact(&mut payload).expect("the daemon answers");
        match head[3] {
            DATA => {
                answered.extend(payload);
                break;
            }
            kind => assert!(
                kind != 7 && kind != 3,
                "the call of another caller was refused"
            ),
        }
    }
    assert!(answered.len() > 5, "an answer has a message");
}

/// Starts a daemon with low limits, so that a lost place is noticed.
fn start() -> PathBuf {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::SeqCst);
        before(info);
    }));
    let folder = tempfile::tempdir().expect("a folder for the daemon").keep();
    pki::localhost(&folder);
    let socket = folder.join("api.sock");
    let text = format!(
        "[listen]\napi = [\"unix://{}\"]\n[limits]\nconnections = 64\ncalls_in_flight = 48\ncalls_per_owner = 40\n\
         request_bytes = \"1MiB\"\nrequest_bytes_per_owner = \"512KiB\"\nmessage = \"64KiB\"\nstreams = 32\nsockets = 64\n\
         [[context]]\nname = \"default\"\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n",
        socket.display()
    );
    let file = folder.join("fuzz.toml");
    std::fs::write(&file, text).expect("the file can be written");
    let config =
        Config::load(Some(&file), std::iter::empty(), &[]).expect("the configuration is valid");
    let (listens, listening) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        runtime.block_on(async {
            let daemon = Daemon::bind(&config, Clock::System).expect("the daemon listens");
            listens.send(()).expect("the other thread waits");
            daemon
                .run(std::future::pending::<()>())
                .await
                .expect("the daemon serves");
        });
    });
    listening.recv().expect("the daemon starts");
    socket
}
