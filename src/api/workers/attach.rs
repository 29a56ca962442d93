//! Attach: all calls of one worker on one stream, which also owns the connections made on it.
//!
//! Like a Drive, the stream polls its requests itself, without a task and without a queue. It reads
//! a batch after the answers of the last one have gone out. Dropping the stream frees every
//! connection that was made on it.
//!
//! A call that asks the shared store is answered when the store has answered. Later calls go on
//! meanwhile, with one exception: those about its connection wait for a New or SetSession that names
//! a session.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use prost::DecodeError;
use tls_sessiond_core::{
    cache::{EXPECTED_MAX, Found},
    connection::ConnectionId,
    session::{Miss, Session},
    state::CoreState,
};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::{answer::Result as Answered, call::Method, transport::wake::PollOnWake};
use tokio::{runtime::Handle, task::yield_now, time::Sleep};
use tokio_stream::Stream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::{
    decode::{BatchReader, Next, Unread},
    encode::BatchWriter,
    turns::{Turn, Turns, connection_id},
};
use crate::api::{
    access::Caller,
    call::StreamPlace,
    connections::Connections,
    convert,
    durations::CallDurations,
    error::{Refusal, described},
    limits::BATCH_MAX,
    quota::Held,
    role::Roles,
    sessions::{
        PutDone, Sessions,
        lookup::{LookedUp, LookupRef, LookupScratch, missed},
    },
};

type Waits = Pin<Box<dyn Future<Output = Finished> + Send>>;

/// The approximate size, in bytes, at which a message of answers ends. Many clients accept at most
/// 4 MiB.
const ANSWERS_BYTES: usize = 1 << 20;
/// The fewest answers of one message, unless the batch or its time ends first. A batch is answered
/// in quarters, so that the worker can use the first answers while the daemon makes the rest.
const QUARTER_MIN: usize = 8;
/// How long the stream answers calls of a batch before it yields to the other streams of the
/// thread. The limit is a time and not a number of calls, because a call costs from a tenth of a
/// microsecond to a millisecond.
const TURN: Duration = Duration::from_millis(1);
/// The fewest remaining calls for which lookups are prefetched.
const EXPECTED_MIN: usize = 4;
/// The largest initial capacity of a message of answers, and how much it exceeds the length of the
/// last message. In bytes.
const ROOM_MAX: usize = 32 << 10;
const ROOM_MORE: usize = 512;
/// How many known connections of a stream are checked for each new one. With two, removed
/// connections cannot pile up.
const LOOKED_AT: usize = 2;
/// How many connections of an ended stream are freed without a pause. It takes less than a tenth of
/// a millisecond.
const FREED_AT_ONCE: usize = 128;
/// The longest alias in bytes, `@` included.
const ALIAS_MAX: usize = 64;

/// The answers of one Attach.
pub(crate) struct Attach {
    requests: Streaming<pb::codec::Calls>,
    deadline: Option<PollOnWake<Sleep>>,
    /// `None` once the worker has been told that the daemon drains.
    draining: Option<PollOnWake<WaitForCancellationFutureOwned>>,
    /// Ready when the caller has lost the role `worker` in every context, or its certificate has
    /// expired.
    lost: PollOnWake<dyn Future<Output = Refusal> + Send>,
    /// The calls of the current batch that are not yet answered.
    batch: BatchReader,
    /// When the batch arrived, until all its calls are answered.
    arrived: Option<Instant>,
    /// Counts the bytes of the batch's message for the caller's identity.
    held: Held,
    /// How many of the next calls are prefetched.
    expected: usize,
    /// How many answers make a message.
    quarter: usize,
    /// The initial capacity of the next message of answers, in bytes.
    room: usize,
    /// Set when the stream yields to other streams although calls remain.
    pause: bool,
    phase: AttachPhase,
    calls: AttachCalls,
    /// Calls that wait for the shared store.
    later: FuturesUnordered<Waits>,
    /// Calls that wait for those of them that are a New or SetSession.
    turns: Turns,
}

/// A call whose answer the shared store has decided.
struct Finished {
    id: u64,
    told: Option<Told>,
    then: Then,
    turn: Option<Turn>,
}

/// What is left to do for such a call.
enum Then {
    /// The answer is known.
    Answer(Result<Done, Refusal>),
    /// The session that a New names was looked up.
    New(Box<pb::NewRequest>, String, Result<Found, Miss>),
    /// The session that a SetSession names was looked up.
    SetSession(Box<Result<pb::SetSessionResponse, Refusal>>),
}

/// The outcome of a call.
enum CallOutcome {
    Done(Result<Done, Refusal>),
    /// Later calls may have to wait for their turn.
    Later(Pin<Box<dyn Future<Output = Then> + Send>>, Option<Turn>),
}

impl CallOutcome {
    /// A call for which no later call waits.
    fn later(then: impl Future<Output = Then> + Send + 'static) -> Self {
        Self::Later(Box::pin(then), None)
    }
}

enum AttachPhase {
    Running,
    Ending(Option<Status>),
}

/// State of the calls of one stream: what they need, and the connections that they made.
pub(crate) struct AttachCalls {
    connections: Arc<Connections>,
    sessions: Arc<Sessions>,
    durations: Arc<CallDurations>,
    by: Arc<Caller>,
    _place: StreamPlace,
    _attached: Held,
    /// The connections made on this stream, with their aliases.
    made: HashMap<ConnectionId, Option<String>>,
    /// The keys of `made`, and some that were removed since. [`Self::prune`] checks them in turn.
    order: VecDeque<ConnectionId>,
    /// Connection ids by alias.
    aliases: HashMap<String, String>,
    /// Scratch state shared by the lookups of one message.
    moment: LookupScratch,
}

/// The result of a call that succeeded.
enum Done {
    /// The session that a lookup found. It is encoded without the generated types.
    Found(Arc<Session>),
    Other(Answered),
}

impl AttachCalls {
    /// # Errors
    /// [`Refusal::CallLimit`] or [`Refusal::OwnerCallLimit`] when too many Attach streams are open.
    pub(crate) fn new(
        connections: Arc<Connections>,
        sessions: Arc<Sessions>,
        durations: Arc<CallDurations>,
        by: Arc<Caller>,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            connections,
            sessions,
            durations,
            _attached: by.holder().attached()?,
            _place: StreamPlace::hold(&by),
            by,
            made: HashMap::new(),
            order: VecDeque::new(),
            aliases: HashMap::new(),
            moment: LookupScratch::default(),
        })
    }

    /// Executes a call and appends its answer, or returns what waits for the shared store, and which
    /// later calls wait for it.
    fn answer(&mut self, next: Next<'_>, to: &mut BatchWriter) -> Option<(Waits, Option<Turn>)> {
        let (id, told, outcome) = match next {
            Next::Lookup(id, wanted) => (id, Told::of_lookup(id), self.lookup(wanted)),
            Next::Other(mut call) => {
                let (id, told) = (call.id, Told::of(&mut call));
                let outcome = self
                    .call(call)
                    .unwrap_or_else(|err| CallOutcome::Done(Err(err)));
                (id, told, outcome)
            }
        };
        let (then, turn) = match outcome {
            CallOutcome::Done(result) => {
                self.write(id, told, result, to);
                return None;
            }
            CallOutcome::Later(then, turn) => (then, turn),
        };
        let ends = turn.clone();
        let waits = async move {
            Finished {
                id,
                told,
                then: then.await,
                turn: ends,
            }
        };
        Some((Box::pin(waits), turn))
    }

    /// Appends the answer of a call that has waited. Returns which later calls waited for it.
    fn finish(&mut self, finished: Finished, to: &mut BatchWriter) -> Option<Turn> {
        let result = match finished.then {
            Then::Answer(result) => result,
            Then::New(request, alias, joined) => {
                let made = self.make(*request, alias, Some(joined));
                made.map(|made| Done::Other(Answered::New(made.into())))
            }
            Then::SetSession(set) => set.map(|set| Done::Other(Answered::SetSession(set.into()))),
        };
        self.write(finished.id, finished.told, result, to);
        finished.turn
    }

    /// Appends an answer. A call with id 0 gets one only if it fails.
    fn write(
        &self,
        id: u64,
        told: Option<Told>,
        result: Result<Done, Refusal>,
        to: &mut BatchWriter,
    ) {
        match result {
            Ok(_) if id == 0 => {}
            Ok(Done::Found(session)) => to.found(id, &session, self.moment.now.offset),
            Ok(Done::Other(result)) => to.push(&pb::Answer {
                id,
                result: Some(result),
            }),
            Err(refusal) => {
                let error = told.unwrap_or_default().with(refusal.call_error());
                to.push(&pb::Answer {
                    id,
                    result: Some(Answered::Error(error)),
                });
            }
        }
    }

    /// Prefetches the sessions of the next lookups.
    fn prefetch(&mut self, batch: &BatchReader) {
        self.sessions
            .prefetch(&self.by, &mut self.moment, batch.ahead());
    }

    fn lookup(&mut self, wanted: LookupRef<'_>) -> CallOutcome {
        let missed = |miss| Done::Other(Answered::LookupSession(missed(miss).into()));
        match self.sessions.find(&self.by, &mut self.moment, wanted) {
            Err(refusal) => CallOutcome::Done(Err(refusal)),
            Ok(LookedUp::Found(session)) => CallOutcome::Done(Ok(Done::Found(session))),
            Ok(LookedUp::Missed(miss)) => CallOutcome::Done(Ok(missed(miss))),
            Ok(LookedUp::Searched(search)) => {
                let sessions = Arc::clone(&self.sessions);
                CallOutcome::later(async move {
                    let found = sessions.searched(*search).await;
                    Then::Answer(Ok(found.map_or_else(missed, Done::Found)))
                })
            }
            Ok(LookedUp::Asked(asked)) => {
                let sessions = Arc::clone(&self.sessions);
                CallOutcome::later(async move {
                    let found = sessions.asked(*asked).await;
                    Then::Answer(Ok(found.map_or_else(missed, Done::Found)))
                })
            }
        }
    }

    fn call(&mut self, mut call: pb::Call) -> Result<CallOutcome, Refusal> {
        // The name of the connection, before its id replaces an alias.
        let turn = match (&call.method, &self.connections.opener.store) {
            (Some(Method::New(_) | Method::SetSession(_)), Some(_)) => Some(Turn::of(&mut call)),
            _ => None,
        };
        let mut method = call.method.ok_or(Refusal::MethodRequired)?;
        if !call.alias.is_empty() && !matches!(method, Method::New(_)) {
            return Err(Refusal::AliasMalformed);
        }
        if let Some(id) = connection_id(&mut method)
            && id.starts_with('@')
        {
            let named = self.aliases.get(id.as_str()).ok_or(Refusal::AliasUnknown)?;
            id.clone_from(named);
        }
        Ok(CallOutcome::Done(Ok(Done::Other(match method {
            Method::New(request) => {
                if let Some(look) = self.connections.opener.joining(&request, &self.by)? {
                    let connections = Arc::clone(&self.connections);
                    let then = Box::pin(async move {
                        let joined = connections.opener.found(look).await;
                        Then::New(request, call.alias, joined)
                    });
                    return Ok(CallOutcome::Later(then, turn));
                }
                Answered::New(self.make(*request, call.alias, None)?.into())
            }
            Method::Clear(request) => {
                Answered::Clear(self.connections.clear(&self.by, &request)?.into())
            }
            Method::Shutdown(request) => {
                Answered::Shutdown(self.connections.shutdown(&self.by, &request)?.into())
            }
            Method::SetShutdown(request) => {
                Answered::SetShutdown(self.connections.set_shutdown(&self.by, &request)?.into())
            }
            Method::Free(request) => {
                let freed = self.connections.free(&self.by, &request);
                self.forget_if_gone(&request.connection_id);
                Answered::Free(freed?)
            }
            Method::SetSession(request) => {
                if self.connections.opener.store.is_none() {
                    let set = self.connections.set_session_in_memory(&self.by, &request);
                    Answered::SetSession(set?.into())
                } else {
                    let (connections, by) = (Arc::clone(&self.connections), Arc::clone(&self.by));
                    let then = Box::pin(async move {
                        Then::SetSession(Box::new(connections.set_session(&by, &request).await))
                    });
                    return Ok(CallOutcome::Later(then, turn));
                }
            }
            Method::PutSession(request) => match self.sessions.put(&self.by, *request)? {
                PutDone::Now(response) => Answered::PutSession(response.into()),
                PutDone::Later(put, id, response) => {
                    let sessions = Arc::clone(&self.sessions);
                    return Ok(CallOutcome::later(async move {
                        let response = sessions.stored(*put, id, response).await;
                        Then::Answer(Ok(Done::Other(Answered::PutSession(response.into()))))
                    }));
                }
            },
            Method::LookupSession(request) => return Ok(self.lookup((&*request).into())),
            Method::RemoveSession(request) => {
                let answered =
                    |removed| Answered::RemoveSession(pb::RemoveSessionResponse { removed });
                let (removed, in_store) = self.sessions.remove_here(&self.by, &request)?;
                let Some(removal) = in_store else {
                    return Ok(CallOutcome::Done(Ok(Done::Other(answered(removed)))));
                };
                let sessions = Arc::clone(&self.sessions);
                return Ok(CallOutcome::later(async move {
                    let in_store = sessions.remove_in_store(removal).await;
                    let done = in_store.map(|there| Done::Other(answered(removed || there)));
                    Then::Answer(done)
                }));
            }
            Method::ReportAlert(request) => {
                Answered::ReportAlert(self.connections.report_alert(&self.by, &request)?.into())
            }
        }))))
    }

    fn make(
        &mut self,
        request: pb::NewRequest,
        alias: String,
        joined: Option<Result<Found, Miss>>,
    ) -> Result<pb::NewResponse, Refusal> {
        let alias = Some(alias).filter(|alias| !alias.is_empty());
        if let Some(alias) = &alias {
            if !alias.starts_with('@') || !(2..=ALIAS_MAX).contains(&alias.len()) {
                return Err(Refusal::AliasMalformed);
            }
            if self.aliases.contains_key(alias) {
                return Err(Refusal::AliasTaken);
            }
        }
        let opener = &self.connections.opener;
        let made = opener.open_joined(request, &self.by, joined)?;
        if let Some(connection) = &made.connection {
            if let Some(alias) = &alias {
                self.aliases.insert(alias.clone(), connection.id.clone());
            }
            let id = convert::connection_id(&connection.id)?;
            // A repeated request returns the same connection. The new alias then replaces the old
            // one.
            match self.made.insert(id, alias) {
                Some(Some(old)) => drop(self.aliases.remove(&old)),
                Some(None) => {}
                None => self.order.push_back(id),
            }
            self.prune();
        }
        Ok(made)
    }

    /// Checks [`LOOKED_AT`] connections, and forgets those that were removed without a Free on this
    /// stream: by their idle time-out, or by a call elsewhere.
    fn prune(&mut self) {
        for _ in 0..LOOKED_AT {
            let Some(id) = self.order.pop_front() else {
                return;
            };
            if !self.made.contains_key(&id) {
                continue;
            }
            if self.connections.opener.state.connections().holds(id) {
                self.order.push_back(id);
            } else if let Some(Some(alias)) = self.made.remove(&id) {
                self.aliases.remove(&alias);
            }
        }
    }

    /// Forgets a connection that no longer exists, and its alias, which can then be used again. A
    /// connection that a refused Free left alive stays: it is freed with the stream, even if the
    /// caller has lost its role by then.
    fn forget_if_gone(&mut self, id: &str) {
        if let Ok(id) = convert::connection_id(id)
            && self
                .connections
                .opener
                .state
                .connections()
                .inspect(id, |_, _| ())
                .is_err()
            && let Some(Some(alias)) = self.made.remove(&id)
        {
            self.aliases.remove(&alias);
        }
    }
}

impl Drop for AttachCalls {
    /// Frees the connections that the worker left. A few are freed here. Many are freed slice by
    /// slice in a task, so that the thread can serve other workers in between.
    fn drop(&mut self) {
        let state = Arc::clone(&self.connections.opener.state);
        let mut left = Left {
            state,
            ids: self.made.drain().map(|(id, _)| id).collect(),
        };
        if let Ok(runtime) = Handle::try_current()
            && left.ids.len() > FREED_AT_ONCE
        {
            runtime.spawn(async move {
                while left.free_some() {
                    yield_now().await;
                }
            });
        }
    }
}

/// The connections of a stream that has ended. Dropping it frees all that remain. That also happens
/// when the runtime ends and drops the task that frees them slice by slice.
struct Left {
    state: Arc<CoreState>,
    ids: Vec<ConnectionId>,
}

impl Left {
    /// Frees up to [`FREED_AT_ONCE`] connections. Returns whether more remain.
    fn free_some(&mut self) -> bool {
        for id in self
            .ids
            .drain(self.ids.len().saturating_sub(FREED_AT_ONCE)..)
        {
            // An error means that the idle time-out or another call has freed the connection
            // before.
            let _ = self.state.connections().free(id);
        }
        !self.ids.is_empty()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        while self.free_some() {}
    }
}

/// Names a failed call with id 0. The worker cannot match the error by id, so the error carries
/// these names.
#[derive(Default)]
struct Told {
    method: &'static str,
    alias: String,
    connection_id: String,
}

impl Told {
    fn of_lookup(id: u64) -> Option<Self> {
        (id == 0).then(|| Self {
            method: "lookup_session",
            ..Self::default()
        })
    }

    fn of(call: &mut pb::Call) -> Option<Self> {
        if call.id != 0 {
            return None;
        }
        let method = call.method.as_mut()?;
        let connection_id = connection_id(method).cloned().unwrap_or_default();
        let method = match method {
            Method::New(_) => "new",
            Method::Clear(_) => "clear",
            Method::Shutdown(_) => "shutdown",
            Method::SetShutdown(_) => "set_shutdown",
            Method::Free(_) => "free",
            Method::SetSession(_) => "set_session",
            Method::PutSession(_) => "put_session",
            Method::LookupSession(_) => "lookup_session",
            Method::RemoveSession(_) => "remove_session",
            Method::ReportAlert(_) => "report_alert",
        };
        Some(Self {
            method,
            alias: call.alias.clone(),
            connection_id,
        })
    }

    fn with(self, error: pb::CallError) -> pb::CallError {
        pb::CallError {
            method: self.method.into(),
            alias: self.alias,
            connection_id: self.connection_id,
            ..error
        }
    }
}

impl Attach {
    pub(crate) fn new(
        requests: Streaming<pb::codec::Calls>,
        calls: AttachCalls,
        deadline: Option<Pin<Box<Sleep>>>,
        draining: WaitForCancellationFutureOwned,
    ) -> Self {
        let held = calls.by.holder().no_bytes();
        let deadline = deadline.map(PollOnWake::new);
        let draining = Some(PollOnWake::new(Box::pin(draining)));
        let lost =
            Arc::clone(&calls.by).loses(Roles::WORKER, None, Arc::clone(&calls.sessions.state));
        let lost = PollOnWake::new(Box::pin(lost) as Pin<Box<dyn Future<Output = Refusal> + Send>>);
        Self {
            requests,
            deadline,
            draining,
            lost,
            batch: BatchReader::default(),
            arrived: None,
            held,
            expected: 0,
            quarter: QUARTER_MIN,
            room: 0,
            pause: false,
            phase: AttachPhase::Running,
            calls,
            later: FuturesUnordered::new(),
            turns: Turns::default(),
        }
    }

    /// Makes this message the current batch. Its bytes count for the caller's identity until all
    /// its calls are answered.
    fn take(&mut self, message: Bytes) -> Result<(), Status> {
        self.held.resize(message.len())?;
        let batch = BatchReader::read(message).map_err(|unread| match unread {
            Unread::TooMany(calls) => Refusal::BatchTooLarge(calls).into(),
            Unread::Malformed(err) => malformed(&err),
        })?;
        self.quarter = batch.len().div_ceil(4).max(QUARTER_MIN);
        self.batch = batch;
        self.arrived = Some(Instant::now());
        self.expected = 0;
        Ok(())
    }

    /// Executes the next calls of the batch and returns their answers, and those of earlier calls for
    /// which the shared store has answered. Returns `None` if there are no answers; calls may remain
    /// even then.
    fn answers(&mut self, cx: &mut Context<'_>) -> Option<BatchWriter> {
        if self.left() == 0 && self.later.is_empty() {
            if let Some(arrived) = self.arrived.take() {
                self.calls.durations.batches.count(arrived.elapsed());
            }
            // All calls are answered, so the memory of their message is released.
            if self.held.bytes() > 0 {
                self.batch = BatchReader::default();
                self.held.shrink(0);
            }
            return None;
        }
        self.calls.moment.begin(self.calls.sessions.state.now());
        let mut answers = BatchWriter::with_room(self.room);
        let mut begun = None;
        self.finish_later(cx, &mut answers);
        while !self.waits() && answers.count() < self.quarter && answers.len() < ANSWERS_BYTES {
            if self.expected == 0 && self.batch.len() >= EXPECTED_MIN {
                self.calls.prefetch(&self.batch);
                self.expected = EXPECTED_MAX;
            }
            self.expected = self.expected.saturating_sub(1);
            let waited = self.turns.next().map(|call| Ok(Next::Other(call)));
            match waited.or_else(|| self.batch.next()) {
                Some(Ok(call)) => {
                    // Lookups read the clock once for each prefetched group: the group takes some
                    // microseconds, and reading the clock costs a tenth of one lookup.
                    let asks_clock = matches!(call, Next::Other(_)) || self.expected == 0;
                    let call = match call {
                        Next::Other(call) => self.turns.admit(call).map(Next::Other),
                        lookup => Some(lookup),
                    };
                    let outcome = call.and_then(|call| self.calls.answer(call, &mut answers));
                    if let Some((waits, turn)) = outcome {
                        self.later.push(waits);
                        if let Some(turn) = turn {
                            self.turns.begin(&turn);
                        }
                    }
                    if asks_clock
                        && self.left() > 0
                        && begun.get_or_insert_with(Instant::now).elapsed() >= TURN
                    {
                        break;
                    }
                }
                Some(Err(err)) => self.phase = AttachPhase::Ending(Some(malformed(&err))),
                None => break,
            }
        }
        // Polls what has just begun, so that it is sent, and wakes this stream.
        self.finish_later(cx, &mut answers);
        self.calls.moment.end();
        if answers.count() == 0 {
            return None;
        }
        // The next message is about as long. `BatchWriter::found` reserves more than it writes, hence
        // the reserve for the last answer.
        self.room = (answers.len() + ROOM_MORE).min(ROOM_MAX);
        Some(answers)
    }
}

impl Attach {
    /// Appends the answers of calls for which the shared store has answered.
    fn finish_later(&mut self, cx: &mut Context<'_>, answers: &mut BatchWriter) {
        while !self.later.is_empty()
            && answers.len() < ANSWERS_BYTES
            && let Poll::Ready(Some(finished)) = Pin::new(&mut self.later).poll_next(cx)
        {
            if let Some(turn) = self.calls.finish(finished, answers) {
                self.turns.end(&turn);
            }
        }
    }

    /// Returns the number of calls that are not yet begun and need not wait for others.
    fn left(&self) -> usize {
        self.turns.len() + self.batch.len()
    }

    /// Returns whether no call can be begun before the shared store has answered.
    fn waits(&self) -> bool {
        self.later.len() >= BATCH_MAX || (self.turns.len() == 0 && self.turns.is_blocked())
    }
}

fn malformed(err: &DecodeError) -> Status {
    described(&Status::internal(err.to_string()))
}

impl Stream for Attach {
    type Item = Result<pb::codec::Answers, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if std::mem::take(&mut this.pause) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(answers) = this.answers(cx) {
                this.pause = this.left() > 0 && !this.waits();
                return Poll::Ready(Some(Ok(answers.into())));
            }
            // The time is used up, and none of the calls so far has an answer.
            if this.left() > 0 && !this.waits() && matches!(this.phase, AttachPhase::Running) {
                this.pause = true;
                continue;
            }
            if let AttachPhase::Ending(status) = &mut this.phase {
                // Answers of calls that came before the end go out before it.
                if !this.later.is_empty() {
                    return Poll::Pending;
                }
                return Poll::Ready(status.take().map(Err));
            }
            if this
                .deadline
                .as_mut()
                .is_some_and(|deadline| Pin::new(deadline).poll(cx).is_ready())
            {
                this.phase = AttachPhase::Ending(Some(Refusal::DeadlineExceeded.into()));
                continue;
            }
            if let Poll::Ready(refusal) = Pin::new(&mut this.lost).poll(cx) {
                this.phase = AttachPhase::Ending(Some(refusal.into()));
                continue;
            }
            if this
                .draining
                .as_mut()
                .is_some_and(|draining| Pin::new(draining).poll(cx).is_ready())
            {
                this.draining = None;
                return Poll::Ready(Some(Ok(BatchWriter::draining().into())));
            }
            // The calls that wait for their turn hold the memory of the message that they came in.
            let is_idle = this.batch.len() == 0 && this.turns.is_idle();
            if !is_idle && matches!(this.phase, AttachPhase::Running) {
                return Poll::Pending;
            }
            match ready!(Pin::new(&mut this.requests).poll_next(cx)) {
                Some(Ok(pb::codec::Calls(message))) => {
                    if let Err(status) = this.take(message) {
                        this.phase = AttachPhase::Ending(Some(status));
                    }
                }
                Some(Err(status)) => {
                    this.phase = AttachPhase::Ending(Some(described(&status)));
                }
                None => this.phase = AttachPhase::Ending(None),
            }
        }
    }
}
