//! One Drive as a gRPC call: framed messages over one HTTP/2 stream.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use h2::{RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use prost::Message;
use tls_sessiond_proto::{
    self as pb,
    drive_response::Event,
    wire::{self, Writer},
};
use tls_sessiond_types::secret::SecretBuffer;

use super::{EngineError, channel::Slot};
use crate::framing::{self, Deframer, Framed, PREFIX};

/// An open call. Dropping it resets the stream, and the daemon then frees the connection.
pub(super) struct Call {
    requests: SendStream<Framed>,
    answers: CallAnswers,
    deframer: Deframer,
    /// The bytes that were read and whose flow-control capacity is not released.
    owed: usize,
    /// Declared last, so that the stream has ended when the slot is free.
    _slot: Slot,
}

enum CallAnswers {
    /// The headers of the response have not arrived.
    Begun(ResponseFuture),
    Open(RecvStream),
}

/// The outcome of a read.
pub(super) enum CallProgress {
    /// Events may have been passed on.
    Read,
    /// The call has ended with the status OK.
    Ended,
}

impl Call {
    pub(super) fn new(response: ResponseFuture, requests: SendStream<Framed>, slot: Slot) -> Self {
        Self {
            requests,
            answers: CallAnswers::Begun(response),
            deframer: Deframer::default(),
            owed: 0,
            _slot: slot,
        }
    }

    /// Becomes ready when the daemon takes a message. Never ready after the daemon has ended the
    /// call; [`Call::poll_read`] returns the reason.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A message is sent as a whole once there is room for its first byte: h2 buffers the rest.
        self.requests.reserve_capacity(1);
        while self.requests.capacity() == 0 {
            match ready!(self.requests.poll_capacity(cx)) {
                Some(Ok(_)) => self.requests.reserve_capacity(1),
                Some(Err(_)) | None => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    /// Sends an event whose field has this number and, as bytes or as a message, this content.
    pub(super) fn send(&mut self, field: u8, content: &[u8]) {
        let length = wire::head_len(content.len()) + content.len();
        self.send_framed(length, |writer| {
            // Written also if it is empty: the field tells which event it is.
            writer.head(field, content.len());
            writer.raw(content);
        });
    }

    /// Sends an event whose field has this number and the value true.
    pub(super) fn send_true(&mut self, field: u8) {
        self.send_framed(wire::number_len(1), |writer| writer.number(field, 1));
    }

    /// Ends this side's half of the call.
    pub(super) fn end(&mut self) {
        // Fails only if the call has ended, which `poll_read` reports.
        _ = self.requests.send_data(Framed::default(), true);
    }

    fn send_framed(&mut self, length: usize, write: impl FnOnce(&mut Writer<'_>)) {
        let mut message = SecretBuffer::with_capacity(PREFIX + length);
        let mut writer = Writer::new(message.grow(PREFIX + length));
        writer.raw(&framing::prefix(length));
        write(&mut writer);
        // Fails only if the call has ended, which `poll_read` reports.
        _ = self.requests.send_data(Framed::new(message), false);
    }

    /// Reads what has arrived, and passes its events on in their order.
    ///
    /// # Errors
    /// The daemon refused the call or ended it with an error, or the HTTP/2 connection broke.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut event: impl FnMut(Event),
    ) -> Poll<Result<CallProgress, EngineError>> {
        let answers = match &mut self.answers {
            CallAnswers::Begun(response) => {
                let response = ready!(Pin::new(response).poll(cx))?;
                check(&response)?;
                self.answers = CallAnswers::Open(response.into_body());
                return Poll::Ready(Ok(CallProgress::Read));
            }
            CallAnswers::Open(answers) => answers,
        };
        let Some(piece) = ready!(answers.poll_data(cx)).transpose()? else {
            let trailers = ready!(answers.poll_trailers(cx))?.unwrap_or_default();
            return Poll::Ready(match status(&trailers) {
                Some(Ok(())) => Ok(CallProgress::Ended),
                Some(Err(refused)) => Err(refused),
                None => Err(EngineError::DaemonLost("it ended without a status".into())),
            });
        };
        self.owed += piece.len();
        self.deframer.read(&piece, |message| {
            // An event that this version does not know is skipped.
            pb::DriveResponse::decode(message)?
                .event
                .into_iter()
                .for_each(&mut event);
            Ok::<_, EngineError>(())
        })?;
        Poll::Ready(Ok(CallProgress::Read))
    }

    /// Lets the daemon send as many bytes more as were read since the last call.
    pub(super) fn release(&mut self) {
        if self.owed > 0
            && let CallAnswers::Open(answers) = &mut self.answers
        {
            // Fails only if the call has ended, which `poll_read` reports.
            _ = answers.flow_control().release_capacity(self.owed);
            self.owed = 0;
        }
    }
}

/// Checks the headers of the response.
fn check(response: &Response<RecvStream>) -> Result<(), EngineError> {
    // A call that is refused at once has its status here.
    if let Some(status) = status(response.headers()) {
        return status;
    }
    let is_grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    match (response.status(), response.headers().get(CONTENT_TYPE)) {
        (StatusCode::OK, Some(kind)) if is_grpc(kind) => Ok(()),
        (status, _) => Err(EngineError::DaemonLost(format!(
            "the answer is not gRPC, but HTTP with the status {status}"
        ))),
    }
}

/// Returns the gRPC status in these headers or trailers. `None`: they have none.
fn status(headers: &HeaderMap) -> Option<Result<(), EngineError>> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    if code == 0 {
        return Some(Ok(()));
    }
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes);
    Some(Err(EngineError::Refused {
        code,
        message: percent_decoded(message.unwrap_or_default()),
    }))
}

/// Decodes a Status-Message of gRPC's PROTOCOL-HTTP2.md.
fn percent_decoded(mut text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    while let Some((&byte, rest)) = text.split_first() {
        let escaped = rest.split_at_checked(2).filter(|_| byte == b'%');
        let escaped = escaped.and_then(|(digits, rest)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 16).ok()?, rest))
        });
        let (byte, rest) = escaped.unwrap_or((byte, rest));
        decoded.push(byte);
        text = rest;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_with_its_message() {
        let mut headers = HeaderMap::new();
        assert_eq!(status(&headers), None);
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(status(&headers), Some(Ok(())));
        headers.insert("grpc-status", HeaderValue::from_static("7"));
        headers.insert(
            "grpc-message",
            HeaderValue::from_static("100%25 of %C3%A4 %zz%"),
        );
        let message = "100% of ä %zz%".to_owned();
        assert_eq!(
            status(&headers),
            Some(Err(EngineError::Refused { code: 7, message }))
        );
    }
}
