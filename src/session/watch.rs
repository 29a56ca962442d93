//! What happens to sessions, as it happens, for those who watch.
//!
//! Each watcher has a queue of its own with a bound. Where it is full the watcher is told how many events it missed;
//! nobody waits for it. An event has what is public of a session, so a watcher keeps no secret alive.

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::Arc,
    task::{Poll, Waker},
};

use super::{Facts, RemovalReason, Session};
use crate::{
    clock::Timestamp,
    sync::{AtomicUsize, Mutex, Ordering, RwLock},
};

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was stored.
    Added,
    /// It was found for a handshake.
    Hit,
    /// It left.
    Removed(RemovalReason),
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
    /// What is public of the session.
    pub facts: Facts,
    /// Open connections that used it then.
    pub open_connections: u32,
    /// Size of its secret part.
    pub data_bytes: usize,
}

/// What a watcher is told.
#[derive(Clone, Debug)]
pub enum News {
    /// It happened.
    Event(Box<Event>),
    /// So many events did not fit, after those told before.
    Dropped(u64),
}

/// Events that wait for one watcher.
pub const EVENTS_MAX: usize = 1024;
/// Most bytes of what waiting events name, for one watcher; an event counts with its whole [`Kind`](super::Kind). With ordinary names
/// [`EVENTS_MAX`] counts. A watcher that reads slowly holds twice that: what it reads now, and what waits.
pub const EVENTS_BYTES_MAX: usize = 512 << 10;
/// Watchers at a time.
pub const WATCHERS_MAX: usize = 64;

/// Everybody who watches.
#[derive(Debug, Default)]
pub struct Watchers {
    /// How many: what nobody watches costs one load.
    count: AtomicUsize,
    all: RwLock<Vec<Arc<Queue>>>,
}

struct Queue {
    wanted: Box<dyn Fn(&Facts) -> bool + Send + Sync>,
    state: Mutex<State>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Sizes of their kinds.
    bytes: usize,
    dropped: u64,
    waker: Option<Waker>,
}

/// One watcher. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    watchers: Arc<Watchers>,
    queue: Arc<Queue>,
}

impl Watchers {
    /// Begins to watch the sessions that are wanted. `None`: there are [`WATCHERS_MAX`] already.
    pub fn watch(self: &Arc<Self>, wanted: impl Fn(&Facts) -> bool + Send + Sync + 'static) -> Option<Watch> {
        let queue = Arc::new(Queue { wanted: Box::new(wanted), state: Mutex::default() });
        let mut all = self.all.write();
        if all.len() >= WATCHERS_MAX {
            return None;
        }
        all.push(Arc::clone(&queue));
        self.count.store(all.len(), Ordering::SeqCst);
        Some(Watch { watchers: Arc::clone(self), queue })
    }

    #[inline]
    pub(super) fn tell(&self, session: &Session, what: What, at: Timestamp) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.tell_all(session, what, at);
        }
    }

    #[cold]
    fn tell_all(&self, session: &Session, what: What, at: Timestamp) {
        for queue in self.all.read().iter().filter(|queue| (queue.wanted)(session.facts())) {
            let waker = queue.push(session.kind().size(), || Event {
                at,
                what,
                facts: session.facts().clone(),
                open_connections: session.open_connections(),
                data_bytes: session.secret().len(),
            });
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Queue {
    fn push(&self, bytes: usize, event: impl FnOnce() -> Event) -> Option<Waker> {
        let mut state = self.state.lock();
        // Once one is missing, those after it wait until the watcher has been told so.
        let full = state.events.len() >= EVENTS_MAX || state.bytes + bytes > EVENTS_BYTES_MAX;
        if full || state.dropped > 0 {
            state.dropped += 1;
        } else {
            state.bytes += bytes;
            state.events.push_back(event());
        }
        state.waker.take()
    }
}

impl Watch {
    /// What happened since the last call, oldest first. Where it is nothing yet, `waker` is woken when something does.
    pub fn poll(&self, waker: &Waker) -> Poll<Vec<News>> {
        let mut state = self.queue.state.lock();
        if state.events.is_empty() && state.dropped == 0 {
            if !state.waker.as_ref().is_some_and(|held| held.will_wake(waker)) {
                state.waker = Some(waker.clone());
            }
            return Poll::Pending;
        }
        let events = mem::take(&mut state.events);
        state.bytes = 0;
        let dropped = mem::take(&mut state.dropped);
        drop(state);
        let mut news: Vec<_> = events.into_iter().map(|event| News::Event(Box::new(event))).collect();
        if dropped > 0 {
            news.push(News::Dropped(dropped));
        }
        Poll::Ready(news)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut all = self.watchers.all.write();
        all.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        self.watchers.count.store(all.len(), Ordering::SeqCst);
    }
}
