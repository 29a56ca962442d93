//! Many peers that are slow or idle do not stop others, and cost little memory.

use std::time::Duration;

use rustls::version::TLS13;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use super::world::{Backend, Ending, Home, Proxies, Tls, drained, fetch, said_to, until};

const PEERS: usize = 1_000;
/// Most memory that an idle connection may cost in a debug build, in bytes.
const MEMORY_MAX: usize = 100_000;

/// The beginning of a ClientHello.
const BEGINNING: [u8; 6] = [22, 3, 1, 2, 0, 1];

/// Does this many handshakes, and leaves the connections idle.
async fn idle(home: &Home, address: &str, count: usize) -> Vec<Tls> {
    let client = home.client(&TLS13);
    let mut idle = Vec::new();
    while idle.len() < count {
        let batch = (0..(count - idle.len()).min(50)).map(|_| {
            let (client, address) = (client.clone(), address.to_owned());
            tokio::spawn(async move {
                let socket = TcpStream::connect(address).await.unwrap();
                client.over(socket, "localhost").await.unwrap()
            })
        });
        for handshake in batch.collect::<Vec<_>>() {
            idle.push(handshake.await.unwrap());
        }
    }
    idle
}

/// Returns the memory of a process, in bytes.
fn memory(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().unwrap() * 1024
}

/// A backend that keeps its connections and sends nothing, but answers the bytes `request`.
async fn quiet_backend() -> String {
    let backend = Backend::listen().await;
    let uri = backend.uri();
    tokio::spawn(async move {
        loop {
            let mut socket = backend.accept().await;
            tokio::spawn(async move {
                if socket.read_exact(&mut [0; 7]).await.is_ok() {
                    drop(socket.write_all(b"answer").await);
                }
            });
        }
    });
    uri
}

#[tokio::test]
async fn thousand_slow_and_thousand_idle_peers_stop_no_other() {
    let home = Home::new();
    let config = home.proxy(&quiet_backend().await, "own", "handshake_timeout = \"2m\"");
    let proxies = Proxies::start(&config).await;
    let process = proxies.process.id();
    let gauge = async |state: &str| {
        proxies
            .metric("proxy_connections", &format!("state=\"{state}\""))
            .await
    };
    // The first handshakes make room for later ones that they need themselves.
    let first = idle(&home, &proxies.at[0], 20).await;
    let before = memory(process);
    let idle = idle(&home, &proxies.at[0], PEERS).await;
    until("all of them are established", async || {
        gauge("established").await == (PEERS + first.len()) as u64
    })
    .await;
    let each = memory(process).saturating_sub(before) / PEERS;
    println!("memory of an idle connection: {each} bytes");
    assert!(each < MEMORY_MAX, "{each} bytes");

    let mut slow = Vec::new();
    for _ in 0..PEERS {
        let mut socket = TcpStream::connect(&proxies.at[0]).await.unwrap();
        socket.write_all(&BEGINNING[..1]).await.unwrap();
        slow.push(socket);
    }
    until("all of them are slow", async || {
        gauge("handshake").await == PEERS as u64
    })
    .await;
    let trickle = tokio::spawn(async move {
        for byte in &BEGINNING[1..] {
            for socket in &mut slow {
                socket.write_all(&[*byte]).await.unwrap();
            }
            sleep(Duration::from_millis(50)).await;
        }
        slow
    });
    for _ in 0..5 {
        let (answer, _) = fetch(&home.client(&TLS13), &proxies.at[0]).await;
        assert_eq!(answer, "answer");
    }
    let slow = trickle.await.unwrap();
    assert_eq!(gauge("handshake").await, PEERS as u64);
    // The idle ones are served as before.
    for mut tls in idle.into_iter().take(5) {
        tls.write_all(b"request").await.unwrap();
        assert_eq!(drained(&mut tls).await, ("answer".into(), Ending::Whole));
    }
    drop((slow, first));
}

#[tokio::test]
async fn earliest_handshake_makes_room_and_established_connections_do_not() {
    const PLACES: usize = 20;
    let home = Home::new();
    let more = format!("connections = {PLACES}\nhandshake_timeout = \"2m\"");
    let config = home.proxy(&quiet_backend().await, "own", &more);
    let proxies = Proxies::start(&config).await;
    let mut slow = Vec::new();
    for _ in 0..PLACES {
        let mut socket = TcpStream::connect(&proxies.at[0]).await.unwrap();
        socket.write_all(&BEGINNING).await.unwrap();
        slow.push(socket);
        let count = slow.len() as u64;
        until("the peer has its place", async || {
            proxies
                .metric("proxy_connections", "state=\"handshake\"")
                .await
                == count
        })
        .await;
    }
    let held = idle(&home, &proxies.at[0], 1).await;
    assert_eq!(proxies.unserved("made_room").await, 1);
    // The earliest has ended, and the next one has not.
    assert_eq!(drained(&mut slow[0]).await.0, "");
    let more = tokio::time::timeout(Duration::from_millis(100), slow[1].read(&mut [0])).await;
    assert!(more.is_err(), "{more:?}");
    drop(slow);
    until("the slow peers have left", async || {
        proxies
            .metric("proxy_connections", "state=\"handshake\"")
            .await
            == 0
    })
    .await;

    let others = idle(&home, &proxies.at[0], PLACES - 1).await;
    // A client is done before the proxy has read its last flight.
    until("all of them are established", async || {
        proxies
            .metric("proxy_connections", "state=\"established\"")
            .await
            == PLACES as u64
    })
    .await;
    for _ in 0..50 {
        assert_eq!(said_to(&proxies.at[0], b"").await.1, Ending::Reset);
    }
    assert_eq!(proxies.unserved("too_many_connections").await, 50);
    proxies.logs("as many connections are open").await;
    let log = proxies.log();
    let lines = log
        .matches("as many connections are open as the proxy allows")
        .count();
    assert!((1..=10).contains(&lines), "{log}");
    drop((held, others));
    until("a place is free", async || {
        let Ok(socket) = TcpStream::connect(&proxies.at[0]).await else {
            return false;
        };
        home.client(&TLS13).over(socket, "localhost").await.is_ok()
    })
    .await;
}
