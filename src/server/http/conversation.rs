//! HTTP/2 on one connection: accepts its calls, and detects a dead peer.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{
    Reason,
    server::{Builder, Connection},
};
use tls_sessiond_proto::transport::KeepAlive;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    call::Call,
    outbox::{Outbox, Piece},
};
use crate::server::{admission::Admission, write_buffer::FlushHandle};

/// How long a connection may be silent before the daemon sends a PING, and how long the peer may
/// take to answer it.
const SILENT_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A connection and its calls.
pub(crate) struct Conversation<'t, I> {
    connection: Connection<I, Piece>,
    life: Option<KeepAlive>,
    edge: Admission,
    outbox: Arc<Outbox>,
    turn: &'t FlushHandle,
}

impl<'t, I: AsyncRead + AsyncWrite + Unpin> Conversation<'t, I> {
    /// Starts HTTP/2 with a peer whose preface has arrived.
    ///
    /// # Errors
    /// The first bytes are not a preface, or the socket has ended.
    pub(crate) async fn begin(
        protocol: &Builder,
        socket: I,
        edge: Admission,
        turn: &'t FlushHandle,
    ) -> Result<Self, h2::Error> {
        let mut connection = protocol.handshake(socket).await?;
        let life = connection
            .ping_pong()
            .map(|pings| KeepAlive::new(pings, SILENT_MAX, ANSWER_MAX));
        let outbox = Outbox::new(Arc::clone(edge.caller.holder()));
        Ok(Self {
            connection,
            life,
            edge,
            outbox,
            turn,
        })
    }

    /// Accepts no further calls. The connection then ends when its running calls have ended.
    pub(crate) fn drain(&mut self) {
        self.connection.graceful_shutdown();
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Future for Conversation<'_, I> {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(life) = &mut this.life {
            if this.turn.heard() {
                life.heard();
            }
            if life.poll_dead(cx).is_ready() {
                tracing::debug!("the peer did not answer a PING in time; closing its connection");
                this.connection.abrupt_shutdown(Reason::NO_ERROR);
                this.life = None;
            }
        }
        loop {
            match ready!(this.connection.poll_accept(cx)) {
                Some(Ok((request, respond))) => {
                    tokio::spawn(Call::begin(request, respond, &this.edge, &this.outbox));
                }
                Some(Err(err)) => return Poll::Ready(Err(err)),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}
