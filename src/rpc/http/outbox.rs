//! Bytes of answers that HTTP/2 has taken for one connection and has not written yet.
//!
//! HTTP/2 takes what the windows of the peer allow, and those may be wide; a peer that widens them and does not read its socket would
//! have the daemon keep all of it. So a connection holds a share of what all answers may take, and its calls wait for room. They
//! wait for no other connection: a socket that takes nothing for a while is closed.

use std::{
    collections::VecDeque,
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
    /// Calls that have more to send than there is room.
    waiting: Mutex<VecDeque<Waker>>,
    holder: Arc<Holder>,
}

impl Outbox {
    pub(super) fn new(holder: Arc<Holder>) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), waiting: Mutex::default(), holder })
    }

    /// How many bytes more it may hold now.
    pub(super) fn room(&self) -> usize {
        self.holder.answers_max().saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// Wakes the task when there is room again.
    pub(super) fn wait(&self, cx: &Context<'_>) {
        self.waiting.lock().push_back(cx.waker().clone());
    }

    /// Holds these bytes until what comes back is dropped.
    pub(super) fn hold(self: &Arc<Self>, bytes: Bytes) -> Piece {
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        Piece { counted: bytes.len(), bytes, outbox: Some(Arc::clone(self)) }
    }

    fn release(&self, counted: usize) {
        let left = self.held.fetch_sub(counted, Ordering::Relaxed) - counted;
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return;
        }
        let room = self.holder.answers_max().saturating_sub(left);
        // With nothing left no later release would wake the rest.
        let woken = if left == 0 { waiting.len() } else { (room / SENT).min(waiting.len()) };
        let woken: Vec<Waker> = waiting.drain(..woken).collect();
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
        let calls = 1000;
        for _ in 0..calls {
            outbox.wait(&Context::from_waker(&waker));
        }
        let woken = || count.0.load(Ordering::Relaxed);
        let mut pieces = pieces.into_iter();
        drop(pieces.next());
        assert_eq!(woken(), 1, "there is room for one");
        drop(pieces);
        assert_eq!((woken(), outbox.room()), (calls, most));
    }
}
