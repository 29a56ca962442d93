//! Backends that answer, and end, while the client still uploads. No client takes an answer for whole
//! that is not, and an answer that is whole arrives.

use rustls::version::TLS13;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    time::{Duration, sleep, timeout},
};

use super::world::{BOTH, Backend, Daemon, Ending, Home, Proxies, drained, fetch, until};
use crate::process::PATIENCE;

/// What the buffers between the proxy and a client that does not read hold.
const ANSWER: usize = 300 << 10;

/// What the backend does with the rest of the upload.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rest {
    /// It ends its half, and reads on.
    Reads,
    /// It ends its half, and closes its socket with unread bytes in it: the system sends a reset.
    EndsThenResets,
    /// It closes its socket at once, with unread bytes in it: the system sends a reset only.
    Resets,
}

/// Waits until the socket has bytes that nothing reads.
async fn unread(backend: &TcpStream) {
    let wait = async {
        while rustix::io::ioctl_fionread(backend).unwrap() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("no upload arrives");
}

/// Answers. `passed` is ready when the proxy has passed the answer on.
async fn answer(mut backend: TcpStream, rest: Rest, passed: oneshot::Receiver<()>) {
    backend.read_exact(&mut [0; 7]).await.unwrap();
    unread(&backend).await;
    if rest == Rest::Resets {
        backend.write_all(b"a part").await.unwrap();
        return;
    }
    backend.write_all(&vec![b'a'; ANSWER]).await.unwrap();
    backend.shutdown().await.unwrap();
    if rest == Rest::Reads {
        tokio::io::copy(&mut backend, &mut tokio::io::sink())
            .await
            .ok();
    } else {
        passed.await.unwrap();
        unread(&backend).await;
    }
}

#[tokio::test]
async fn early_answer_arrives_whole_or_is_no_answer() {
    let (daemon, home) = (Daemon::start(&[]).await, Home::new());
    let backend = Backend::listen().await;
    let proxies = Proxies::start(&home.proxy(&backend.uri(), &daemon.uri(), "")).await;
    let answering = Backend::answering("back again").await;
    let next = Proxies::start(&home.proxy(&answering, &daemon.uri(), "")).await;
    for (version, rest) in BOTH.into_iter().flat_map(|version| {
        [Rest::Reads, Rest::EndsThenResets, Rest::Resets].map(|rest| (version, rest))
    }) {
        let what = format!("{rest:?} {:?}", version.version);
        let client = home.client(version);
        let (before, removed) = (daemon.stats().await.accept_good, daemon.removals().await);
        let (tls, socket) = tokio::join!(client.connect(&proxies.at[0]), backend.accept());
        let (mut from, mut to) = tokio::io::split(tls);
        let (passes, passed) = oneshot::channel();
        let answered = tokio::spawn(answer(socket, rest, passed));
        let (stop, stopped) = oneshot::channel::<()>();
        let received = proxies
            .metric("proxy_traffic_bytes_total", "received")
            .await;
        let upload = tokio::spawn(async move {
            to.write_all(b"request").await.unwrap();
            let piece = vec![b'x'; 16 << 10];
            let send = async { while to.write_all(&piece).await.is_ok() {} };
            tokio::select! {
                () = send => {}
                _ = stopped => {}
            }
            to
        });
        if rest == Rest::EndsThenResets {
            // The client is slow to read, so the answer waits on the way, behind it the end.
            until("the answer is on its way", async || {
                let now = proxies
                    .metric("proxy_traffic_bytes_total", "received")
                    .await;
                now == received + ANSWER as u64
            })
            .await;
            passes.send(()).unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        let (data, ending) = drained(&mut from).await;
        drop(stop);
        let mut to = upload.await.unwrap();
        answered.await.unwrap();
        match rest {
            Rest::Reads | Rest::EndsThenResets => {
                assert_eq!((data.len(), ending), (ANSWER, Ending::Whole), "{what}");
                to.shutdown().await.ok();
            }
            Rest::Resets => assert_ne!(ending, Ending::Whole, "{what}"),
        }
        drop((from, to));
        daemon.settled(before, 1).await;
        let tickets = u64::from(version.version == TLS13.version) + 1;
        let lost = if rest == Rest::Resets { tickets } else { 0 };
        assert_eq!(
            daemon.removals().await,
            (removed.0 + lost, removed.1),
            "{what}"
        );
        let late = next.late_lookups().await;
        let (_, is_resumed) = fetch(&client, &next.at[0]).await;
        daemon.settled(before, 2).await;
        if next.late_lookups().await == late {
            assert_eq!(is_resumed, rest != Rest::Resets, "{what}");
        }
    }
}

#[tokio::test]
async fn upload_that_is_cut_after_the_answer_is_not_whole() {
    let home = Home::new();
    let backend = Backend::listen().await;
    let proxies = Proxies::start(&home.proxy(&backend.uri(), "own", "")).await;
    for version in BOTH {
        let client = home.client(version);
        let (mut tls, mut socket) = tokio::join!(client.connect(&proxies.at[0]), backend.accept());
        tls.write_all(b"request").await.unwrap();
        socket.read_exact(&mut [0; 7]).await.unwrap();
        socket.write_all(b"answer").await.unwrap();
        socket.shutdown().await.unwrap();
        let (answer, ending) = drained(&mut tls).await;
        assert_eq!((answer.as_str(), ending), ("answer", Ending::Whole));
        // The close_notify was sent, so the session stays. But the upload is cut.
        tls.write_all(b"more").await.unwrap();
        socket.read_exact(&mut [0; 4]).await.unwrap();
        drop(tls);
        assert_eq!(
            drained(&mut socket).await.1,
            Ending::Reset,
            "{:?}",
            version.version
        );
    }
    until("both are closed", async || {
        proxies.ends("closed").await == 2
    })
    .await;
}
