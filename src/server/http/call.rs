//! One call: runs its service and sends the answer on the HTTP/2 stream. Each call is a task.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{Request, Response};
use http_body::Body as _;
use tokio::time::{Sleep, sleep};
use tonic::{Code, body::Body};

use super::{
    inbox::Inbox,
    outbox::{Outbox, Piece, Queued},
};
use crate::{
    api::{access::Caller, durations::TimedCall, error::Refusal, quota::Held},
    server::{
        admission::{Admission, Answer, status_of},
        message::LONG,
    },
};

/// Memory of a call that waits to send, in bytes. It comes on top of the bytes of its answer and of
/// the place that it has among the calls or the connections.
const WAITING: usize = 512;
/// The longest piece that is handed to HTTP/2, in bytes. The room of a piece is free again only
/// when all of it is written.
const PIECE_MAX: usize = 64 << 10;
/// How long a caller may leave an answer unread. The limit applies to an answer that counts as a
/// call in flight, and to every answer while the limit of bytes is nearly reached. All callers
/// share both resources.
const UNREAD_MAX: Duration = Duration::from_secs(30);

/// A call, from its header to the end of its answer.
pub(crate) struct Call {
    respond: SendResponse<Piece>,
    inbox: Arc<Inbox>,
    outbox: Arc<Outbox>,
    caller: Arc<Caller>,
    state: State,
    /// Counts the memory of a call that waits to send, and of long chunks.
    waiting: Held,
    /// Times the call from its header to its end.
    timed: Option<TimedCall>,
    /// Whether the call waits to send. The service is not polled meanwhile, and the request is read
    /// ahead.
    read_ahead: bool,
}

enum State {
    Answering(Answer),
    Sending(Sending),
}

/// An answer whose headers have been sent.
struct Sending {
    stream: SendStream<Piece>,
    body: Pin<Box<Body>>,
    /// Unsent bytes of the current chunk of the body, and the length of that chunk. The bytes keep
    /// the memory of the whole chunk alive.
    left: Bytes,
    chunk: usize,
    /// Length of the longest chunk above [`LONG`], or 0. tonic keeps a buffer of that size as long
    /// as the body lives.
    room: usize,
    queued: Queued,
    /// The place among the calls in flight, for a call that counts until its answer has been sent.
    place: Option<Held>,
    /// The timer of [`UNREAD_MAX`], while a chunk waits to be sent.
    unread: Option<Pin<Box<Sleep>>>,
}

/// Why a call ends before its answer is complete.
enum Cut {
    /// The peer disconnected or reset the stream.
    Gone,
    /// The caller's identity holds too many bytes.
    Full(Refusal),
    /// The caller did not read its answer in time.
    Unread,
    /// The service failed in the middle of its answer.
    Broken,
}

impl Cut {
    /// Returns the status that the caller's library makes of it.
    fn code(&self) -> Code {
        match self {
            Self::Gone | Self::Unread => Code::Cancelled,
            Self::Full(_) => Code::ResourceExhausted,
            Self::Broken => Code::Internal,
        }
    }
}

impl From<h2::Error> for Cut {
    fn from(_: h2::Error) -> Self {
        Self::Gone
    }
}

impl Call {
    pub(crate) fn begin(
        request: Request<RecvStream>,
        respond: SendResponse<Piece>,
        edge: &Admission,
        outbox: &Arc<Outbox>,
    ) -> Self {
        let holder = edge.caller.holder();
        let (head, stream) = request.into_parts();
        let (inbox, body) = Inbox::new(stream, holder);
        let answer = edge.call(Request::from_parts(head, body));
        let waiting = holder.no_bytes();
        Self {
            respond,
            inbox,
            outbox: Arc::clone(outbox),
            caller: Arc::clone(&edge.caller),
            state: State::Answering(answer),
            waiting,
            timed: None,
            read_ahead: false,
        }
    }

    /// Sends the headers of the answer. Returns `None` if they end the answer.
    fn answer(
        &mut self,
        answer: Response<Body>,
        place: Option<Held>,
    ) -> Result<Option<Sending>, Cut> {
        let (head, body) = answer.into_parts();
        let ended = body.is_end_stream();
        let stream = self
            .respond
            .send_response(Response::from_parts(head, ()), ended)?;
        Ok((!ended).then(|| Sending {
            stream,
            body: Box::pin(body),
            left: Bytes::new(),
            chunk: 0,
            room: 0,
            queued: Queued::default(),
            place,
            unread: None,
        }))
    }

    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        loop {
            match &mut self.state {
                State::Answering(answer) => match Pin::new(&mut *answer).poll(cx) {
                    Poll::Ready(answered) => {
                        let place = answer.kept_place();
                        self.timed = answer.timed();
                        let Ok(answered) = answered;
                        match self.answer(answered, place)? {
                            Some(sending) => self.state = State::Sending(sending),
                            None => return Poll::Ready(Ok(())),
                        }
                    }
                    Poll::Pending => {
                        // A call that its caller cancelled ends, and with it its service.
                        ready!(self.respond.poll_reset(cx))?;
                        return Poll::Ready(Err(Cut::Gone));
                    }
                },
                State::Sending(sending) => {
                    let sent = sending.poll_sent(&self.outbox, &mut self.timed, cx);
                    if sent.is_pending() && !sending.left.is_empty() {
                        self.read_ahead = true;
                        let kept = sending.chunk.max(sending.room);
                        self.waiting.resize(WAITING + kept).map_err(Cut::Full)?;
                        self.inbox.read_ahead(cx).map_err(Cut::Full)?;
                        let short = self.caller.holder().has_room_for_bytes().is_err();
                        if sending.is_late(short, cx) {
                            return Poll::Ready(Err(Cut::Unread));
                        }
                    } else {
                        if std::mem::take(&mut self.read_ahead) {
                            self.waiting.shrink(sending.room);
                        }
                        if sent.is_pending() && self.waiting.bytes() < sending.room {
                            self.waiting.resize(sending.room).map_err(Cut::Full)?;
                        }
                    }
                    return sent;
                }
            }
        }
    }

    fn reset(&mut self, reason: Reason) {
        match &mut self.state {
            State::Answering(_) => self.respond.send_reset(reason),
            State::Sending(sending) => sending.stream.send_reset(reason),
        }
    }
}

impl Sending {
    fn poll_sent(
        &mut self,
        outbox: &Arc<Outbox>,
        timed: &mut Option<TimedCall>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Cut>> {
        loop {
            if self.stream.poll_reset(cx)?.is_ready() {
                return Poll::Ready(Err(Cut::Gone));
            }
            while !self.left.is_empty() {
                ready!(self.poll_piece(outbox, cx))?;
            }
            self.unread = None;
            let scope = timed.as_ref().map(TimedCall::scope).unwrap_or_default();
            match ready!(scope.run(|| self.body.as_mut().poll_frame(cx))) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.chunk = data.len();
                        self.left = data;
                        if self.chunk > LONG {
                            self.room = self.room.max(self.chunk);
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            if let (Some(timed), Some(code)) = (timed, status_of(&trailers)) {
                                timed.ends_with(code);
                            }
                            return Poll::Ready(
                                self.stream.send_trailers(trailers).map_err(Into::into),
                            );
                        }
                    }
                },
                Some(Err(_)) => return Poll::Ready(Err(Cut::Broken)),
                None => {
                    return Poll::Ready(
                        self.stream
                            .send_data(Piece::empty(), true)
                            .map_err(Into::into),
                    );
                }
            }
        }
    }

    /// Returns whether the unsent chunk has been unread for too long.
    fn is_late(&mut self, bytes_are_short: bool, cx: &mut Context<'_>) -> bool {
        let unread = self
            .unread
            .get_or_insert_with(|| Box::pin(sleep(UNREAD_MAX)));
        while unread.as_mut().poll(cx).is_ready() {
            if self.place.is_some() || bytes_are_short {
                return true;
            }
            // Such an answer may wait longer, because a TLS peer of the worker may be slow. Check
            // again later.
            unread.set(sleep(UNREAD_MAX));
        }
        false
    }

    /// Sends a piece of the unsent bytes once there is room for one.
    fn poll_piece(&mut self, outbox: &Arc<Outbox>, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        let mut room = outbox.room();
        if room == 0 {
            outbox.wait(&mut self.queued, cx);
            room = outbox.room();
            if room == 0 {
                return Poll::Pending;
            }
        }
        let handed = self.hand_on(room.min(PIECE_MAX), outbox, cx);
        outbox.leave(&mut self.queued);
        handed
    }

    /// Sends a piece that is not empty and as long as the peer's windows and `room` allow.
    fn hand_on(
        &mut self,
        room: usize,
        outbox: &Arc<Outbox>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Cut>> {
        self.stream.reserve_capacity(self.left.len().min(room));
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(capacity) => drop(capacity?),
                None => return Poll::Ready(Err(Cut::Gone)),
            }
        }
        let piece = self.left.len().min(self.stream.capacity()).min(room);
        let piece = outbox.hold(self.left.split_to(piece));
        Poll::Ready(self.stream.send_data(piece, false).map_err(Into::into))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let State::Sending(sending) = &mut self.state {
            self.outbox.leave(&mut sending.queued);
        }
    }
}

impl Future for Call {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let answered = ready!(this.poll_answered(cx));
        if let (Some(timed), Err(cut)) = (&mut this.timed, &answered) {
            timed.ends_with(cut.code());
        }
        match answered {
            Ok(()) | Err(Cut::Gone) => {}
            // gRPC reads this reset as RESOURCE_EXHAUSTED. A status could not reach the caller,
            // which does not read its answer.
            Err(Cut::Full(refusal)) => {
                this.caller.audit(&refusal, None);
                this.reset(Reason::ENHANCE_YOUR_CALM);
            }
            Err(Cut::Unread) => this.reset(Reason::CANCEL),
            Err(Cut::Broken) => this.reset(Reason::INTERNAL_ERROR),
        }
        Poll::Ready(())
    }
}
