//! Bytes of answers that HTTP/2 has taken for one connection and has not written yet.
//!
//! HTTP/2 takes what the windows of the peer allow, and those may be wide; a peer that widens them and does not read its socket would
//! have the daemon keep all of it. So a connection holds a share of what all answers may take, and its calls wait for room. They
//! wait for no other connection: a socket that takes nothing for a while is closed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Waker},
};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use crate::rpc::accounts::Holder;

/// What a call that is woken is expected to send: the largest frame that every peer takes (RFC 9113 section 4.2).
const SENT: usize = 16 << 10;

/// The answers of one connection.
pub(super) struct Outbox {
    held: AtomicUsize,
    waiting: Mutex<Waiting>,
    holder: Arc<Holder>,
}

/// Calls that have more to send than there is room, in the order in which they came.
#[derive(Default)]
struct Waiting {
    next: u64,
    calls: BTreeMap<u64, Waker>,
}

/// The place of a call among those that wait, if it has one.
#[derive(Default)]
pub(super) struct Queued(Option<u64>);

impl Outbox {
    pub(super) fn new(holder: Arc<Holder>) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), waiting: Mutex::default(), holder })
    }

    /// How many bytes more it may hold now.
    pub(super) fn room(&self) -> usize {
        self.holder.answers_room(self.held.load(Ordering::Relaxed))
    }

    /// Wakes the task when there is room again.
    pub(super) fn wait(&self, queued: &mut Queued, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock();
        if let Some(waker) = queued.0.and_then(|place| waiting.calls.get_mut(&place)) {
            waker.clone_from(cx.waker());
            return;
        }
        let place = waiting.next;
        waiting.next += 1;
        waiting.calls.insert(place, cx.waker().clone());
        queued.0 = Some(place);
    }

    /// The call waits no longer. One that was woken wakes the next, whether it had use for the room or not.
    pub(super) fn leave(&self, queued: &mut Queued) {
        let Some(place) = queued.0.take() else { return };
        let mut waiting = self.waiting.lock();
        if waiting.calls.remove(&place).is_none() {
            drop(waiting);
            self.wake();
        }
    }

    /// Holds these bytes until the piece is dropped.
    pub(super) fn hold(self: &Arc<Self>, bytes: Bytes) -> Piece {
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        self.holder.hold_answer(bytes.len());
        Piece { counted: bytes.len(), bytes, outbox: Some(Arc::clone(self)) }
    }

    fn release(&self, counted: usize) {
        self.held.fetch_sub(counted, Ordering::Relaxed);
        self.holder.release_answer(counted);
        self.wake();
    }

    /// Wakes as many calls as there is room for pieces of ordinary length, at least one; each wakes the next in its turn.
    fn wake(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.calls.is_empty() {
            return;
        }
        let room = self.room();
        if room == 0 {
            return;
        }
        let woken: Vec<Waker> = std::iter::from_fn(|| waiting.calls.pop_first())
            .take((room / SENT).max(1))
            .map(|(_, waker)| waker)
            .collect();
        drop(waiting);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// Bytes on their way to the socket.
pub(super) struct Piece {
    bytes: Bytes,
    counted: usize,
    /// None for bytes that end a stream, of which there are none.
    outbox: Option<Arc<Outbox>>,
}

impl Piece {
    /// No bytes.
    pub(super) fn empty() -> Self {
        Self { bytes: Bytes::new(), counted: 0, outbox: None }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(outbox) = &self.outbox {
            outbox.release(self.counted);
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;
    use crate::{config::Config, rpc::accounts::Accounts};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn calls_that_wait_are_woken_as_there_is_room_and_all_of_them_in_the_end() {
        let accounts = Arc::new(Accounts::new(&Config::defaults().limits));
        let outbox = Outbox::new(accounts.holder(&"one".into()));
        let most = outbox.room();
        let pieces: Vec<Piece> = (0..most / SENT).map(|_| outbox.hold(Bytes::from(vec![0; SENT]))).collect();
        assert_eq!(outbox.room(), 0);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let calls = 5000;
        let mut queued: Vec<Queued> = (0..calls + 2).map(|_| Queued::default()).collect();
        for _ in 0..3 {
            // A call that asks again has one place.
            queued.iter_mut().for_each(|queued| outbox.wait(queued, &Context::from_waker(&waker)));
        }
        assert_eq!(outbox.waiting.lock().calls.len(), calls + 2);
        // Calls that are gone have none.
        queued.iter_mut().take(2).for_each(|queued| outbox.leave(queued));
        let woken = || count.0.load(Ordering::Relaxed);
        let mut pieces = pieces.into_iter();
        drop(pieces.next());
        assert_eq!(woken(), 1, "there is room for one");
        drop(pieces);
        assert!(outbox.room() == most && woken() < calls, "there is room for some");
        // Each that was woken wakes others, also where it has no use for the room.
        for queued in queued.iter_mut().skip(2) {
            outbox.leave(queued);
        }
        assert_eq!(woken() + outbox.waiting.lock().calls.len(), calls);
        assert!(outbox.waiting.lock().calls.is_empty());
    }
}
