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

use tls_sessiond_types::{Role, server_name::ServerName};

use super::{Facts, Miss, RemovalReason, Session, SessionId};
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

/// A lookup that found nothing to resume.
#[derive(Clone, Debug)]
pub struct MissEvent {
    /// When.
    pub at: Timestamp,
    /// The id that was looked up.
    pub id: SessionId,
    /// Whose session was wanted.
    pub role: Role,
    /// The context in which it was looked up.
    pub context: Arc<str>,
    /// The name under which it was looked up, or none.
    pub server_name: ServerName<'static>,
    /// Why there was none.
    pub why: Miss,
}

/// What a watcher is told.
#[derive(Clone, Debug)]
pub enum News {
    /// Something happened to a session.
    Event(Box<Event>),
    /// A lookup missed.
    Missed(Box<MissEvent>),
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

/// Whether something happened to a session.
#[derive(Clone, Copy)]
enum NewsKind {
    Change,
    Miss,
}

struct Queue {
    /// Whether events of a context are for this watcher, by the context's name.
    wanted: Box<dyn Fn(&str) -> bool + Send + Sync>,
    state: Mutex<State>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

#[derive(Default)]
struct State {
    events: VecDeque<News>,
    /// Sizes of what they name.
    bytes: usize,
    dropped: u64,
    /// Misses among them: they hold nothing else up.
    dropped_misses: u64,
    waker: Option<Waker>,
}

/// One watcher. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    watchers: Arc<Watchers>,
    queue: Arc<Queue>,
}

impl Watchers {
    /// Begins to watch what happens under the contexts whose names are wanted. `None`: there are [`WATCHERS_MAX`] already.
    pub fn watch(self: &Arc<Self>, wanted: impl Fn(&str) -> bool + Send + Sync + 'static) -> Option<Watch> {
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
    pub(crate) fn tell(&self, session: &Session, what: What, at: Timestamp) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.tell_all(session, what, at);
        }
    }

    #[cold]
    fn tell_all(&self, session: &Session, what: What, at: Timestamp) {
        self.push(NewsKind::Change, &session.kind().account.name, session.kind().size(), || {
            News::Event(Box::new(Event {
                at,
                what,
                facts: session.facts().clone(),
                open_connections: session.open_connections(),
                data_bytes: session.secret().len(),
            }))
        });
    }

    /// Tells of a lookup that missed, where anybody watches.
    #[inline]
    pub(crate) fn tell_miss(&self, miss: impl FnOnce() -> MissEvent) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.tell_miss_to_all(miss());
        }
    }

    #[cold]
    fn tell_miss_to_all(&self, miss: MissEvent) {
        let bytes = size_of::<MissEvent>() + miss.server_name.len();
        self.push(NewsKind::Miss, &Arc::clone(&miss.context), bytes, || News::Missed(Box::new(miss.clone())));
    }

    fn push(&self, kind: NewsKind, context: &str, bytes: usize, news: impl Fn() -> News) {
        for queue in self.all.read().iter().filter(|queue| (queue.wanted)(context)) {
            if let Some(waker) = queue.push(kind, bytes, &news) {
                waker.wake();
            }
        }
    }
}

impl Queue {
    fn push(&self, kind: NewsKind, bytes: usize, news: impl FnOnce() -> News) -> Option<Waker> {
        let mut state = self.state.lock();
        let room = |part: usize| {
            state.events.len() < EVENTS_MAX / part && state.bytes + bytes <= EVENTS_BYTES_MAX / part
        };
        // Misses are as many as peers and workers like, so they take no more than half of the room.
        match kind {
            NewsKind::Miss if state.dropped > 0 || !room(2) => state.dropped_misses += 1,
            // Once one is missing, those after it wait until the watcher has been told so.
            NewsKind::Change if state.dropped > 0 || !room(1) => state.dropped += 1,
            NewsKind::Miss | NewsKind::Change => {
                state.bytes += bytes;
                state.events.push_back(news());
            }
        }
        state.waker.take()
    }
}

impl Watch {
    /// What happened since the last call, oldest first. Where it is nothing yet, `waker` is woken when something does.
    pub fn poll(&self, waker: &Waker) -> Poll<Vec<News>> {
        let mut state = self.queue.state.lock();
        if state.events.is_empty() && state.dropped + state.dropped_misses == 0 {
            if !state.waker.as_ref().is_some_and(|held| held.will_wake(waker)) {
                state.waker = Some(waker.clone());
            }
            return Poll::Pending;
        }
        let events = mem::take(&mut state.events);
        state.bytes = 0;
        let dropped = mem::take(&mut state.dropped) + mem::take(&mut state.dropped_misses);
        drop(state);
        let mut news = Vec::from(events);
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
