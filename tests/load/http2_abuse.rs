//! Abusive HTTP/2 at every listener, with every role. The connection ends or its frames are
//! accepted, memory and latency are bounded, and other callers are served.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::{
    callers::{CALLERS, Caller, Guarded},
    frames::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw,
        SETTINGS, WINDOW_UPDATE, frame,
    },
    hostile::{announce, read_through},
    meter::{alone, cpu, memory},
};

const LIST: &str = "/tls.sessiond.v1.ContextService/ListContexts";
/// Answered to every role.
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const DRIVE: &str = "/tls.sessiond.v1.ConnectionService/Drive";
/// The most that the daemon may grow during one attack, in MiB.
const GROWTH: u64 = 32;
/// RFC 9113 section 7.
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;

/// The longest time for a call of another caller meanwhile. It is far above the usual time, for
/// busy hosts, but below that of a hanging daemon.
const LATENCY: Duration = Duration::from_secs(5);

/// A daemon, and an honest worker that calls it all the time.
struct Victim {
    guarded: Guarded,
    before: u64,
    stop: oneshot::Sender<()>,
    neighbour: tokio::task::JoinHandle<Duration>,
}

/// Makes one call of the honest worker.
async fn call(raw: &mut Raw, stream: u32) {
    let call = [
        frame(HEADERS, END_HEADERS, stream, &frames::call(LIST)),
        frame(DATA, END_STREAM, stream, &[0; 5]),
    ];
    assert!(
        raw.send(&call.concat()).await,
        "the daemon closed the connection of the other worker"
    );
    assert_eq!(raw.until(DATA).await.unwrap().stream, stream);
    let received = raw.until(HEADERS).await.unwrap();
    assert_eq!(received.stream, stream, "the trailers");
}

impl Victim {
    async fn start() -> Self {
        let guarded = Guarded::start().await;
        for caller in CALLERS {
            guarded
                .raw(caller, 65_535)
                .await
                .until(SETTINGS)
                .await
                .unwrap();
        }
        let mut raw = guarded.raw(Caller::Unix, 1 << 30).await;
        raw.agree().await;
        let wide = frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes());
        assert!(raw.send(&wide).await);
        for number in 0..50 {
            call(&mut raw, 2 * number + 1).await;
        }
        let before = memory(&guarded.daemon.process());
        let (stop, mut stopped) = oneshot::channel();
        let neighbour = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            for number in 50.. {
                let begun = Instant::now();
                call(&mut raw, 2 * number + 1).await;
                longest = longest.max(begun.elapsed());
                if stopped.try_recv().is_ok() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            longest
        });
        Self {
            guarded,
            before,
            stop,
            neighbour,
        }
    }

    async fn raw(&self, caller: Caller) -> Raw {
        self.guarded.raw(caller, 65_535).await
    }

    /// Asserts that memory is bounded, that the other worker was served in time, and that a new
    /// caller of each role is served.
    async fn stands(self, what: &str) {
        let process = self.guarded.daemon.process();
        let after = memory(&process);
        assert!(
            after <= self.before + GROWTH,
            "{what}: {} MiB before, {after} MiB after",
            self.before
        );
        for caller in CALLERS {
            let mut next = self.raw(caller).await;
            let call = [
                frame(HEADERS, END_HEADERS, 1, &frames::call(CHECK)),
                frame(DATA, END_STREAM, 1, &[0; 5]),
            ];
            assert!(next.send(&call.concat()).await);
            assert_eq!(
                next.until(DATA).await.unwrap().stream,
                1,
                "{what}: {caller:?}"
            );
        }
        self.stop
            .send(())
            .unwrap_or_else(|()| panic!("{what}: the other worker was not served"));
        let longest = self.neighbour.await.unwrap();
        println!(
            "{what}: {} MiB, {after} MiB; the other worker waited {longest:?} at most",
            self.before
        );
        assert!(
            longest < LATENCY,
            "{what}: the other worker waited {longest:?}"
        );
        // The daemon finishes the work of the attack and then idles: it soon works less than half
        // of the time.
        let mut spans = 0;
        loop {
            let worked = cpu(&process);
            tokio::time::sleep(Duration::from_millis(250)).await;
            let spent = cpu(&process) - worked;
            if spent < Duration::from_millis(125) {
                break;
            }
            spans += 1;
            assert!(spans < 40, "{what}: {spent:?} of work without requests");
        }
    }
}

/// Sends the frames that `make` returns, at most this many, and reads meanwhile so that the socket
/// does not fill. Returns how many it sent.
async fn flood(raw: &mut Raw, most: u32, make: impl Fn(u32) -> Vec<u8>) -> u32 {
    flood_by(256, raw, most, make).await
}

/// Floods as [`flood`] does, with this many frames in each write.
async fn flood_by(batch: u32, raw: &mut Raw, most: u32, make: impl Fn(u32) -> Vec<u8>) -> u32 {
    for first in (0..most).step_by(batch as usize) {
        let bytes: Vec<u8> = (first..first + batch).flat_map(&make).collect();
        if !raw.send(&bytes).await {
            return first;
        }
        raw.drain().await;
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_harms_no_other_caller() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    for (caller, path) in CALLERS
        .into_iter()
        .flat_map(|caller| [(caller, LIST), (caller, DRIVE)])
    {
        let mut raw = victim.raw(caller).await;
        let block = frames::call(path);
        let sent = flood_by(4096, &mut raw, 20_480, |number| {
            let stream = 2 * number + 1;
            let cancel = 8u32.to_be_bytes();
            [
                frame(HEADERS, END_HEADERS, stream, &block),
                frame(RST_STREAM, 0, stream, &cancel),
            ]
            .concat()
        })
        .await;
        // One turn of the daemon takes so few of them that a caller with a role, which may call
        // without limit, goes on.
        assert!(
            sent < 20_480 || caller.has_role(),
            "{caller:?} {path}: streams may be reset without end"
        );
    }
    victim.stands("rapid reset").await;
}

async fn header_blocks(victim: &Victim, caller: Caller) {
    // One call with too large headers, in a frame and its continuation. It is refused, and the next
    // call is answered.
    let mut raw = victim.raw(caller).await;
    let block = [
        frames::call(CHECK),
        frames::field("x-large", &"x".repeat(20_000)),
    ]
    .concat();
    let (head, tail) = block.split_at(16_000);
    let large = [
        frame(HEADERS, END_STREAM, 1, head),
        frame(CONTINUATION, END_HEADERS, 1, tail),
        frame(HEADERS, END_HEADERS, 3, &frames::call(CHECK)),
        frame(DATA, END_STREAM, 3, &[0; 5]),
    ];
    assert!(raw.send(&large.concat()).await);
    let answered = loop {
        match raw.next().await {
            Ok(next) if next.kind == DATA => {
                assert_eq!(next.stream, 3, "a call of 20 KB of headers was answered");
                break true;
            }
            Ok(next) if next.kind != GOAWAY => {}
            _ => break false,
        }
    };
    assert!(
        answered,
        "{caller:?}: one call too large ended the connection"
    );

    // A frame beyond SETTINGS_MAX_FRAME_SIZE.
    let mut raw = victim.raw(caller).await;
    raw.send(&frame(HEADERS, END_HEADERS, 1, &vec![0; 16_385]))
        .await;
    assert_eq!(raw.end().await, Some(FRAME_SIZE_ERROR), "{caller:?}");

    // Endless CONTINUATION frames, empty and not (CVE-2024-27316 and similar attacks).
    for piece in [
        &b""[..],
        &frames::field("x", &"y".repeat(1000)),
        &frames::field("x", &"y".repeat(16_000)),
    ] {
        let mut raw = victim.raw(caller).await;
        assert!(raw.send(&frame(HEADERS, 0, 1, &frames::call(CHECK))).await);
        let sent = flood(&mut raw, 51_200, |_| frame(CONTINUATION, 0, 1, piece)).await;
        assert!(
            sent < 51_200,
            "{caller:?}: CONTINUATION of {} bytes is accepted without end",
            piece.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_or_endless_header_blocks_are_refused() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    for caller in CALLERS {
        header_blocks(&victim, caller).await;
    }
    victim.stands("header blocks").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_answers_to_settings_and_pings_are_bounded() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    for caller in CALLERS {
        for bytes in [frame(PING, 0, 0, &[1; 8]), frame(SETTINGS, 0, 0, &[])] {
            let mut raw = victim.raw(caller).await;
            let many = bytes.repeat(1000);
            let mut sent = 0;
            // At most 2 million frames.
            while sent < 2000 && raw.send(&many).await {
                sent += 1;
            }
        }
    }
    victim.stands("SETTINGS and PING").await;
}

async fn windows(victim: &Victim, caller: Caller) {
    // A stream that stays open. Any caller may watch the daemon's health.
    let path = if caller.is_worker() { DRIVE } else { WATCH };
    let open = frame(HEADERS, END_HEADERS, 1, &frames::call(path));
    let most = 0x7fff_ffffu32.to_be_bytes();
    let over = [&4u16.to_be_bytes()[..], &0x8000_0000u32.to_be_bytes()].concat();
    for (what, bytes) in [
        ("no step", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("beyond the most", frame(WINDOW_UPDATE, 0, 0, &most)),
        ("a setting beyond the most", frame(SETTINGS, 0, 0, &over)),
        ("of half a size", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        (
            "of a stream that never was",
            frame(WINDOW_UPDATE, 0, 9, &most),
        ),
    ] {
        let mut raw = victim.raw(caller).await;
        raw.send(&[&open[..], &bytes].concat()).await;
        let end = raw.end().await;
        assert!(
            end.is_some_and(|code| code != 0),
            "{caller:?} {what}: {end:?}"
        );
    }
    let mut raw = victim.raw(caller).await;
    raw.send(&[&open[..], &frame(WINDOW_UPDATE, 0, 1, &most)].concat())
        .await;
    let reset = raw.until(RST_STREAM).await.unwrap();
    assert_eq!(
        (reset.stream, &reset.payload[..]),
        (1, &FLOW_CONTROL_ERROR.to_be_bytes()[..])
    );
    // More than the daemon's window: it buffers 256 KiB of a stream that it does not read.
    let mut raw = victim.raw(caller).await;
    raw.send(&open).await;
    let data = frame(DATA, 0, 1, &[0; 16_000]);
    flood(&mut raw, 5120, |_| data.clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_windows_end_the_stream_or_the_connection() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    for caller in CALLERS {
        windows(&victim, caller).await;
    }
    victim.stands("windows").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data_frames_are_bounded() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    // A call that is read, and a Drive whose answers have no window, so that it is not read.
    let all = CALLERS.into_iter().flat_map(|caller| {
        [
            (caller, LIST, 65_535),
            (caller, DRIVE, 65_535),
            (caller, DRIVE, 0),
        ]
    });
    for (caller, path, window) in all {
        let mut raw = victim.guarded.raw(caller, window).await;
        assert!(
            raw.send(&frame(HEADERS, END_HEADERS, 1, &frames::call(path)))
                .await
        );
        if path == DRIVE {
            // new { role: ROLE_SERVER }
            assert!(
                raw.send(&frame(DATA, 0, 1, &frames::message(&[10, 2, 16, 2])))
                    .await
            );
        }
        let sent = flood(&mut raw, 1 << 20, |_| frame(DATA, 0, 1, &[])).await;
        assert!(
            sent < 1 << 20,
            "{caller:?} {path}: empty frames are accepted without end"
        );
    }
    victim.stands("empty DATA").await;
}

#[tokio::test]
async fn unfinished_calls_harm_no_other_caller() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    let mut held = Vec::new();
    for caller in CALLERS {
        // A caller without a role has four connections, and the last of them makes the final check.
        for path in [
            "/tls.sessiond.v1.ConnectionService/Drive",
            "/tls.sessiond.v1.WorkerService/Attach",
            "/tls.sessiond.v1.SessionService/PutSession",
        ] {
            let mut raw = victim.raw(caller).await;
            raw.until(SETTINGS).await.unwrap();
            let streams = if caller.is_worker() { 200 } else { 16 };
            let announced = if caller.has_role() { 2 << 20 } else { 16 << 10 };
            for stream in 0..streams {
                assert!(
                    raw.send(&announce(2 * stream + 1, path, announced)).await,
                    "{caller:?}"
                );
            }
            assert!(read_through(&mut raw).await, "{caller:?}: {path}");
            held.push(raw);
        }
    }
    victim.stands("announced messages").await;
    drop(held);
}
