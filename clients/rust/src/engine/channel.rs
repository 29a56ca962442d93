//! One HTTP/2 connection to the daemon, which carries several Drives. One task polls it.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use h2::client::{Builder, Connection, SendRequest};
use http::{
    HeaderValue, Method, Request, Uri, Version,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use tls_sessiond_proto::transport::KeepAlive;

use super::call::Call;
use crate::{
    endpoint::{Address, Transport},
    framing::Framed,
};

/// The path of the call.
const DRIVE: &str = "/tls.sessiond.v1.ConnectionService/Drive";
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tls-sessiond/", env!("CARGO_PKG_VERSION")));
/// The number of bytes that the daemon may send on a Drive before they are taken.
const STREAM_WINDOW: u32 = 256 << 10;
/// The largest window that HTTP/2 allows (RFC 9113 section 6.9.1). It has room for the windows of
/// all Drives, so a Drive whose bytes are not taken stops no other.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The largest header block of a response, in bytes.
const HEADERS_MAX: u32 = 16 << 10;
/// The bytes of one Drive that are buffered for a daemon that does not read.
const SEND_BUFFER: usize = 64 << 10;
/// How long a daemon may be silent before it is pinged, and how long the answer to the ping may
/// then take.
const SILENT_MAX: Duration = Duration::from_secs(10);
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// The most Drives on one connection, also if the daemon allows more. One thread of the daemon and
/// one task of this process serve a connection, so several connections use more processors.
const DRIVES_MAX: usize = 256;

/// An open HTTP/2 connection. It is closed when this value and all its calls are dropped.
pub(super) struct Channel {
    calls: SendRequest<Framed>,
    uri: Uri,
    /// The number of its calls.
    used: Arc<AtomicUsize>,
}

/// A place among the calls of one channel. Dropping it frees the place.
pub(super) struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Channel {
    /// Connects to the daemon and waits for its settings, because they tell how many calls it
    /// serves at once.
    ///
    /// # Errors
    /// Errors of the transport and of HTTP/2.
    pub(super) async fn open(address: &Address) -> io::Result<Self> {
        let transport = address.connect().await?;
        let (calls, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(0)
            .handshake(transport)
            .await
            .map_err(io::Error::other)?;
        poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(io::Error::other(error))),
            Poll::Ready(Ok(())) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Poll::Pending if connection.max_concurrent_send_streams() == 0 => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await?;
        let life = connection
            .ping_pong()
            .map(|pings| KeepAlive::new(pings, SILENT_MAX, ANSWER_MAX));
        tokio::spawn(run(connection, life));
        Ok(Self {
            calls,
            uri: address.uri(DRIVE),
            used: Arc::default(),
        })
    }

    /// Returns whether it carries no call.
    pub(super) fn is_idle(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }

    /// Returns whether there is room for one more call. One stream of the daemon's limit stays
    /// free, because the daemon warns of connections that reach it.
    pub(super) fn has_room(&self) -> bool {
        let limit = self.calls.current_max_send_streams().saturating_sub(1);
        self.used.load(Ordering::Relaxed) < limit.clamp(1, DRIVES_MAX)
    }

    /// Begins a call. The caller must have checked that there is room, and hold the lock of all
    /// channels.
    ///
    /// # Errors
    /// The connection has ended or is about to end. It takes no further call.
    pub(super) fn begin(&self) -> Result<Call, h2::Error> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(USER_AGENT, AGENT);
        let (response, requests) = self.calls.clone().send_request(request, false)?;
        self.used.fetch_add(1, Ordering::Relaxed);
        Ok(Call::new(response, requests, Slot(Arc::clone(&self.used))))
    }
}

/// Polls a connection until it has ended or the daemon is dead. Dropping it then fails its calls.
async fn run(mut connection: Connection<Transport, Framed>, mut life: Option<KeepAlive>) {
    poll_fn(|cx| {
        let dead = life
            .as_mut()
            .is_some_and(|life| life.poll_dead(cx).is_ready());
        match Pin::new(&mut connection).poll(cx) {
            Poll::Pending if !dead => Poll::Pending,
            _ => Poll::Ready(()),
        }
    })
    .await;
}
