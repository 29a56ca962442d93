//! One HTTP/2 connection of a worker, from its first byte to its end.
//!
//! Calls go from HTTP/2 to the services directly: servers in between hide how much of a call is read and written, and that has to be
//! counted (decision 39).
//!
//! * `conversation`: the connection, which calls come off
//! * `call`: one call, and its answer
//! * `inbox`: its request
//! * `outbox`: what all answers of the connection may have in HTTP/2

mod call;
mod conversation;
mod inbox;
mod outbox;

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use h2::server::Builder;
use http::{Request, Response};
use tls_sessiond_core::connection::Table;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{sleep, timeout},
};
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service},
    service::Routes,
};

use self::conversation::Conversation;
use super::{
    access::{Access, Caller, Peer},
    accounts::Accounts,
    connections::Connections,
    contexts::Contexts,
    edge::{Edge, Incoming},
    listen::{Accepted, Beyond, Known, Signals},
    lookout::Lookout,
    preface::{Greeted, preface},
    seldom::Seldom,
    sessions::Sessions,
    socket::Turn,
    streams::{Class, StreamLimits, StreamTotals},
    tls::Acceptor,
    workers::Workers,
};
use crate::proto::{
    connection_service_server::{self, ConnectionServiceServer},
    context_service_server::{self, ContextServiceServer},
    session_service_server::{self, SessionServiceServer},
    worker_service_server::{self, WorkerServiceServer},
};

/// How long a connection may take to send its preface, and before it the first byte of its TLS handshake.
const FIRST_BYTES: Duration = Duration::from_secs(20);
/// How long a connection lives that is one more than there may be.
const BEYOND: Duration = Duration::from_secs(2);
/// What a call may send ahead of being read. A Drive whose answers nobody reads is not read from either, and its window
/// fills; the connection's window has room for all of them, or one such stream would stop every other call of its worker.
const STREAM_WINDOW: u32 = 256 << 10;
/// The least window of a stream: one frame of the size that every peer may send (RFC 9113 section 4.2).
const STREAM_WINDOW_MIN: u32 = 16 << 10;
/// RFC 9113 section 6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// What HTTP/2 takes of one answer that is not written yet; the outbox bounds what it takes of all. For callers with a role, and
/// without.
const SEND_BUFFER: usize = 256 << 10;
const SEND_BUFFER_NO_ROLE: usize = 16 << 10;
/// h2 ends a connection that has had too many short frames, and counts those for good that come for a call which has ended: a worker
/// whose Drives end a moment before its last message would lose all the others. Here calls read every frame away, and a turn reads
/// few of them.
const SHORT_FRAMES: usize = usize::MAX;
/// The window that every connection and stream begins with: none can be less (RFC 9113 section 6.9.2).
const LEAST_WINDOW: u32 = (64 << 10) - 1;
/// Largest header block of a call.
const HEADERS_MAX: u32 = 16 << 10;
/// Streams that a peer reset before they were handled (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 64;
/// The same for a caller with a role: a client that gives up many calls at once has more of them in one read.
const PENDING_RESETS_ROLE: usize = 1000;
/// What a peer is told that speaks HTTP/1.
const NO_HTTP1: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\ncontent-length: 75\r\n\
connection: close\r\n\r\nThis is tls-sessiond: it speaks gRPC over HTTP/2. Try grpcurl, not HTTP/1.\n";
/// How often its request is read on, a KiB at most each time.
const FAREWELL_READS: usize = 48;
/// How long such a peer may take to read it.
const FAREWELL: Duration = Duration::from_secs(1);
/// Streams that the daemon reset, and on which the peer may still send what it had begun.
const OWN_RESETS_MAX: usize = 1024;

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
    pub(super) messages: MessageLimits,
}

/// Largest message of each service, in bytes.
#[derive(Clone, Copy)]
pub(super) struct MessageLimits {
    pub(super) connections: usize,
    pub(super) sessions: usize,
    pub(super) contexts: usize,
    pub(super) workers: usize,
    pub(super) others: usize,
}

/// The service of a path.
fn service(path: &str) -> Option<&str> {
    path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service)
}

impl Services {
    /// Largest message that the service of this path reads.
    pub(super) fn message_max(&self, path: &str) -> usize {
        match service(path) {
            Some(connection_service_server::SERVICE_NAME) => self.messages.connections,
            Some(session_service_server::SERVICE_NAME) => self.messages.sessions,
            Some(context_service_server::SERVICE_NAME) => self.messages.contexts,
            Some(worker_service_server::SERVICE_NAME) => self.messages.workers,
            _ => self.messages.others,
        }
    }

    pub(super) fn call(&self, request: Request<impl Incoming>) -> BoxFuture<Response<Body>, Infallible> {
        match service(request.uri().path()) {
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
    /// Tells of changed rules and of refused calls.
    pub(super) access: Arc<Access>,
    /// Shakes hands with callers over TLS. `None`: there are none.
    pub(super) tls: Option<Arc<Acceptor>>,
    /// What each identity holds.
    pub(super) accounts: Arc<Accounts>,
    /// The connection objects, and the time.
    pub(super) table: Arc<Table>,
    /// How many streams one connection may have.
    pub(super) streams: Arc<StreamLimits>,
    /// The connections that had as many.
    pub(super) stream_totals: Arc<StreamTotals>,
}

/// Serves HTTP/2 connections.
#[derive(Clone)]
pub(super) struct Http {
    services: Services,
    gate: Gate,
}

/// HTTP/2 for a caller of this class, with at most `streams` calls at a time.
fn protocol(streams: u32, class: Class) -> Builder {
    let (stream_window, connection_window) = match class {
        Class::Worker => windows(streams),
        // What these callers send is short, and a stream that it fills holds up none of a worker's.
        Class::OtherRole => (LEAST_WINDOW, LEAST_WINDOW * 16),
        Class::NoRole => (LEAST_WINDOW, LEAST_WINDOW),
    };
    let (send_buffer, resets) = match class {
        Class::NoRole => (SEND_BUFFER_NO_ROLE, PENDING_RESETS_MAX),
        Class::Worker | Class::OtherRole => (SEND_BUFFER, PENDING_RESETS_ROLE),
    };
    let mut protocol = Builder::new();
    protocol
        .max_concurrent_streams(streams)
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_header_list_size(HEADERS_MAX)
        .max_send_buffer_size(send_buffer)
        .data_frame_budget(SHORT_FRAMES)
        .max_concurrent_reset_streams(OWN_RESETS_MAX)
        .max_pending_accept_reset_streams(resets);
    protocol
}

impl Http {
    pub(super) fn new(services: Services, gate: Gate) -> Self {
        Self { services, gate }
    }

    /// What the calls of one caller pass.
    pub(super) fn edge(&self, peer: Peer, beyond: Option<Beyond>) -> Edge {
        let Gate { access, streams, stream_totals, accounts, table, .. } = &self.gate;
        Edge {
            beyond,
            services: self.services.clone(),
            caller: Arc::new(Caller::new(peer, access, &table.registry(), streams, stream_totals, accounts)),
            table: Arc::clone(table),
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
        let first_bytes = if beyond.is_some() { BEYOND } else { FIRST_BYTES };
        match known {
            Known::Peer(peer) => {
                let greeted = until(&signals, async { timeout(first_bytes, preface(socket)).await? });
                // One that says nothing, or half a word, is closed without one.
                let Some(Ok(greeted)) = greeted.await else { return };
                let edge = self.edge(peer, beyond);
                self.converse(greeted, &turn, edge, &signals).await;
            }
            Known::ByHandshake(from) => {
                let Some(acceptor) = self.gate.tls.clone() else { return };
                let Some(handshake) = self.gate.accounts.handshake(from.ip()) else {
                    return self
                        .gate
                        .access
                        .audit_stranger(from, &"too many handshakes of its network are unfinished");
                };
                let greeted = until(&signals, async {
                    timeout(first_bytes, socket.readable()).await??;
                    let (stream, peer) = acceptor.accept(socket).await?;
                    // One that says nothing after its handshake, or half a word, is closed without a line.
                    let greeted = timeout(first_bytes, preface(stream)).await.ok().and_then(Result::ok);
                    Ok::<_, io::Error>(greeted.map(|stream| (stream, peer)))
                });
                let greeted = greeted.await;
                drop(handshake);
                match greeted {
                    Some(Ok(Some((stream, peer)))) => {
                        let edge = self.edge(peer, beyond);
                        self.converse(stream, &turn, edge, &signals).await;
                    }
                    Some(Err(err)) => self.gate.access.audit_stranger(from, &err),
                    Some(Ok(None)) | None => {}
                }
            }
        }
    }

    async fn converse<I>(self, socket: Greeted<I>, turn: &Turn, edge: Edge, signals: &Signals)
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        if socket.speaks_http1() {
            return drop(timeout(FAREWELL, farewell(socket)).await);
        }
        let beyond = edge.beyond.is_some();
        let streams = edge.caller.streams();
        let _place = match streams.class() {
            Class::NoRole => match edge.caller.holder().socket_without_role() {
                None => return self.gate.access.audit_crowd(edge.caller.owner()),
                place => place,
            },
            Class::Worker | Class::OtherRole => None,
        };
        let protocol = protocol(streams.limit(), streams.class());
        let begun = until(signals, Conversation::begin(&protocol, socket, edge, turn)).await;
        let mut conversation = match begun {
            Some(Ok(conversation)) => pin!(conversation),
            Some(Err(err)) => return tracing::debug!(%err, "an HTTP/2 connection did not begin"),
            None => return,
        };
        let mut draining = Seldom::new(Box::pin(signals.draining.cancelled()));
        let mut kill = Seldom::new(Box::pin(signals.kill.cancelled()));
        let ended = tokio::select! {
            biased;
            () = &mut kill => Ok(()),
            () = &mut draining => {
                conversation.as_mut().drain();
                tokio::select! {
                    biased;
                    () = &mut kill => Ok(()),
                    ended = turns(&mut conversation, turn) => ended,
                }
            }
            // Its place is for others that want to know the same.
            () = sleep(BEYOND), if beyond => Ok(()),
            ended = turns(&mut conversation, turn) => ended,
        };
        if let Err(err) = ended {
            tracing::debug!(%err, "an HTTP/2 connection broke");
        }
    }
}

/// What a connection begins with, unless the daemon stops meanwhile.
async fn until<T>(signals: &Signals, begins: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        begun = begins => Some(begun),
        () = signals.draining.cancelled() => None,
        () = signals.kill.cancelled() => None,
    }
}

/// Tells a peer that speaks HTTP/1 what this is. What it still sends is read away, or closing would take the answer from it.
async fn farewell<I: AsyncRead + AsyncWrite + Unpin>(mut socket: I) -> io::Result<()> {
    socket.write_all(NO_HTTP1).await?;
    socket.shutdown().await?;
    let mut rest = [0; 1024];
    for _ in 0..FAREWELL_READS {
        if socket.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Lets a connection have its turns, until it ends.
async fn turns<C>(connection: &mut Pin<&mut C>, turn: &Turn) -> Result<(), Box<dyn Error + Send + Sync>>
where
    C: Future<Output = Result<(), h2::Error>>,
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
