//! A backend at a Unix socket.

use std::time::Duration;

use rustls::version::TLS13;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    time::sleep,
};

use super::world::{Home, Proxies, fetch, until};

#[tokio::test]
async fn backend_with_a_full_queue_gets_every_connection() {
    const CLIENTS: usize = 20;
    let home = Home::new();
    let path = home.path("backend.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // A queue of two connections. A further one is not put off by the system, but refused.
    rustix::net::listen(&listener, 1).unwrap();
    let config = home.proxy(
        &format!("unix://{path}"),
        "own",
        "connect_timeout = \"30s\"",
    );
    let proxies = Proxies::start(&config).await;
    let clients = (0..CLIENTS).map(|_| {
        let (client, at) = (home.client(&TLS13), proxies.at[0].clone());
        tokio::spawn(async move { fetch(&client, &at).await.0 })
    });
    let clients: Vec<_> = clients.collect();
    until("all handshakes are done", async || {
        proxies
            .metric("proxy_handshakes_total", "version=\"1.3\"")
            .await
            == CLIENTS as u64
    })
    .await;
    // All but two of them have found the queue full by then.
    sleep(Duration::from_millis(50)).await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            drop(socket.read(&mut [0; 1024]).await);
            drop(socket.write_all(b"answer").await);
        }
    });
    for client in clients {
        assert_eq!(client.await.unwrap(), "answer");
    }
    assert_eq!(proxies.ends("backend_away").await, 0);
}
