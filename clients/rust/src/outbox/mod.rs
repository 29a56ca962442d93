//! The outbox of one stream to the daemon: a bounded queue of calls, and the callers that wait for
//! answers.
//!
//! A link serves one stream only, so an alias never reaches a stream that does not know it. The
//! handles of a stream that broke hold a closed link, which refuses every call.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod pending;
pub(crate) mod queue;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};
use tls_sessiond_proto::{self as pb, call::Method};
use tls_sessiond_types::secret::SecretBuffer;

use crate::{
    counters::Tallies,
    options::Limits,
    outbox::{
        decode::Answer,
        encode::{Call, EncodeCall, Question},
        pending::{Asker, PendingCalls},
        queue::Queue,
    },
};

pub(super) struct Outbox {
    state: Mutex<OutboxState>,
    tallies: Arc<Tallies>,
}

struct OutboxState {
    phase: Phase,
    queue: Queue,
    waiting: PendingCalls<Answer>,
    /// The number of aliases so far. They are numbered from 1.
    opened: u64,
    /// The number of connections that are not freed.
    handles: usize,
    /// The waker of the stream, set while the stream has nothing to send.
    sender: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No new lookups and connections. The stream ends when the last connection is freed.
    Retired,
    /// The stream has ended.
    Closed,
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// The queue is full, or the call is too large.
    Full,
    /// The stream has ended, or the link takes no new calls.
    Closed,
}

/// Whether a report may be dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Best effort: without the report a session is lost at worst.
    BestEffort,
    /// Required: without the report a bad session could be resumed. A handle sends only a few of
    /// these, so the limits of the queue do not apply to them.
    Required,
}

impl Outbox {
    pub(super) fn new(limits: Limits, tallies: Arc<Tallies>) -> Self {
        let state = OutboxState {
            phase: Phase::Open,
            queue: Queue::new(limits),
            waiting: PendingCalls::default(),
            opened: 0,
            handles: 0,
            sender: None,
        };
        Self {
            state: Mutex::new(state),
            tallies,
        }
    }

    /// Queues a lookup for the caller that `waker` wakes.
    pub(super) fn ask(
        self: Arc<Self>,
        question: &Question<'_>,
        waker: &Waker,
        asker: Asker,
    ) -> Result<Waiting, NotTaken> {
        self.push_asking(Phase::Open, Delivery::BestEffort, question, waker, asker)
    }

    /// Queues a call whose answer shows that the daemon has done all calls before it. The call
    /// frees a connection id that no connection has.
    pub(super) fn mark(self: Arc<Self>, waker: &Waker) -> Result<Waiting, NotTaken> {
        let request = pb::FreeRequest {
            connection_id: "0".repeat(32),
            allow_missing: true,
        };
        self.push_asking(
            Phase::Retired,
            Delivery::Required,
            &Method::Free(request),
            waker,
            Asker::Task,
        )
    }

    fn push_asking(
        self: Arc<Self>,
        until: Phase,
        weight: Delivery,
        words: &impl EncodeCall,
        waker: &Waker,
        asker: Asker,
    ) -> Result<Waiting, NotTaken> {
        let words_size = words.size();
        let mut state = self.admit(until, weight, words_size)?;
        let id = state.waiting.take(waker, asker).ok_or(NotTaken::Full)?;
        state.queue.push(&Call {
            id,
            alias: "",
            words,
            words_size,
        });
        send(state);
        Ok(Waiting {
            link: self,
            id,
            fresh: true,
            over: false,
        })
    }

    /// Queues the creation of a connection and returns its alias, which is valid on this link only.
    pub(super) fn open(&self, request: pb::NewRequest) -> Result<String, NotTaken> {
        let words = &Method::New(request.into());
        // The size without the alias suffices for the limits: an alias is short.
        let words_size = words.size();
        let mut state = self.admit(Phase::Open, Delivery::BestEffort, words_size)?;
        state.opened += 1;
        state.handles += 1;
        let alias = format!("@{}", state.opened);
        state.queue.push(&Call {
            id: 0,
            alias: &alias,
            words,
            words_size,
        });
        send(state);
        Ok(alias)
    }

    /// Queues a report about a connection. It has no answer.
    pub(super) fn tell(&self, method: &Method, weight: Delivery) -> Result<(), NotTaken> {
        self.queue(method, weight).map(send)
    }

    /// Queues the last call of a connection, which frees it.
    pub(super) fn free(&self, alias: String) {
        let request = pb::FreeRequest {
            connection_id: alias,
            allow_missing: true,
        };
        // If the link is closed, the daemon has freed the connection already.
        if let Ok(mut state) = self.queue(&Method::Free(request), Delivery::Required) {
            state.handles -= 1;
            send(state);
        }
    }

    /// Queues the shutdown of a connection and frees it, in one message. An error says that the
    /// shutdown was refused; the connection is freed anyway.
    pub(super) fn close_and_free(&self, alias: String) -> Result<(), NotTaken> {
        let request = pb::ShutdownRequest {
            connection_id: alias.clone(),
        };
        // The stream is woken once, by `free`.
        let taken = self
            .queue(&Method::Shutdown(request), Delivery::BestEffort)
            .map(drop);
        self.free(alias);
        taken
    }

    /// Queues a call without waking the stream.
    fn queue(
        &self,
        words: &Method,
        weight: Delivery,
    ) -> Result<MutexGuard<'_, OutboxState>, NotTaken> {
        let words_size = words.size();
        let mut state = self.admit(Phase::Retired, weight, words_size)?;
        state.queue.push(&Call {
            id: 0,
            alias: "",
            words,
            words_size,
        });
        Ok(state)
    }

    /// Checks that a call of this size is accepted, and returns the locked state.
    fn admit(
        &self,
        until: Phase,
        weight: Delivery,
        size: usize,
    ) -> Result<MutexGuard<'_, OutboxState>, NotTaken> {
        let state = self.state.lock();
        if state.phase != Phase::Open && state.phase != until {
            return Err(NotTaken::Closed);
        }
        if weight == Delivery::BestEffort && state.queue.is_full(size) {
            return Err(NotTaken::Full);
        }
        Ok(state)
    }

    /// Hands answers to their callers and returns whether other tasks still wait. `wake` must be
    /// empty and is empty afterwards: its memory is reused.
    pub(super) fn answer(
        &self,
        answers: impl Iterator<Item = (u64, Answer)>,
        wake: &mut Vec<Waker>,
    ) -> bool {
        let mut state = self.state.lock();
        for (id, answer) in answers {
            if matches!(answer, Answer::Refused) {
                self.tallies.refused.count();
            }
            // A caller that stopped waiting has already had its miss.
            let waker = state.waiting.answer(id, answer);
            wake.extend(waker);
        }
        let more = state.waiting.has_tasks();
        drop(state);
        // Waking may poll or drop tasks, and that must not happen while the lock is held.
        wake.drain(..).for_each(Waker::wake);
        more
    }

    /// Returns whether any task waits for an answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.state.lock().waiting.has_tasks()
    }

    /// Refuses new lookups and connections, and ends the stream when the last connection is freed.
    pub(super) fn retire(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Retired;
        }
        send(state);
    }

    /// Closes the link because the stream has ended. All callers that wait get no answer.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Closed;
        state.queue.clear();
        let waiting = state.waiting.wakers();
        // Waking may poll or drop tasks, and that must not happen while the lock is held.
        send(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Takes the calls that fit into one message, with its length prefix. `None`: the stream may
    /// end.
    pub(super) fn poll_batch(&self, cx: &mut Context<'_>) -> Poll<Option<SecretBuffer>> {
        let mut state = self.state.lock();
        let OutboxState { queue, waiting, .. } = &mut *state;
        // A lookup without a caller would consume a single-use session in vain.
        if let Some((batch, calls)) = queue.pop(|id| waiting.waits(id)) {
            self.tallies.messages.count();
            self.tallies.calls.add(calls);
            return Poll::Ready(Some(batch));
        }
        let over = match state.phase {
            Phase::Open => false,
            Phase::Retired => state.handles == 0,
            Phase::Closed => true,
        };
        if over {
            return Poll::Ready(None);
        }
        state.sender = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Wakes the stream if it waits for calls.
fn send(mut state: MutexGuard<'_, OutboxState>) {
    let sender = state.sender.take();
    drop(state);
    wake(sender);
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A call that waits for its answer. Resolves to `None` if the stream breaks. When it is dropped,
/// the answer is discarded, and a call that was not sent yet is not sent at all.
pub(super) struct Waiting {
    link: Arc<Outbox>,
    id: u64,
    /// Whether it was not polled yet.
    fresh: bool,
    over: bool,
}

impl Future for Waiting {
    type Output = Option<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        // The first poll is that of the caller that queued the call: its waker is already stored,
        // and an answer has woken it.
        if std::mem::take(&mut self.fresh) {
            return Poll::Pending;
        }
        let mut state = self.link.state.lock();
        let end = match state.waiting.poll(self.id) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if state.phase == Phase::Closed => Poll::Ready(None),
            Poll::Pending => {
                let before = state.waiting.renew(self.id, cx.waker());
                drop(state);
                drop(before);
                return Poll::Pending;
            }
        };
        drop(state);
        self.over = matches!(end, Poll::Ready(Some(_)));
        end
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.over {
            let left = self.link.state.lock().waiting.leave(self.id);
            // Dropping a waker may drop a task, and that must not happen while the lock is held.
            drop(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use prost::Message;

    use super::*;
    use crate::{Lookup, Options, framing::PREFIX, outbox::encode::LookupPrefix};

    fn link() -> Arc<Outbox> {
        Arc::new(Outbox::new(Limits::default(), Arc::default()))
    }

    fn batch(link: &Outbox) -> Poll<Option<Vec<Method>>> {
        let batch = link.poll_batch(&mut Context::from_waker(Waker::noop()));
        batch.map(|batch| {
            let calls = pb::AttachRequest::decode(&batch?.bytes()[PREFIX..])
                .unwrap()
                .calls;
            Some(calls.into_iter().map(|call| call.method.unwrap()).collect())
        })
    }

    fn shutdown() -> Method {
        Method::Shutdown(pb::ShutdownRequest {
            connection_id: "@".repeat(20),
        })
    }

    fn ask(link: &Arc<Outbox>) -> Result<Waiting, NotTaken> {
        let terms = LookupPrefix::of(&Options::new("http://a:1", "openssl").unwrap());
        Arc::clone(link).ask(
            &Question {
                terms: &terms,
                lookup: &Lookup::server(b"a"),
            },
            Waker::noop(),
            Asker::Task,
        )
    }

    fn poll(waiting: &mut Waiting) -> Poll<Option<Answer>> {
        pin!(waiting).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn retired_link_takes_nothing_new_and_ends_with_its_last_handle() {
        let link = link();
        let alias = link.open(pb::NewRequest::default()).unwrap();
        link.retire();
        assert_eq!(link.open(pb::NewRequest::default()), Err(NotTaken::Closed));
        assert_eq!(link.tell(&shutdown(), Delivery::BestEffort), Ok(()));
        assert!(matches!(batch(&link), Poll::Ready(Some(calls)) if calls.len() == 2));
        assert!(batch(&link).is_pending());
        link.free(alias);
        assert!(matches!(batch(&link), Poll::Ready(Some(calls)) if calls.len() == 1));
        assert!(matches!(batch(&link), Poll::Ready(None)));
    }

    #[test]
    fn clean_end_is_one_message() {
        let link = link();
        let alias = link.open(pb::NewRequest::default()).unwrap();
        assert!(matches!(batch(&link), Poll::Ready(Some(calls)) if calls.len() == 1));
        assert!(batch(&link).is_pending());
        assert_eq!(link.close_and_free(alias), Ok(()));
        let Poll::Ready(Some(methods)) = batch(&link) else {
            panic!("nothing to send")
        };
        assert!(
            matches!(&methods[..], [Method::Shutdown(_), Method::Free(_)]),
            "{methods:?}"
        );
        assert_eq!(link.state.lock().handles, 0);
    }

    #[test]
    fn answer_comes_once_and_who_left_is_neither_asked_for_nor_answered() {
        let link = link();
        let [mut one, other] = [(); 2].map(|()| ask(&link).unwrap());
        let left = other.id;
        drop(other);
        assert!(matches!(batch(&link), Poll::Ready(Some(calls)) if calls.len() == 1));
        assert!(poll(&mut one).is_pending() && poll(&mut one).is_pending());
        link.answer(
            [left, one.id, one.id]
                .map(|id| (id, Answer::Nothing))
                .into_iter(),
            &mut Vec::new(),
        );
        assert!(matches!(poll(&mut one), Poll::Ready(Some(Answer::Nothing))));
    }

    #[test]
    fn closed_link_takes_nothing_and_tells_who_waits() {
        let link = link();
        let [mut asked, mut answered] = [(); 2].map(|()| ask(&link).unwrap());
        assert!(poll(&mut asked).is_pending() && poll(&mut answered).is_pending());
        link.answer(
            std::iter::once((answered.id, Answer::Nothing)),
            &mut Vec::new(),
        );
        link.close();
        assert!(matches!(poll(&mut asked), Poll::Ready(None)));
        assert!(
            matches!(poll(&mut answered), Poll::Ready(Some(_))),
            "the answer came before the link was closed"
        );
        assert_eq!(
            link.tell(&shutdown(), Delivery::Required),
            Err(NotTaken::Closed)
        );
        assert_eq!(ask(&link).err(), Some(NotTaken::Closed));
        assert!(matches!(batch(&link), Poll::Ready(None)));
    }
}
