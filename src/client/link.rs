//! One stream to the daemon: a bounded queue of calls, and who waits for their answers.
//!
//! A link is used for one stream only. So an alias never gets onto a stream that does not know it: the
//! handles of a stream that broke hold a closed link, which takes nothing.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, mpsc::SyncSender},
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use tokio::sync::oneshot;

use super::{counters::Tallies, options::Limits};
use crate::proto::{self as pb, answer::Result as Answered, call::Method};

/// What one AttachRequest may hold.
const BATCH_CALLS: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;
/// What a call costs in a message beside its own bytes: a tag and a length.
const FRAME_BYTES: usize = 5;

pub(super) struct Link {
    state: Mutex<State>,
    limits: Limits,
    tallies: Arc<Tallies>,
}

struct State {
    phase: Phase,
    /// Each with its size.
    queue: VecDeque<(pb::Call, usize)>,
    /// Of the calls in the queue.
    bytes: usize,
    waiting: HashMap<u64, Waiter, BuildHasherDefault<Spread>>,
    /// Calls that want an answer, and aliases, are numbered from 1.
    asked: u64,
    opened: u64,
    /// Connections that are not freed yet.
    handles: usize,
    /// The stream, when it has nothing to send.
    sender: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing new; the stream ends when the last handle is gone.
    Retired,
    /// The stream is gone.
    Closed,
}

/// What the daemon said to a lookup, if it knew what to say.
pub(super) type Answer = Option<Box<pb::LookupSessionResponse>>;

/// Who waits for an answer; dropped where none will come.
pub(super) enum Waiter {
    Task(oneshot::Sender<Answer>),
    Thread(SyncSender<Answer>),
}

/// Hashes numbers that count up, which nobody outside chooses.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio of 2^64: neighbours get far from each other, in the high bits too.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Why a call is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// The queue is full, or the call is too large.
    Full,
    /// The stream is gone, or takes nothing new.
    Closed,
}

/// Whether a report may be lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// Without it a session is lost at worst.
    May,
    /// Without it a bad session could be resumed. A handle has a few of these at most, so they need no limit.
    Must,
}

impl Link {
    pub(super) fn new(limits: Limits, tallies: Arc<Tallies>) -> Self {
        let state = State {
            phase: Phase::Open,
            queue: VecDeque::new(),
            bytes: 0,
            waiting: HashMap::default(),
            asked: 0,
            opened: 0,
            handles: 0,
            sender: None,
        };
        Self { state: Mutex::new(state), limits, tallies }
    }

    /// Asks; the waiter gets the answer unless [`Link::forget`] comes before it.
    pub(super) fn ask(&self, request: pb::LookupSessionRequest, waiter: Waiter) -> Result<u64, NotTaken> {
        let mut call = call(Method::LookupSession(request.into()));
        self.push(Phase::Open, Weight::May, &mut call, |state, call| {
            state.asked += 1;
            call.id = state.asked;
            state.waiting.insert(call.id, waiter);
            state.asked
        })
    }

    /// Is answered, with nothing, when all before it is done: frees a connection that nobody has.
    pub(super) fn mark(&self, waiter: oneshot::Sender<Answer>) -> Result<u64, NotTaken> {
        let request = pb::FreeRequest { connection_id: "0".repeat(32), allow_missing: true };
        let mut call = call(Method::Free(request));
        self.push(Phase::Retired, Weight::Must, &mut call, |state, call| {
            state.asked += 1;
            call.id = state.asked;
            state.waiting.insert(call.id, Waiter::Task(waiter));
            state.asked
        })
    }

    /// Makes a connection; its alias is good on this link.
    pub(super) fn open(&self, request: pb::NewRequest) -> Result<String, NotTaken> {
        let mut call = call(Method::New(request.into()));
        self.push(Phase::Open, Weight::May, &mut call, |state, call| {
            state.opened += 1;
            state.handles += 1;
            call.alias = format!("@{}", state.opened);
            call.alias.clone()
        })
    }

    /// Tells something of a connection; nobody waits for an answer.
    pub(super) fn tell(&self, method: Method, weight: Weight) -> Result<(), NotTaken> {
        self.push(Phase::Retired, weight, &mut call(method), |_, _| ())
    }

    /// The last word of a connection.
    pub(super) fn free(&self, alias: String) {
        let request = pb::FreeRequest { connection_id: alias, allow_missing: true };
        let freed = |state: &mut State, _: &mut _| state.handles -= 1;
        // Closed: the daemon has freed it.
        let _ = self.push(Phase::Retired, Weight::Must, &mut call(Method::Free(request)), freed);
    }

    /// The last two words of a connection that was closed, in one message. Of the first it says whether it was taken.
    pub(super) fn close_and_free(&self, alias: String) -> Result<(), NotTaken> {
        let request = pb::ShutdownRequest { connection_id: alias.clone() };
        // Nobody is woken for it alone.
        let taken = self
            .queue(Phase::Retired, Weight::May, &mut call(Method::Shutdown(request)), |_, _| ())
            .map(|((), _)| ());
        self.free(alias);
        taken
    }

    fn push<T>(
        &self,
        until: Phase,
        weight: Weight,
        call: &mut pb::Call,
        number: impl FnOnce(&mut State, &mut pb::Call) -> T,
    ) -> Result<T, NotTaken> {
        let (number, mut state) = self.queue(until, weight, call, number)?;
        let sender = state.sender.take();
        drop(state);
        wake(sender);
        Ok(number)
    }

    /// Puts a call into the queue, and does not wake the stream.
    fn queue<T>(
        &self,
        until: Phase,
        weight: Weight,
        call: &mut pb::Call,
        number: impl FnOnce(&mut State, &mut pb::Call) -> T,
    ) -> Result<(T, MutexGuard<'_, State>), NotTaken> {
        // What the numbers add is little.
        let size = call.encoded_len();
        let mut state = self.state.lock();
        if state.phase != Phase::Open && state.phase != until {
            return Err(NotTaken::Closed);
        }
        let full = state.queue.len() >= self.limits.queued_calls
            || state.bytes + size > self.limits.queued_bytes
            || size > self.limits.call_bytes;
        if full && weight == Weight::May {
            return Err(NotTaken::Full);
        }
        let number = number(&mut state, call);
        let size = call.encoded_len();
        state.bytes += size;
        state.queue.push_back((std::mem::take(call), size));
        Ok((number, state))
    }

    /// Nobody waits for this answer any more; if it was not sent, the question is not sent either.
    pub(super) fn forget(&self, id: u64) {
        self.state.lock().waiting.remove(&id);
    }

    /// Hands an answer to who waits for it.
    pub(super) fn answer(&self, answer: pb::Answer) {
        let waiter = self.state.lock().waiting.remove(&answer.id);
        let answer = match answer.result {
            Some(Answered::LookupSession(response)) => Some(response),
            Some(Answered::Error(_)) => {
                self.tallies.refused.count();
                None
            }
            _ => None,
        };
        // One that does not wait any more had its miss.
        match waiter {
            Some(Waiter::Task(waiter)) => drop(waiter.send(answer)),
            Some(Waiter::Thread(waiter)) => drop(waiter.try_send(answer)),
            None => {}
        }
    }

    /// Takes nothing new, and ends the stream with the last handle.
    pub(super) fn retire(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Retired;
        }
        let sender = state.sender.take();
        drop(state);
        wake(sender);
    }

    /// The stream is gone: all that wait get nothing.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Closed;
        state.bytes = 0;
        let dropped = (std::mem::take(&mut state.queue), std::mem::take(&mut state.waiting));
        let sender = state.sender.take();
        // This wakes tasks, which must not find the lock taken.
        drop(state);
        drop(dropped);
        wake(sender);
    }

    /// All that is ready, as far as one message goes. `None`: the stream may end.
    pub(super) fn poll_batch(&self, cx: &mut Context<'_>) -> Poll<Option<Vec<pb::Call>>> {
        let mut state = self.state.lock();
        let mut batch = Vec::with_capacity(state.queue.len().min(BATCH_CALLS));
        let mut bytes = 0;
        let most = self.limits.call_bytes.min(BATCH_BYTES);
        while let Some(&(_, size)) = state.queue.front() {
            if batch.len() >= BATCH_CALLS || (bytes + size + FRAME_BYTES > most && !batch.is_empty()) {
                break;
            }
            let Some((call, _)) = state.queue.pop_front() else { break };
            state.bytes -= size;
            // A single-use session would be taken for nobody.
            if call.id == 0 || state.waiting.contains_key(&call.id) {
                bytes += size + FRAME_BYTES;
                batch.push(call);
            }
        }
        if !batch.is_empty() {
            self.tallies.messages.count();
            self.tallies.calls.add(batch.len());
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

fn call(method: Method) -> pb::Call {
    pb::Call { id: 0, method: Some(method), alias: String::new() }
}

fn wake(sender: Option<Waker>) {
    if let Some(sender) = sender {
        sender.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(limits: Limits) -> Link {
        Link::new(limits, Arc::default())
    }

    fn batch(link: &Link) -> Poll<Option<Vec<pb::Call>>> {
        link.poll_batch(&mut Context::from_waker(Waker::noop()))
    }

    fn shutdown() -> Method {
        Method::Shutdown(pb::ShutdownRequest { connection_id: "@".repeat(20) })
    }

    #[test]
    fn messages_are_no_larger_than_the_largest_call_may_be() {
        let link = link(Limits { call_bytes: 100, ..Limits::default() });
        for _ in 0..10 {
            link.tell(shutdown(), Weight::May).unwrap();
        }
        let mut sizes = Vec::new();
        while let Poll::Ready(Some(calls)) = batch(&link) {
            assert!(pb::AttachRequest { calls: calls.clone() }.encoded_len() <= 100);
            sizes.push(calls.len());
        }
        assert_eq!(sizes, [3, 3, 3, 1]);
        assert_eq!(link.state.lock().bytes, 0);
    }

    #[test]
    fn retired_link_takes_nothing_new_and_ends_with_its_last_handle() {
        let link = link(Limits::default());
        let alias = link.open(pb::NewRequest::default()).unwrap();
        link.retire();
        assert_eq!(link.open(pb::NewRequest::default()), Err(NotTaken::Closed));
        assert_eq!(link.tell(shutdown(), Weight::May), Ok(()));
        assert!(matches!(batch(&link), Poll::Ready(Some(calls)) if calls.len() == 2));
        assert!(batch(&link).is_pending());
        link.free(alias);
        assert!(matches!(batch(&link), Poll::Ready(Some(calls)) if calls.len() == 1));
        assert!(matches!(batch(&link), Poll::Ready(None)));
    }

    #[test]
    fn clean_end_is_one_message() {
        let link = link(Limits::default());
        let alias = link.open(pb::NewRequest::default()).unwrap();
        assert!(matches!(batch(&link), Poll::Ready(Some(calls)) if calls.len() == 1));
        assert!(batch(&link).is_pending());
        assert_eq!(link.close_and_free(alias), Ok(()));
        let Poll::Ready(Some(calls)) = batch(&link) else { panic!("nothing to send") };
        let methods: Vec<_> = calls.into_iter().map(|call| call.method.unwrap()).collect();
        assert!(matches!(&methods[..], [Method::Shutdown(_), Method::Free(_)]), "{methods:?}");
        assert_eq!(link.state.lock().handles, 0);
    }

    #[test]
    fn closed_link_takes_nothing_and_tells_who_waits() {
        let link = link(Limits::default());
        let (waiter, mut answer) = oneshot::channel();
        link.ask(pb::LookupSessionRequest::default(), Waiter::Task(waiter)).unwrap();
        link.close();
        assert!(answer.try_recv().is_err_and(|err| err == oneshot::error::TryRecvError::Closed));
        assert_eq!(link.tell(shutdown(), Weight::Must), Err(NotTaken::Closed));
        assert!(matches!(batch(&link), Poll::Ready(None)));
    }
}
