//! Clients whose TLS the daemon runs, with the client's engine: real daemons and real TLS servers.

mod closing;
mod flow;

use std::{io::ErrorKind, sync::Arc};

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use tls_sessiond_client::{
    Options,
    engine::{ClientConnection, Engine, EngineError, EngineStream, FORMAT},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server};

use crate::{
    binary::Binary,
    harness::TestDaemon,
    pki::Leaf,
    process::{GET, PATIENCE},
    returning::Certificate,
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
/// The bytes that a socket of these tests holds.
const SOCKET: usize = 16 << 10;

fn engine(daemon: &TestDaemon) -> Engine {
    engine_at(&format!("tcp://{}", daemon.address))
}

fn engine_at(endpoint: &str) -> Engine {
    Engine::new(Options::new(endpoint, FORMAT).unwrap())
}

fn localhost() -> ClientConnection {
    ClientConnection::new("localhost")
}

/// A TLS server that remembers its sessions.
fn acceptor(certificate: &Certificate, version: &'static SupportedProtocolVersion) -> TlsAcceptor {
    let read = |path| std::fs::read_to_string(path).unwrap();
    let (chain, key) = (read(certificate.chain()), read(certificate.key()));
    acceptor_of(&Leaf { chain, key }, version)
}

fn acceptor_of(leaf: &Leaf, version: &'static SupportedProtocolVersion) -> TlsAcceptor {
    let chain = CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_protocol_versions(&[version])
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// A daemon that trusts a server.
struct Stage {
    daemon: TestDaemon,
    engine: Engine,
    acceptor: TlsAcceptor,
    version: &'static SupportedProtocolVersion,
}

type Near = EngineStream<DuplexStream>;
type Far = server::TlsStream<DuplexStream>;

impl Stage {
    async fn start(version: &'static SupportedProtocolVersion) -> Self {
        Self::with(version, "").await
    }

    async fn with(version: &'static SupportedProtocolVersion, config: &str) -> Self {
        let certificate = Certificate::new();
        let daemon = TestDaemon::with(&(config.to_owned() + &certificate.context())).await;
        Self {
            engine: engine(&daemon),
            daemon,
            acceptor: acceptor(&certificate, version),
            version,
        }
    }

    /// Connects the engine and the server.
    async fn pair(&self) -> (Near, Far) {
        self.pair_of(&self.engine).await
    }

    async fn pair_of(&self, engine: &Engine) -> (Near, Far) {
        let (near, far) = duplex(SOCKET);
        let shaken = async {
            tokio::try_join!(engine.connect(near, localhost()), self.acceptor.accept(far))
        };
        timeout(PATIENCE, shaken)
            .await
            .expect("a handshake")
            .unwrap()
    }

    /// Fetches a page, and closes both sides. Returns whether the handshake resumed a session.
    async fn fetch(&self, engine: &Engine) -> bool {
        let (mut near, mut far) = self.pair_of(engine).await;
        let serve = async {
            assert_eq!(read(&mut far, GET.len()).await, GET.as_bytes());
            far.write_all(b"a page").await.unwrap();
            far.shutdown().await.unwrap();
            assert!(rest(&mut far).await.is_empty());
        };
        let fetch = async {
            near.write_all(GET.as_bytes()).await.unwrap();
            assert_eq!(rest(&mut near).await, b"a page");
            near.shutdown().await.unwrap();
        };
        timeout(PATIENCE, async { tokio::join!(serve, fetch) })
            .await
            .expect("a page");
        near.resumed()
    }

    /// Connects, and waits until the daemon has a session of the connection.
    async fn open_pair(&self) -> (Near, Far) {
        let (mut near, mut far) = self.pair().await;
        far.write_all(b"!").await.unwrap();
        assert_eq!(read(&mut near, 1).await, b"!");
        assert!(self.sessions() > 0);
        (near, far)
    }

    /// Returns the number of sessions of clients.
    fn sessions(&self) -> usize {
        let registry = self.daemon.core.registry();
        registry.get("default").unwrap().client_cache.len()
    }

    /// Waits until the connections are freed and their sessions removed, or kept.
    async fn ended(&self, kept: bool) {
        let freed = async |daemon: &TestDaemon| daemon.core.connections().is_empty();
        self.daemon.until("the connections are freed", freed).await;
        assert_eq!(self.sessions() > 0, kept, "{:?}", self.version);
        assert_eq!(self.fetch(&self.engine).await, kept, "{:?}", self.version);
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    timeout(PATIENCE, stream.read_exact(&mut bytes))
        .await
        .expect("bytes")
        .unwrap();
    bytes
}

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("the end")
        .unwrap();
    bytes
}

/// Returns the error that a read ends with.
async fn read_error(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Error {
    timeout(PATIENCE, stream.read_to_end(&mut Vec::new()))
        .await
        .expect("the end")
        .unwrap_err()
}

/// Returns bytes that show if one is lost or moved.
fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

#[tokio::test]
async fn second_connection_resumes_also_through_another_engine() {
    for version in VERSIONS {
        let stage = Stage::start(version).await;
        assert!(!stage.fetch(&stage.engine).await);
        assert!(stage.fetch(&stage.engine.clone()).await, "{version:?}");
        assert!(stage.fetch(&engine(&stage.daemon)).await, "{version:?}");
        assert_eq!(stage.daemon.core.connections().len(), 0);
    }
}

#[tokio::test]
async fn stream_tells_what_was_agreed() {
    let stage = Stage::start(&TLS12).await;
    let (near, _far) = stage.pair().await;
    assert_eq!(near.version(), tls_sessiond_client::Version::Tls12);
    assert!(near.cipher_suite().starts_with("TLS_ECDHE_"));
    assert_eq!(near.alpn(), "");
    assert!(
        near.peer()
            .is_some_and(|peer| peer.dns_names == ["localhost"])
    );
    assert_eq!(near.connection_id().len(), 32);
}

#[tokio::test]
async fn refusal_of_the_daemon_is_an_error() {
    let stage = Stage::start(&TLS13).await;
    let mut options = Options::new(&format!("tcp://{}", stage.daemon.address), FORMAT).unwrap();
    options.context = "unknown".into();
    let (near, _far) = duplex(SOCKET);
    let refused = Engine::new(options).connect(near, localhost()).await;
    let refused = refused.err().expect("there is no such context");
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    assert!(refused.to_string().contains("unknown"), "{refused}");
}

/// Starts a daemon in its own process, at a Unix socket.
async fn binary(socket: &str, config: &str) -> Binary {
    let api = format!("listen.api=[\"tcp://127.0.0.1:0\", \"unix://{socket}\"]");
    Binary::start(&["--config", config, "--set", &api]).await
}

#[tokio::test]
async fn lost_daemon_is_an_error_and_its_successor_is_found() {
    let certificate = Certificate::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, config) = (path("api.sock"), path("daemon.toml"));
    std::fs::write(&config, certificate.context()).unwrap();
    let engine = engine_at(&format!("unix://{socket}"));
    let acceptor = acceptor(&certificate, &TLS13);
    let connect = async || {
        let (near, far) = duplex(SOCKET);
        tokio::join!(engine.connect(near, localhost()), acceptor.accept(far))
    };

    let daemon = binary(&socket, &config).await;
    let (near, far) = connect().await;
    let (mut near, _far) = (near.unwrap(), far.unwrap());
    let ((), error) = tokio::join!(daemon.kill(), read_error(&mut near));
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert!(
        error
            .to_string()
            .starts_with("the connection to the daemon was lost")
    );
    for error in [near.write_all(b"x").await, near.shutdown().await] {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    let (near, _) = connect().await;
    let error = near.err().expect("there is no daemon");
    let inner = error.get_ref().unwrap().downcast_ref();
    assert!(
        matches!(inner, Some(EngineError::Unreachable { .. })),
        "{error}"
    );

    let _daemon = binary(&socket, &config).await;
    let (near, far) = connect().await;
    near.unwrap();
    far.unwrap();
}

#[tokio::test]
async fn open_stream_outlives_the_begin_of_a_stop_and_ends_with_it() {
    let mut stage = Stage::with(&TLS13, "[drain]\ntimeout = \"2s\"\n").await;
    let (mut near, mut far) = stage.open_pair().await;
    stage.daemon.begin_stop();
    near.write_all(b"?").await.unwrap();
    near.flush().await.unwrap();
    assert_eq!(read(&mut far, 1).await, b"?");
    let error = read_error(&mut near).await;
    let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
    assert!(kinds.contains(&error.kind()), "{error}");
}

#[tokio::test]
async fn connections_beyond_the_stream_limit_use_further_channels() {
    const COUNT: usize = 250;
    let stage = Stage::with(&TLS13, "[limits]\nstreams = 16\nstreams_non_worker = 16\n").await;
    let mut pairs = tokio::task::JoinSet::new();
    for _ in 0..COUNT {
        let (engine, acceptor) = (stage.engine.clone(), stage.acceptor.clone());
        pairs.spawn(async move {
            let (near, far) = duplex(SOCKET);
            tokio::try_join!(engine.connect(near, localhost()), acceptor.accept(far)).unwrap()
        });
    }
    let pairs = timeout(PATIENCE, pairs.join_all())
        .await
        .expect("all connect");
    assert_eq!(stage.daemon.core.connections().len(), COUNT);
    for (mut near, mut far) in pairs {
        far.shutdown().await.unwrap();
        assert!(rest(&mut near).await.is_empty());
        near.shutdown().await.unwrap();
    }
    assert!(stage.daemon.core.connections().is_empty());
    assert!(stage.fetch(&stage.engine).await);
}

#[cfg(feature = "peers")]
#[tokio::test]
async fn engines_resume_at_openssl_and_a_killed_server_leaves_no_session() {
    for version in ["-tls1_2", "-tls1_3"] {
        let certificate = Certificate::new();
        let daemon = TestDaemon::with(&certificate.context()).await;
        let (server, address) = crate::interop::s_server(&certificate, &["-www", version]).await;
        for resumed in [false, true, true] {
            let socket = tokio::net::TcpStream::connect(&address).await.unwrap();
            let mut tls = engine(&daemon).connect(socket, localhost()).await.unwrap();
            assert_eq!(tls.resumed(), resumed, "{version}");
            tls.write_all(GET.as_bytes()).await.unwrap();
            let page = String::from_utf8(rest(&mut tls).await).unwrap();
            assert!(page.contains("s_server"), "{page}");
            timeout(PATIENCE, tls.shutdown()).await.unwrap().unwrap();
        }
        let socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        let mut tls = engine(&daemon).connect(socket, localhost()).await.unwrap();
        let ((), error) = tokio::join!(server.kill(), read_error(&mut tls));
        // The killed process may have left bytes unread.
        let kinds = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{error}");
        drop(tls);
        let freed = async |daemon: &TestDaemon| daemon.core.connections().is_empty();
        daemon.until("the connection is freed", freed).await;
    }
}
