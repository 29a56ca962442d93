//! The end of the process: SIGKILL, a drain, and the probes meanwhile.

use rustls::{
    SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::world::{
    BOTH, Backend, Client, Daemon, Ending, Home, Proxies, Tls, drained, fetch, until,
};

/// A proxy that ends, with one open connection, and the proxy where its client returns.
struct Scene {
    daemon: Daemon,
    ends: Proxies,
    next: Proxies,
    backend: Backend,
    home: Home,
}

impl Scene {
    async fn new() -> Self {
        let (daemon, home) = (Daemon::start(&[]).await, Home::new());
        let backend = Backend::listen().await;
        let drain = "[drain]\ndelay = \"0s\"\ntimeout = \"300ms\"\n";
        let config = home.proxy(&backend.uri(), &daemon.uri(), drain);
        let answering = Backend::answering("back again").await;
        let next = Proxies::start(&home.proxy(&answering, &daemon.uri(), "")).await;
        Self {
            ends: Proxies::start(&config).await,
            next,
            daemon,
            backend,
            home,
        }
    }

    /// Opens a connection through the proxy that ends, and passes bytes in both directions.
    async fn open(
        &self,
        version: &'static SupportedProtocolVersion,
    ) -> (Client, Tls, TcpStream, u64) {
        let client = self.home.client(version);
        let before = self.daemon.stats().await.accept_good;
        let at = &self.ends.at[0];
        let (mut tls, mut backend) = tokio::join!(client.connect(at), self.backend.accept());
        tls.write_all(b"request").await.unwrap();
        backend.read_exact(&mut [0; 7]).await.unwrap();
        backend.write_all(b"answer").await.unwrap();
        tls.read_exact(&mut [0; 6]).await.unwrap();
        (client, tls, backend, before)
    }

    /// Checks the fate of the sessions after the end, and by a handshake at the other proxy.
    async fn fate(&self, client: &Client, version: &'static SupportedProtocolVersion, keeps: bool) {
        let sessions = u64::from(version.version == TLS13.version) + 1;
        let removed = if keeps { 0 } else { sessions };
        assert_eq!(self.daemon.removals().await, (removed, 0));
        let late = self.next.late_lookups().await;
        let (_, is_resumed) = fetch(client, &self.next.at[0]).await;
        if self.next.late_lookups().await == late {
            assert_eq!(is_resumed, keeps);
        }
    }
}

#[tokio::test]
async fn killed_proxy_loses_its_open_sessions() {
    for version in BOTH {
        let scene = Scene::new().await;
        let (client, mut tls, mut backend, before) = scene.open(version).await;
        scene.ends.process.signal("KILL").await;
        scene.daemon.settled(before, 1).await;
        assert_ne!(drained(&mut tls).await.1, Ending::Whole);
        drained(&mut backend).await;
        scene.fate(&client, version, false).await;
    }
}

#[tokio::test]
async fn quiet_connection_ends_cleanly_after_the_drain() {
    for version in BOTH {
        let scene = Scene::new().await;
        let (client, mut tls, mut backend, before) = scene.open(version).await;
        scene.ends.process.signal("TERM").await;
        assert_eq!(drained(&mut backend).await.1, Ending::Whole);
        drop(backend);
        assert_eq!(drained(&mut tls).await.1, Ending::Whole);
        tls.shutdown().await.unwrap();
        scene.daemon.settled(before, 1).await;
        scene.fate(&client, version, true).await;
        assert!(scene.ends.process.succeeds().await);
    }
}

#[tokio::test]
async fn connection_that_does_not_end_is_reset_after_the_drain() {
    let scene = Scene::new().await;
    let (client, mut tls, mut backend, before) = scene.open(&TLS12).await;
    scene.ends.process.signal("TERM").await;
    // The backend gets the end of the client, and does not end itself.
    assert_eq!(backend.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(drained(&mut tls).await.1, Ending::Reset);
    scene.daemon.settled(before, 1).await;
    scene.fate(&client, &TLS12, false).await;
    scene
        .ends
        .logs("drain time-out: ending the remaining connections")
        .await;
    assert!(scene.ends.process.succeeds().await);
}

#[tokio::test]
async fn upload_on_its_way_is_reset_after_the_drain() {
    let scene = Scene::new().await;
    let (client, tls, mut backend, before) = scene.open(&TLS13).await;
    let (from, mut to) = tokio::io::split(tls);
    let upload = tokio::spawn(async move { while to.write_all(b"data").await.is_ok() {} });
    scene.ends.process.signal("TERM").await;
    // An end would be taken for that of the upload.
    let mut data = [0; 4096];
    let ended = loop {
        match backend.read(&mut data).await {
            Ok(0) => break Ending::Whole,
            Ok(_) => {}
            Err(_) => break Ending::Reset,
        }
    };
    assert_eq!(ended, Ending::Reset);
    upload.await.unwrap();
    drop(from);
    scene.daemon.settled(before, 1).await;
    scene.fate(&client, &TLS13, false).await;
    assert!(scene.ends.process.succeeds().await);
}

#[tokio::test]
async fn probes_tell_of_the_drain_and_of_sessions_that_are_away() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let away = format!("unix://{}", home.path("nothing.sock"));
    let config = home.proxy(&backend, &away, "[drain]\ndelay = \"1h\"\n");
    let proxies = Proxies::without_daemon(&config).await;
    let asked = async |path: &str| {
        let answer = proxies.get(path).await;
        (answer.status, answer.body)
    };
    assert_eq!(asked("/livez").await, (200, "alive\n".into()));
    assert_eq!(asked("/startupz").await, (200, "started\n".into()));
    until("it is ready", async || asked("/readyz").await.0 == 200).await;
    let told = format!(
        "ready; handshakes are full ones, because these sessions are away: {away} default: No such file"
    );
    until("the reason is told", async || {
        let (status, said) = asked("/readyz").await;
        status == 200 && said.starts_with(&told)
    })
    .await;
    proxies.logs("the daemon does not have the sessions").await;

    proxies.process.signal("TERM").await;
    until("it drains", async || asked("/readyz").await.0 == 503).await;
    assert_eq!(
        asked("/readyz").await.1,
        "not ready: the proxy starts or drains\n"
    );
    assert_eq!(asked("/livez").await.0, 200);
    // During the delay, the load balancer still sends connections.
    let (answer, _) = fetch(&home.client(&TLS13), &proxies.at[0]).await;
    assert_eq!(answer, "answer");
    proxies.process.signal("TERM").await;
    assert!(
        !proxies.process.succeeds().await,
        "a second signal ends the process at once"
    );
}
