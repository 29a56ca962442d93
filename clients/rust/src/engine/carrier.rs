//! Carries bytes between the socket, the Drive, and the application.
//!
//! Both buffers stay small. Without room in them, no ciphertext is read from the socket, or no
//! plaintext is taken from the application. The answers to bytes that the daemon has already are
//! always read, and the window of the Drive bounds them.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{EngineError, drive::Drive};

/// The most bytes of one event. A record has as many.
const PIECE: usize = 16 << 10;
/// The bytes that wait for the application, or for the socket, from which on the other end of that
/// direction is not read.
const WAITING_MAX: usize = 64 << 10;

/// A socket and its Drive.
pub(super) struct Carrier<IO> {
    socket: IO,
    drive: Drive,
    incoming: Incoming,
    /// The error of a write to the socket.
    write_error: Option<EngineError>,
    /// Whether the socket must be flushed.
    unflushed: bool,
    /// Whether plaintext was sent for which no echo was asked.
    unconfirmed: bool,
    /// The last echo that was asked for to know that all records were written.
    confirmed: u64,
    closing: Closing,
    /// Counts what has been moved anywhere.
    pub(super) moves: u64,
}

/// The socket's side towards this process.
enum Incoming {
    Open,
    /// The socket has ended. If the peer has closed before, it may still read. The echo with this
    /// number tells whether it has.
    Asked(u64),
    Ended,
}

/// The close of this side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    Open,
    /// The shutdown was sent.
    Asked,
    /// The close_notify was written, and SENT is set in the daemon.
    Written,
    /// This side's half of the Drive has ended too.
    Over,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Carrier<IO> {
    pub(super) fn new(socket: IO, drive: Drive) -> Self {
        Self {
            socket,
            drive,
            incoming: Incoming::Open,
            write_error: None,
            unflushed: false,
            unconfirmed: false,
            confirmed: 0,
            closing: Closing::Open,
            moves: 0,
        }
    }

    pub(super) fn socket(&self) -> &IO {
        &self.socket
    }

    pub(super) fn drive(&self) -> &Drive {
        &self.drive
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// The handshake or the socket failed, or the daemon was lost. An alert has been written.
    pub(super) async fn handshake(&mut self) -> Result<(), EngineError> {
        poll_fn(|cx| {
            self.carry(cx);
            match self.drive.established() {
                Some(_) => Poll::Ready(Ok(())),
                None => failed(ready!(self.poll_failure())),
            }
        })
        .await
    }

    /// Reads plaintext of the peer into `buf`. Nothing was read: the peer has closed.
    ///
    /// # Errors
    /// The connection failed, or the daemon was lost.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), EngineError>> {
        self.carry(cx);
        if self.read(buf) || buf.remaining() == 0 {
            // There may be room again.
            self.carry(cx);
            return Poll::Ready(Ok(()));
        }
        if self.drive.peer_closed() {
            return self.poll_over();
        }
        failed(ready!(self.poll_failure()))
    }

    /// Moves plaintext to `buf`. Returns whether there was any.
    fn read(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let before = buf.filled().len();
        while buf.remaining() > 0 && !self.drive.plaintext.is_empty() {
            let chunk = self.drive.plaintext.first();
            let length = chunk.len().min(buf.remaining());
            buf.put_slice(&chunk[..length]);
            self.drive.plaintext.advance(length);
        }
        buf.filled().len() > before
    }

    /// Takes plaintext for the peer. Returns the number of bytes.
    ///
    /// # Errors
    /// This side has closed, the connection or the socket failed, or the daemon was lost.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, EngineError>> {
        if self.closing != Closing::Open {
            return Poll::Ready(Err(EngineError::Closed));
        }
        self.carry(cx);
        if let Some(error) = ready!(self.poll_broken()) {
            return Poll::Ready(Err(error));
        }
        if self.drive.ciphertext.len() >= WAITING_MAX {
            return Poll::Pending;
        }
        ready!(self.drive.poll_room(cx));
        let piece = &data[..data.len().min(PIECE)];
        if !piece.is_empty() {
            self.drive.send_plaintext(piece);
            self.unconfirmed = true;
            self.moves += 1;
        }
        Poll::Ready(Ok(piece.len()))
    }

    /// Becomes ready when the records of all plaintext are written to the socket.
    ///
    /// # Errors
    /// The connection or the socket failed, or the daemon was lost.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EngineError>> {
        self.carry(cx);
        if matches!(self.closing, Closing::Written | Closing::Over) {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = ready!(self.poll_broken()) {
            return Poll::Ready(Err(error));
        }
        if self.unconfirmed {
            ready!(self.drive.poll_room(cx));
            self.confirm();
            self.carry(cx);
        }
        match self.is_written() {
            true => Poll::Ready(Ok(())),
            // A failure may have come just now.
            false => failed(ready!(self.poll_broken())),
        }
    }

    /// Closes this side. Becomes ready when the close_notify is written. If the peer has closed,
    /// the socket may be gone: that is no error then.
    ///
    /// # Errors
    /// The connection failed, the socket failed before the peer had closed, or the daemon was lost.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EngineError>> {
        self.carry(cx);
        if self.closing == Closing::Open && self.drive.has_closed_itself() {
            // With the option ignore-unexpected-eof, the end of the socket closes both sides.
            let written = self.drive.ciphertext.is_empty() && !self.unflushed;
            return if written {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
        }
        if self.closing == Closing::Open {
            if let Some(error) = ready!(self.poll_unclosable()) {
                return Poll::Ready(Err(error));
            }
            ready!(self.drive.poll_room(cx));
            self.drive.send_shutdown();
            self.closing = Closing::Asked;
            self.confirm();
            self.carry(cx);
        }
        if self.closing == Closing::Asked {
            let gone = self.write_error.is_some() && self.drive.has_echoed(self.confirmed);
            if !(self.is_written() || gone && self.drive.peer_closed()) {
                return failed(ready!(self.poll_unclosable()));
            }
            // As in tokio-rustls. The close_notify is out, so an error here changes nothing.
            _ = ready!(Pin::new(&mut self.socket).poll_shutdown(cx));
            self.closing = Closing::Written;
            self.carry(cx);
        }
        self.poll_over()
    }

    /// Becomes ready at once, or when the Drive has ended if both sides have closed: the daemon has
    /// freed the connection then.
    fn poll_over(&self) -> Poll<Result<(), EngineError>> {
        match self.closing == Closing::Over && !self.drive.has_ended() {
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }

    /// Asks for the echo after which all records have come.
    fn confirm(&mut self) {
        self.confirmed = self.drive.ask_echo();
        self.unconfirmed = false;
        self.moves += 1;
    }

    fn is_written(&self) -> bool {
        self.drive.has_echoed(self.confirmed) && self.drive.ciphertext.is_empty() && !self.unflushed
    }

    /// Returns the reason why nothing more can be written. `None`: there is none.
    fn poll_broken(&self) -> Poll<Option<EngineError>> {
        match &self.write_error {
            Some(error) => Poll::Ready(Some(error.clone())),
            None => self.poll_failure(),
        }
    }

    /// Returns the reason why this side cannot be closed. `None`: there is none.
    fn poll_unclosable(&self) -> Poll<Option<EngineError>> {
        match self.drive.peer_closed() {
            true => self.poll_failure(),
            false => self.poll_broken(),
        }
    }

    /// Returns the reason why the connection is over. `None`: it is not. Pending: an alert is not
    /// yet written.
    fn poll_failure(&self) -> Poll<Option<EngineError>> {
        let unwritten = !self.drive.ciphertext.is_empty() || self.unflushed;
        match self.drive.failure() {
            Some(EngineError::Alert {
                received: false, ..
            }) if unwritten => Poll::Pending,
            Some(failure) => Poll::Ready(Some(failure.clone())),
            // The Drive has ended as it was asked to, and takes no more plaintext.
            None => Poll::Ready(self.drive.has_ended().then_some(EngineError::Closed)),
        }
    }

    /// Moves everything that can be moved now.
    fn carry(&mut self, cx: &mut Context<'_>) {
        loop {
            let answered = self.drive.take_answers(cx);
            let written = self.write_socket(cx);
            let fed = self.feed(cx).is_ready();
            let ended = self.end();
            if !(answered || written || fed || ended) {
                return;
            }
            self.moves += 1;
        }
    }

    /// Writes records to the socket. Returns whether it did.
    fn write_socket(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while !self.drive.ciphertext.is_empty() && self.write_error.is_none() {
            let records = self.drive.ciphertext.first();
            match Pin::new(&mut self.socket).poll_write(cx, records) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.drive.ciphertext.advance(count);
                    self.unflushed = true;
                }
                Poll::Ready(Ok(0)) => self.lose(&io::ErrorKind::WriteZero.into()),
                Poll::Ready(Err(error)) => self.lose(&error),
                Poll::Pending => return moved,
            }
            moved = true;
        }
        if self.write_error.is_some() {
            self.drive.ciphertext.clear();
        }
        if self.unflushed {
            match Pin::new(&mut self.socket).poll_flush(cx) {
                Poll::Pending => return moved,
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.lose(&error),
            }
            moved = true;
        }
        moved
    }

    /// Keeps the error of a write. Records are dropped from now on. What the peer has sent before
    /// can still be read.
    fn lose(&mut self, error: &io::Error) {
        self.write_error = Some(EngineError::socket(error));
        self.unflushed = false;
    }

    /// Gives the daemon what the socket has, or the end of the socket. Pending: there is nothing
    /// to give now.
    fn feed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wants = match self.incoming {
            Incoming::Open => !self.drive.peer_closed() && self.drive.plaintext.len() < WAITING_MAX,
            Incoming::Asked(echo) => {
                if self.drive.peer_closed() {
                    self.incoming = Incoming::Ended;
                }
                self.drive.has_echoed(echo) && !self.drive.peer_closed()
            }
            Incoming::Ended => false,
        };
        if !wants || self.drive.failure().is_some() {
            return Poll::Pending;
        }
        ready!(self.drive.poll_room(cx));
        if let Incoming::Asked(_) = self.incoming {
            self.end_incoming(EngineError::Truncated);
            return Poll::Ready(());
        }
        let mut space = [MaybeUninit::uninit(); PIECE];
        let mut records = ReadBuf::uninit(&mut space);
        let read = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut records));
        match read {
            Ok(()) if !records.filled().is_empty() => self.drive.send_ciphertext(records.filled()),
            // Plaintext may be left for a peer that has closed only its half. The daemon takes none
            // after the end, so this side first asks whether the peer has closed.
            Ok(()) if self.drive.established().is_some() && self.closing == Closing::Open => {
                self.incoming = Incoming::Asked(self.drive.ask_echo());
            }
            Ok(()) => self.end_incoming(EngineError::Truncated),
            Err(error) => self.end_incoming(EngineError::socket(&error)),
        }
        Poll::Ready(())
    }

    /// Reports the end of the socket to the daemon, which decides whether it is a failure.
    fn end_incoming(&mut self, reason: EngineError) {
        self.incoming = Incoming::Ended;
        self.drive.send_end_of_stream(reason);
    }

    /// Ends this side's half of the Drive once both sides have closed. Returns whether it did.
    fn end(&mut self) -> bool {
        let both = self.closing == Closing::Written && self.drive.peer_closed();
        if both {
            self.drive.end();
            self.closing = Closing::Over;
        }
        both
    }
}

/// Returns this error, or Pending if there is none.
fn failed(error: Option<EngineError>) -> Poll<Result<(), EngineError>> {
    error.map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
}
