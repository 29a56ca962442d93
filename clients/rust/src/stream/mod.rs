//! One Attach stream, run by one task. It is the only stream of its HTTP/2 connection. Batches are
//! sent as they were encoded in the queue, and an answer is handed to its caller as soon as it is
//! read.
//!
//! A general gRPC channel has a task for the connection and further tasks for each call, which wake
//! each other with every message. One call does not need them (decision 23).

pub(crate) mod busy_poll;
pub(crate) mod reconnect;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use h2::{
    RecvStream, SendStream,
    client::{Builder, Connection},
};
use http::{
    Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use tls_sessiond_proto::transport::{
    KeepAlive,
    wake::{Parts, WakeSet},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{
    framing::{Deframer, Framed, Unexpected},
    outbox::{
        Outbox, decode as answers,
        decode::{Answer, Malformed},
    },
    stream::busy_poll::BusyPoll,
};

/// The path of the call.
pub(super) const METHOD: &str = "/tls.sessiond.v1.WorkerService/Attach";
const GRPC: &str = "application/grpc";
/// The number of bytes that the daemon may send before they are read.
const WINDOW: u32 = 1 << 20;
/// The bytes of batches that are buffered for a daemon that does not read.
const SEND_BUFFER: usize = 256 << 10;
/// The largest header block of the response, in bytes.
const HEADERS_MAX: u32 = 16 << 10;
/// How long a daemon may be silent before it is pinged, and how long the answer to the ping may
/// then take.
const SILENT_MAX: Duration = Duration::from_secs(10);
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long closing a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The parts of the task.
const BATCHES: Parts = 1;
const CONNECTION: Parts = 1 << 1;
const ANSWERS: Parts = 1 << 2;
const LIFE: Parts = 1 << 3;
/// The number of turns of each part before the task yields to other tasks.
const ROUNDS: usize = 8;

/// The daemon is draining.
pub(super) struct Draining;

/// The stream has ended.
struct Over;

/// A stream that the daemon has accepted, over a transport of its own.
pub(super) struct Stream<L> {
    connection: Connection<L, Framed>,
    batches: Batches,
    answers: Answers,
    life: KeepAlive,
    busy_poll: BusyPoll,
    wakes: Arc<WakeSet>,
    wakers: Wakers,
}

/// The waker of each part.
struct Wakers {
    batches: Waker,
    connection: Waker,
    answers: Waker,
    life: Waker,
}

impl<L: AsyncRead + AsyncWrite + Unpin> Stream<L> {
    /// Begins a stream.
    ///
    /// # Errors
    /// Why the daemon refused it, or how the transport failed, in words.
    pub(super) async fn open(line: L, uri: Uri, link: Arc<Outbox>) -> Result<Self, String> {
        let failed = |err: h2::Error| format!("the HTTP/2 connection failed: {err}");
        let (mut calls, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .handshake(line)
            .await
            .map_err(failed)?;
        let pings = connection
            .ping_pong()
            .ok_or("the HTTP/2 connection has no pings")?;
        let life = KeepAlive::new(pings, SILENT_MAX, ANSWER_MAX);
        let request = Request::post(uri)
            .version(Version::HTTP_2)
            .header(TE, "trailers")
            .header(CONTENT_TYPE, GRPC)
            .header(
                USER_AGENT,
                concat!("tls-sessiond/", env!("CARGO_PKG_VERSION")),
            )
            .body(())
            .map_err(|err| err.to_string())?;
        let (mut response, batches) = calls.send_request(request, false).map_err(failed)?;
        let response = poll_fn(|cx| {
            let over = Pin::new(&mut connection).poll(cx).is_ready();
            match Pin::new(&mut response).poll(cx) {
                Poll::Pending if !over => Poll::Pending,
                Poll::Ready(response) => Poll::Ready(response.map_err(failed)),
                Poll::Pending => Poll::Ready(Err("the HTTP/2 connection has ended".into())),
            }
        })
        .await?;
        if !is_taken(&response) {
            return Err(refusal(&response));
        }
        // No part was polled yet, so all are ready.
        let wakes = WakeSet::new(BATCHES | CONNECTION | ANSWERS | LIFE);
        let wakers = Wakers {
            batches: wakes.waker(BATCHES),
            connection: wakes.waker(CONNECTION),
            answers: wakes.waker(ANSWERS),
            life: wakes.waker(LIFE),
        };
        let batches = Batches {
            link: Arc::clone(&link),
            stream: batches,
            ended: false,
        };
        let answers = Answers::new(link, response.into_body());
        Ok(Self {
            connection,
            batches,
            answers,
            life,
            busy_poll: BusyPoll::default(),
            wakes,
            wakers,
        })
    }

    /// Runs the stream until the daemon begins to drain. `None`: the stream has ended.
    pub(super) async fn next(&mut self) -> Option<Draining> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Draining>> {
        self.wakes.begin(cx);
        let mut due = 0;
        for _ in 0..ROUNDS {
            match self.turn(&mut due) {
                Ok(Poll::Pending) if due == 0 && self.wakes.park() => {
                    self.busy_poll.rest(cx);
                    return Poll::Pending;
                }
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(draining)) => {
                    // There may be more answers to read.
                    self.wakes.yield_with(due | ANSWERS);
                    return Poll::Ready(Some(draining));
                }
                Err(Over) => return Poll::Ready(None),
            }
        }
        self.wakes.yield_with(due);
        Poll::Pending
    }

    /// Runs each part that is ready, in the order in which they wake each other.
    fn turn(&mut self, due: &mut Parts) -> Result<Poll<Draining>, Over> {
        let Self {
            connection,
            batches,
            answers,
            life,
            busy_poll,
            wakes,
            wakers,
        } = self;
        let mut is_due = |part: Parts| {
            *due |= wakes.take_ready();
            let is = *due & part != 0;
            *due &= !part;
            is
        };
        if is_due(BATCHES) {
            batches.send(&mut Context::from_waker(&wakers.batches), busy_poll)?;
        }
        let over = is_due(CONNECTION)
            && Pin::new(connection)
                .poll(&mut Context::from_waker(&wakers.connection))
                .is_ready();
        let mut read = Poll::Pending;
        if is_due(ANSWERS) {
            life.heard();
            read = answers.read(&mut Context::from_waker(&wakers.answers), busy_poll)?;
        }
        if is_due(LIFE)
            && life
                .poll_dead(&mut Context::from_waker(&wakers.life))
                .is_ready()
        {
            return Err(Over);
        }
        // The answers before the end have been read first.
        if over && read.is_pending() {
            Err(Over)
        } else {
            Ok(read)
        }
    }

    /// Closes the HTTP/2 connection in an orderly way.
    pub(super) async fn close(self) {
        let Self {
            connection,
            batches,
            answers,
            ..
        } = self;
        drop((batches, answers));
        // After the timeout the connection is dropped.
        drop(timeout(CLOSE_TIMEOUT, connection).await);
    }
}

/// Returns whether the daemon accepted the stream. A refusal has its gRPC status in the headers of
/// the response.
fn is_taken(response: &Response<RecvStream>) -> bool {
    let headers = response.headers();
    response.status() == StatusCode::OK
        && headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes()))
        && !headers.contains_key("grpc-status")
}

/// Returns why the daemon refused the stream, in the words of its status.
fn refusal(response: &Response<RecvStream>) -> String {
    /// The longest message that is shown, in characters.
    const MESSAGE_MAX: usize = 200;
    let header = |name: &str| {
        let text = response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok());
        text.unwrap_or_default()
            .chars()
            .take(MESSAGE_MAX)
            .collect::<String>()
    };
    match header("grpc-status").as_str() {
        "" => format!(
            "no daemon answers there (HTTP status {})",
            response.status().as_u16()
        ),
        // The message is percent-encoded, and mostly readable as it is.
        code => format!(
            "the daemon refused the stream: {} (gRPC status {code})",
            header("grpc-message").replace("%20", " ")
        ),
    }
}

/// The sending part.
struct Batches {
    link: Arc<Outbox>,
    stream: SendStream<Framed>,
    /// Whether the last batch was sent.
    ended: bool,
}

impl Batches {
    /// Sends all batches that are ready, as far as flow control allows.
    fn send(&mut self, cx: &mut Context<'_>, busy_poll: &mut BusyPoll) -> Result<(), Over> {
        while !self.ended {
            // A batch is sent as a whole once there is room for its first byte: h2 buffers the
            // rest.
            self.stream.reserve_capacity(1);
            if self.stream.capacity() == 0 {
                match self.stream.poll_capacity(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(_) => return Err(Over),
                }
            }
            let batch = match self.link.poll_batch(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(batch)) => {
                    if self.link.is_awaited() {
                        busy_poll.asked();
                    }
                    Framed::new(batch)
                }
                Poll::Ready(None) => {
                    self.ended = true;
                    Framed::default()
                }
            };
            self.stream.send_data(batch, self.ended).map_err(|_| Over)?;
        }
        Ok(())
    }
}

/// The receiving part.
struct Answers {
    link: Arc<Outbox>,
    stream: RecvStream,
    pieces: Deframer,
    /// The answers in one chunk, and the wakers of their callers. Both are empty between chunks and
    /// are kept to reuse their memory.
    read: Vec<(u64, Answer)>,
    wake: Vec<Waker>,
}

impl Answers {
    fn new(link: Arc<Outbox>, stream: RecvStream) -> Self {
        Self {
            link,
            stream,
            pieces: Deframer::default(),
            read: Vec::new(),
            wake: Vec::new(),
        }
    }

    /// Reads all data that has arrived and hands out its answers.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        busy_poll: &mut BusyPoll,
    ) -> Result<Poll<Draining>, Over> {
        while let Poll::Ready(piece) = self.stream.poll_data(cx) {
            let Some(Ok(piece)) = piece else {
                return Err(Over);
            };
            self.stream
                .flow_control()
                .release_capacity(piece.len())
                .map_err(|_| Over)?;
            if self.hand_out(&piece, busy_poll)? {
                return Ok(Poll::Ready(Draining));
            }
        }
        Ok(Poll::Pending)
    }

    /// Hands out the answers in a chunk. Returns whether the daemon is draining.
    fn hand_out(&mut self, piece: &[u8], busy_poll: &mut BusyPoll) -> Result<bool, Over> {
        let Self { pieces, read, .. } = self;
        let mut draining = false;
        let whole = pieces.read(piece, |message| {
            draining |= answers::read(message, |id, answer| read.push((id, answer)))?;
            Ok(())
        });
        if !self.read.is_empty() {
            busy_poll.answered(self.link.answer(self.read.drain(..), &mut self.wake));
        }
        whole.map(|()| draining)
    }
}

impl From<Malformed> for Over {
    fn from(_: Malformed) -> Self {
        Self
    }
}

impl From<Unexpected> for Over {
    fn from(_: Unexpected) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use h2::server::{self, SendResponse};
    use prost::Message;
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::{
        Lookup, Options,
        framing::prefix,
        options::Limits,
        outbox::{
            Delivery,
            encode::{LookupPrefix, Question},
            pending::Asker,
        },
    };
    use tls_sessiond_proto as pb;
    use tls_sessiond_proto::answer::Result as Answered;

    type Server = server::Connection<DuplexStream, Bytes>;

    fn link() -> Arc<Outbox> {
        Arc::new(Outbox::new(Limits::default(), Arc::default()))
    }

    fn uri() -> Uri {
        format!("http://daemon{METHOD}").parse().unwrap()
    }

    fn taken() -> Response<()> {
        Response::builder()
            .header(CONTENT_TYPE, GRPC)
            .body(())
            .unwrap()
    }

    /// Opens a stream to a server that sends this response. Returns the stream, and the server's
    /// side of the connection and of the call.
    async fn opened(
        link: &Arc<Outbox>,
        response: Response<()>,
        window: u32,
    ) -> (
        Option<Stream<DuplexStream>>,
        Server,
        RecvStream,
        SendStream<Bytes>,
    ) {
        let (ours, theirs) = duplex(64 << 10);
        let serve = async {
            let mut server = server::Builder::new()
                .initial_window_size(window)
                .handshake(theirs)
                .await
                .unwrap();
            let (request, mut respond): (_, SendResponse<Bytes>) =
                server.accept().await.unwrap().unwrap();
            assert_eq!(request.uri().path(), METHOD);
            let answers = respond.send_response(response, false).unwrap();
            (server, request.into_body(), answers)
        };
        let open = Stream::open(ours, uri(), Arc::clone(link));
        tokio::pin!(open);
        let (mut server, batches, answers) = tokio::select! {
            served = serve => served,
            _ = &mut open => panic!("the server has not answered yet"),
        };
        let stream = tokio::select! {
            biased;
            stream = open => stream,
            _ = server.accept() => panic!("there is one call only"),
        };
        (stream.ok(), server, batches, answers)
    }

    fn answer(id: u64) -> Vec<u8> {
        let answers = vec![pb::Answer {
            id,
            result: Some(Answered::LookupSession(Box::default())),
        }];
        let message = pb::AttachResponse {
            answers,
            draining: false,
        }
        .encode_to_vec();
        [&prefix(message.len())[..], &message].concat()
    }

    /// Queues a lookup as its first poll does, and waits for the answer.
    async fn ask(link: &Arc<Outbox>, id: &[u8]) -> Option<Answer> {
        let terms = LookupPrefix::of(&Options::new("http://a:1", "openssl").unwrap());
        let question = Question {
            terms: &terms,
            lookup: &Lookup::server(id),
        };
        let asked =
            poll_fn(|cx| Poll::Ready(Arc::clone(link).ask(&question, cx.waker(), Asker::Task)))
                .await;
        asked.ok()?.await
    }

    /// Returns the number of the only call in the next batch.
    async fn number(batches: &mut RecvStream) -> u64 {
        let mut bytes = Vec::new();
        loop {
            let piece = batches.data().await.unwrap().unwrap();
            batches
                .flow_control()
                .release_capacity(piece.len())
                .unwrap();
            bytes.extend_from_slice(&piece);
            if let Some((head, message)) = bytes.split_first_chunk()
                && *head == prefix(message.len())
            {
                let calls = pb::AttachRequest::decode(message).unwrap().calls;
                assert_eq!(calls.len(), 1);
                return calls[0].id;
            }
        }
    }

    #[tokio::test]
    async fn refusals_and_what_is_no_grpc_are_no_streams() {
        let refusals = [
            Response::builder().status(404).header(CONTENT_TYPE, GRPC),
            Response::builder(),
            Response::builder().header(CONTENT_TYPE, "text/html"),
            Response::builder()
                .header(CONTENT_TYPE, GRPC)
                .header("grpc-status", "7"),
        ];
        for response in refusals {
            let (stream, ..) = opened(&link(), response.body(()).unwrap(), 65_535).await;
            assert!(stream.is_none());
        }
        let (ours, theirs) = duplex(1 << 10);
        drop(theirs);
        assert!(
            Stream::open(ours, uri(), link()).await.is_err(),
            "the transport is closed"
        );
    }

    #[tokio::test]
    async fn answer_gets_through_byte_by_byte_and_a_batch_through_the_narrowest_window() {
        let link = link();
        let (stream, mut server, mut batches, mut answers) = opened(&link, taken(), 16).await;
        let mut stream = stream.unwrap();
        let serve = async {
            let id = number(&mut batches).await;
            for byte in answer(id) {
                answers.send_data(vec![byte].into(), false).unwrap();
            }
            std::future::pending::<()>().await;
        };
        let found = tokio::select! {
            found = ask(&link, &[7; 64]) => found,
            _ = stream.next() => panic!("the stream has ended"),
            _ = server.accept() => panic!("there is one call only"),
            () = serve => unreachable!("it waits"),
        };
        assert!(matches!(found, Some(Answer::Looked(_))));
    }

    #[tokio::test]
    async fn what_is_no_message_of_answers_is_the_end() {
        let bad = [
            &[1, 0, 0, 0, 0][..],
            &[0, 1, 0, 0, 1],
            &[0, 0, 0, 0, 1, 0xff],
        ];
        for bad in bad {
            let link = link();
            let (stream, mut server, _batches, mut answers) = opened(&link, taken(), 65_535).await;
            answers.send_data(bad.to_vec().into(), false).unwrap();
            let mut stream = stream.unwrap();
            tokio::select! {
                next = stream.next() => assert!(next.is_none(), "{bad:?}"),
                _ = server.accept() => panic!("there is one call only"),
            }
        }
    }

    #[tokio::test]
    async fn daemon_that_stops_is_told_the_rest_and_then_that_there_is_no_more() {
        let link = link();
        let alias = link.open(pb::NewRequest::default()).unwrap();
        let (stream, mut server, mut batches, mut answers) = opened(&link, taken(), 65_535).await;
        let mut stream = stream.unwrap();
        let draining = pb::AttachResponse {
            answers: Vec::new(),
            draining: true,
        }
        .encode_to_vec();
        answers
            .send_data(
                [&prefix(draining.len())[..], &draining].concat().into(),
                false,
            )
            .unwrap();
        let work = async {
            assert!(stream.next().await.is_some());
            link.retire();
            link.free(alias);
            assert!(stream.next().await.is_none());
            stream.close().await;
        };
        let serve = async {
            let mut bytes = Vec::new();
            while let Some(piece) = batches.data().await {
                bytes.extend_from_slice(&piece.unwrap());
            }
            answers.send_data(Bytes::new(), true).unwrap();
            bytes
        };
        let ((), bytes, ended) = tokio::join!(work, serve, server.accept());
        assert!(
            ended.is_none(),
            "the connection was closed in an orderly way"
        );
        let new = u32::from_be_bytes(*bytes[1..].first_chunk().unwrap()) as usize;
        let calls = pb::AttachRequest::decode(&bytes[5 + new + 5..])
            .unwrap()
            .calls;
        assert!(matches!(
            calls[..],
            [pb::Call {
                method: Some(pb::call::Method::Free(_)),
                ..
            }]
        ));
    }

    #[tokio::test]
    async fn daemon_that_never_reads_gets_no_more_than_a_buffer_and_a_batch() {
        let link = link();
        let (stream, _server, _batches, _answers) = opened(&link, taken(), 65_535).await;
        let mut stream = stream.unwrap();
        let put = |size: usize| {
            let data = vec![7; size].into();
            pb::call::Method::PutSession(
                pb::PutSessionRequest {
                    data,
                    ..Default::default()
                }
                .into(),
            )
        };
        let mut told = 0;
        // Until the queue is full. The buffers behind it are bounded.
        while link.tell(&put(100 << 10), Delivery::BestEffort).is_ok() {
            told += 1;
            assert!(told < 1000);
            let next = poll_fn(|cx| Poll::Ready(stream.poll_next(cx))).await;
            assert!(next.is_pending());
        }
        let most = (16 << 20) + SEND_BUFFER + (1 << 20) + (64 << 10);
        assert!((160..=most / (100 << 10)).contains(&told), "{told}");
    }
}
