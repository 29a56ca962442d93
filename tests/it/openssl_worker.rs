//! Workers that run OpenSSL and share its sessions: the example programs with real peers, and what
//! happens to sessions after errors.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use tls_sessiond_client::{Options, Worker, openssl::ServerSessions};
use tls_sessiond_proto as pb;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    binary::Binary,
    harness::TestDaemon,
    pki,
    process::{Process, example, run},
};

/// A lookup deadline that is long enough on a busy machine.
const PATIENT: &[&str] = &["--lookup-deadline", "10000"];
const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];
const RUSTLS_VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Certificates, and the folder for sessions of s_client.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki::localhost(folder.path());
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Starts a worker process that serves with OpenSSL.
    async fn server(&self, daemon: &str, name: &str, args: &[&str]) -> Server {
        let (certificate, key) = (self.path("tls.crt"), self.path("tls.key"));
        let mut command = example("openssl_server");
        command.args([
            "--daemon",
            &format!("http://{daemon}"),
            "--listen",
            "127.0.0.1:0",
            "--name",
            name,
        ]);
        command
            .args(["--certificate", &certificate, "--key", &key])
            .args(args);
        let mut process = Process::start(&mut command);
        let address = process.says("listening on ").await;
        Server { address, process }
    }

    /// Returns a rustls client with a session store of its own.
    fn rustls(&self, version: &'static SupportedProtocolVersion) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap())
            .unwrap();
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config).into()
    }
}

struct Server {
    address: String,
    process: Process,
}

/// Fetches a page and waits until the server closes.
async fn s_client(address: &str, version: &str, args: &[&str]) -> String {
    let fixed = ["s_client", "-connect", address, version, "-ign_eof"];
    run(Command::new("openssl").args(fixed).args(args), GET)
        .await
        .0
}

/// Returns whether the page came over a resumed session. Panics if no page came.
fn resumed(said: &str) -> bool {
    assert!(said.contains(" resumed: "), "no page: {said}");
    let resumed = said.contains("Reused, ");
    assert!(resumed != said.contains("New, "), "{said}");
    assert_eq!(resumed, said.contains("resumed: true"), "{said}");
    resumed
}

async fn connect(connector: &TlsConnector, address: &str) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(address).await.unwrap();
    connector
        .connect("localhost".try_into().unwrap(), socket)
        .await
        .unwrap()
}

fn kind(stream: &TlsStream<TcpStream>) -> HandshakeKind {
    stream.get_ref().1.handshake_kind().unwrap()
}

/// Returns the number of server handshakes that were reported to the daemon.
fn told(daemon: &TestDaemon) -> u64 {
    daemon
        .core
        .registry()
        .get("default")
        .unwrap()
        .stats
        .accept_good
        .get()
}

/// Waits until one more handshake was reported and all connections are freed.
async fn told_and_freed(daemon: &TestDaemon, before: u64) {
    let freed =
        async |daemon: &TestDaemon| told(daemon) > before && daemon.core.connections().is_empty();
    daemon
        .until("the connection is reported and freed", freed)
        .await;
}

/// Reads the page, to the server's close_notify and the end of the socket.
async fn page(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(GET.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

/// A load balancer that connects to the servers in turn.
async fn in_turn(servers: [&Server; 2]) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let servers = servers.map(|server| server.address.clone());
    let running = tokio::spawn(async move {
        for server in servers.iter().cycle() {
            let Ok((mut near, _)) = listener.accept().await else {
                return;
            };
            let mut far = TcpStream::connect(server).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        }
    });
    (address, running)
}

#[tokio::test]
async fn sessions_made_at_one_openssl_worker_resume_at_the_other() {
    let (daemon, files) = (TestDaemon::start().await, Files::new());
    let one = files.server(&daemon.address, "one", PATIENT).await;
    let two = files.server(&daemon.address, "two", PATIENT).await;

    for version in VERSIONS {
        let file = files.path(version);
        assert!(!resumed(
            &s_client(&one.address, version, &["-sess_out", &file]).await
        ));
        let said = s_client(&two.address, version, &["-sess_in", &file]).await;
        assert!(resumed(&said) && said.contains("two: "), "{said}");
    }
    for version in RUSTLS_VERSIONS {
        let client = files.rustls(version);
        for (server, name, expected) in [
            (&one, "one: ", HandshakeKind::Full),
            (&two, "two: ", HandshakeKind::Resumed),
            (&one, "one: ", HandshakeKind::Resumed),
        ] {
            let before = told(&daemon);
            let mut stream = connect(&client, &server.address).await;
            assert_eq!(kind(&stream), expected, "{version:?}");
            assert!(page(&mut stream).await.contains(name));
            drop(stream);
            told_and_freed(&daemon, before).await;
        }
    }
    let (address, running) = in_turn([&one, &two]).await;
    let (host, port) = address.split_once(':').unwrap();
    for priority in [
        "NORMAL:-VERS-ALL:+VERS-TLS1.2",
        "NORMAL:-VERS-ALL:+VERS-TLS1.3",
    ] {
        let args = [
            "--resume",
            "--insecure",
            "--sni-hostname",
            "localhost",
            "--priority",
            priority,
        ];
        // The client may come back before the session has been reported.
        let mut tries = 0..10;
        while tries.next().is_some() {
            let (said, _) = run(
                Command::new("gnutls-cli")
                    .args(args)
                    .args(["--port", port, host]),
                GET,
            )
            .await;
            assert!(said.contains(" resumed: "), "{said}");
            if said.contains("This is a resumed session") {
                break;
            }
        }
        assert!(!tries.is_empty(), "gnutls never resumed with {priority}");
    }
    running.abort();
    daemon
        .until("all connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
}

#[tokio::test]
async fn openssl_session_is_found_by_its_name_context_and_format_only() {
    let (daemon, files) = (TestDaemon::start().await, Files::new());
    let one = files.server(&daemon.address, "one", PATIENT).await;
    let other = files
        .server(
            &daemon.address,
            "other",
            &[PATIENT, &["--session-id-context", "mail"]].concat(),
        )
        .await;
    for version in VERSIONS {
        let file = files.path(version);
        let made = ["-servername", "localhost", "-sess_out", &file];
        let offers: [(&Server, &[&str], bool); 4] = [
            (
                &one,
                &["-servername", "elsewhere", "-sess_in", &file],
                false,
            ),
            (&one, &["-noservername", "-sess_in", &file], false),
            (
                &other,
                &["-servername", "localhost", "-sess_in", &file],
                false,
            ),
            (&one, &["-servername", "localhost", "-sess_in", &file], true),
        ];
        s_client(&one.address, version, &made).await;
        for (server, args, expected) in offers {
            assert_eq!(
                resumed(&s_client(&server.address, version, args).await),
                expected,
                "{version} {args:?}"
            );
        }
    }
    // A lookup with another format does not find a session that OpenSSL stored.
    let listed = daemon
        .sessions()
        .list_sessions(pb::ListSessionsRequest::default())
        .await
        .unwrap();
    let sessions = listed.into_inner().sessions;
    assert!(!sessions.is_empty());
    for session in sessions {
        assert_eq!(session.format, "openssl");
        let lookup = |format: &str| pb::LookupSessionRequest {
            role: pb::Role::Server.into(),
            session_id: session.id.clone(),
            format: format.into(),
            ..pb::LookupSessionRequest::default()
        };
        let answer = daemon
            .sessions()
            .lookup_session(lookup("rustls-0.23"))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (answer.found, answer.miss_reason()),
            (false, pb::MissReason::Scope)
        );
    }
}

#[tokio::test]
async fn ticket_survives_a_hello_retry_request() {
    let (daemon, files) = (TestDaemon::start().await, Files::new());
    let server = files
        .server(
            &daemon.address,
            "one",
            &[PATIENT, &["--groups", "P-384"]].concat(),
        )
        .await;
    let file = files.path("session");
    let groups = ["-groups", "X25519:P-384"];
    s_client(
        &server.address,
        "-tls1_3",
        &[&groups[..], &["-sess_out", &file]].concat(),
    )
    .await;
    assert!(resumed(
        &s_client(
            &server.address,
            "-tls1_3",
            &[&groups[..], &["-sess_in", &file]].concat()
        )
        .await
    ));
}

/// How a connection fails after its handshake.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// The client's socket ends without a close_notify.
    Cut,
    /// The server receives a damaged record and sends an alert.
    AlertSent,
    /// The client receives a damaged record and sends an alert.
    AlertReceived,
}

/// Closes one connection cleanly, then resumes its session on a connection that ends badly. The
/// sessions that the second one made or resumed must be removed.
async fn bad_ones_are_lost(ending: Ending, version: &'static SupportedProtocolVersion) {
    let (daemon, files) = (TestDaemon::start().await, Files::new());
    let server = files.server(&daemon.address, "one", PATIENT).await;
    let client = files.rustls(version);
    // A clean connection first, so that the second one resumes a session that it can lose.
    page(&mut connect(&client, &server.address).await).await;
    told_and_freed(&daemon, 0).await;
    let mut wire = Wire::to(&server.address).await;
    let mut stream = connect(&client, &wire.address).await;
    assert_eq!(kind(&stream), HandshakeKind::Resumed);
    daemon
        .until("the connection is reported", async |daemon| {
            daemon.core.connections().len() == 1
        })
        .await;
    // A record of application data that no key decrypts.
    const GARBAGE: [u8; 25] = *b"\x17\x03\x03\x00\x14....................";
    match ending {
        Ending::Cut => drop(stream),
        Ending::AlertSent => {
            stream.get_mut().0.write_all(&GARBAGE).await.unwrap();
            let mut rest = Vec::new();
            // The read returns the alert or the end of the socket.
            drop(stream.read_to_end(&mut rest).await);
        }
        Ending::AlertReceived => {
            wire.inject(&GARBAGE).await;
            // tokio-rustls sends the alert when the read fails.
            assert!(stream.read_u8().await.is_err());
            drop(stream);
        }
    }
    daemon
        .until("the connection is freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    if version.version == TLS12.version {
        assert_eq!(daemon.server_cache_len(), 0, "{ending:?}");
        assert_eq!(
            kind(&connect(&client, &server.address).await),
            HandshakeKind::Full
        );
    } else {
        // The first connection made two tickets and was closed. One ticket is consumed. The other
        // does not belong to the failed connection.
        assert_eq!(daemon.server_cache_len(), 1, "{ending:?}");
    }
}

/// A proxy for one connection that can inject bytes towards the client.
struct Wire {
    address: String,
    inject: tokio::sync::mpsc::Sender<Vec<u8>>,
}

impl Wire {
    async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (inject, mut injected) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
        let server = server.to_owned();
        tokio::spawn(async move {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(server).await.unwrap();
            let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move {
                drop(tokio::io::copy(&mut near_read, &mut far_write).await);
                drop(far_write.shutdown().await);
            });
            let mut bytes = vec![0; 16 << 10];
            loop {
                tokio::select! {
                    read = far_read.read(&mut bytes) => match read {
                        Ok(length @ 1..) => near_write.write_all(&bytes[..length]).await.unwrap(),
                        _ => return,
                    },
                    Some(more) = injected.recv() => near_write.write_all(&more).await.unwrap(),
                }
            }
        });
        Self { address, inject }
    }

    async fn inject(&mut self, bytes: &[u8]) {
        self.inject.send(bytes.to_vec()).await.unwrap();
    }
}

#[tokio::test]
async fn truncation_and_fatal_alerts_remove_openssl_sessions() {
    for version in RUSTLS_VERSIONS {
        for ending in [Ending::Cut, Ending::AlertSent, Ending::AlertReceived] {
            bad_ones_are_lost(ending, version).await;
        }
    }
}

#[tokio::test]
async fn killed_openssl_worker_loses_its_open_sessions() {
    let (daemon, files) = (TestDaemon::start().await, Files::new());
    let (one, two) = (
        files.server(&daemon.address, "one", PATIENT).await,
        files.server(&daemon.address, "two", PATIENT).await,
    );
    for version in RUSTLS_VERSIONS {
        let client = files.rustls(version);
        let open = connect(&client, &one.address).await;
        daemon
            .until("the session is reported", async |daemon| {
                daemon.server_cache_len() > 0
            })
            .await;
        // No page was requested, so the server has not closed yet.
        drop(open);
        daemon
            .until("the sessions are removed", async |daemon| {
                daemon.server_cache_len() == 0
            })
            .await;
    }
    let client = files.rustls(&TLS12);
    let open = connect(&client, &one.address).await;
    daemon
        .until("the session is reported", async |daemon| {
            daemon.server_cache_len() == 1
        })
        .await;
    one.process.kill().await;
    daemon
        .until("the session is removed", async |daemon| {
            daemon.server_cache_len() == 0
        })
        .await;
    drop(open);
    assert_eq!(
        kind(&connect(&client, &two.address).await),
        HandshakeKind::Full
    );
}

#[tokio::test]
async fn openssl_worker_serves_through_a_daemon_outage() {
    let files = Files::new();
    let daemon = Binary::start(&[]).await;
    let address = daemon.address.clone();
    let (one, two) = (
        files.server(&address, "one", &[]).await,
        files.server(&address, "two", &[]).await,
    );
    let file = files.path("session");
    // Workers attach in the background. Until then all handshakes are full.
    shares(&one, &two, &file).await;

    daemon.signal("-STOP").await;
    for version in VERSIONS {
        let begun = Instant::now();
        let made = s_client(&one.address, version, &["-sess_out", &file]).await;
        assert!(!resumed(&made));
        assert!(!resumed(
            &s_client(&two.address, version, &["-sess_in", &file]).await
        ));
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "handshakes waited for the daemon"
        );
    }
    daemon.signal("-CONT").await;
    shares(&one, &two, &file).await;

    daemon.kill().await;
    for version in VERSIONS {
        assert!(!resumed(
            &s_client(&one.address, version, &["-sess_out", &file]).await
        ));
        assert!(!resumed(
            &s_client(&two.address, version, &["-sess_in", &file]).await
        ));
    }
    let listen = format!("listen.api=[\"tcp://{address}\"]");
    let _daemon = Binary::start(&["--set", &listen]).await;
    // Sessions that the workers made before or during the outage do not come back by themselves.
    assert!(!resumed(
        &s_client(&two.address, "-tls1_3", &["-sess_in", &file]).await
    ));
    shares(&one, &two, &file).await;
}

/// Waits, at most 60 seconds, until a session made at one worker resumes at the other, in both
/// versions.
async fn shares(one: &Server, two: &Server, file: &str) {
    let begun = Instant::now();
    for version in VERSIONS {
        loop {
            s_client(&one.address, version, &["-sess_out", file]).await;
            if resumed(&s_client(&two.address, version, &["-sess_in", file]).await) {
                break;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the workers never share sessions"
            );
        }
    }
}

/// Starts `openssl s_server`, which answers with a page.
async fn s_server(files: &Files) -> (Process, String) {
    let args = [
        "s_server",
        "-accept",
        "127.0.0.1:0",
        "-www",
        "-naccept",
        "100",
    ];
    let (certificate, key) = (files.path("tls.crt"), files.path("tls.key"));
    let mut server = Process::start(Command::new("openssl").args(args).args([
        "-cert",
        &certificate,
        "-key",
        &key,
    ]));
    let address = server.says("ACCEPT ").await;
    (server, address)
}

fn openssl_client(daemon: &str, files: &Files, address: &str, args: &[&str]) -> Command {
    let mut command = example("openssl_client");
    command.args([
        "--daemon",
        &format!("http://{daemon}"),
        "--connect",
        address,
        "--ca",
        &files.path("ca.pem"),
    ]);
    command.args(args);
    command
}

#[tokio::test]
async fn openssl_client_processes_resume_each_others_sessions() {
    let (daemon, files) = (TestDaemon::start().await, Files::new());
    let (_server, address) = s_server(&files).await;
    for version in ["1.2", "1.3"] {
        for expected in [
            "offered: false resumed: false",
            "offered: true resumed: true",
        ] {
            let args = ["--version", version];
            let (said, good) = run(
                &mut openssl_client(&daemon.address, &files, &address, &args),
                "",
            )
            .await;
            assert!(good && said.contains(expected), "{version}: {said}");
            daemon
                .until("the connection is freed", async |daemon| {
                    daemon.core.connections().is_empty()
                })
                .await;
        }
        // A client that hangs up loses the session that it resumed and the tickets that it
        // received.
        let args = ["--version", version, "--unclean"];
        while {
            let (said, good) = run(
                &mut openssl_client(&daemon.address, &files, &address, &args),
                "",
            )
            .await;
            assert!(good, "{said}");
            daemon
                .until("the connection is freed", async |daemon| {
                    daemon.core.connections().is_empty()
                })
                .await;
            said.contains("offered: true")
        } {}
        let left = daemon
            .sessions()
            .list_sessions(pb::ListSessionsRequest::default())
            .await
            .unwrap();
        assert_eq!(left.into_inner().sessions.len(), 0, "{version}");
    }
}

#[tokio::test]
async fn openssl_client_works_without_a_daemon() {
    let files = Files::new();
    let (_server, address) = s_server(&files).await;
    // No daemon listens there.
    let nobody = StdTcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let (said, good) = run(&mut openssl_client(&nobody, &files, &address, &[]), "").await;
    assert!(
        good && said.contains("offered: false resumed: false"),
        "{said}"
    );
}

/// Serves with an acceptor in this process, for contexts that the example cannot make. It handles
/// one connection after the other, each with one byte and a clean close.
fn serve(files: &Files, worker: Worker, cache_size: i32) -> SocketAddr {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor
        .set_certificate_chain_file(PathBuf::from(files.path("tls.crt")))
        .unwrap();
    acceptor
        .set_private_key_file(PathBuf::from(files.path("tls.key")), SslFiletype::PEM)
        .unwrap();
    acceptor.set_session_cache_size(cache_size);
    ServerSessions::install(&mut acceptor, worker, b"test").unwrap();
    let acceptor = acceptor.build();
    let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut stream) = acceptor.accept(socket.unwrap()) else {
                continue;
            };
            let mut byte = [0];
            if stream.read(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {
                drop(stream.shutdown());
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overflow_of_openssls_own_cache_removes_nothing() {
    let (daemon, files) = (TestDaemon::start().await, Files::new());
    let mut options = Options::new(&format!("http://{}", daemon.address), "openssl").unwrap();
    options.lookup_deadline = Duration::from_secs(10);
    let worker = Worker::connect(options);
    assert!(worker.attached(Duration::from_secs(20)).await);
    let address = serve(&files, worker.clone(), 1).to_string();
    let clients: Vec<_> = (0..10).map(|_| files.rustls(&TLS12)).collect();
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        for client in &clients {
            let mut stream = connect(client, &address).await;
            assert_eq!(kind(&stream), expected);
            stream.write_all(b"x").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
            // The server's close_notify.
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
        assert!(worker.flush(Duration::from_secs(20)).await);
        assert_eq!(daemon.server_cache_len(), 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn non_tls_peers_end_only_their_own_connection() {
    let (daemon, files) = (TestDaemon::start().await, Files::new());
    let server = files.server(&daemon.address, "one", PATIENT).await;
    for bytes in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[22, 3, 1, 1, 0, 1],
        &[0xff; 20_000],
    ] {
        let mut socket = StdTcpStream::connect(&server.address).unwrap();
        // The server may have closed the socket already.
        drop(socket.write_all(bytes));
    }
    let file = files.path("session");
    assert!(!resumed(
        &s_client(&server.address, "-tls1_3", &["-sess_out", &file]).await
    ));
    assert!(resumed(
        &s_client(&server.address, "-tls1_3", &["-sess_in", &file]).await
    ));
    daemon
        .until("all connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
}
