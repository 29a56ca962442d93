//! `connect`: local programs speak plaintext, and the proxy speaks TLS to the server with sessions that
//! all programs share.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::{
    HandshakeKind, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
};
use tokio_rustls::TlsAcceptor;

use super::world::{BOTH, Daemon, Ending, Home, Proxies, drained, said_to, until};
use crate::pki::{Authority, Leaf};

/// A TLS server of the test. It answers each request, and closes.
struct Server {
    port: u16,
    full: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
}

impl Server {
    async fn start(version: &'static SupportedProtocolVersion, leaf: &Leaf) -> Self {
        let chain = vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_protocol_versions(&[version])
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            full: Arc::default(),
            resumed: Arc::default(),
        };
        let (full, resumed) = (Arc::clone(&server.full), Arc::clone(&server.resumed));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, full, resumed) = (acceptor.clone(), full.clone(), resumed.clone());
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(socket).await else {
                        return;
                    };
                    let kind = tls.get_ref().1.handshake_kind();
                    let counter = match kind {
                        Some(HandshakeKind::Resumed) => resumed,
                        _ => full,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    let mut request = [0; 7];
                    if tls.read_exact(&mut request).await.is_err() {
                        return;
                    }
                    // One that is to be cut gets no close_notify.
                    drop(tls.write_all(b"answer").await);
                    if &request == b"request" {
                        drop(tls.shutdown().await);
                        drop(tokio::io::copy(&mut tls, &mut tokio::io::sink()).await);
                    } else {
                        drop(tls.flush().await);
                    }
                });
            }
        });
        server
    }

    /// Returns the numbers of full handshakes and of resumed ones.
    fn handshakes(&self) -> (usize, usize) {
        (
            self.full.load(Ordering::Relaxed),
            self.resumed.load(Ordering::Relaxed),
        )
    }
}

/// Returns the context that trusts the authority.
fn context(home: &Home) -> String {
    format!(
        "[[context]]\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        home.path("ca.pem"),
        home.path("tls.crt"),
        home.path("tls.key")
    )
}

async fn daemon(home: &Home) -> Daemon {
    let file = home.path("daemon.toml");
    fs::write(&file, context(home)).unwrap();
    Daemon::start(&["--config", &file]).await
}

fn proxy(listen: &str, port: u16, sessions: &str) -> String {
    format!(
        "[[proxy]]\nlisten = \"{listen}\"\nconnect = \"127.0.0.1:{port}\"\nserver_name = \"localhost\"\n\
         sessions = \"{sessions}\"\n"
    )
}

/// Comes as a short program does: a request, its whole answer, and the end.
async fn short_program(path: &str) {
    let mut socket = UnixStream::connect(path).await.unwrap();
    socket.write_all(b"request").await.unwrap();
    assert_eq!(drained(&mut socket).await, ("answer".into(), Ending::Whole));
}

/// Waits until the connections that have ended are counted.
async fn closed(proxies: &Proxies, count: u64) {
    until("the connection ends cleanly", async || {
        proxies.ends("closed").await == count
    })
    .await;
}

#[tokio::test]
async fn short_programs_resume_each_time_after_the_first() {
    let home = Home::new();
    let daemon = daemon(&home).await;
    for version in BOTH {
        let server = Server::start(version, &home.issue("server", &["localhost"])).await;
        let paths = [home.path("one.sock"), home.path("two.sock")];
        let proxy = |path: &str| proxy(&format!("unix://{path}"), server.port, &daemon.uri());
        // Each of two processes has the sessions of the other.
        let one = Proxies::start(&proxy(&paths[0])).await;
        let two = Proxies::start(&proxy(&paths[1])).await;
        for round in 1..=5 {
            short_program(&paths[0]).await;
            closed(&one, round).await;
            short_program(&paths[1]).await;
            closed(&two, round).await;
        }
        assert_eq!(server.handshakes(), (1, 9), "{:?}", version.version);
        let resumed = "kind=\"resumed\"";
        assert_eq!(one.metric("proxy_handshakes_total", resumed).await, 4);
        assert_eq!(two.metric("proxy_handshakes_total", resumed).await, 5);
        for proxies in [one, two] {
            proxies.process.signal("TERM").await;
            assert!(proxies.process.succeeds().await);
        }
        // The sessions of the first server are of no use with the next one.
        for path in paths {
            assert!(
                !fs::exists(path).unwrap(),
                "a stopped proxy removes its socket"
            );
        }
    }
}

#[tokio::test]
async fn own_sessions_of_an_originator_resume() {
    let home = Home::new();
    for version in BOTH {
        let server = Server::start(version, &home.issue("server", &["localhost"])).await;
        let path = home.path("own.sock");
        let config = context(&home) + &proxy(&format!("unix://{path}"), server.port, "own");
        let proxies = Proxies::start(&config).await;
        for round in 1..=4 {
            short_program(&path).await;
            closed(&proxies, round).await;
        }
        assert_eq!(server.handshakes(), (1, 3), "{:?}", version.version);
        proxies.process.signal("TERM").await;
        assert!(proxies.process.succeeds().await);
    }
}

#[tokio::test]
async fn server_that_cannot_be_trusted_or_reached_resets_the_program() {
    let home = Home::new();
    let daemon = daemon(&home).await;
    let impostor = Authority::new("other").leaf(&["localhost"]);
    let bad = Server::start(&TLS13, &impostor).await;
    let misnamed = Server::start(&TLS12, &home.issue("server", &["other.test"])).await;
    let good = Server::start(&TLS13, &home.issue("server", &["localhost"])).await;
    // A port of this address that nothing listens on.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = silent.local_addr().unwrap().port();
    drop(silent);
    let config: String = [bad.port, misnamed.port, away, good.port]
        .map(|port| proxy("tcp://127.0.0.1:0", port, &daemon.uri()))
        .concat();
    let proxies = Proxies::start(&config).await;
    let came = async |place: usize, request: &[u8; 7]| {
        let (answer, ending) = said_to(&proxies.at[place], request).await;
        (String::from_utf8(answer).unwrap(), ending)
    };
    for place in 0..3 {
        assert_eq!(
            came(place, b"request").await,
            (String::new(), Ending::Reset),
            "{place}"
        );
    }
    let failures = async |alert: &str| {
        let labels = format!("alert=\"{alert}\",side=\"sent\"");
        proxies
            .metric("proxy_handshake_failures_total", &labels)
            .await
    };
    assert_eq!(failures("unknown_ca").await, 1);
    assert_eq!(
        failures("bad_certificate").await + failures("certificate_unknown").await,
        1
    );
    assert_eq!(proxies.ends("backend_away").await, 1);
    proxies.logs("unknown_ca").await;
    proxies.logs("cannot connect to the backend").await;
    assert!(
        proxies
            .log()
            .contains(&format!("\"backend\":\"tcp://127.0.0.1:{away}\"")),
        "{}",
        proxies.log()
    );

    // An answer that is cut is no answer, and its session is removed.
    let (answer, ending) = came(3, b"cut it.").await;
    assert_eq!(ending, Ending::Reset, "{answer}");
    assert_eq!(
        proxies.ends("truncated").await + proxies.ends("backend_reset").await,
        1
    );
    until("its sessions are removed", async || {
        let (unclosed, alert) = daemon.removals().await;
        unclosed + alert == 2
    })
    .await;
    assert_eq!(came(3, b"request").await.1, Ending::Whole);
    assert_eq!(good.handshakes(), (2, 0));
}

/// A daemon that is away leaves an originator without TLS.
#[tokio::test]
async fn originator_without_its_daemon_resets_and_says_so() {
    let home = Home::new();
    let server = Server::start(&TLS13, &home.issue("server", &["localhost"])).await;
    let away = format!("unix://{}", home.path("nothing.sock"));
    let proxies = Proxies::start(&proxy("tcp://127.0.0.1:0", server.port, &away)).await;
    assert_eq!(said_to(&proxies.at[0], b"request").await.1, Ending::Reset);
    assert_eq!(proxies.unserved("daemon_away").await, 1);
    proxies.logs("the daemon runs no connection").await;
}

#[cfg(feature = "peers")]
#[tokio::test]
async fn curl_processes_resume_at_openssl_after_the_first() {
    use tokio::process::Command;

    let home = Home::new();
    let daemon = daemon(&home).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let mut server = Command::new("openssl");
        server
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", version])
            .args([
                "-cert",
                &home.path("tls.crt"),
                "-key",
                &home.path("tls.key"),
            ]);
        let mut server = crate::process::Process::start(&mut server);
        let address = server.says("ACCEPT ").await;
        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let path = home.path("curl.sock");
        let config = proxy(&format!("unix://{path}"), port, &daemon.uri());
        let proxies = Proxies::start(&config).await;
        for round in 1..=4 {
            let mut curl = Command::new("curl");
            curl.args([
                "--silent",
                "--fail",
                "--unix-socket",
                &path,
                "http://localhost/",
            ]);
            let (page, good) = crate::process::run(&mut curl, "").await;
            assert!(good, "{page}");
            let kind = if round == 1 {
                "New, TLS"
            } else {
                "Reused, TLS"
            };
            assert!(page.contains(kind), "{version} {round}: {page}");
            closed(&proxies, round).await;
        }
        proxies.process.signal("TERM").await;
        assert!(proxies.process.succeeds().await);
    }
}
