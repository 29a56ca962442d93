//! The bytes of answers that HTTP/2 has accepted for one connection and not yet written.
//!
//! HTTP/2 accepts as many bytes as the windows of the peer allow. A peer that opens wide windows
//! and does not read its socket would make the daemon keep all of these bytes. So each connection
//! has a share of the bytes that all answers may hold, and its calls wait for room in that share. A
//! call never waits for long on other connections, because a socket that accepts nothing for a time
//! is closed.

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

use crate::api::quota::Holder;

/// Bytes that a woken call is expected to send: the largest frame that every peer accepts (RFC 9113
/// section 4.2).
const SENT: usize = 16 << 10;

/// The unwritten answer bytes of one connection, and the calls that wait for room.
pub(crate) struct Outbox {
    held: AtomicUsize,
    waiting: Mutex<WaitingCalls>,
    holder: Arc<Holder>,
}

/// Calls that have more to send than there is room for, in the order in which they began to wait.
#[derive(Default)]
struct WaitingCalls {
    next: u64,
    calls: BTreeMap<u64, Waker>,
}

/// The position of a call among the waiting calls. Empty if it does not wait.
#[derive(Default)]
pub(crate) struct Queued(Option<u64>);

impl Outbox {
    pub(crate) fn new(holder: Arc<Holder>) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            waiting: Mutex::default(),
            holder,
        })
    }

    /// Returns how many more bytes this connection may hold now.
    pub(crate) fn room(&self) -> usize {
        self.holder.answers_room(self.held.load(Ordering::Relaxed))
    }

    /// Registers the task to be woken when there is room again.
    pub(crate) fn wait(&self, queued: &mut Queued, cx: &Context<'_>) {
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

    /// Ends the wait of a call. A call that was woken wakes the next one, whether it used the room
    /// or not.
    pub(crate) fn leave(&self, queued: &mut Queued) {
        let Some(place) = queued.0.take() else { return };
        let mut waiting = self.waiting.lock();
        if waiting.calls.remove(&place).is_none() {
            drop(waiting);
            self.wake();
        }
    }

    /// Counts these bytes as held until the returned piece is dropped.
    pub(crate) fn hold(self: &Arc<Self>, bytes: Bytes) -> Piece {
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        self.holder.hold_answer(bytes.len());
        Piece {
            counted: bytes.len(),
            bytes,
            outbox: Some(Arc::clone(self)),
        }
    }

    fn release(&self, counted: usize) {
        self.held.fetch_sub(counted, Ordering::Relaxed);
        self.holder.release_answer(counted);
        self.wake();
    }

    /// Wakes as many calls as there is room for pieces of [`SENT`] bytes, and at least one if there
    /// is any room. Each woken call wakes the next.
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

/// Bytes that HTTP/2 has accepted. They count as held until the piece is dropped.
pub(crate) struct Piece {
    bytes: Bytes,
    counted: usize,
    /// `None` for the empty piece that ends a stream.
    outbox: Option<Arc<Outbox>>,
}

impl Piece {
    /// Returns a piece without bytes.
    pub(crate) fn empty() -> Self {
        Self {
            bytes: Bytes::new(),
            counted: 0,
            outbox: None,
        }
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
    use crate::{api::quota::Accounts, config::Config};

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
        let pieces: Vec<Piece> = (0..most / SENT)
            .map(|_| outbox.hold(Bytes::from(vec![0; SENT])))
            .collect();
        assert_eq!(outbox.room(), 0);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let calls = 5000;
        let mut queued: Vec<Queued> = (0..calls + 2).map(|_| Queued::default()).collect();
        for _ in 0..3 {
            // A call that waits again keeps one position.
            queued
                .iter_mut()
                .for_each(|queued| outbox.wait(queued, &Context::from_waker(&waker)));
        }
        assert_eq!(outbox.waiting.lock().calls.len(), calls + 2);
        // Cancelled calls have none.
        queued
            .iter_mut()
            .take(2)
            .for_each(|queued| outbox.leave(queued));
        let woken = || count.0.load(Ordering::Relaxed);
        let mut pieces = pieces.into_iter();
        drop(pieces.next());
        assert_eq!(woken(), 1, "there is room for one");
        drop(pieces);
        assert!(
            outbox.room() == most && woken() < calls,
            "there is room for some"
        );
        // Each woken call wakes others, even if it does not use the room.
        for queued in queued.iter_mut().skip(2) {
            outbox.leave(queued);
        }
        assert_eq!(woken() + outbox.waiting.lock().calls.len(), calls);
        assert!(outbox.waiting.lock().calls.is_empty());
    }
}
