//! One HTTP/2 connection of a worker, from its first byte to its end.
//!
//! hyper serves it, and calls go to the services directly: tonic's own server takes a call through a router that clones
//! all services, and half a dozen boxes (decision 13).

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader},
    time::{sleep, timeout},
};
use tonic::{body::Body, codegen::BoxFuture, codegen::Service, service::Routes};

use super::{
    access::{Access, Caller, Peer},
    connections::Connections,
    contexts::Contexts,
    edge::{Edge, Incoming, Load},
    listen::{Accepted, Beyond, Known, Signals},
    lookout::Lookout,
    seldom::Seldom,
    sessions::Sessions,
    socket::Turn,
    streams::{StreamLimits, StreamTotals},
    timer::Timer,
    tls::Acceptor,
    workers::Workers,
};
use crate::proto::{
    connection_service_server::{self, ConnectionServiceServer},
    context_service_server::{self, ContextServiceServer},
    session_service_server::{self, SessionServiceServer},
    worker_service_server::{self, WorkerServiceServer},
};

/// How long a connection may be open before it sends its first byte. hyper waits for every connection before it stops,
/// also for one that never said a word (hyper issue 4170).
const FIRST_BYTE: Duration = Duration::from_secs(20);
/// How long a connection lives that is one more than there may be.
const BEYOND: Duration = Duration::from_secs(2);
/// How often an idle HTTP/2 connection is asked whether it lives, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What a call may send ahead of being read. A Drive whose answers nobody reads is not read from either, and its window
/// fills; the connection's window has room for all of them, or one such stream would stop every other call of its worker.
const STREAM_WINDOW: u32 = 256 << 10;
/// The least window of a stream: one frame of the size that every peer may send (RFC 9113 section 4.2).
const STREAM_WINDOW_MIN: u32 = 16 << 10;
/// RFC 9113 section 6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// What waits of one answer for a caller who does not read.
const SEND_BUFFER: usize = 64 << 10;
/// Largest header block of a call.
const HEADERS_MAX: u32 = 16 << 10;
/// Streams that a peer reset before they were handled (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 64;

/// The window of a stream and that of its connection, which has room for the windows of so many streams and one more. The
/// protocol's largest window holds those of 8,190 streams; with more, each stream has a smaller one.
fn windows(streams: u32) -> (u32, u32) {
    let all = streams.saturating_add(1);
    let stream = STREAM_WINDOW.min(WINDOW_MAX / all).max(STREAM_WINDOW_MIN);
    (stream, all.saturating_mul(stream).min(WINDOW_MAX))
}

/// What there is to call.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) connections: ConnectionServiceServer<Connections>,
    pub(super) sessions: SessionServiceServer<Sessions>,
    pub(super) contexts: ContextServiceServer<Contexts>,
    pub(super) workers: WorkerServiceServer<Workers>,
    /// Health and reflection.
    pub(super) others: Routes,
}

impl Services {
    pub(super) fn call(&self, request: Request<impl Incoming>) -> BoxFuture<Response<Body>, Infallible> {
        let path = request.uri().path();
        let service =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service);
        match service {
            Some(connection_service_server::SERVICE_NAME) => self.connections.clone().call(request),
            Some(session_service_server::SERVICE_NAME) => self.sessions.clone().call(request),
            Some(context_service_server::SERVICE_NAME) => self.contexts.clone().call(request),
            Some(worker_service_server::SERVICE_NAME) => self.workers.clone().call(request),
            _ => Box::pin(self.others.clone().call(request)),
        }
    }
}

/// What all connections have in common.
#[derive(Clone)]
pub(super) struct Gate {
    /// Who may do what.
    pub(super) access: Arc<Access>,
    /// Who comes over TLS. `None`: nobody does.
    pub(super) tls: Option<Arc<Acceptor>>,
    /// What is being answered.
    pub(super) load: Arc<Load>,
    /// How many streams one connection may have.
    pub(super) streams: StreamLimits,
    /// The connections that had as many.
    pub(super) stream_totals: Arc<StreamTotals>,
}

/// Serves HTTP/2 connections.
#[derive(Clone)]
pub(super) struct Http {
    services: Services,
    gate: Gate,
}

/// HTTP/2 with at most `streams` calls at a time.
fn protocol(streams: u32) -> http2::Builder<TokioExecutor> {
    let (stream_window, connection_window) = windows(streams);
    let mut protocol = http2::Builder::new(TokioExecutor::new());
    protocol
        .timer(Timer::new())
        .auto_date_header(false)
        .max_concurrent_streams(streams)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_header_list_size(HEADERS_MAX)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX);
    protocol
}

impl Http {
    pub(super) fn new(services: Services, gate: Gate) -> Self {
        Self { services, gate }
    }

    /// What the calls of one caller pass.
    pub(super) fn edge(&self, peer: Peer, beyond: Option<Beyond>) -> Edge {
        let Gate { access, streams, stream_totals, load, .. } = &self.gate;
        Edge {
            beyond,
            services: self.services.clone(),
            caller: Arc::new(Caller::new(peer, access, streams, stream_totals)),
            load: Arc::clone(load),
        }
    }

    /// Serves one connection: until its peer ends it, until its last call has ended once `signals.draining` is cancelled,
    /// or until `signals.kill` is. `lookout` is told of its turns.
    pub(super) async fn serve(self, accepted: Accepted, signals: Signals, lookout: Arc<Lookout>) {
        let beyond = accepted.beyond();
        // Held to the end, for the connection counts as open until then.
        let (socket, known, _counted) = match accepted.adopt() {
            Ok(adopted) => adopted,
            Err(err) => {
                tracing::warn!(%err, "cannot take a connection over");
                return;
            }
        };
        let turn = socket.turn(lookout);
        let spoke = tokio::select! {
            readable = socket.readable() => readable.is_ok(),
            () = sleep(if beyond.is_some() { BEYOND } else { FIRST_BYTE }) => false,
            () = signals.draining.cancelled() => false,
            () = signals.kill.cancelled() => false,
        };
        if !spoke {
            return;
        }
        let from = match known {
            Known::Peer(peer) => {
                let edge = self.edge(peer, beyond);
                return self.converse(socket, &turn, edge, &signals).await;
            }
            Known::ByHandshake(from) => from,
        };
        let Some(acceptor) = self.gate.tls.clone() else { return };
        // After the handshake it may still say nothing.
        let greeted = async {
            let (stream, peer) = acceptor.accept(socket).await?;
            let mut stream = BufReader::new(stream);
            let spoke = !timeout(FIRST_BYTE, stream.fill_buf()).await??.is_empty();
            Ok::<_, std::io::Error>(spoke.then_some((stream, peer)))
        };
        let greeted = tokio::select! {
            greeted = greeted => greeted,
            () = signals.draining.cancelled() => Ok(None),
            () = signals.kill.cancelled() => Ok(None),
        };
        match greeted {
            Ok(Some((stream, peer))) => {
                let edge = self.edge(peer, beyond);
                self.converse(stream, &turn, edge, &signals).await;
            }
            Ok(None) => {}
            Err(err) => self.gate.access.audit_stranger(from, &err),
        }
    }

    async fn converse<I>(self, socket: I, turn: &Turn, edge: Edge, signals: &Signals)
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let beyond = edge.beyond.is_some();
        let protocol = protocol(edge.caller.streams().limit());
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(socket), edge));
        let mut draining = Seldom::new(Box::pin(signals.draining.cancelled()));
        let mut kill = Seldom::new(Box::pin(signals.kill.cancelled()));
        let ended = tokio::select! {
            biased;
            () = &mut kill => Ok(()),
            () = &mut draining => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    biased;
                    () = &mut kill => Ok(()),
                    ended = turns(&mut connection, turn) => ended,
                }
            }
            // Its place is for others that want to know the same.
            () = sleep(BEYOND), if beyond => Ok(()),
            ended = turns(&mut connection, turn) => ended,
        };
        if let Err(err) = ended {
            tracing::debug!(%err, "an HTTP/2 connection broke");
        }
    }
}

/// Lets a connection have its turns, until it ends.
async fn turns<C>(connection: &mut Pin<&mut C>, turn: &Turn) -> Result<(), Box<dyn Error + Send + Sync>>
where
    C: Future<Output = hyper::Result<()>>,
{
    poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(ended.map_err(Into::into)),
        Poll::Pending => match turn.end(cx) {
            Ok(()) => Poll::Pending,
            Err(err) => Poll::Ready(Err(err.into())),
        },
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_of_a_connection_has_room_for_those_of_its_streams() {
        for streams in [1, 100, 8_000, 8_190, 8_191, 50_000, 131_070] {
            let (stream, connection) = windows(streams);
            assert!(u64::from(stream) * u64::from(streams + 1) <= u64::from(connection), "{streams}");
            assert!((STREAM_WINDOW_MIN..=STREAM_WINDOW).contains(&stream) && connection <= WINDOW_MAX);
        }
        assert_eq!(windows(8_190).0, STREAM_WINDOW, "the default takes nothing from a stream");
        assert_eq!(windows(u32::MAX), (STREAM_WINDOW_MIN, WINDOW_MAX));
    }
}
