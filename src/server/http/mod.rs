//! One HTTP/2 connection of a client, from its first byte to its end.
//!
//! Calls go from h2 directly to the services. A server library in between would hide how much of a
//! call is read and written, and the daemon has to count that (decision 39).
//!
//! * `conversation`: accepts the calls of a connection
//! * `call`: one call and its answer
//! * `inbox`: the request of a call
//! * `outbox`: bytes of unsent answers of one connection

mod call;
mod conversation;
mod inbox;
mod outbox;

use std::{
    error::Error,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use h2::server::Builder;
use tls_sessiond_core::state::CoreState;
use tls_sessiond_proto::transport::wake::PollOnWake;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{sleep, timeout},
};

use self::conversation::Conversation;
use super::{
    admission::Admission,
    busy_poll::BusyPoll,
    listen::{Accepted, Beyond, Known},
    preface::{Greeted, preface},
    router::Services,
    tls::Acceptor,
    write_buffer::FlushHandle,
};
use crate::{
    api::{
        access::{Access, Caller, Peer},
        durations::CallDurations,
        quota::{
            Accounts,
            streams::{Class, StreamLimits, StreamTotals},
        },
    },
    shutdown::Shutdown,
};

/// How long a client may take to send its HTTP/2 preface. Over TLS it may take as long to send the
/// first byte of its handshake before.
const FIRST_BYTES: Duration = Duration::from_secs(20);
/// How long a connection beyond the limit of sockets lives.
const BEYOND: Duration = Duration::from_secs(2);
/// Flow-control window of a stream: how many bytes a call may send before they are read. The daemon
/// stops reading a Drive whose answers its worker does not read, so the window of that stream
/// fills. The window of the connection has room for all streams. Otherwise one such stream would
/// stop all other calls of its worker.
const STREAM_WINDOW: u32 = 256 << 10;
/// The smallest window of a stream: one frame of the size that every peer may send (RFC 9113
/// section 4.2).
const STREAM_WINDOW_MIN: u32 = 16 << 10;
/// Largest window that HTTP/2 allows (RFC 9113 section 6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// How many unwritten bytes of one answer HTTP/2 accepts, for callers with a role and for callers
/// without. The outbox bounds the bytes of all answers.
const SEND_BUFFER: usize = 256 << 10;
const SEND_BUFFER_NO_ROLE: usize = 16 << 10;
/// Disables h2's limit of short frames. h2 closes a connection on which the peer sent too many, and
/// never forgets those for a call that had already ended. A worker whose Drives end shortly before
/// its last messages would lose all its other calls. The limit is not needed: calls read all
/// frames, and one turn of a connection reads only few.
const SHORT_FRAMES: usize = usize::MAX;
/// The window that every connection and stream begins with. The window of a connection cannot be
/// made smaller (RFC 9113 section 6.9.2).
const LEAST_WINDOW: u32 = (64 << 10) - 1;
/// Largest header block of a call, in bytes.
const HEADERS_MAX: u32 = 16 << 10;
/// Most streams that the peer reset and the daemon has not yet handled (CVE-2023-44487), for a
/// caller without a role.
const PENDING_RESETS_MAX: usize = 64;
/// The same for a caller with a role. A client that cancels many calls at once sends many resets in
/// one read.
const PENDING_RESETS_ROLE: usize = 1000;
/// The answer to a peer that speaks HTTP/1.
const NO_HTTP1: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\ncontent-length: 75\r\n\
connection: close\r\n\r\nThis is tls-sessiond: it speaks gRPC over HTTP/2. Try grpcurl, not HTTP/1.\n";
/// Most reads of the rest of an HTTP/1 request, of at most 1 KiB each.
const FAREWELL_READS: usize = 48;
/// How long a peer that speaks HTTP/1 may take to receive the answer.
const FAREWELL: Duration = Duration::from_secs(1);
/// Most streams that the daemon reset and still remembers. Frames that the peer had already sent on
/// them are ignored.
const OWN_RESETS_MAX: usize = 1024;

/// Returns the windows of a stream and of its connection, in bytes. The connection's window holds
/// those of `streams` streams and of one more. The largest window of HTTP/2 suffices for 8,190
/// streams. With more streams, the window of each is smaller.
fn windows(streams: u32) -> (u32, u32) {
    let all = streams.saturating_add(1);
    let stream = STREAM_WINDOW.min(WINDOW_MAX / all).max(STREAM_WINDOW_MIN);
    (stream, all.saturating_mul(stream).min(WINDOW_MAX))
}

/// The state that all connections share.
#[derive(Clone)]
pub(crate) struct Gate {
    /// Announces changed rules, and writes the audit log.
    pub(crate) access: Arc<Access>,
    /// Performs TLS handshakes. `None` where no TLS is configured.
    pub(crate) tls: Option<Arc<Acceptor>>,
    /// The resources that each identity holds.
    pub(crate) accounts: Arc<Accounts>,
    /// The connection objects and the clock.
    pub(crate) state: Arc<CoreState>,
    /// How many concurrent streams one connection may have.
    pub(crate) streams: Arc<StreamLimits>,
    /// Counts the connections that reached that limit.
    pub(crate) stream_totals: Arc<StreamTotals>,
    pub(crate) durations: Arc<CallDurations>,
}

/// Serves HTTP/2 connections.
#[derive(Clone)]
pub(crate) struct Http {
    services: Services,
    gate: Gate,
}

/// Returns the HTTP/2 settings for a caller of this class, with at most `streams` concurrent
/// streams.
fn protocol(streams: u32, class: Class) -> Builder {
    let (stream_window, connection_window) = match class {
        Class::Worker => windows(streams),
        // These callers send short requests, and a full window of theirs stops no stream of a
        // worker.
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
    pub(crate) fn new(services: Services, gate: Gate) -> Self {
        Self { services, gate }
    }

    /// Returns the admission of one caller's calls.
    pub(crate) fn edge(&self, peer: Peer, beyond: Option<Beyond>) -> Admission {
        let Gate {
            access,
            streams,
            stream_totals,
            accounts,
            state,
            durations,
            ..
        } = &self.gate;
        Admission {
            beyond,
            services: self.services.clone(),
            caller: Arc::new(Caller::new(
                peer,
                access,
                &state.registry(),
                streams,
                stream_totals,
                accounts,
            )),
            state: Arc::clone(state),
            durations: Arc::clone(durations),
        }
    }

    /// Serves one connection until one of these:
    ///
    /// * The peer ends it.
    /// * `shutdown.drain` is cancelled, and the last call has ended.
    /// * `shutdown.abort` is cancelled.
    ///
    /// Reports each turn of the connection to `lookout`.
    pub(crate) async fn serve(
        self,
        accepted: Accepted,
        shutdown: Shutdown,
        lookout: Arc<BusyPoll>,
    ) {
        let beyond = accepted.beyond();
        // Held to the end, because the connection counts as open until then.
        let (socket, known, _counted) = match accepted.adopt() {
            Ok(adopted) => adopted,
            Err(err) => {
                tracing::warn!(%err, "cannot register an accepted connection with the runtime; closing it");
                return;
            }
        };
        let turn = socket.turn(lookout);
        let first_bytes = if beyond.is_some() {
            BEYOND
        } else {
            FIRST_BYTES
        };
        match known {
            Known::Peer(peer) => {
                let greeted = until(&shutdown, async {
                    timeout(first_bytes, preface(socket)).await?
                });
                // A client that does not send its preface in time is closed without an answer.
                let Some(Ok(greeted)) = greeted.await else {
                    return;
                };
                let edge = self.edge(peer, beyond);
                self.converse(greeted, &turn, edge, &shutdown).await;
            }
            Known::ByHandshake(from) => {
                let Some(acceptor) = self.gate.tls.clone() else {
                    return;
                };
                let Some(handshake) = self.gate.accounts.handshake(from.ip()) else {
                    return self.gate.access.audit_stranger(
                        from,
                        &"too many unfinished handshakes, in all or from this network",
                    );
                };
                let greeted = until(&shutdown, async {
                    timeout(first_bytes, socket.readable()).await??;
                    let (stream, peer) = acceptor.accept(socket).await?;
                    // A client that does not send its preface in time is closed without a log line.
                    let greeted = timeout(first_bytes, preface(stream))
                        .await
                        .ok()
                        .and_then(Result::ok);
                    Ok::<_, io::Error>(greeted.map(|stream| (stream, peer)))
                });
                let greeted = greeted.await;
                drop(handshake);
                match greeted {
                    Some(Ok(Some((stream, peer)))) => {
                        let edge = self.edge(peer, beyond);
                        self.converse(stream, &turn, edge, &shutdown).await;
                    }
                    Some(Err(err)) => self.gate.access.audit_stranger(from, &err),
                    Some(Ok(None)) | None => {}
                }
            }
        }
    }

    async fn converse<I>(
        self,
        socket: Greeted<I>,
        turn: &FlushHandle,
        edge: Admission,
        shutdown: &Shutdown,
    ) where
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
        let begun = until(shutdown, Conversation::begin(&protocol, socket, edge, turn)).await;
        let mut conversation = match begun {
            Some(Ok(conversation)) => pin!(conversation),
            Some(Err(err)) => return tracing::debug!(%err, "cannot start HTTP/2 on a connection"),
            None => return,
        };
        let mut draining = PollOnWake::new(Box::pin(shutdown.drain.cancelled()));
        let mut abort = PollOnWake::new(Box::pin(shutdown.abort.cancelled()));
        let ended = tokio::select! {
            biased;
            () = &mut abort => Ok(()),
            () = &mut draining => {
                conversation.as_mut().drain();
                tokio::select! {
                    biased;
                    () = &mut abort => Ok(()),
                    ended = turns(&mut conversation, turn) => ended,
                }
            }
            // Its place beyond the limit is needed for the next health check.
            () = sleep(BEYOND), if beyond => Ok(()),
            ended = turns(&mut conversation, turn) => ended,
        };
        if let Err(err) = ended {
            tracing::debug!(%err, "an HTTP/2 connection failed");
        }
    }
}

/// Runs the first steps of a connection. Returns `None` if the daemon begins to stop meanwhile.
async fn until<T>(shutdown: &Shutdown, begins: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        begun = begins => Some(begun),
        () = shutdown.drain.cancelled() => None,
        () = shutdown.abort.cancelled() => None,
    }
}

/// Answers a peer that speaks HTTP/1. Reads and discards the rest of its request, because closing a
/// socket with unread data would reset the connection before the peer has read the answer.
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

/// Polls a connection until it ends, and flushes its socket after each poll.
async fn turns<C>(
    connection: &mut Pin<&mut C>,
    turn: &FlushHandle,
) -> Result<(), Box<dyn Error + Send + Sync>>
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
            assert!(
                u64::from(stream) * u64::from(streams + 1) <= u64::from(connection),
                "{streams}"
            );
            assert!(
                (STREAM_WINDOW_MIN..=STREAM_WINDOW).contains(&stream) && connection <= WINDOW_MAX
            );
        }
        assert_eq!(
            windows(8_190).0,
            STREAM_WINDOW,
            "the default leaves each stream its full window"
        );
        assert_eq!(windows(u32::MAX), (STREAM_WINDOW_MIN, WINDOW_MAX));
    }
}
