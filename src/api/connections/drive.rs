//! Drive: the whole life of one connection on one stream.
//!
//! The task that writes the answers polls this stream, and the stream polls the requests itself. It
//! has no task and no queue of its own. It reads a request only after all answers to the last one
//! have gone out. So the daemon does not read from a worker that does not read its answers.
//! Dropping the stream gives the connection back or frees it.
//!
//! The stream ends by itself after a failure of the connection, and after the end of the transport,
//! because nothing more can come from the peer then. Earlier answers go out first. docs/drive.md draws
//! the life of a Drive.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tls_sessiond_core::{
    cache::Found,
    connection::{
        ConnectionId, EngineKind, Input, Output, State, Step,
        table::{Driver, Ending},
    },
    session::Miss,
};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::{drive_request::Event as Request, drive_response::Event as Response};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::open::{Opener, tell_failure};
use crate::{
    api::{
        call::{Place, StreamPlace},
        convert,
        convert::within_limit,
        error::{Refusal, described},
        quota::Held,
        role::Roles,
    },
    store::Store,
};

/// How long a Drive waits for its first message, which names the connection.
const OPENING_MAX: Duration = Duration::from_secs(20);

/// The answers of one Drive.
pub(crate) struct Drive {
    requests: Streaming<pb::DriveRequest>,
    opener: Arc<Opener>,
    place: StreamPlace,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Ready when the caller has lost the role `worker`, or its certificate has expired. Before the
    /// first message the role in any context counts, and after it the role in the connection's
    /// context.
    lost: Pin<Box<dyn Future<Output = Refusal> + Send>>,
    plaintext_buffer: usize,
    phase: DrivePhase,
    /// Answers that have to go out before the next request is read.
    answers: VecDeque<Response>,
}

enum DrivePhase {
    /// The shared store is asked for the session that the first message names.
    Joining(Pin<Box<dyn Future<Output = Joined> + Send>>),
    /// No message has come yet. Until then the Drive counts as a call in flight.
    Opening {
        late: Option<Pin<Box<Sleep>>>,
        _place: Option<Place>,
    },
    Running(Running),
    /// The stream ends once the answers are out, with this refusal if there is one.
    Ending(Option<Refusal>),
}

/// The first message of a Drive, and the session that it names.
type Joined = (pb::NewRequest, Result<Found, Miss>);

/// What a step waits for in the shared store.
enum Awaited {
    /// The session that the step has asked for.
    Found(Result<Found, Miss>),
    /// Puts were answered.
    Stored,
}

struct Running {
    driver: Driver,
    store: Option<Arc<Store>>,
    /// The present step, if it waits for the shared store. No request is read meanwhile.
    awaits: Option<Pin<Box<dyn Future<Output = Awaited> + Send>>>,
    /// The output of the step, while its puts are on their way.
    output: Option<Output>,
    /// Whether the stream ends after the present step.
    ends: bool,
    /// Plaintext that waits for the end of the handshake.
    waiting: Vec<u8>,
    /// Counts the bytes of `waiting` for the caller's identity.
    counted: Held,
    established: bool,
    closed: bool,
}

impl Drive {
    pub(crate) fn new(
        requests: Streaming<pb::DriveRequest>,
        opener: Arc<Opener>,
        place: StreamPlace,
        opening: Option<Place>,
        deadline: Option<Pin<Box<Sleep>>>,
        plaintext_buffer: usize,
    ) -> Self {
        let phase = DrivePhase::Opening {
            late: None,
            _place: opening,
        };
        let answers = VecDeque::new();
        let lost = Box::pin(Arc::clone(place.caller()).loses(
            Roles::WORKER,
            None,
            Arc::clone(&opener.state),
        ));
        Self {
            requests,
            opener,
            place,
            deadline,
            lost,
            plaintext_buffer,
            phase,
            answers,
        }
    }

    /// Returns the reason to end the stream that did not come as a message: a deadline passed, the
    /// caller lost its role, or the connection was freed elsewhere.
    fn cut(&mut self, cx: &mut Context<'_>) -> Option<Refusal> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Some(Refusal::DeadlineExceeded);
        }
        if let Poll::Ready(refusal) = self.lost.as_mut().poll(cx) {
            return Some(refusal);
        }
        match &mut self.phase {
            DrivePhase::Opening {
                late: Some(late), ..
            } => late
                .as_mut()
                .poll(cx)
                .is_ready()
                .then_some(Refusal::DeadlineExceeded),
            DrivePhase::Running(running) if running.driver.freed(cx.waker()) => {
                Some(tls_sessiond_core::connection::Error::Freed.into())
            }
            _ => None,
        }
    }

    fn event(&mut self, event: Option<Request>) -> Result<(), Refusal> {
        match &mut self.phase {
            DrivePhase::Opening { .. } => self.open(event),
            DrivePhase::Running(running) => {
                let ends = running.event(event, self.plaintext_buffer, &mut self.answers)?;
                self.end_if(ends);
                Ok(())
            }
            DrivePhase::Joining(_) | DrivePhase::Ending(_) => Ok(()),
        }
    }

    /// Ends the stream after the present step, which may wait for the shared store.
    fn end_if(&mut self, ends: bool) {
        if let DrivePhase::Running(running) = &mut self.phase {
            running.ends |= ends;
            if running.ends && running.awaits.is_none() {
                self.phase = DrivePhase::Ending(None);
            }
        }
    }

    /// Goes on with what waits for the shared store. Ready if nothing waits.
    fn poll_store(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        match &mut self.phase {
            DrivePhase::Joining(joins) => {
                let (request, joined) = ready!(joins.as_mut().poll(cx));
                Poll::Ready(self.open_new(request, Some(joined)))
            }
            DrivePhase::Running(running) => {
                let Some(awaits) = &mut running.awaits else {
                    return Poll::Ready(Ok(()));
                };
                let awaited = ready!(awaits.as_mut().poll(cx));
                running.awaits = None;
                let ends = running.go_on(awaited, &mut self.answers);
                Poll::Ready(ends.map(|ends| self.end_if(ends)))
            }
            DrivePhase::Opening { .. } | DrivePhase::Ending(_) => Poll::Ready(Ok(())),
        }
    }

    fn open(&mut self, event: Option<Request>) -> Result<(), Refusal> {
        let by = self.place.caller();
        let (id, ending) = match event {
            Some(Request::New(request)) => {
                if let Some(look) = self.opener.joining(&request, by)? {
                    let opener = Arc::clone(&self.opener);
                    let joins = async move { (request, opener.found(look).await) };
                    self.phase = DrivePhase::Joining(Box::pin(joins));
                    return Ok(());
                }
                return self.open_new(request, None);
            }
            Some(Request::ConnectionId(id)) => (self.opener.driven(by, &id)?, Ending::Keep),
            _ => {
                return Err(Refusal::DriveEventUnexpected(
                    "the first message must be `new` or `connection_id`",
                ));
            }
        };
        self.run(id, ending)
    }

    /// Makes the connection of the stream. There is no second check that the caller drives it: the
    /// stream must free the connection that it made even if the caller has lost the role since.
    fn open_new(
        &mut self,
        request: pb::NewRequest,
        joined: Option<Result<Found, Miss>>,
    ) -> Result<(), Refusal> {
        let made = self
            .opener
            .open_joined(request, self.place.caller(), joined)?
            .connection
            .unwrap_or_default();
        self.run(convert::connection_id(&made.id)?, Ending::Free)
    }

    fn run(&mut self, id: ConnectionId, ending: Ending) -> Result<(), Refusal> {
        let by = self.place.caller();
        let driver = self.opener.state.connections().drive(id, ending)?;
        if driver.inspect(|connection, _| connection.engine_kind())? == EngineKind::Worker {
            return Err(
                tls_sessiond_core::connection::Error::WrongEngine(EngineKind::Daemon).into(),
            );
        }
        let (opened, state, client, context) = driver.inspect(|connection, expires| {
            let client = connection.role() == tls_sessiond_types::Role::Client;
            let context = Arc::clone(&connection.context().name);
            (
                convert::connection(connection, expires),
                connection.state(),
                client,
                context,
            )
        })?;
        let core = Arc::clone(&self.opener.state);
        self.lost = Box::pin(Arc::clone(by).loses(Roles::WORKER, Some(context), core));
        self.answers.push_back(Response::Opened(opened));
        let established = state == State::Established;
        let mut running = Running {
            driver,
            store: self.opener.store.clone(),
            awaits: None,
            output: None,
            ends: false,
            waiting: Vec::new(),
            counted: by.holder().no_bytes(),
            established,
            closed: false,
        };
        // A client sends the first flight, so it steps before any input. A server waits for input.
        if client && matches!(state, State::Before | State::Handshaking) {
            running.step(Input::default(), &mut self.answers)?;
        }
        self.phase = DrivePhase::Running(running);
        Ok(())
    }
}

impl Running {
    /// Handles one message. Returns whether the stream is to end.
    fn event(
        &mut self,
        event: Option<Request>,
        plaintext_buffer: usize,
        answers: &mut VecDeque<Response>,
    ) -> Result<bool, Refusal> {
        match event {
            Some(Request::Ciphertext(ciphertext)) if ciphertext.is_empty() => {
                let ends = self.step(Input::default(), answers)?;
                // An echo: the answers to all earlier messages have gone out.
                answers.push_back(Response::Ciphertext(ciphertext));
                Ok(ends)
            }
            Some(Request::Ciphertext(ciphertext)) => {
                within_limit("ciphertext", &ciphertext)?;
                self.step(
                    Input {
                        ciphertext: &ciphertext,
                        ..Input::default()
                    },
                    answers,
                )
            }
            Some(Request::Plaintext(plaintext)) => {
                within_limit("plaintext", &plaintext)?;
                if self.established {
                    return self.step(
                        Input {
                            plaintext: &plaintext,
                            ..Input::default()
                        },
                        answers,
                    );
                }
                let waiting = self.waiting.len() + plaintext.len();
                if waiting > plaintext_buffer {
                    return Err(Refusal::PlaintextBufferFull {
                        waiting,
                        limit: plaintext_buffer,
                    });
                }
                self.counted.resize(waiting)?;
                self.waiting.extend_from_slice(&plaintext);
                Ok(false)
            }
            Some(Request::Shutdown(_)) => {
                let mut ciphertext = Vec::new();
                self.driver.shutdown(&mut ciphertext)?;
                push_bytes(answers, Response::Ciphertext, ciphertext);
                Ok(false)
            }
            Some(Request::EndOfStream(false)) => Err(Refusal::EndOfStreamInvalid),
            Some(Request::EndOfStream(true)) => {
                self.step(
                    Input {
                        end_of_stream: true,
                        ..Input::default()
                    },
                    answers,
                )?;
                // Nothing more can come: the connection has failed, both sides have closed, or the
                // handshake can never be finished.
                Ok(true)
            }
            Some(Request::New(_) | Request::ConnectionId(_)) => Err(Refusal::DriveEventUnexpected(
                "`new` and `connection_id` are for the first message only",
            )),
            None => Err(Refusal::DriveEventUnexpected(
                "the message has no event, or one that this daemon does not know",
            )),
        }
    }

    fn step(
        &mut self,
        input: Input<'_>,
        answers: &mut VecDeque<Response>,
    ) -> Result<bool, Refusal> {
        let step = self.driver.exchange(input)?;
        self.stepped(step, answers)
    }

    /// Goes on with a step that has waited for the shared store.
    fn go_on(
        &mut self,
        awaited: Awaited,
        answers: &mut VecDeque<Response>,
    ) -> Result<bool, Refusal> {
        match awaited {
            Awaited::Found(found) => {
                let step = self.driver.given(found)?;
                self.stepped(step, answers)
            }
            Awaited::Stored => {
                self.driver.puts_answered()?;
                let output = self.output.take().unwrap_or_default();
                self.answer(output, answers)
            }
        }
    }

    fn stepped(&mut self, step: Step, answers: &mut VecDeque<Response>) -> Result<bool, Refusal> {
        let store = self.store.clone();
        match (step, store) {
            (Step::Ask(ask), store) => {
                self.awaits = Some(Box::pin(async move {
                    Awaited::Found(match store {
                        Some(store) => store.find(ask).await,
                        None => Err(Miss::StoreUnavailable),
                    })
                }));
                Ok(false)
            }
            (Step::Done(mut output), Some(store)) if !output.puts.is_empty() => {
                let puts = std::mem::take(&mut output.puts);
                self.output = Some(output);
                self.awaits = Some(Box::pin(async move {
                    store.put_all(puts).await;
                    Awaited::Stored
                }));
                Ok(false)
            }
            (Step::Done(output), _) => self.answer(output, answers),
        }
    }

    /// Makes the answers of a step that is done. Returns whether the stream is to end.
    fn answer(
        &mut self,
        mut output: Output,
        answers: &mut VecDeque<Response>,
    ) -> Result<bool, Refusal> {
        push_bytes(
            answers,
            Response::Ciphertext,
            std::mem::take(&mut output.ciphertext),
        );
        let (state, flags) = self
            .driver
            .inspect(|connection, _| (connection.state(), connection.shutdown_flags()))?;
        if state == State::Established && !self.established {
            self.established = true;
            answers.push_back(Response::Established(
                self.driver.inspect(convert::connection)?,
            ));
            let waiting = std::mem::take(&mut self.waiting);
            self.counted.shrink(0);
            if !waiting.is_empty() {
                let written = self.driver.exchange(Input {
                    plaintext: &waiting,
                    ..Input::default()
                })?;
                // Writing asks for no session and makes none.
                if let Step::Done(written) = written {
                    push_bytes(answers, Response::Ciphertext, written.ciphertext);
                }
            }
        }
        push_bytes(
            answers,
            Response::Plaintext,
            std::mem::take(&mut output.plaintext),
        );
        let failed = state == State::Failed;
        if failed {
            self.driver
                .inspect(|connection, _| tell_failure(connection))?;
        }
        if (failed || flags.received) && !self.closed {
            self.closed = true;
            answers.push_back(self.closed_answer(output)?);
        }
        Ok(failed)
    }

    fn closed_answer(&self, output: Output) -> Result<Response, Refusal> {
        Ok(Response::Closed(pb::DriveClosed {
            connection: Some(self.driver.inspect(convert::connection)?),
            alert: output.alert.map(convert::alert),
            removed_sessions: convert::removed(output.removed),
        }))
    }
}

fn push_bytes(answers: &mut VecDeque<Response>, kind: fn(Bytes) -> Response, bytes: Vec<u8>) {
    if !bytes.is_empty() {
        answers.push_back(kind(bytes.into()));
    }
}

impl Stream for Drive {
    type Item = Result<pb::DriveResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(answer) = this.answers.pop_front() {
                return Poll::Ready(Some(Ok(pb::DriveResponse {
                    event: Some(answer),
                })));
            }
            if let DrivePhase::Ending(refusal) = &mut this.phase {
                return Poll::Ready(refusal.take().map(|refusal| Err(refusal.into())));
            }
            if let Some(refusal) = this.cut(cx) {
                this.phase = DrivePhase::Ending(Some(refusal));
                continue;
            }
            match this.poll_store(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(refusal)) => {
                    this.phase = DrivePhase::Ending(Some(refusal));
                    continue;
                }
                Poll::Ready(Ok(())) => {}
            }
            if !this.answers.is_empty() || matches!(this.phase, DrivePhase::Ending(_)) {
                continue;
            }
            let request = match Pin::new(&mut this.requests).poll_next(cx) {
                Poll::Ready(request) => request,
                Poll::Pending => match &mut this.phase {
                    DrivePhase::Opening {
                        late: late @ None, ..
                    } => {
                        *late = Some(Box::pin(sleep(OPENING_MAX)));
                        continue;
                    }
                    _ => return Poll::Pending,
                },
            };
            match request {
                Some(Ok(request)) => {
                    if let Err(refusal) = this.event(request.event) {
                        this.phase = DrivePhase::Ending(Some(refusal));
                    }
                }
                Some(Err(status)) => {
                    this.phase = DrivePhase::Ending(None);
                    return Poll::Ready(Some(Err(described(&status))));
                }
                None => this.phase = DrivePhase::Ending(None),
            }
        }
    }
}
