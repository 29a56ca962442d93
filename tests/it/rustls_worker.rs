//! Workers that run rustls themselves, with the client's acceptor: real handshakes over real
//! sockets.

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tls_sessiond_client::{
    Options, Put, Role, Version, Worker, rustls as sessions, rustls::Acceptor,
};
use tls_sessiond_proto as pb;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, sink},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    binary::Binary,
    client_hello::{Extension, Hello, records},
    harness::TestDaemon,
    pki::{Authority, Leaf},
    process::{GET, PATIENCE, Process, Server, example},
    returning::{Certificate, Returning},
};

const BOTH: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Starts the example `rustls_worker`, listening. On a busy machine a lookup takes longer than its
/// default deadline.
async fn worker(
    daemon: &str,
    certificate: &Certificate,
    name: &str,
    lookup_deadline: Duration,
) -> Server {
    let mut command = example("rustls_worker");
    command.args([
        "--daemon",
        &format!("http://{daemon}"),
        "--listen",
        "127.0.0.1:0",
        "--name",
        name,
    ]);
    command.args([
        "--lookup-deadline",
        &lookup_deadline.as_millis().to_string(),
    ]);
    command
        .arg("--certificate")
        .arg(certificate.chain())
        .arg("--key")
        .arg(certificate.key());
    let mut process = Process::start(&mut command);
    let address = process.says("listening on ").await;
    Server { address, process }
}

/// A daemon, and two workers that are attached to it.
pub(crate) struct Fleet {
    pub(crate) daemon: TestDaemon,
    pub(crate) certificate: Certificate,
    pub(crate) one: Server,
    pub(crate) two: Server,
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        let daemon = TestDaemon::start().await;
        let certificate = Certificate::new();
        let one = worker(&daemon.address, &certificate, "one", PATIENCE).await;
        let two = worker(&daemon.address, &certificate, "two", PATIENCE).await;
        let fleet = Self {
            daemon,
            certificate,
            one,
            two,
        };
        for server in [&fleet.one, &fleet.two] {
            fleet.attach(server).await;
        }
        fleet
    }

    /// Waits until this worker reports its connections, and leaves no session in the cache.
    pub(crate) async fn attach(&self, server: &Server) {
        let before = handshakes(&self.daemon);
        let told = async |_: &TestDaemon| {
            drop(self.client(&TLS12).connect(&server.address).await);
            handshakes(&self.daemon) > before
        };
        self.daemon.until("a worker is attached", told).await;
        // Reports arrive in order. Once the last session has been stored and removed, no earlier
        // report is outstanding.
        let last = self.client(&TLS12);
        last.fetch(&server.address).await;
        for sessions in [1, 0] {
            let settled = async |daemon: &TestDaemon| {
                daemon.core.connections().is_empty() && daemon.server_cache_len() == sessions
            };
            self.daemon.until("all reports have arrived", settled).await;
            if sessions == 1 {
                drop(last.connect(&server.address).await);
            }
        }
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> Returning {
        Returning::new(&self.certificate, version)
    }

    /// Fetches a page and waits until the daemon knows of the connection and its end.
    pub(crate) async fn fetch(&self, client: &Returning, server: &Server) -> String {
        let before = handshakes(&self.daemon);
        let page = client.fetch(&server.address).await;
        over(&self.daemon, before).await;
        page
    }

    pub(crate) async fn sessions_are(&self, count: usize) {
        let what = format!("{count} sessions");
        self.daemon
            .until(&what, async |daemon| daemon.server_cache_len() == count)
            .await;
    }
}

/// Returns the number of handshakes reported to the daemon.
pub(crate) fn handshakes(daemon: &TestDaemon) -> u64 {
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
pub(crate) async fn over(daemon: &TestDaemon, before: u64) {
    let over = async |daemon: &TestDaemon| {
        handshakes(daemon) > before && daemon.core.connections().is_empty()
    };
    daemon
        .until("the connection is reported and freed", over)
        .await;
}

/// Waits, a bounded time, until a new client of `first` resumes at `then`.
async fn returns(certificate: &Certificate, first: &str, then: &str) {
    let resumes = async {
        loop {
            let client = Returning::new(certificate, &TLS12);
            client.fetch(first).await;
            if client.fetch(then).await.contains("resumed: true") {
                return;
            }
        }
    };
    timeout(PATIENCE, resumes)
        .await
        .expect("the client never resumes");
}

#[tokio::test]
async fn client_resumes_at_each_worker_and_gets_one_ticket_each_time() {
    let fleet = Fleet::start().await;
    for (version, sessions) in [(&TLS12, 1), (&TLS13, 2)] {
        let client = fleet.client(version);
        let others = fleet.daemon.server_cache_len();
        for (server, resumed) in [(&fleet.one, false), (&fleet.two, true), (&fleet.one, true)] {
            let page = fleet.fetch(&client, server).await;
            assert!(
                page.contains(&format!("resumed: {resumed}")),
                "{version:?}: {page}"
            );
            fleet.sessions_are(others + sessions).await;
        }
    }
}

/// Ends an open connection. Its sessions, and the session that it resumed, must be removed.
async fn open_end_loses_sessions<F: Future>(
    version: &'static SupportedProtocolVersion,
    end: impl Fn(TlsStream<TcpStream>) -> F,
) {
    let fleet = Fleet::start().await;
    let client = fleet.client(version);
    let before = handshakes(&fleet.daemon);
    let tls = client.connect(&fleet.one.address).await;
    fleet
        .daemon
        .until("the session is stored", async |daemon| {
            daemon.server_cache_len() > 0
        })
        .await;
    let ended = end(tls).await;
    over(&fleet.daemon, before).await;
    fleet.sessions_are(0).await;
    drop(ended);
    let page = fleet.fetch(&client, &fleet.two).await;
    assert!(page.contains("resumed: false"), "{version:?}: {page}");

    let before = handshakes(&fleet.daemon);
    let tls = client.connect(&fleet.one.address).await;
    assert_eq!(
        tls.get_ref().1.handshake_kind(),
        Some(HandshakeKind::Resumed)
    );
    let ended = end(tls).await;
    over(&fleet.daemon, before).await;
    drop(ended);
    if version.version == rustls::ProtocolVersion::TLSv1_2 {
        fleet.sessions_are(0).await;
        let page = fleet.fetch(&client, &fleet.two).await;
        assert!(page.contains("resumed: false"), "{page}");
    } else {
        // The other ticket of the closed connection stays.
        fleet.sessions_are(1).await;
    }
}

#[tokio::test]
async fn end_without_close_notify_removes_the_sessions() {
    for version in BOTH {
        open_end_loses_sessions(version, async |tls| drop(tls)).await;
    }
}

/// A record that no key decrypts.
const JUNK: [u8; 37] = {
    let mut record = [7; 37];
    [record[0], record[1], record[2], record[3], record[4]] = [23, 3, 3, 0, 32];
    record
};

#[tokio::test]
async fn fatal_alert_of_either_side_removes_the_sessions() {
    for version in BOTH {
        // Sent by the worker.
        open_end_loses_sessions(version, async |mut tls| {
            tls.get_mut().0.write_all(&JUNK).await.unwrap();
            tls
        })
        .await;
        // Sent by the peer.
        open_end_loses_sessions(version, async |mut tls| {
            send_alert(&mut tls).await;
            tls
        })
        .await;
    }
}

async fn send_alert(tls: &mut TlsStream<TcpStream>) {
    let (socket, client) = tls.get_mut();
    client.read_tls(&mut &JUNK[..]).unwrap();
    assert!(client.process_new_packets().is_err());
    let mut alert = Vec::new();
    client.write_tls(&mut alert).unwrap();
    socket.write_all(&alert).await.unwrap();
}

#[tokio::test]
async fn fatal_alert_after_the_close_counts_only_from_the_peer() {
    let fleet = Fleet::start().await;
    for received in [false, true] {
        let client = fleet.client(&TLS12);
        let before = handshakes(&fleet.daemon);
        let mut tls = client.connect(&fleet.one.address).await;
        tls.write_all(GET.as_bytes()).await.unwrap();
        let closed = async |daemon: &TestDaemon| {
            let listed = daemon
                .connections()
                .list_connections(pb::ListConnectionsRequest::default())
                .await;
            let listed = listed.unwrap().into_inner().connections;
            listed
                .iter()
                .any(|connection| connection.shutdown.is_some_and(|flags| flags.sent))
        };
        fleet.daemon.until("the worker has closed", closed).await;
        match received {
            true => send_alert(&mut tls).await,
            false => tls.get_mut().0.write_all(&JUNK).await.unwrap(),
        }
        over(&fleet.daemon, before).await;
        let page = fleet.fetch(&client, &fleet.two).await;
        assert!(page.contains(&format!("resumed: {}", !received)), "{page}");
    }
}

/// A peer that offers a session and then fails the handshake with an alert.
#[tokio::test]
async fn fatal_alert_in_a_resuming_handshake_removes_the_session() {
    let fleet = Fleet::start().await;
    let client = fleet.client(&TLS12);
    fleet.fetch(&client, &fleet.one).await;
    fleet.sessions_are(1).await;
    let mut hello = Vec::new();
    client.tls().write_tls(&mut hello).unwrap();
    let mut socket = TcpStream::connect(&fleet.two.address).await.unwrap();
    socket.write_all(&hello).await.unwrap();
    socket.read_exact(&mut [0; 64]).await.unwrap();
    socket.write_all(&[21, 3, 3, 0, 2, 2, 40]).await.unwrap();
    fleet.sessions_are(0).await;

    // A client that only closes its socket removes no session.
    fleet.fetch(&client, &fleet.one).await;
    let mut hello = Vec::new();
    client.tls().write_tls(&mut hello).unwrap();
    let mut socket = TcpStream::connect(&fleet.two.address).await.unwrap();
    socket.write_all(&hello).await.unwrap();
    socket.shutdown().await.unwrap();
    timeout(PATIENCE, tokio::io::copy(&mut socket, &mut sink()))
        .await
        .expect("it ends")
        .unwrap();
    assert!(
        fleet
            .fetch(&client, &fleet.two)
            .await
            .contains("resumed: true")
    );
}

#[tokio::test]
async fn killed_rustls_worker_loses_its_open_sessions() {
    let fleet = Fleet::start().await;
    let (closed, open) = (fleet.client(&TLS12), fleet.client(&TLS12));
    fleet.fetch(&closed, &fleet.one).await;
    let _held = open.connect(&fleet.one.address).await;
    fleet.sessions_are(2).await;
    let Fleet {
        daemon, one, two, ..
    } = fleet;
    one.process.kill().await;
    daemon
        .until("the open session is removed", async |daemon| {
            daemon.server_cache_len() == 1
        })
        .await;
    assert!(open.fetch(&two.address).await.contains("resumed: false"));
    assert!(closed.fetch(&two.address).await.contains("resumed: true"));
}

#[tokio::test]
async fn rustls_worker_serves_through_a_daemon_outage() {
    let daemon = Binary::start(&[]).await;
    let address = daemon.address.clone();
    let certificate = Certificate::new();
    let deadline = Duration::from_millis(200);
    let one = worker(&address, &certificate, "one", deadline).await;
    let two = worker(&address, &certificate, "two", deadline).await;
    returns(&certificate, &one.address, &two.address).await;

    let clients = BOTH.map(|version| Returning::new(&certificate, version));
    for client in &clients {
        client.fetch(&one.address).await;
    }
    daemon.signal("-STOP").await;
    // The daemon's threads stop one after the other, so some lookups may still be answered.
    for _ in 0..4 {
        for client in &clients {
            client.fetch(&two.address).await;
        }
    }
    let bad = BOTH.map(|version| Returning::new(&certificate, version));
    for client in &bad {
        drop(client.connect(&one.address).await);
    }
    daemon.signal("-CONT").await;
    returns(&certificate, &one.address, &two.address).await;
    for client in &bad {
        assert!(client.fetch(&two.address).await.contains("resumed: false"));
    }

    let held = BOTH.map(|version| Returning::new(&certificate, version));
    let mut open = Vec::new();
    for client in &held {
        open.push(client.connect(&one.address).await);
    }
    daemon.kill().await;
    for client in clients.iter().chain(&bad) {
        client.fetch(&one.address).await;
        client.fetch(&two.address).await;
    }
    let daemon = Binary::start(&["--set", &format!("listen.api=[\"tcp://{address}\"]")]).await;
    assert_eq!(daemon.address, address);
    // Connections opened before the outage go on.
    for tls in &mut open {
        tls.write_all(GET.as_bytes()).await.unwrap();
        let mut page = String::new();
        timeout(PATIENCE, tls.read_to_string(&mut page))
            .await
            .expect("a page")
            .unwrap();
        assert!(page.contains("one: "), "{page}");
    }
    returns(&certificate, &one.address, &two.address).await;
    for client in &held {
        assert!(
            client.fetch(&two.address).await.contains("resumed: false"),
            "the daemon was killed"
        );
    }
}

/// Serves in this process. Each answer says whether the connection resumed, and the server then
/// closes.
pub(crate) async fn serve(acceptor: Acceptor) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(socket).await else {
                    return;
                };
                drop(tls.read(&mut [0; 1024]).await);
                let answer = format!("resumed: {}\n", tls.resumed());
                drop(tls.write_all(answer.as_bytes()).await);
                drop(tls.shutdown().await);
                drop(tokio::io::copy(&mut tls, &mut sink()).await);
            });
        }
    });
    address
}

pub(crate) fn config(
    certificate: &Certificate,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let chain = CertificateDer::pem_file_iter(certificate.chain())
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_file(certificate.key()).unwrap();
    let builder = ServerConfig::builder_with_protocol_versions(versions);
    builder
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

pub(crate) async fn acceptor(
    daemon: &TestDaemon,
    config: ServerConfig,
    format: &str,
    binding: &str,
) -> Acceptor {
    let worker = attached(&daemon.address, format, PATIENCE).await;
    Acceptor::new(worker, Arc::new(config), sessions::Options::new(binding))
}

async fn attached(daemon: &str, format: &str, lookup_deadline: Duration) -> Worker {
    let mut options = Options::new(&format!("http://{daemon}"), format).unwrap();
    options.lookup_deadline = lookup_deadline;
    let worker = Worker::connect(options);
    let attached = async {
        while !worker.is_attached() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, attached).await.expect("it attaches");
    worker
}

/// Offers these identities to an acceptor in a hello with which no handshake can succeed.
async fn offer(acceptor: &Acceptor, identities: &[&[u8]]) {
    let identities = Extension::Identities(identities.iter().map(|id| id.to_vec()).collect());
    let mut extensions = Extension::negotiable(&[29], &[29], &[1]);
    extensions.push(identities);
    let hello = Hello {
        session_id: Vec::new(),
        suites: vec![0x1301],
        extensions,
    };
    let (near, mut far) = tokio::io::duplex(4096);
    far.write_all(&records(&hello.message(), &[]))
        .await
        .unwrap();
    drop(far);
    assert!(acceptor.accept(near).await.is_err());
}

#[tokio::test]
async fn psk_identities_are_looked_up_in_order_until_one_is_found() {
    let daemon = TestDaemon::start().await;
    let certificate = Certificate::new();
    let worker = attached(&daemon.address, sessions::FORMAT, PATIENCE).await;
    let options = sessions::Options::new("a");
    let acceptor = Acceptor::new(
        worker.clone(),
        Arc::new(config(&certificate, &BOTH)),
        options,
    );
    let connection = worker.open(Role::Server, "", None);
    let put = |id: &[u8], version, binding: &[u8]| {
        let session = Put::new(version, b"session".to_vec());
        connection.put(Put {
            session_id: id.to_vec(),
            binding: binding.to_vec(),
            ..session
        });
    };
    put(b"elsewhere", Version::Tls13, b"b");
    put(b"first", Version::Tls13, b"a");
    put(b"second", Version::Tls13, b"a");
    connection.shutdown();
    offer(&acceptor, &[b"unknown", b"elsewhere", b"first", b"second"]).await;
    assert_eq!((worker.counters().hits, worker.counters().misses), (1, 2));
    assert_eq!(
        daemon.server_cache_len(),
        2,
        "the first identity was not consumed"
    );

    // A server that speaks only TLS 1.2 consumes no ticket.
    let options = sessions::Options::new("a");
    let old = Acceptor::new(
        worker.clone(),
        Arc::new(config(&certificate, &[&TLS12])),
        options,
    );
    offer(&old, &[b"second"]).await;
    assert_eq!((worker.counters().hits, worker.counters().misses), (1, 2));
}

#[tokio::test]
async fn all_lookups_of_a_handshake_share_one_deadline() {
    let daemon = Binary::start(&[]).await;
    let certificate = Certificate::new();
    let worker = attached(&daemon.address, sessions::FORMAT, Duration::from_millis(50)).await;
    let options = sessions::Options::new("a");
    let acceptor = Acceptor::new(
        worker.clone(),
        Arc::new(config(&certificate, &BOTH)),
        options,
    );
    daemon.signal("-STOP").await;
    // The daemon's threads stop one after the other, so some lookups may still be answered.
    let stopped = async {
        while worker.counters().timeouts == 0 {
            offer(&acceptor, &[&b"unknown"[..]; 16]).await;
        }
    };
    timeout(PATIENCE, stopped).await.expect("it stops");
    assert_eq!((worker.counters().timeouts, worker.counters().away), (1, 0));
}

#[tokio::test]
async fn session_of_another_format_or_binding_is_not_found() {
    let daemon = TestDaemon::start().await;
    let certificate = Certificate::new();
    let serving = async |format: &str, binding: &str| {
        serve(acceptor(&daemon, config(&certificate, &BOTH), format, binding).await).await
    };
    let home = serving(sessions::FORMAT, "a").await;
    let twin = serving(sessions::FORMAT, "a").await;
    let strangers = [
        serving(sessions::FORMAT, "b").await,
        serving("openssl", "a").await,
    ];
    let fetch = async |client: &Returning, address: &str| {
        let before = handshakes(&daemon);
        let page = client.fetch(address).await;
        over(&daemon, before).await;
        page
    };
    for version in BOTH {
        for stranger in &strangers {
            let client = Returning::new(&certificate, version);
            assert!(fetch(&client, &home).await.contains("resumed: false"));
            assert!(
                fetch(&client, stranger).await.contains("resumed: false"),
                "{version:?}"
            );
        }
        let client = Returning::new(&certificate, version);
        assert!(fetch(&client, &home).await.contains("resumed: false"));
        assert!(
            fetch(&client, &twin).await.contains("resumed: true"),
            "{version:?}"
        );
    }
}

/// A client with a certificate that returns.
#[tokio::test]
async fn client_certificate_identity_carries_over_to_resumptions() {
    let daemon = TestDaemon::start().await;
    let authority = Authority::new("test");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap())
        .unwrap();
    let roots = Arc::new(roots);
    let chain = |leaf: &Leaf| vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap()];
    let key = |leaf: &Leaf| PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let (server, client) = (authority.leaf(&["localhost"]), authority.leaf(&["client"]));
    let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots))
        .build()
        .unwrap();
    let config = ServerConfig::builder().with_client_cert_verifier(verifier);
    let config = config
        .with_single_cert(chain(&server), key(&server))
        .unwrap();
    let address = serve(acceptor(&daemon, config, sessions::FORMAT, "these clients").await).await;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &chain(&client)[0]);
    let digest: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();

    for (version, sessions) in [(&TLS12, 1), (&TLS13, 2)] {
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain(&client), key(&client))
            .unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let others = daemon.server_cache_len();
        let mut authenticated = None;
        for resumed in [false, true, true] {
            let socket = TcpStream::connect(&address).await.unwrap();
            let mut tls = connector
                .connect("localhost".try_into().unwrap(), socket)
                .await
                .unwrap();
            tls.write_all(GET.as_bytes()).await.unwrap();
            let mut answer = String::new();
            timeout(PATIENCE, tls.read_to_string(&mut answer))
                .await
                .expect("an answer")
                .unwrap();
            assert_eq!(answer, format!("resumed: {resumed}\n"), "{version:?}");
            tls.shutdown().await.unwrap();
            let all = others + sessions;
            daemon
                .until("the sessions are stored", async |daemon| {
                    daemon.server_cache_len() == all
                })
                .await;
            // Time passes. A later session of a resumption has no later authentication time.
            daemon.clock.advance(Duration::from_secs(60));
            let request = pb::ListSessionsRequest::default();
            let mut listed = daemon
                .sessions()
                .list_sessions(request)
                .await
                .unwrap()
                .into_inner()
                .sessions;
            // Sessions of the other version are older.
            listed
                .sort_by_key(|session| session.create_time.map(|time| (time.seconds, time.nanos)));
            for session in &listed[others..] {
                let peer = session
                    .peer
                    .as_ref()
                    .expect("the client showed a certificate");
                assert_eq!(peer.certificate_sha256, digest);
                assert_eq!(
                    session.authenticate_time,
                    *authenticated.get_or_insert(session.authenticate_time)
                );
            }
        }
    }
}

#[tokio::test]
async fn garbage_ends_only_its_own_rustls_connection() {
    let daemon = TestDaemon::start().await;
    let certificate = Certificate::new();
    let server = worker(&daemon.address, &certificate, "one", PATIENCE).await;
    for bytes in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[22, 3, 1, 1, 0, 1],
        &[22, 3, 1, 0, 4, 1, 1, 0, 0],
        &[0; 9000],
    ] {
        let mut socket = TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        // The connection ends, with an alert or a reset.
        let end = timeout(PATIENCE, tokio::io::copy(&mut socket, &mut sink()))
            .await
            .expect("no end");
        assert!(end.map_or(true, |said| said < 100));
    }
    returns(&certificate, &server.address, &server.address).await;

    // A hello that never ends, in records of one byte. The worker reads a bounded part of it.
    let acceptor = acceptor(&daemon, config(&certificate, &BOTH), sessions::FORMAT, "a").await;
    let (near, mut far) = tokio::io::duplex(4096);
    let accept = tokio::spawn(async move { acceptor.accept(near).await.is_err() });
    let mut sent = 0;
    for byte in [1, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat(0)) {
        if far.write_all(&[22, 3, 1, 0, 1, byte]).await.is_err() {
            break;
        }
        sent += 6;
    }
    assert!(accept.await.unwrap());
    assert!((70_000..150_000).contains(&sent), "{sent} bytes were read");
}
