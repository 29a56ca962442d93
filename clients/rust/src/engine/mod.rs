//! Connections whose TLS the daemon runs, over Drive. For clients that share their sessions with
//! other processes although their own TLS library cannot export sessions, or that have none.
//!
//! ```no_run
//! # async fn fetch() -> Result<(), Box<dyn std::error::Error>> {
//! use tls_sessiond_client::{
//!     Options,
//!     engine::{ClientConnection, Engine, FORMAT},
//! };
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! let engine = Engine::new(Options::new("unix:///run/tls-sessiond/api.sock", FORMAT)?);
//! let socket = tokio::net::TcpStream::connect("example.org:443").await?;
//! // A server may be slow: put a timeout around this.
//! let mut tls = engine.connect(socket, ClientConnection::new("example.org")).await?;
//! tls.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
//! let mut page = Vec::new();
//! tls.read_to_end(&mut page).await?;
//! tls.shutdown().await?; // without this, dropping the stream removes the session
//! # Ok(())
//! # }
//! ```
//!
//! The daemon's context has the trust anchors, the client certificate, the versions and the
//! application protocols. The caller needs the role `worker` in it.
//!
//! Parts:
//!
//! * `stream`: the plaintext of a connection
//! * `carrier`: carries bytes between the socket, the Drive and the application
//! * `drive`: one Drive and its answers
//! * `call`: a Drive as a gRPC call
//! * `pool`, `channel`: the HTTP/2 connections to the daemon
//! * `chunks`, `wakers`, `error`

mod call;
mod carrier;
mod channel;
mod chunks;
mod drive;
mod error;
mod pool;
mod stream;
mod wakers;

use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    sync::Arc,
    time::Duration,
};

pub use error::EngineError;
use prost::Message;
pub use stream::EngineStream;
use tls_sessiond_proto as pb;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use self::{carrier::Carrier, drive::Drive, pool::Pool};
use crate::options::{Options, within_bounds};

/// The name of the encoding of the daemon's own sessions, for [`Options::new`]. An engine makes no
/// other sessions.
pub const FORMAT: &str = "rustls";

/// Connections over one daemon. Clones share its HTTP/2 connections.
///
/// Each HTTP/2 connection carries several TLS connections, up to the daemon's `limits.streams`. A
/// further one is opened before one is full, and one that has failed is replaced at the next
/// [`Engine::connect`].
#[derive(Clone)]
pub struct Engine(Arc<Pool>);

/// The parameters of one connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientConnection {
    /// The DNS name or IP address of the server. Its certificate must have it, and the session is
    /// looked up by it.
    pub server_name: String,
    /// The time after which the daemon frees the connection as unclosed if no byte passes: 1 s to
    /// 24 h. A time outside of these bounds counts as the nearer one. `None`: the context's
    /// `idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// The server's address, for logs and lists of the daemon. At most 64 bytes, or empty.
    pub peer_address: String,
}

impl ClientConnection {
    /// Makes the parameters of a connection with this server.
    pub fn new(server_name: impl Into<String>) -> Self {
        Self {
            server_name: server_name.into(),
            idle_timeout: None,
            peer_address: String::new(),
        }
    }

    fn into_request(self, context: &str) -> pb::NewRequest {
        pb::NewRequest {
            context: context.to_owned(),
            role: pb::Role::Client.into(),
            engine: pb::Engine::Daemon.into(),
            server_name: self.server_name,
            // Always fits: it is a day at most.
            idle_timeout: self
                .idle_timeout
                .and_then(|idle| within_bounds(idle).try_into().ok()),
            peer_address: self.peer_address,
            ..pb::NewRequest::default()
        }
    }
}

impl Engine {
    /// Makes an engine. It connects to the daemon when the first connection needs it.
    ///
    /// Of the options it uses the daemon's address and the context.
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Pool::new(options)))
    }

    /// Begins a client's connection over a connected socket, and does the handshake. It offers the
    /// newest session that any client of the context has with this server name.
    ///
    /// It waits at most 2 s for each attempt to reach the daemon. A silent server holds the call up:
    /// put a timeout around it. Dropping the future ends the connection.
    ///
    /// Must be awaited on a tokio runtime with its timer and its I/O driver enabled. A task of this
    /// runtime polls an HTTP/2 connection that was opened here, also for later calls.
    ///
    /// # Errors
    /// The inner error is an [`EngineError`]. The daemon cannot be reached, or refused the
    /// connection; the handshake or the socket failed. If an alert of this side ended the handshake,
    /// the alert was written to the socket before.
    pub async fn connect<IO>(
        &self,
        socket: IO,
        connection: ClientConnection,
    ) -> io::Result<EngineStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let new = connection
            .into_request(&self.0.options.context)
            .encode_to_vec();
        let drive = match self.open(&new).await {
            // A connection that had ended unnoticed, for example because the daemon was restarted.
            // The peer's socket was not touched.
            Err(EngineError::DaemonLost(_)) => self.open(&new).await?,
            opened => opened?,
        };
        let mut carrier = Carrier::new(socket, drive);
        carrier.handshake().await?;
        Ok(EngineStream::new(carrier))
    }

    /// Makes a connection in the daemon.
    async fn open(&self, new: &[u8]) -> Result<Drive, EngineError> {
        let mut drive = Drive::begin(self.0.begin().await?, new);
        let opened = poll_fn(|cx| drive.poll_opened(cx));
        timeout(self.0.options.connect_timeout(), opened)
            .await
            .map_err(|_| EngineError::Unreachable {
                kind: ErrorKind::TimedOut,
                text: "it did not answer in time".into(),
            })??;
        Ok(drive)
    }
}
