//! Callers that announce messages and never send them. Memory grows with the bytes that arrived,
//! not with the rights of the caller.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    binary::Binary,
    callers::{Caller, Guarded},
    frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, Raw, SETTINGS, WINDOW_UPDATE, frame},
    meter::{alone, memory},
};

/// The most memory that a caller without a role may hold, and the unfinished requests of a worker,
/// in MiB.
const WITHOUT_ROLE: u64 = 20;
const WORKER: u64 = 150;
/// Rules that give a local caller no role.
const NO_ROLE: [&str; 2] = [
    "--set",
    "access=[{identity=\"uid:54321\", contexts=[\"*\"], role=\"worker\"}]",
];

/// Encodes a call, and the prefix of a message of this many bytes.
pub(crate) fn announce(stream: u32, path: &str, bytes: u32) -> Vec<u8> {
    let prefix = [&[0][..], &bytes.to_be_bytes()].concat();
    [
        frame(HEADERS, END_HEADERS, stream, &frames::call(path)),
        frame(DATA, 0, stream, &prefix),
    ]
    .concat()
}

/// Waits until the daemon has read everything sent before: it answers a PING sent last.
pub(crate) async fn read_through(raw: &mut Raw) -> bool {
    raw.send(&frame(frames::PING, 0, 0, &[7; 8])).await && raw.until(frames::PING).await.is_ok()
}

async fn grows_by(args: &[&str], path: &str, announced: u32, connections: usize) -> u64 {
    let daemon = Binary::start(args).await;
    // The first call allocates memory that later calls share.
    let mut first = Raw::connect(&daemon.address, 65_535).await;
    let _ = first.send(&announce(1, path, 5)).await && read_through(&mut first).await;
    drop(first);
    let before = memory(&daemon.process());
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut raw = Raw::connect(&daemon.address, 65_535).await;
        // The daemon closes connections beyond the limit.
        let Ok(settings) = raw.until(SETTINGS).await else {
            continue;
        };
        let limit = settings
            .payload
            .chunks(6)
            .find(|setting| setting[..2] == [0, 3])
            .expect("a limit of streams");
        let limit = u32::from_be_bytes(limit[2..6].try_into().unwrap()).min(1000);
        for stream in 0..limit {
            if !raw.send(&announce(2 * stream + 1, path, announced)).await {
                break;
            }
        }
        if read_through(&mut raw).await {
            held.push(raw);
        }
    }
    assert!(!held.is_empty(), "{path}: no connection is open");
    let after = memory(&daemon.process());
    println!(
        "{path}: {before} MiB, {after} MiB with {} connections",
        held.len()
    );
    after.saturating_sub(before)
}

#[tokio::test]
async fn announced_messages_of_a_worker_take_no_memory() {
    let _alone = alone().await;
    for path in [
        "/tls.sessiond.v1.ConnectionService/Drive",
        "/tls.sessiond.v1.ConnectionService/Exchange",
        "/tls.sessiond.v1.WorkerService/Attach",
        "/tls.sessiond.v1.SessionService/PutSession",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        let announced = if path.starts_with("/grpc") {
            16 << 10
        } else {
            2 << 20
        };
        let grown = grows_by(&[], path, announced, 2).await;
        assert!(grown < WORKER / 2, "{path}: {grown} MiB");
    }
}

#[tokio::test]
async fn caller_without_a_role_holds_less_than_20_mib() {
    let _alone = alone().await;
    for path in [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/tls.sessiond.v1.ConnectionService/Drive",
        "/nowhere/Nothing",
    ] {
        let grown = grows_by(&NO_ROLE, path, 16 << 10, 40).await;
        assert!(grown < WITHOUT_ROLE, "{path}: {grown} MiB");
    }
}

#[tokio::test]
async fn unread_answers_without_a_role_are_bounded() {
    let _alone = alone().await;
    let daemon = Binary::start(&NO_ROLE).await;
    let before = memory(&daemon.process());
    let mut held = Vec::new();
    for _ in 0..40 {
        // The answers have no window, and the requests ask for long answers.
        let mut raw = Raw::connect(&daemon.address, 0).await;
        if raw.until(SETTINGS).await.is_err() {
            continue;
        }
        let symbol = b"\x22\x21tls.sessiond.v1.ConnectionService";
        for stream in 0..16 {
            // In one frame, because many small frames alone end the connection.
            let asks = frames::message(symbol).repeat(50);
            let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
            let mut bytes = frame(HEADERS, END_HEADERS, 2 * stream + 1, &frames::call(path));
            bytes.extend(frame(DATA, 0, 2 * stream + 1, &asks));
            if !raw.send(&bytes).await {
                break;
            }
        }
        let _ = raw
            .send(&frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()))
            .await;
        if read_through(&mut raw).await {
            held.push(raw);
        }
    }
    assert!(
        (1..=4).contains(&held.len()),
        "{} connections of a caller without a role",
        held.len()
    );
    let grown = memory(&daemon.process()).saturating_sub(before);
    assert!(grown < WITHOUT_ROLE, "{grown} MiB");
}

/// Memory that a worker makes the daemon hold.
struct Unread {
    path: &'static str,
    /// The bytes that open each call, and the flags of their frame.
    opens: Vec<u8>,
    flags: u8,
    /// The bytes sent after them, on each stream in turn.
    more: Vec<u8>,
    /// How often `more` is sent.
    times: u32,
    /// The window for each answer.
    window: u32,
    /// The number of calls on each connection, and the number of connections.
    streams: u32,
    connections: usize,
}

/// `new { role: ROLE_SERVER }`, on a Drive.
fn new() -> Vec<u8> {
    frames::message(&[10, 2, 16, 2])
}

/// Returns a call of an Attach, `lookup_session {}`, of 16,000 bytes with an unknown field.
fn long_call() -> Vec<u8> {
    let length = |bytes: usize| {
        [
            u8::try_from(bytes & 127).unwrap() | 128,
            u8::try_from(bytes >> 7).unwrap(),
        ]
    };
    let call = [&[8, 1, 74, 0, 122][..], &length(15_990), &[0; 15_990]].concat();
    [&[10][..], &length(call.len()), &call].concat()
}

impl Unread {
    /// Sends everything and returns the connections, whether calls were reset meanwhile or not.
    async fn sent_to(&self, address: &str) -> Vec<Raw> {
        self.sent_by(async || Raw::connect(address, self.window).await)
            .await
    }

    /// Does the same on connections that `connect` opens.
    async fn sent_by(&self, connect: impl AsyncFn() -> Raw) -> Vec<Raw> {
        let mut held = Vec::new();
        for _ in 0..self.connections {
            let mut raw = connect().await;
            raw.agree().await;
            let step = (i32::MAX as u32 - 65_535).to_be_bytes();
            let _ = self.window > 0 && raw.send(&frame(WINDOW_UPDATE, 0, 0, &step)).await;
            let mut bytes = Vec::new();
            for stream in 0..self.streams {
                bytes.extend(frame(
                    HEADERS,
                    END_HEADERS,
                    2 * stream + 1,
                    &frames::call(self.path),
                ));
                if !self.opens.is_empty() {
                    bytes.extend(frame(DATA, self.flags, 2 * stream + 1, &self.opens));
                }
            }
            let mut goes_on = raw.send_all(&bytes).await;
            for _ in 0..self.times {
                let round: Vec<u8> = (0..self.streams)
                    .flat_map(|stream| frame(DATA, 0, 2 * stream + 1, &self.more))
                    .collect();
                goes_on = goes_on && raw.send_all(&round).await;
            }
            held.push(raw);
        }
        // When the daemon answers on another connection, it has read everything that it is going to
        // read.
        assert!(
            read_through(&mut connect().await).await,
            "{}: no other connection is served",
            self.path
        );
        held
    }
}

#[tokio::test]
async fn unread_answers_of_a_worker_take_less_than_150_mib() {
    let _alone = alone().await;
    const DRIVE: &str = "/tls.sessiond.v1.ConnectionService/Drive";
    const ATTACH: &str = "/tls.sessiond.v1.WorkerService/Attach";
    const LIST: &str = "/tls.sessiond.v1.ContextService/ListContexts";
    // A call of an Attach with the number 1 that makes nothing: lookup_session {}.
    let calls = frames::message(&[10, 4, 8, 1, 74, 0].repeat(100));
    let wide = i32::MAX as u32;
    // Requests continue after answers that have no window.
    let stuck = |path, opens| Unread {
        path,
        opens,
        flags: 0,
        more: vec![0; 16_000],
        times: 10,
        window: 0,
        streams: 1000,
        connections: 2,
    };
    let lists = |window| Unread {
        opens: frames::message(&[]),
        flags: END_STREAM,
        times: 0,
        window,
        streams: 4000,
        connections: 8,
        ..stuck(LIST, Vec::new())
    };
    let mute = |path| Unread {
        times: 0,
        window: 65_535,
        streams: 4000,
        connections: 4,
        ..stuck(path, Vec::new())
    };
    let attacks = [
        stuck(DRIVE, new()),
        Unread {
            more: vec![0],
            times: 500,
            streams: 200,
            ..stuck(DRIVE, new())
        },
        stuck(ATTACH, calls.clone()),
        lists(0),
        // Wide windows, and a socket that is not read.
        Unread {
            more: calls.clone(),
            times: 500,
            window: wide,
            streams: 50,
            connections: 4,
            ..stuck(ATTACH, calls)
        },
        lists(wide),
        // Long messages that are read and answered. A stream keeps the buffer of its longest
        // message.
        Unread {
            opens: [&[0][..], &(64u32 * 16_000).to_be_bytes()].concat(),
            more: long_call(),
            times: 64,
            window: wide,
            streams: 60,
            connections: 3,
            ..stuck(ATTACH, Vec::new())
        },
        // Calls without a message.
        mute(DRIVE),
        mute(ATTACH),
    ];
    let all = Binary::start(&[]).await;
    let (before_all, mut held) = (memory(&all.process()), Vec::new());
    for attack in &attacks {
        let daemon = Binary::start(&[]).await;
        let before = memory(&daemon.process());
        let alone = attack.sent_to(&daemon.address).await;
        let grown = memory(&daemon.process()).saturating_sub(before);
        println!(
            "{} {} x {}: {grown} MiB",
            attack.path, attack.connections, attack.streams
        );
        assert!(grown < WORKER, "{}: {grown} MiB", attack.path);
        drop((alone, daemon));
        held.push(attack.sent_to(&all.address).await);
        println!(
            "    with the attacks before: {} MiB",
            memory(&all.process()).saturating_sub(before_all)
        );
    }
    let grown = memory(&all.process()).saturating_sub(before_all);
    assert!(grown < WORKER, "all at once: {grown} MiB");
}

#[tokio::test]
async fn unread_answers_of_other_roles_take_less_than_150_mib() {
    let _alone = alone().await;
    let guarded = Guarded::start().await;
    let before = memory(&guarded.daemon.process());
    let mut held = Vec::new();
    for (caller, window) in [("observer", 0), ("observer", i32::MAX as u32), ("admin", 0)] {
        for path in [
            "/tls.sessiond.v1.ContextService/ListContexts",
            "/tls.sessiond.v1.SessionService/WatchSessions",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            let attack = if path.starts_with("/grpc.reflection") {
                (
                    frames::message(b"\x22\x21tls.sessiond.v1.ConnectionService").repeat(20),
                    0,
                )
            } else {
                (frames::message(&[]), END_STREAM)
            };
            let attack = Unread {
                path,
                opens: attack.0,
                flags: attack.1,
                more: vec![0; 400],
                times: if attack.1 == 0 { 10 } else { 0 },
                window,
                streams: 100,
                connections: 20,
            };
            held.push(
                attack
                    .sent_by(async || guarded.raw(Caller::Tls(caller), window).await)
                    .await,
            );
        }
    }
    let grown = memory(&guarded.daemon.process()).saturating_sub(before);
    println!(
        "{grown} MiB with {} connections",
        held.iter().map(Vec::len).sum::<usize>()
    );
    // Two identities, and the memory of their TLS connections.
    assert!(grown < WORKER, "{grown} MiB");
}

#[tokio::test]
async fn incomplete_preface_times_out_and_delays_no_stop() {
    let daemon = Binary::start(&["--set", "drain.timeout=1h"]).await;
    let mut mute = Vec::new();
    for bytes in [1, 10, 23] {
        let mut socket = TcpStream::connect(&daemon.address).await.unwrap();
        socket
            .write_all(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..bytes])
            .await
            .unwrap();
        mute.push(socket);
    }
    // The daemon closes one of them by itself.
    let mut first = mute.remove(0);
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(frames::SOON, first.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection stays open");
    let mut late = TcpStream::connect(&daemon.address).await.unwrap();
    late.write_all(b"PRI * HTTP").await.unwrap();
    let began = Instant::now();
    daemon.terminate().await;
    let (status, _) = daemon.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    drop((mute, late));
}
