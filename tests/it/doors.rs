//! The listeners of one daemon, and callers: over loopback TCP, over the Unix socket as any user,
//! and over mutual TLS with any certificate.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;
use tls_sessiond::{
    config::{ConfigError, Endpoint},
    daemon::Reloaded,
};
use tls_sessiond_proto::{
    self as pb, connection_service_client::ConnectionServiceClient,
    session_service_client::SessionServiceClient, worker_service_client::WorkerServiceClient,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    codegen::Service,
    transport::{Channel, Endpoint as Target, Uri},
};

use crate::{
    harness::{TestDaemon, new, reason},
    pki::{Authority, Leaf},
    process::PATIENCE,
};

/// The id of a user that is not root. The host needs no account with it.
pub(crate) const SOMEBODY: u32 = 54_321;

/// A daemon with a listener of each kind, and the authority of its certificates. Its contexts are
/// `default` and `mail`.
pub(crate) struct House {
    pub(crate) daemon: TestDaemon,
    pub(crate) authority: Authority,
    pub(crate) tls: SocketAddr,
    pub(crate) socket: PathBuf,
    api: String,
    limits: &'static str,
    folder: TempDir,
}

/// Returns an `[[access]]` rule.
pub(crate) fn rule(identity: &str, contexts: &str, role: &str) -> String {
    format!(
        "[[access]]\nidentity = \"{identity}\"\ncontexts = [\"{contexts}\"]\nrole = \"{role}\"\n"
    )
}

impl House {
    pub(crate) async fn with(rules: &str) -> Self {
        Self::limited("", rules).await
    }

    /// Starts the daemon with `[limits]` and these rules.
    pub(crate) async fn limited(limits: &'static str, rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        open_to_all(folder.path());
        let authority = Authority::new("workers");
        authority
            .leaf(&["localhost"])
            .write(folder.path(), "server");
        fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        let socket = folder.path().join("api.sock");
        let api = format!(
            "[\"tcp://127.0.0.1:0\", \"tls://127.0.0.1:0\", \"unix://{}\"]",
            socket.display()
        );
        let daemon = TestDaemon::listening(&api, &config(folder.path(), limits, rules)).await;
        let tls = |endpoint: &Endpoint| match endpoint {
            Endpoint::Tls(address) => Some(*address),
            _ => None,
        };
        let tls = daemon.endpoints.iter().find_map(tls).unwrap();
        Self {
            daemon,
            authority,
            tls,
            socket,
            api,
            limits,
            folder,
        }
    }

    /// Reloads the daemon with these rules and the current files.
    pub(crate) fn reload(&self, rules: &str) -> Result<Reloaded, ConfigError> {
        self.daemon
            .reload_listening(&self.api, &config(self.folder.path(), self.limits, rules))
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the TLS configuration of a worker with this certificate.
    pub(crate) fn client(&self, leaf: Option<&Leaf>) -> ClientConfig {
        client(&self.authority.pem, leaf)
    }

    pub(crate) async fn handshake(&self, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(self.tls).await?;
        socket.set_nodelay(true)?;
        TlsConnector::from(Arc::new(config))
            .connect("localhost".try_into().unwrap(), socket)
            .await
    }

    /// Returns a channel over mutual TLS.
    pub(crate) async fn over_tls(&self, leaf: &Leaf) -> Channel {
        over(self.handshake(self.client(Some(leaf))).await.unwrap()).await
    }

    /// Returns a new channel over loopback TCP.
    pub(crate) async fn over_tcp(&self) -> Channel {
        let socket = TcpStream::connect(&self.daemon.address).await.unwrap();
        // Nagle's algorithm would delay a call by up to 40 ms, until the last one is acknowledged.
        socket.set_nodelay(true).unwrap();
        over(socket).await
    }

    /// Returns a channel over the Unix socket, as this user and the group with the same number.
    pub(crate) async fn over_unix(&self, uid: u32) -> Channel {
        over(unix_as(uid, &self.socket)).await
    }
}

/// Lets every user of this host enter the folder.
pub(crate) fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

fn config(folder: &Path, limits: &str, rules: &str) -> String {
    let folder = folder.display();
    let context = |name: &str| {
        format!(
            "[[context]]\nname = \"{name}\"\ncertificate = \"{folder}/server.crt\"\nkey = \"{folder}/server.key\"\n\
             ca = \"{folder}/ca.pem\"\n"
        )
    };
    format!(
        "{limits}\n[drain]\ntimeout = \"100ms\"\n[listen]\nunix_mode = \"0666\"\n[listen.tls]\ncertificate = \"{folder}/server.crt\"\n\
         key = \"{folder}/server.key\"\nclient_ca = \"{folder}/ca.pem\"\n{rules}{}{}",
        context("default"),
        context("mail")
    )
}

/// Returns a configuration that trusts this authority and shows this certificate.
pub(crate) fn client(trusted: &str, leaf: Option<&Leaf>) -> ClientConfig {
    let config = ClientConfig::builder().with_root_certificates(trust(trusted));
    let mut config = match leaf {
        None => config.with_no_client_auth(),
        Some(leaf) => {
            let chain = vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub(crate) fn trust(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        .unwrap();
    roots
}

/// Connects to a Unix socket as another user. On Linux each thread has its own credentials, and a
/// socket has those of the thread that connects it (unix(7), SO_PEERCRED). So a thread that ends
/// afterwards changes its user and connects.
fn unix_as(uid: u32, socket: &Path) -> UnixStream {
    let socket = socket.to_owned();
    let connect = move || {
        let (user, group) = (
            rustix::process::Uid::from_raw(uid),
            rustix::process::Gid::from_raw(uid),
        );
        set_thread_groups(&[]).expect("the test must run as root to change its user");
        set_thread_res_gid(group, group, group)
            .expect("the test must run as root to change its user");
        set_thread_res_uid(user, user, user).expect("the test must run as root to change its user");
        StdUnixStream::connect(socket)
    };
    let stream = thread::spawn(connect).join().unwrap().unwrap();
    stream.set_nonblocking(true).unwrap();
    UnixStream::from_std(stream).unwrap()
}

/// Returns a channel over a connected stream. It does not reconnect.
pub(crate) async fn over<S>(stream: S) -> Channel
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    try_over(stream).await.unwrap()
}

/// Returns a channel over a connected stream, or the error if the daemon refuses the connection.
pub(crate) async fn try_over<S>(stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Target::from_static("http://localhost")
        .connect_with_connector(Once(Some(stream)))
        .await
}

struct Once<S>(Option<S>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Service<Uri> for Once<S> {
    type Response = TokioIo<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<S>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self
            .0
            .take()
            .ok_or_else(|| io::ErrorKind::NotConnected.into());
        Box::pin(async { stream.map(TokioIo::new) })
    }
}

/// A caller over one channel.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) connections: ConnectionServiceClient<Channel>,
    pub(crate) sessions: SessionServiceClient<Channel>,
    pub(crate) workers: WorkerServiceClient<Channel>,
    pub(crate) channel: Channel,
}

impl Guest {
    pub(crate) fn new(channel: &Channel) -> Self {
        Self {
            connections: ConnectionServiceClient::new(channel.clone()),
            sessions: SessionServiceClient::new(channel.clone()),
            workers: WorkerServiceClient::new(channel.clone()),
            channel: channel.clone(),
        }
    }

    /// Makes a server's connection of this context whose TLS runs in the worker. Returns its id.
    pub(crate) async fn open(&mut self, context: &str) -> Result<String, Status> {
        let request = pb::NewRequest {
            context: context.into(),
            ..crate::calls::worker(pb::Role::Server)
        };
        Ok(self
            .connections
            .new_connection(request)
            .await?
            .into_inner()
            .connection
            .unwrap()
            .id)
    }

    pub(crate) async fn exchange(
        &mut self,
        connection_id: &str,
        ciphertext: Bytes,
        plaintext: Bytes,
    ) -> pb::ExchangeResponse {
        let connection_id = connection_id.to_owned();
        let request = pb::ExchangeRequest {
            connection_id,
            ciphertext,
            plaintext,
            end_of_stream: false,
        };
        self.connections
            .exchange(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// Makes a client and a server of the default context whose TLS runs in the daemon, and shakes
    /// hands. Returns their ids.
    pub(crate) async fn pair(&mut self) -> [String; 2] {
        let mut ends = Vec::new();
        for role in [pb::Role::Client, pb::Role::Server] {
            let made = self
                .connections
                .new_connection(new("", role))
                .await
                .unwrap()
                .into_inner();
            ends.push(made.connection.unwrap().id);
        }
        let [client, server] = ends.try_into().unwrap();
        let mut flight = self
            .exchange(&client, Bytes::new(), Bytes::new())
            .await
            .ciphertext;
        while !flight.is_empty() {
            flight = self
                .exchange(&server, flight, Bytes::new())
                .await
                .ciphertext;
            flight = self
                .exchange(&client, flight, Bytes::new())
                .await
                .ciphertext;
        }
        [client, server]
    }

    pub(crate) async fn attach(&mut self) -> Attached {
        let (calls, receiver) = mpsc::channel(16);
        let answers = self
            .workers
            .attach(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Attached { calls, answers }
    }

    pub(crate) async fn drive(&mut self, first: pb::drive_request::Event) -> Driven {
        self.try_drive(first).await.unwrap()
    }

    pub(crate) async fn try_drive(
        &mut self,
        first: pb::drive_request::Event,
    ) -> Result<Driven, Status> {
        let (events, receiver) = mpsc::channel(16);
        events
            .send(pb::DriveRequest { event: Some(first) })
            .await
            .unwrap();
        let answers = self
            .connections
            .drive(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Driven {
            _events: events,
            answers,
        })
    }

    pub(crate) async fn watch(&mut self, context: &str) -> Streaming<pb::WatchSessionsResponse> {
        let request = pb::WatchSessionsRequest {
            context: context.into(),
        };
        self.sessions
            .watch_sessions(request)
            .await
            .unwrap()
            .into_inner()
    }
}

/// A Drive whose request stream stays open.
pub(crate) struct Driven {
    _events: mpsc::Sender<pb::DriveRequest>,
    pub(crate) answers: Streaming<pb::DriveResponse>,
}

/// An Attach whose request stream stays open.
pub(crate) struct Attached {
    calls: mpsc::Sender<pb::AttachRequest>,
    pub(crate) answers: Streaming<pb::AttachResponse>,
}

impl Attached {
    /// Sends a call. Returns the result of its answer.
    pub(crate) async fn call(&mut self, method: pb::call::Method) -> pb::answer::Result {
        let call = pb::Call {
            id: 1,
            method: Some(method),
            alias: String::new(),
        };
        self.answer(call).await.result.unwrap()
    }

    /// Sends a call. Returns the next answer.
    pub(crate) async fn answer(&mut self, call: pb::Call) -> pb::Answer {
        self.calls
            .send(pb::AttachRequest { calls: vec![call] })
            .await
            .unwrap();
        self.answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .answers
            .remove(0)
    }

    /// Makes a connection and a session with this id on it. Returns the connection's id.
    pub(crate) async fn established(&mut self, session_id: &str) -> String {
        let request = crate::calls::worker(pb::Role::Server);
        let pb::answer::Result::New(made) =
            self.call(pb::call::Method::New(Box::new(request))).await
        else {
            panic!("no connection")
        };
        let id = made.connection.unwrap().id;
        let put = crate::calls::put(&id, session_id);
        let pb::answer::Result::PutSession(put) =
            self.call(pb::call::Method::PutSession(Box::new(put))).await
        else {
            panic!("no session")
        };
        assert_eq!(put.reason, "");
        id
    }
}

/// Returns the code and the reason of a status, or `Ok` and an empty reason.
pub(crate) fn why<T>(result: Result<T, Status>) -> (Code, String) {
    match result {
        Ok(_) => (Code::Ok, String::new()),
        Err(status) => (status.code(), reason(&status)),
    }
}

/// Waits for an answer that must come in time. Returns its code and reason.
pub(crate) async fn told<T>(answer: impl Future<Output = Result<T, Status>>) -> (Code, String) {
    why(tokio::time::timeout(PATIENCE, answer)
        .await
        .expect("an answer in time"))
}

/// The code and reason for a caller without the role.
pub(crate) fn denied() -> (Code, String) {
    (Code::PermissionDenied, "PERMISSION_DENIED".into())
}

/// The code and reason for a caller that may not see the connection.
pub(crate) fn not_there() -> (Code, String) {
    (Code::NotFound, "CONNECTION_NOT_FOUND".into())
}
