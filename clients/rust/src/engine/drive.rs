//! One Drive: what was asked of it, and what its answers say.

use std::task::{Context, Poll};

use tls_sessiond_proto::{self as pb, drive_response::Event, tag::drive_request};

use super::{
    EngineError,
    call::{Call, CallProgress},
    chunks::Chunks,
};

/// The most bytes that a Drive holds for the socket and the reader before it takes no more from the
/// daemon. The carrier stops feeding a Drive far below this, so that ciphertext never waits behind
/// plaintext that is not read.
const HELD_MAX: usize = 1 << 20;

/// A Drive and its answers.
pub(super) struct Drive {
    /// `None`: the Drive has ended.
    call: Option<Call>,
    /// Records to write to the socket.
    pub(super) ciphertext: Chunks,
    /// Application data for the reader.
    pub(super) plaintext: Chunks,
    is_open: bool,
    established: Option<pb::Connection>,
    /// Whether the peer's close_notify has arrived.
    peer_closed: bool,
    failure: Option<EngineError>,
    /// How the socket has ended.
    socket_end: Option<EngineError>,
    /// The number of echoes that were asked for, and that have come.
    echoes: (u64, u64),
}

impl Drive {
    /// Begins a Drive by its first event.
    pub(super) fn begin(mut call: Call, new: &[u8]) -> Self {
        // There is no room yet, so h2 buffers it.
        call.send(drive_request::NEW, new);
        Self {
            call: Some(call),
            ciphertext: Chunks::default(),
            plaintext: Chunks::default(),
            is_open: false,
            established: None,
            peer_closed: false,
            failure: None,
            socket_end: None,
            echoes: (0, 0),
        }
    }

    /// Becomes ready when the daemon has made the connection.
    ///
    /// # Errors
    /// The daemon refused to make it, or was lost.
    pub(super) fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EngineError>> {
        self.take_answers(cx);
        match (self.is_open, &self.failure) {
            (true, _) => Poll::Ready(Ok(())),
            (false, Some(failure)) => Poll::Ready(Err(failure.clone())),
            (false, None) => Poll::Pending,
        }
    }

    /// Returns the connection as it was when its handshake had finished.
    pub(super) fn established(&self) -> Option<&pb::Connection> {
        self.established.as_ref()
    }

    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Returns the reason why the connection is over. A Drive that has ended as it was asked to has
    /// none.
    pub(super) fn failure(&self) -> Option<&EngineError> {
        self.failure.as_ref()
    }

    /// Returns whether the daemon has closed both sides because the socket has ended.
    pub(super) fn has_closed_itself(&self) -> bool {
        self.has_ended() && self.peer_closed && self.failure.is_none()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.call.is_none()
    }

    /// Reads all answers that have arrived. Returns whether there were any.
    pub(super) fn take_answers(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Some(mut call) = self.call.take() {
            if self.ciphertext.len() + self.plaintext.len() <= HELD_MAX {
                call.release();
            }
            let read = call.poll_read(cx, |event| self.event(event));
            match read {
                Poll::Pending => {
                    self.call = Some(call);
                    break;
                }
                Poll::Ready(Ok(CallProgress::Read)) => self.call = Some(call),
                Poll::Ready(Ok(CallProgress::Ended)) => {
                    if !self.peer_closed {
                        self.fail(EngineError::DaemonLost("it ended the Drive".into()));
                    }
                }
                Poll::Ready(Err(error)) => self.fail(error),
            }
            moved = true;
        }
        moved
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Opened(_) => self.is_open = true,
            Event::Ciphertext(records) if records.is_empty() => self.echoes.1 += 1,
            Event::Ciphertext(records) => self.ciphertext.push(records),
            Event::Plaintext(data) => self.plaintext.push(data),
            Event::Established(connection) => self.established = Some(connection),
            Event::Closed(closed) => self.closed(closed),
        }
    }

    fn closed(&mut self, closed: pb::DriveClosed) {
        let connection = closed.connection.unwrap_or_default();
        if connection.state() != pb::ConnectionState::Failed {
            self.peer_closed = true;
            return;
        }
        let error = match closed.alert {
            Some(alert) => EngineError::Alert {
                code: u8::try_from(alert.code).unwrap_or(u8::MAX),
                name: alert.name,
                received: alert.received,
            },
            None => self.socket_end.take().unwrap_or(EngineError::Failed),
        };
        self.fail(error);
    }

    /// Keeps the first failure, which is the cause of later ones.
    fn fail(&mut self, error: EngineError) {
        self.failure.get_or_insert(error);
    }

    /// Becomes ready when the daemon takes an event. Never ready after the Drive has ended.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.call {
            Some(call) => call.poll_room(cx),
            None => Poll::Pending,
        }
    }

    fn send(&mut self, field: u8, content: &[u8]) {
        if let Some(call) = &mut self.call {
            call.send(field, content);
        }
    }

    /// Sends records of the peer.
    pub(super) fn send_ciphertext(&mut self, records: &[u8]) {
        self.send(drive_request::CIPHERTEXT, records);
    }

    /// Sends application data to encrypt.
    pub(super) fn send_plaintext(&mut self, data: &[u8]) {
        self.send(drive_request::PLAINTEXT, data);
    }

    /// Closes this side: SSL_shutdown(3).
    pub(super) fn send_shutdown(&mut self) {
        self.send(drive_request::SHUTDOWN, &[]);
    }

    /// Reports the end of the socket. If the connection fails by that, `reason` is its failure.
    pub(super) fn send_end_of_stream(&mut self, reason: EngineError) {
        self.socket_end = Some(reason);
        if let Some(call) = &mut self.call {
            call.send_true(drive_request::END_OF_STREAM);
        }
    }

    /// Ends this side's half of the Drive. The daemon then frees the connection.
    pub(super) fn end(&mut self) {
        if let Some(call) = &mut self.call {
            call.end();
        }
    }

    /// Asks for an echo: an empty `ciphertext`, which the daemon answers after everything else.
    /// Returns its number.
    pub(super) fn ask_echo(&mut self) -> u64 {
        self.send(drive_request::CIPHERTEXT, &[]);
        self.echoes.0 += 1;
        self.echoes.0
    }

    /// Returns whether the echo with this number has come, so that all answers before it were read.
    pub(super) fn has_echoed(&self, number: u64) -> bool {
        self.echoes.1 >= number
    }
}
