//! Outages of the daemon under live connections: none breaks, new handshakes are full ones, and
//! resumption comes back by itself.

use std::time::Duration;

use rustls::version::TLS13;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};

use super::world::{
    BOTH, Backend, Daemon, Ending, Home, Proxies, Tls, drained, fetch, resumed, until,
};

const LIVE: usize = 200;

/// A backend that sends each byte back, and ends when the client does.
async fn echo() -> String {
    let backend = Backend::listen().await;
    let uri = backend.uri();
    tokio::spawn(async move {
        loop {
            let mut socket = backend.accept().await;
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                drop(tokio::io::copy(&mut from, &mut to).await);
                drop(to.shutdown().await);
            });
        }
    });
    uri
}

/// Sends a byte over each connection, and waits until it is back.
async fn all_live(live: &mut [Tls]) {
    for tls in live {
        tls.write_all(b"!").await.unwrap();
        tls.read_exact(&mut [0]).await.unwrap();
    }
}

/// Ends a connection cleanly.
async fn close(mut tls: Tls) {
    tls.shutdown().await.unwrap();
    assert_eq!(drained(&mut tls).await.1, Ending::Whole);
}

/// Waits until a client that comes twice resumes, in both versions.
async fn resumption_is_back(home: &Home, address: &str) {
    for version in BOTH {
        until("clients resume", async || {
            let client = home.client(version);
            close(client.connect(address).await).await;
            // The report of the end is on its way.
            sleep(Duration::from_millis(20)).await;
            let tls = client.connect(address).await;
            let is_resumed = resumed(&tls);
            close(tls).await;
            is_resumed
        })
        .await;
    }
}

/// Checks that new handshakes are full ones, and that their connections work.
async fn full_ones(home: &Home, address: &str) {
    for version in BOTH {
        let client = home.client(version);
        for _ in 0..3 {
            let mut tls = client.connect(address).await;
            assert!(!resumed(&tls), "{:?}", version.version);
            all_live(std::slice::from_mut(&mut tls)).await;
            close(tls).await;
        }
    }
}

#[tokio::test]
async fn outages_break_no_connection_and_end_by_themselves() {
    let (daemon, home) = (Daemon::start(&[]).await, Home::new());
    let address = daemon.binary.address.clone();
    let proxies = Proxies::start(&home.proxy(&echo().await, &daemon.uri(), "")).await;
    let at = &proxies.at[0];
    let mut live = Vec::new();
    for place in 0..LIVE {
        live.push(home.client(BOTH[place % 2]).connect(at).await);
    }
    all_live(&mut live).await;
    resumption_is_back(&home, at).await;

    // The daemon answers nothing, and its sockets stay open.
    daemon.binary.signal("-STOP").await;
    until("its threads are stopped", async || {
        let client = home.client(&TLS13);
        close(client.connect(at).await).await;
        let tls = client.connect(at).await;
        let is_resumed = resumed(&tls);
        close(tls).await;
        !is_resumed
    })
    .await;
    full_ones(&home, at).await;
    all_live(&mut live).await;
    daemon.binary.signal("-CONT").await;
    resumption_is_back(&home, at).await;
    all_live(&mut live).await;

    daemon.binary.kill().await;
    full_ones(&home, at).await;
    all_live(&mut live).await;
    until("the proxy knows", async || {
        proxies.metric("proxy_attached", "").await == 0
    })
    .await;
    let ready = proxies.get("/readyz").await;
    assert_eq!(ready.status, 200, "a proxy without its daemon serves");
    assert!(ready.body.contains(&address), "{}", ready.body);

    let daemon = Daemon::start(&["--set", &format!("listen.api=[\"tcp://{address}\"]")]).await;
    assert_eq!(daemon.binary.address, address);
    resumption_is_back(&home, at).await;
    all_live(&mut live).await;
    for tls in live {
        close(tls).await;
    }
    let unclean = [
        "truncated",
        "peer_reset",
        "alert",
        "backend_reset",
        "idle",
        "stopped",
    ];
    for end in unclean {
        assert_eq!(proxies.ends(end).await, 0, "{end}");
    }
    daemon.binary.terminate().await;
}

#[tokio::test]
async fn daemon_that_refuses_the_proxy_is_told() {
    let (daemon, home) = (Daemon::start(&[]).await, Home::new());
    let backend = Backend::answering("answer").await;
    let unknown = "context = \"unknown\"";
    let proxies = Proxies::start(&home.proxy(&backend, &daemon.uri(), unknown)).await;
    let client = home.client(&TLS13);
    for _ in 0..2 {
        assert!(!fetch(&client, &proxies.at[0]).await.1);
    }
    proxies.logs("the daemon refuses calls").await;
    let told = proxies.get("/readyz").await.body;
    assert!(told.contains("unknown: the daemon refuses calls"), "{told}");
    assert_eq!(proxies.metric("proxy_attached", "").await, 0);

    // Local callers have no rule.
    let rule = "access=[{identity=\"dns:other.test\", contexts=[\"*\"], role=\"worker\"}]";
    let strict = Daemon::start(&["--set", rule]).await;
    let config = home.proxy(&backend, &strict.uri(), "");
    let proxies = Proxies::without_daemon(&config).await;
    proxies.logs("the daemon refused the stream").await;
}
