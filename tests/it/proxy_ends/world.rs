//! The parts of a test: certificates, clients, daemons, backends and proxies.

use std::{fs, net::SocketAddr, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tls_sessiond_proto::{
    self as pb, connection_service_client::ConnectionServiceClient,
    context_service_client::ContextServiceClient,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Channel;

use crate::{
    admin_http::{Answer, get},
    binary::Binary,
    pki::{Authority, Leaf},
    process::{PATIENCE, Process},
};

pub(super) const BOTH: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A folder with an authority, and a certificate of it for localhost.
pub(super) struct Home {
    pub(super) folder: TempDir,
    pub(super) authority: Authority,
}

impl Home {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test");
        fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        let home = Self { folder, authority };
        home.issue("tls", &["localhost"]);
        home
    }

    /// Writes a certificate of the authority, as `NAME.crt` and `NAME.key`.
    pub(super) fn issue(&self, name: &str, names: &[&str]) -> Leaf {
        let leaf = self.authority.leaf(names);
        leaf.write(self.folder.path(), name);
        leaf
    }

    /// Returns the path of a file.
    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Returns the configuration of a proxy that terminates TLS.
    pub(super) fn proxy(&self, backend: &str, sessions: &str, more: &str) -> String {
        let (certificate, key) = (self.path("tls.crt"), self.path("tls.key"));
        format!(
            "[[proxy]]\nlisten = \"tls://127.0.0.1:0\"\nbackend = \"{backend}\"\nsessions = \"{sessions}\"\n\
             certificate = \"{certificate}\"\nkey = \"{key}\"\n{more}\n"
        )
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let anchor = CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap();
        roots.add(anchor).unwrap();
        roots
    }

    /// Returns a client without sessions.
    pub(super) fn client(&self, version: &'static SupportedProtocolVersion) -> Client {
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        Client(Arc::new(config))
    }

    /// Returns a client with a certificate, and with these application protocols.
    pub(super) fn client_with(
        &self,
        version: &'static SupportedProtocolVersion,
        leaf: &Leaf,
        alpn: &[&str],
    ) -> Client {
        let chain = vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let mut config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Client(Arc::new(config))
    }
}

/// A client that keeps its sessions. Clones share them.
#[derive(Clone)]
pub(super) struct Client(Arc<ClientConfig>);

pub(super) type Tls = TlsStream<TcpStream>;

impl Client {
    pub(super) fn of(config: ClientConfig) -> Self {
        Self(Arc::new(config))
    }

    pub(super) fn config(&self) -> &ClientConfig {
        &self.0
    }

    /// Does a handshake over a socket.
    pub(super) async fn over(&self, socket: TcpStream, name: &str) -> std::io::Result<Tls> {
        let connector = TlsConnector::from(Arc::clone(&self.0));
        let name = name.to_owned().try_into().unwrap();
        timeout(PATIENCE, connector.connect(name, socket))
            .await
            .expect("a handshake takes too long")
    }

    /// Connects with the server name localhost. Returns once the client has its sessions.
    pub(super) async fn connect(&self, address: &str) -> Tls {
        let socket = TcpStream::connect(address).await.unwrap();
        let mut tls = self.over(socket, "localhost").await.unwrap();
        take_tickets(&mut tls).await;
        tls
    }
}

/// Reads until all tickets of the handshake have come: two after a full one, one after a resumption.
pub(super) async fn take_tickets(tls: &mut Tls) {
    if tls.get_ref().1.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return;
    }
    let wanted = if resumed(tls) { 1 } else { 2 };
    let all = async {
        while tls.get_ref().1.tls13_tickets_received() < wanted {
            let read = timeout(Duration::from_millis(10), tls.read(&mut [0])).await;
            assert!(read.is_err(), "data came before the request: {read:?}");
        }
    };
    timeout(PATIENCE, all).await.expect("tickets do not come");
}

pub(super) fn resumed(tls: &Tls) -> bool {
    tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// How a stream ended for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a close_notify, or without TLS at the end of the stream: the data is whole.
    Whole,
    /// At the end of the stream, without a close_notify.
    Cut,
    /// With a reset.
    Reset,
}

/// Reads to the end. Returns the data, and how the stream ended.
pub(super) async fn drained(stream: &mut (impl AsyncRead + Unpin)) -> (String, Ending) {
    let mut data = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut data)).await;
    let ending = match read.expect("the stream does not end") {
        Ok(_) => Ending::Whole,
        Err(err) => match err.kind() {
            std::io::ErrorKind::UnexpectedEof => Ending::Cut,
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => Ending::Reset,
            _ => panic!("{err:?}"),
        },
    };
    (String::from_utf8(data).unwrap(), ending)
}

/// Connects and sends bytes. Returns the answer, and how the connection ended. A proxy that refuses a
/// connection may do so before it is established.
pub(super) async fn said_to(address: &str, bytes: &[u8]) -> (Vec<u8>, Ending) {
    let mut data = Vec::new();
    let talk = async {
        let mut socket = TcpStream::connect(address).await?;
        let sent = socket.write_all(bytes).await;
        let mut piece = [0; 1024];
        loop {
            match socket.read(&mut piece).await? {
                0 => return sent,
                length => data.extend(&piece[..length]),
            }
        }
    };
    let ended = timeout(PATIENCE, talk)
        .await
        .expect("the connection does not end");
    let ending = match ended {
        Ok(()) => Ending::Whole,
        Err(_) => Ending::Reset,
    };
    (data, ending)
}

/// Waits until a condition holds.
pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// A listener of the test that a proxy connects to.
pub(super) struct Backend(TcpListener);

impl Backend {
    pub(super) async fn listen() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// Returns its address, as the configuration has it.
    pub(super) fn uri(&self) -> String {
        format!("tcp://{}", self.address())
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub(super) async fn accept(&self) -> TcpStream {
        let accepted = timeout(PATIENCE, self.0.accept()).await;
        accepted.expect("no connection comes").unwrap().0
    }

    /// Starts a backend that answers the first bytes of each connection with `answer`, and closes.
    pub(super) async fn answering(answer: &'static str) -> String {
        let backend = Self::listen().await;
        let uri = backend.uri();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = backend.0.accept().await {
                tokio::spawn(async move {
                    drop(socket.read(&mut [0; 1024]).await);
                    drop(socket.write_all(answer.as_bytes()).await);
                });
            }
        });
        uri
    }
}

/// Sends a request, reads the whole answer and closes. Returns the answer, and whether the handshake
/// resumed a session.
pub(super) async fn fetch(client: &Client, address: &str) -> (String, bool) {
    let mut tls = client.connect(address).await;
    let is_resumed = resumed(&tls);
    tls.write_all(b"request").await.unwrap();
    let (answer, ending) = drained(&mut tls).await;
    assert_eq!(ending, Ending::Whole);
    drop(tls.shutdown().await);
    (answer, is_resumed)
}

/// A daemon as a child process.
pub(super) struct Daemon {
    pub(super) binary: Binary,
    channel: Channel,
}

impl Daemon {
    pub(super) async fn start(args: &[&str]) -> Self {
        let binary = Binary::start(args).await;
        let uri = format!("http://{}", binary.address);
        let channel = Channel::from_shared(uri).unwrap().connect().await.unwrap();
        Self { binary, channel }
    }

    /// Returns its address, as the configuration of a proxy has it.
    pub(super) fn uri(&self) -> String {
        format!("tcp://{}", self.binary.address)
    }

    pub(super) async fn stats(&self) -> pb::SessionStats {
        let mut contexts = ContextServiceClient::new(self.channel.clone());
        let asked = contexts.get_context(pb::GetContextRequest::default()).await;
        asked.unwrap().into_inner().context.unwrap().stats.unwrap()
    }

    pub(super) async fn connections(&self) -> usize {
        let mut connections = ConnectionServiceClient::new(self.channel.clone());
        let listed = connections.list_connections(pb::ListConnectionsRequest::default());
        listed.await.unwrap().into_inner().connections.len()
    }

    /// Returns the number of sessions that were removed because of an unclosed end and because of a
    /// fatal alert.
    pub(super) async fn removals(&self) -> (u64, u64) {
        let stats = self.stats().await;
        let by = |reason: pb::RemovalReason| {
            let found = stats.removals_by_reason.iter();
            found
                .filter(|count| count.reason() == reason)
                .map(|count| count.count)
                .sum()
        };
        (
            by(pb::RemovalReason::Unclosed),
            by(pb::RemovalReason::FatalAlert),
        )
    }

    /// Waits until this many more handshakes were reported than `before`, and all connections are
    /// freed.
    pub(super) async fn settled(&self, before: u64, more: u64) {
        until("all reports have come", async || {
            self.stats().await.accept_good >= before + more && self.connections().await == 0
        })
        .await;
    }
}

/// A process with proxies.
pub(super) struct Proxies {
    pub(super) process: Process,
    /// Where each of them listens, without the scheme.
    pub(super) at: Vec<String>,
    pub(super) admin: String,
    folder: TempDir,
}

impl Proxies {
    /// Starts the proxies of a configuration, and waits until their daemons take calls.
    pub(super) async fn start(config: &str) -> Self {
        let proxies = Self::without_daemon(config).await;
        until("sessions are there", async || {
            let metrics = proxies.get("/metrics").await.body;
            let mut attached = metrics
                .lines()
                .filter(|line| line.starts_with("tls_sessiond_proxy_attached{"));
            attached.all(|line| line.ends_with(" 1"))
        })
        .await;
        proxies
    }

    /// Starts the proxies of a configuration.
    pub(super) async fn without_daemon(config: &str) -> Self {
        Self::with(config, |_| {}).await
    }

    /// Starts the proxies of a configuration by a command that `change` has edited.
    pub(super) async fn with(config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("proxy.toml"), config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        command
            .args(["proxy", "--config"])
            .arg(folder.path().join("proxy.toml"))
            .args(["--set", "listen.proxy_admin=\"tcp://127.0.0.1:0\""]);
        change(&mut command);
        let mut process = Process::logging(&mut command, Stdio::from(log));
        let mut at = Vec::new();
        for _ in config.matches("[[proxy]]") {
            let line = process.says("listening on ").await;
            let (listen, _) = line.split_once(", to ").unwrap();
            at.push(listen.split_once("://").unwrap().1.to_owned());
        }
        let admin = process.says("metrics at http://").await;
        Self {
            process,
            at,
            admin: admin.trim_end_matches("/metrics").to_owned(),
            folder,
        }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        get(&self.admin, path).await
    }

    /// Returns the sum of the metrics of one name whose labels contain `labels`.
    pub(super) async fn metric(&self, name: &str, labels: &str) -> u64 {
        let metrics = self.get("/metrics").await.body;
        let series = format!("tls_sessiond_{name}{{");
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with(&series) && line.contains(labels));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Returns the number of connections that ended in this way.
    pub(super) async fn ends(&self, end: &str) -> u64 {
        self.metric("proxy_ends_total", &format!("end=\"{end}\""))
            .await
    }

    /// Returns the number of connections without a handshake for this reason.
    pub(super) async fn unserved(&self, reason: &str) -> u64 {
        self.metric("proxy_unserved_total", &format!("reason=\"{reason}\""))
            .await
    }

    /// Returns the number of lookups that got no answer in time.
    pub(super) async fn late_lookups(&self) -> u64 {
        let mut late = 0;
        for result in ["timeout", "away", "dropped"] {
            late += self
                .metric("proxy_lookups_total", &format!("result=\"{result}\""))
                .await;
        }
        late
    }

    /// Returns the path of its configuration.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.path().join("proxy.toml")
    }

    pub(super) fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
        // Its lines are JSON, with quotes within texts.
        log.replace("\\\"", "\"")
    }

    /// Waits until the log has this text.
    pub(super) async fn logs(&self, text: &str) {
        let wait = async {
            while !self.log().contains(text) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("no `{text}` in the log:\n{}", self.log());
        }
    }

    /// Replaces the configuration and reloads. Returns once the log tells the result.
    pub(super) async fn reload(&self, config: &str) {
        fs::write(self.folder.path().join("proxy.toml"), config).unwrap();
        let count = || {
            self.log().matches("configuration reloaded").count()
                + self.log().matches("reload refused").count()
        };
        let before = count();
        self.process.signal("HUP").await;
        until("the reload has ended", async || count() > before).await;
    }
}
