//! Attach: all calls of one worker on one stream, and a life line for its connections.
//!
//! Polled like a Drive: no task, no queue. A batch is read when the answers of the last one have gone out. Dropping the
//! stream frees every connection that was made on it.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::DecodeError;
use tls_sessiond_core::{
    cache::EXPECTED_MAX,
    connection::{ConnectionId, Table},
    session::Session,
};
use tokio::{runtime::Handle, task::yield_now, time::Sleep};
use tokio_stream::Stream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::{
    access::{Caller, Roles},
    accounts::Held,
    answers::Answers,
    batch::{Batch, Next, Unread},
    connections::Connections,
    convert,
    seldom::Seldom,
    sessions::{self, Moment, Sessions, Wanted},
    status::{Refusal, described},
    streams::StreamPlace,
};
use crate::{
    proto as pb,
    proto::{answer::Result as Answered, call::Method},
};

/// Answers of one batch are cut into messages of about this size, for many clients take no more than 4 MiB.
const ANSWERS_BYTES: usize = 1 << 20;
/// A batch is answered in quarters, of no fewer calls than this: the worker goes on while the rest is answered.
const QUARTER_MIN: usize = 8;
/// How long the calls of a batch are answered before other streams of the thread have their turns. Calls cost from a tenth of a
/// microsecond to a millisecond, so their number says little.
const TURN: Duration = Duration::from_millis(1);
/// Fewer calls than this need no preparation.
const EXPECTED_MIN: usize = 4;
/// The most room for answers that are not there yet, and how much of it is to spare.
const ROOM_MAX: usize = 32 << 10;
const ROOM_MORE: usize = 512;
/// How many connections of a stream are looked at for each new one: two, so that those that are gone do not become many.
const LOOKED_AT: usize = 2;
/// Connections of a stream that ended which are freed without a pause: less than a tenth of a millisecond.
const FREED_AT_ONCE: usize = 128;
/// The longest alias, `@` included.
const ALIAS_MAX: usize = 64;

/// The answers of one Attach.
pub(super) struct Attach {
    requests: Streaming<pb::Calls>,
    deadline: Option<Seldom<Sleep>>,
    /// Until the worker was told.
    draining: Option<Seldom<WaitForCancellationFutureOwned>>,
    /// Ready when the caller is no worker any more.
    lost: Seldom<dyn Future<Output = Refusal> + Send>,
    /// Calls that wait for their turn.
    batch: Batch,
    /// The bytes of its message.
    held: Held,
    /// How many of the next ones are prepared for.
    expected: usize,
    /// How many of them make a quarter.
    quarter: usize,
    /// How much room the next answers are given.
    room: usize,
    /// More calls wait, and other streams have their turns first.
    pause: bool,
    phase: Phase,
    calls: Calls,
}

enum Phase {
    Running,
    Ending(Option<Status>),
}

/// What the calls of one stream need, and what they made.
pub(super) struct Calls {
    connections: Arc<Connections>,
    sessions: Arc<Sessions>,
    by: Arc<Caller>,
    _place: StreamPlace,
    _attached: Held,
    made: HashMap<ConnectionId, Option<String>>,
    /// The same, and some that are gone: looked at by turns.
    order: VecDeque<ConnectionId>,
    /// Aliases of connections that were made here.
    aliases: HashMap<String, String>,
    /// Of the lookups of one message.
    moment: Moment,
}

/// What a call came to.
enum Done {
    /// A lookup's session, of which no message is made.
    Found(Arc<Session>),
    Other(Answered),
}

impl Calls {
    /// # Errors
    /// [`Refusal::CallLimit`] or [`Refusal::OwnerCallLimit`]: there are too many streams.
    pub(super) fn new(
        connections: Arc<Connections>,
        sessions: Arc<Sessions>,
        by: Arc<Caller>,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            connections,
            sessions,
            _attached: by.holder().attached()?,
            _place: StreamPlace::hold(&by),
            by,
            made: HashMap::new(),
            order: VecDeque::new(),
            aliases: HashMap::new(),
            moment: Moment::default(),
        })
    }

    /// Writes what a call answers, where an answer is wanted.
    fn answer(&mut self, next: Next<'_>, to: &mut Answers) {
        let (id, told, result) = match next {
            Next::Lookup(id, wanted) => (id, Told::of_lookup(id), self.look(wanted)),
            Next::Other(mut call) => (call.id, Told::of(&mut call), self.call(call)),
        };
        match result {
            Ok(_) if id == 0 => {}
            Ok(Done::Found(session)) => to.found(id, &session, self.moment.now.offset),
            Ok(Done::Other(result)) => to.push(&pb::Answer { id, result: Some(result) }),
            Err(refusal) => {
                let error = told.unwrap_or_default().with(refusal.call_error());
                to.push(&pb::Answer { id, result: Some(Answered::Error(error)) });
            }
        }
    }

    /// Prepares for the lookups that come next.
    fn expect(&mut self, batch: &Batch) {
        self.sessions.expect(&self.by, &mut self.moment, batch.ahead());
    }

    fn look(&mut self, wanted: Wanted<'_>) -> Result<Done, Refusal> {
        Ok(match self.sessions.look(&self.by, &mut self.moment, wanted)? {
            Ok(session) => Done::Found(session),
            Err(miss) => Done::Other(Answered::LookupSession(sessions::missed(miss).into())),
        })
    }

    fn call(&mut self, call: pb::Call) -> Result<Done, Refusal> {
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
        Ok(Done::Other(match method {
            Method::New(request) => Answered::New(self.make(*request, call.alias)?.into()),
            Method::Clear(request) => Answered::Clear(self.connections.clear(&self.by, &request)?.into()),
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
                Answered::SetSession(self.connections.set_session(&self.by, &request)?.into())
            }
            Method::PutSession(request) => {
                Answered::PutSession(self.sessions.put(&self.by, *request)?.into())
            }
            Method::LookupSession(request) => return self.look((&*request).into()),
            Method::RemoveSession(request) => {
                Answered::RemoveSession(self.sessions.remove(&self.by, &request)?)
            }
            Method::ReportAlert(request) => {
                Answered::ReportAlert(self.connections.report_alert(&self.by, &request)?.into())
            }
        }))
    }

    fn make(&mut self, request: pb::NewRequest, alias: String) -> Result<pb::NewResponse, Refusal> {
        let alias = Some(alias).filter(|alias| !alias.is_empty());
        if let Some(alias) = &alias {
            if !alias.starts_with('@') || !(2..=ALIAS_MAX).contains(&alias.len()) {
                return Err(Refusal::AliasMalformed);
            }
            if self.aliases.contains_key(alias) {
                return Err(Refusal::AliasTaken);
            }
        }
        let made = self.connections.opener.open(request, &self.by)?;
        if let Some(connection) = &made.connection {
            if let Some(alias) = &alias {
                self.aliases.insert(alias.clone(), connection.id.clone());
            }
            let id = convert::connection_id(&connection.id)?;
            // A repeated request answers the same connection, which then has the new alias.
            match self.made.insert(id, alias) {
                Some(Some(old)) => drop(self.aliases.remove(&old)),
                Some(None) => {}
                None => self.order.push_back(id),
            }
            self.prune();
        }
        Ok(made)
    }

    /// Forgets connections that are gone without a Free on this stream: lapsed, or freed by others. Looks at a few of them.
    fn prune(&mut self) {
        for _ in 0..LOOKED_AT {
            let Some(id) = self.order.pop_front() else { return };
            if !self.made.contains_key(&id) {
                continue;
            }
            if self.connections.opener.table.holds(id) {
                self.order.push_back(id);
            } else if let Some(Some(alias)) = self.made.remove(&id) {
                self.aliases.remove(&alias);
            }
        }
    }

    /// Forgets a connection that is gone, and its alias, which may be used again. One that a Free did not free stays: it is
    /// freed with the stream, whatever its caller may do by then.
    fn forget_if_gone(&mut self, id: &str) {
        if let Ok(id) = convert::connection_id(id)
            && self.connections.opener.table.look(id, |_, _| ()).is_err()
            && let Some(Some(alias)) = self.made.remove(&id)
        {
            self.aliases.remove(&alias);
        }
    }
}

impl Drop for Calls {
    /// The worker is gone: what it left open is lost. A few are freed here; many are freed slice by slice, and other
    /// workers of this thread have their turns between.
    fn drop(&mut self) {
        let table = Arc::clone(&self.connections.opener.table);
        let mut left = Left { table, ids: self.made.drain().map(|(id, _)| id).collect() };
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

/// Connections of a stream that has ended. Dropping it frees all that are left, also where a runtime that ends drops the task
/// that frees them slice by slice.
struct Left {
    table: Arc<Table>,
    ids: Vec<ConnectionId>,
}

impl Left {
    /// Says whether there are more.
    fn free_some(&mut self) -> bool {
        for id in self.ids.drain(self.ids.len().saturating_sub(FREED_AT_ONCE)..) {
            // One that is not there was freed by its idle time-out, or by another call.
            let _ = self.table.free(id);
        }
        !self.ids.is_empty()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        while self.free_some() {}
    }
}

/// By which names the error of a call without an id tells of the call.
#[derive(Default)]
struct Told {
    method: &'static str,
    alias: String,
    connection_id: String,
}

impl Told {
    fn of_lookup(id: u64) -> Option<Self> {
        (id == 0).then(|| Self { method: "lookup_session", ..Self::default() })
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
        Some(Self { method, alias: call.alias.clone(), connection_id })
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

/// The field that names a connection, where the method has one.
fn connection_id(method: &mut Method) -> Option<&mut String> {
    match method {
        Method::New(_) | Method::LookupSession(_) | Method::RemoveSession(_) => None,
        Method::Clear(request) => Some(&mut request.connection_id),
        Method::Shutdown(request) => Some(&mut request.connection_id),
        Method::SetShutdown(request) => Some(&mut request.connection_id),
        Method::Free(request) => Some(&mut request.connection_id),
        Method::SetSession(request) => Some(&mut request.connection_id),
        Method::PutSession(request) => Some(&mut request.connection_id),
        Method::ReportAlert(request) => Some(&mut request.connection_id),
    }
}

impl Attach {
    pub(super) fn new(
        requests: Streaming<pb::Calls>,
        calls: Calls,
        deadline: Option<Pin<Box<Sleep>>>,
        draining: WaitForCancellationFutureOwned,
    ) -> Self {
        let held = calls.by.holder().no_bytes();
        let deadline = deadline.map(Seldom::new);
        let draining = Some(Seldom::new(Box::pin(draining)));
        let lost = Arc::clone(&calls.by).loses(Roles::WORKER, None, Arc::clone(&calls.sessions.table));
        let lost = Seldom::new(Box::pin(lost) as Pin<Box<dyn Future<Output = Refusal> + Send>>);
        Self {
            requests,
            deadline,
            draining,
            lost,
            batch: Batch::default(),
            held,
            expected: 0,
            quarter: QUARTER_MIN,
            room: 0,
            pause: false,
            phase: Phase::Running,
            calls,
        }
    }

    /// The calls of this message come next. They count as bytes of the caller until all of them are answered.
    fn take(&mut self, message: Bytes) -> Result<(), Status> {
        self.held.resize(message.len())?;
        let batch = Batch::read(message).map_err(|unread| match unread {
            Unread::TooMany(calls) => Refusal::BatchTooLarge(calls).into(),
            Unread::Malformed(err) => malformed(&err),
        })?;
        self.quarter = batch.len().div_ceil(4).max(QUARTER_MIN);
        self.batch = batch;
        self.expected = 0;
        Ok(())
    }

    /// The next answers of the batch. `None`: there are none now; calls may be left all the same.
    fn answers(&mut self) -> Option<Answers> {
        if self.batch.len() == 0 {
            // Its message goes with it.
            if self.held.bytes() > 0 {
                self.batch = Batch::default();
                self.held.shrink(0);
            }
            return None;
        }
        self.calls.moment.begin(self.calls.sessions.table.now());
        let mut answers = Answers::with_room(self.room);
        let mut begun = None;
        while answers.count() < self.quarter && answers.len() < ANSWERS_BYTES {
            if self.expected == 0 && self.batch.len() >= EXPECTED_MIN {
                self.calls.expect(&self.batch);
                self.expected = EXPECTED_MAX;
            }
            self.expected = self.expected.saturating_sub(1);
            match self.batch.next() {
                Some(Ok(call)) => {
                    // Sixteen lookups take some microseconds, and reading the clock a tenth of one lookup.
                    let asks_clock = matches!(call, Next::Other(_)) || self.expected == 0;
                    self.calls.answer(call, &mut answers);
                    if asks_clock
                        && self.batch.len() > 0
                        && begun.get_or_insert_with(Instant::now).elapsed() >= TURN
                    {
                        break;
                    }
                }
                Some(Err(err)) => self.phase = Phase::Ending(Some(malformed(&err))),
                None => break,
            }
        }
        self.calls.moment.end();
        if answers.count() == 0 {
            return None;
        }
        // The next ones are about as long, and the last of them asks for more than it takes.
        self.room = (answers.len() + ROOM_MORE).min(ROOM_MAX);
        Some(answers)
    }
}

fn malformed(err: &DecodeError) -> Status {
    described(&Status::internal(err.to_string()))
}

impl Stream for Attach {
    type Item = Result<pb::Answers, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if std::mem::take(&mut this.pause) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(answers) = this.answers() {
                this.pause = this.batch.len() > 0;
                return Poll::Ready(Some(Ok(answers.into())));
            }
            // The turn is over, and no call of it wanted an answer.
            if this.batch.len() > 0 && matches!(this.phase, Phase::Running) {
                this.pause = true;
                continue;
            }
            if let Phase::Ending(status) = &mut this.phase {
                return Poll::Ready(status.take().map(Err));
            }
            if this.deadline.as_mut().is_some_and(|deadline| Pin::new(deadline).poll(cx).is_ready()) {
                this.phase = Phase::Ending(Some(Refusal::DeadlineExceeded.into()));
                continue;
            }
            if let Poll::Ready(refusal) = Pin::new(&mut this.lost).poll(cx) {
                this.phase = Phase::Ending(Some(refusal.into()));
                continue;
            }
            if this.draining.as_mut().is_some_and(|draining| Pin::new(draining).poll(cx).is_ready()) {
                this.draining = None;
                return Poll::Ready(Some(Ok(Answers::draining().into())));
            }
            match ready!(Pin::new(&mut this.requests).poll_next(cx)) {
                Some(Ok(pb::Calls(message))) => {
                    if let Err(status) = this.take(message) {
                        this.phase = Phase::Ending(Some(status));
                    }
                }
                Some(Err(status)) => {
                    this.phase = Phase::Ending(Some(described(&status)));
                }
                None => this.phase = Phase::Ending(None),
            }
        }
    }
}
