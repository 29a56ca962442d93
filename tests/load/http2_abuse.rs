//! HTTP/2 that is meant to hurt: the connection ends, or its frames are taken; memory is bounded, and others are served.

use tls_sessiond::proto::{self as pb, context_service_client::ContextServiceClient};
use tonic::transport::Channel;

use crate::{
    binary::Binary,
    frames::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS,
        SOON, WINDOW_UPDATE, frame,
    },
    meter::{alone, memory},
};

const LIST: &str = "/tls.sessiond.v1.ContextService/ListContexts";
const DRIVE: &str = "/tls.sessiond.v1.ConnectionService/Drive";
/// What a daemon may grow by, in MiB, whatever one connection does.
const GROWTH: u64 = 32;
/// RFC 9113 section 7.
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;

/// A daemon, and somebody else who calls it all the time.
struct Victim {
    daemon: Binary,
    before: u64,
    neighbour: tokio::task::JoinHandle<()>,
}

impl Victim {
    async fn start() -> Self {
        let daemon = Binary::start(&[]).await;
        let channel =
            Channel::from_shared(format!("http://{}", daemon.address)).unwrap().connect().await.unwrap();
        let mut client = ContextServiceClient::new(channel);
        for _ in 0..50 {
            client.list_contexts(pb::ListContextsRequest {}).await.unwrap();
        }
        let before = memory(&daemon.process());
        let neighbour = tokio::spawn(async move {
            loop {
                let call = client.list_contexts(pb::ListContextsRequest {});
                tokio::time::timeout(SOON, call).await.expect("a neighbour waits").unwrap();
                tokio::task::yield_now().await;
            }
        });
        Self { daemon, before, neighbour }
    }

    async fn raw(&self) -> Raw {
        Raw::connect(&self.daemon.address, 65_535).await
    }

    /// Memory is bounded, the neighbour was served, and who comes now is too.
    async fn stands(self, what: &str) {
        let after = memory(&self.daemon.process());
        println!("{what}: {} MiB, {after} MiB", self.before);
        assert!(after <= self.before + GROWTH, "{what}: {} MiB before, {after} MiB after", self.before);
        assert!(!self.neighbour.is_finished(), "{what}: {:?}", self.neighbour.await);
        self.neighbour.abort();
        let mut next = self.raw().await;
        let call = [frame(HEADERS, END_HEADERS, 1, &frames::call(LIST)), frame(DATA, END_STREAM, 1, &[0; 5])];
        assert!(next.send(&call.concat()).await);
        assert_eq!(next.until(DATA).await.unwrap().stream, 1, "{what}");
    }
}

/// Sends what `make` makes, up to a number, and reads meanwhile so that nothing is in the way; tells how many went out.
async fn flood(raw: &mut Raw, most: u32, make: impl Fn(u32) -> Vec<u8>) -> u32 {
    const BATCH: u32 = 256;
    for batch in 0..most / BATCH {
        let bytes: Vec<u8> = (0..BATCH).flat_map(|place| make(batch * BATCH + place)).collect();
        if !raw.send(&bytes).await {
            return batch * BATCH;
        }
        let mut heard = [0; 65536];
        while matches!(raw.0.try_read(&mut heard), Ok(1..)) {}
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_at_once_cost_nobody_else() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    for path in [LIST, DRIVE] {
        let mut raw = victim.raw().await;
        let block = frames::call(path);
        let sent = flood(&mut raw, 20_480, |number| {
            let stream = 2 * number + 1;
            let cancel = 8u32.to_be_bytes();
            [frame(HEADERS, END_HEADERS, stream, &block), frame(RST_STREAM, 0, stream, &cancel)].concat()
        })
        .await;
        println!("{path}: {sent} were sent before the end");
        assert!(sent < 20_480, "streams are reset without end");
    }
    victim.stands("rapid reset").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_blocks_beyond_the_limit_are_refused_and_ones_without_end_end_the_connection() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    // One call too large, in a frame and its continuation: the call is refused, the next one is answered.
    let mut raw = victim.raw().await;
    let block = [frames::call(LIST), frames::field("x-large", &"x".repeat(20_000))].concat();
    let (head, tail) = block.split_at(16_000);
    let large = [
        frame(HEADERS, END_STREAM, 1, head),
        frame(CONTINUATION, END_HEADERS, 1, tail),
        frame(HEADERS, END_HEADERS, 3, &frames::call(LIST)),
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
    assert!(answered, "one call too large ended the connection");

    // A frame beyond what was agreed.
    let mut raw = victim.raw().await;
    raw.send(&frame(HEADERS, END_HEADERS, 1, &vec![0; 16_385])).await;
    assert_eq!(raw.end().await, Some(FRAME_SIZE_ERROR));

    // CONTINUATION without end, with and without anything in it (CVE-2024-27316 and its kin).
    for piece in [&b""[..], &frames::field("x", &"y".repeat(1000)), &frames::field("x", &"y".repeat(16_000))]
    {
        let mut raw = victim.raw().await;
        assert!(raw.send(&frame(HEADERS, 0, 1, &frames::call(LIST))).await);
        let sent = flood(&mut raw, 51_200, |_| frame(CONTINUATION, 0, 1, piece)).await;
        println!("CONTINUATION of {}: {sent} were taken", piece.len());
        assert!(sent < 51_200, "CONTINUATION frames of {} bytes are taken without end", piece.len());
    }
    victim.stands("header blocks").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_pings_that_nobody_reads_the_answers_of_are_bounded() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    for (what, bytes) in [("PING", frame(PING, 0, 0, &[1; 8])), ("SETTINGS", frame(SETTINGS, 0, 0, &[]))] {
        let mut raw = victim.raw().await;
        let many = bytes.repeat(1000);
        let mut sent = 0;
        // Bounded: 2 million frames.
        while sent < 2000 && raw.send(&many).await {
            sent += 1;
        }
        println!("{what}: {sent} thousand were taken");
    }
    victim.stands("SETTINGS and PING").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_that_are_wrong_end_the_stream_or_the_connection() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    let open = frame(HEADERS, END_HEADERS, 1, &frames::call(DRIVE));
    let most = 0x7fff_ffffu32.to_be_bytes();
    let over = [&4u16.to_be_bytes()[..], &0x8000_0000u32.to_be_bytes()].concat();
    for (what, bytes) in [
        ("no step", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("beyond the most", frame(WINDOW_UPDATE, 0, 0, &most)),
        ("a setting beyond the most", frame(SETTINGS, 0, 0, &over)),
        ("of half a size", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        ("of a stream that never was", frame(WINDOW_UPDATE, 0, 9, &most)),
    ] {
        let mut raw = victim.raw().await;
        raw.send(&[&open[..], &bytes].concat()).await;
        let end = raw.end().await;
        assert!(end.is_some_and(|code| code != 0), "{what}: {end:?}");
    }
    let mut raw = victim.raw().await;
    raw.send(&[&open[..], &frame(WINDOW_UPDATE, 0, 1, &most)].concat()).await;
    let reset = raw.until(RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, &reset.payload[..]), (1, &FLOW_CONTROL_ERROR.to_be_bytes()[..]));
    // More than the window of a connection's other end: it takes 256 KiB of a stream that it does not read.
    let mut raw = victim.raw().await;
    raw.send(&open).await;
    let data = frame(DATA, 0, 1, &[0; 16_000]);
    let sent = flood(&mut raw, 5120, |_| data.clone()).await;
    println!("{sent} DATA frames of 16000 bytes went out");
    victim.stands("windows").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_without_anything_in_it_is_bounded() {
    let _alone = alone().await;
    let victim = Victim::start().await;
    // A call that is read, and a Drive whose answers have no window: it is not read from.
    for (path, window) in [(LIST, 65_535), (DRIVE, 65_535), (DRIVE, 0)] {
        let mut raw = Raw::connect(&victim.daemon.address, window).await;
        assert!(raw.send(&frame(HEADERS, END_HEADERS, 1, &frames::call(path))).await);
        if path == DRIVE {
            // new { role: ROLE_SERVER }
            assert!(raw.send(&frame(DATA, 0, 1, &frames::message(&[10, 2, 16, 2]))).await);
        }
        let sent = flood(&mut raw, 1 << 20, |_| frame(DATA, 0, 1, &[])).await;
        println!("{path} {window}: {sent} were taken; {} MiB", memory(&victim.daemon.process()));
        assert!(sent < 1 << 20, "frames with nothing in them are taken without end");
    }
    victim.stands("empty DATA").await;
}
