//! HTTP/2 on one connection: calls are taken off it, and a peer that lives no more is noticed.

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
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    call::Call,
    outbox::{Outbox, Piece},
};
use crate::{
    keepalive::KeepAlive,
    rpc::{edge::Edge, socket::Turn},
};

/// How long a connection may be silent before its peer is asked whether it lives, and how long the answer may take.
const SILENT_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A connection and its calls.
pub(super) struct Conversation<'t, I> {
    connection: Connection<I, Piece>,
    life: Option<KeepAlive>,
    edge: Edge,
    outbox: Arc<Outbox>,
    turn: &'t Turn,
}

impl<'t, I: AsyncRead + AsyncWrite + Unpin> Conversation<'t, I> {
    /// Begins it with a peer whose preface has come.
    ///
    /// # Errors
    /// What came is no preface, or the socket ended.
    pub(super) async fn begin(
        protocol: &Builder,
        socket: I,
        edge: Edge,
        turn: &'t Turn,
    ) -> Result<Self, h2::Error> {
        let mut connection = protocol.handshake(socket).await?;
        let life = connection.ping_pong().map(|pings| KeepAlive::new(pings, SILENT_MAX, ANSWER_MAX));
        let outbox = Outbox::new(Arc::clone(edge.caller.holder()));
        Ok(Self { connection, life, edge, outbox, turn })
    }

    /// Takes no further calls, and ends when those that run have ended.
    pub(super) fn drain(&mut self) {
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
                tracing::debug!("a peer does not answer: its connection ends");
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
