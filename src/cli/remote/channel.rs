//! Connects to a daemon over TCP, a Unix socket or mutual TLS, and calls it within a time limit.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use super::{
    address::{DaemonAddress, HostPort},
    failure::Failure,
    socket::{ByteStream, EndCause, RecordedSocket},
    tls::ClientFiles,
};

/// The authority of HTTP/2 over a Unix socket, whose path is not an authority.
const LOCAL_AUTHORITY: &str = "localhost";
/// How often an idle connection is checked, and how long the answer may take. So a `watch` ends if
/// the host of the daemon is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A connection to a daemon.
pub(super) struct RemoteDaemon {
    channel: Channel,
    address: DaemonAddress,
    /// Time limit of each call.
    limit: Duration,
}

impl RemoteDaemon {
    /// Connects. Connecting and each later call take at most `limit`.
    ///
    /// # Errors
    /// [`Failure::Unreachable`], or a file of `files` cannot be used.
    pub(super) async fn connect(
        address: DaemonAddress,
        files: &ClientFiles,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let unreachable = |cause: String| Failure::Unreachable {
            address: address.clone(),
            cause,
        };
        let connecting = async {
            let (socket, authority) = match &address {
                DaemonAddress::Tcp(at) => (tcp(at).await, at.to_string()),
                DaemonAddress::Unix(path) => (unix(path).await, LOCAL_AUTHORITY.to_owned()),
                DaemonAddress::Tls(at) => (files.connect(at).await?.map(boxed), at.to_string()),
            };
            let socket = socket.map_err(|err| unreachable(connect_error(&err)))?;
            over(socket, &authority)
                .await
                .map_err(|err| unreachable(err.to_string()))
        };
        let channel = timeout(limit, connecting)
            .await
            .map_err(|_| Failure::late(address.clone(), limit))??;
        Ok(Self {
            channel,
            address,
            limit,
        })
    }

    /// Returns the channel, for a stub.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Waits for a call, and returns its answer. Of a stream this is its beginning.
    ///
    /// # Errors
    /// [`Failure::Refused`], or [`Failure::Unreachable`] without an answer within the limit.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match timeout(self.limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(status)),
            Err(_) => Err(Failure::late(self.address.clone(), self.limit)),
        }
    }

    /// Returns the failure of a stream that the daemon ended without a status.
    pub(super) fn ended(&self) -> Failure {
        Failure::Unreachable {
            address: self.address.clone(),
            cause: "the daemon ended the stream".into(),
        }
    }

    /// Returns the failure of a call to this daemon.
    pub(super) fn failure(&self, status: Status) -> Failure {
        Failure::of_call(&self.address, status)
    }
}

/// Returns the cause of a failed connect(2), with a remedy if there is a usual one.
fn connect_error(err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::NotFound => format!("{err}: no daemon has made this socket"),
        io::ErrorKind::PermissionDenied => {
            format!("{err}: this user is not a member of the group of the socket")
        }
        io::ErrorKind::ConnectionRefused => format!("{err}: no daemon listens there"),
        _ => err.to_string(),
    }
}

fn boxed(socket: impl ByteStream + 'static) -> Box<dyn ByteStream> {
    Box::new(socket)
}

async fn unix(path: &Path) -> io::Result<Box<dyn ByteStream>> {
    UnixStream::connect(path).await.map(boxed)
}

/// Connects without TLS. `localhost` may resolve to other addresses than those of loopback; these
/// are left out.
async fn tcp(at: &HostPort) -> io::Result<Box<dyn ByteStream>> {
    let found = lookup_host((at.host.as_str(), at.port)).await?;
    let loopback: Vec<SocketAddr> = found
        .filter(|address| address.ip().to_canonical().is_loopback())
        .collect();
    let socket = TcpStream::connect(&*loopback).await?;
    socket.set_nodelay(true)?;
    Ok(boxed(socket))
}

/// Makes a channel over one socket. The channel does not connect again: a later call fails with
/// the cause of the socket's end.
async fn over(
    socket: Box<dyn ByteStream>,
    authority: &str,
) -> Result<Channel, tonic::transport::Error> {
    let end = EndCause::default();
    let mut socket = Some(TokioIo::new(RecordedSocket::new(socket, end.clone())));
    let connector = service_fn(move |_: Uri| {
        let socket = socket.take().ok_or_else(|| end.error());
        async { socket }
    });
    Endpoint::try_from(format!("http://{authority}"))?
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .connect_with_connector(connector)
        .await
}
