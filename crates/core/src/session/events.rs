//! Events of sessions, as they happen, for watchers.
//!
//! Each watcher has a bounded queue of its own. If it is full, events are dropped, and the watcher
//! is told how many; no thread waits for a watcher. An event has only the public part of a session,
//! so a watcher keeps no secret alive.

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::Arc,
    task::{Poll, Waker},
};

use tls_sessiond_types::{Role, server_name::ServerName};

use super::{Miss, RemovalReason, Session, SessionId, SessionInfo};
use crate::{
    clock::Timestamp,
    sync::{AtomicUsize, Mutex, Ordering, RwLock},
};

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The session was stored.
    Added,
    /// A lookup found the session for a handshake.
    Hit,
    /// The session was removed.
    Removed(RemovalReason),
}

/// An event of one session.
#[derive(Clone, Debug)]
pub struct Event {
    /// Time of the event.
    pub at: Timestamp,
    /// Kind of the event.
    pub what: EventKind,
    /// The public part of the session.
    pub facts: SessionInfo,
    /// Number of open connections that used the session then. Zero if this daemon does not know it,
    /// because the shared store has the session.
    pub open_connections: u32,
    /// Size of its secret part. Zero if this daemon does not have it.
    pub data_bytes: usize,
}

/// A lookup that found nothing to resume.
#[derive(Clone, Debug)]
pub struct MissEvent {
    /// Time of the lookup.
    pub at: Timestamp,
    /// The id that was looked up.
    pub id: SessionId,
    /// The role of the session that was looked up.
    pub role: Role,
    /// The context in which it was looked up.
    pub context: Arc<str>,
    /// The name under which it was looked up, or none.
    pub server_name: ServerName<'static>,
    /// The identity that looked it up, or that owns the connection.
    pub owner: Arc<str>,
    /// The reason of the miss.
    pub why: Miss,
}

/// A delivery to a watcher.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// An event of a session.
    Event(Box<Event>),
    /// A lookup missed.
    Missed(Box<MissEvent>),
    /// The number of events that did not fit into the queue since the last poll.
    Dropped(u64),
}

/// Maximum number of events that wait for one watcher.
pub const EVENTS_MAX: usize = 1024;
/// Maximum number of bytes that the waiting events of one watcher keep alive.
///
/// An event counts with its whole [`Attributes`](super::Attributes). With ordinary names [`EVENTS_MAX`] is
/// reached first. A slow watcher holds twice that: the events that it reads now, and those that
/// wait.
pub const EVENTS_BYTES_MAX: usize = 512 << 10;
/// Maximum number of watchers at a time.
pub const WATCHERS_MAX: usize = 64;

/// All watchers.
#[derive(Debug, Default)]
pub struct Watchers {
    /// Number of watchers. An event without watchers costs one load.
    count: AtomicUsize,
    all: RwLock<Vec<Arc<Queue>>>,
}

/// Whether an event is a change of a session or a miss.
#[derive(Clone, Copy)]
enum NewsKind {
    Change,
    Miss,
}

struct Queue {
    /// Returns whether the watcher wants events of the context with this name.
    wanted: Box<dyn Fn(&str) -> bool + Send + Sync>,
    state: Mutex<WatchState>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

#[derive(Default)]
struct WatchState {
    events: VecDeque<Delivery>,
    /// Number of bytes that the waiting events keep alive.
    bytes: usize,
    dropped: u64,
    /// Dropped misses are counted separately: later events are not dropped because of them.
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
    /// Starts to watch events of the contexts whose names are wanted.
    ///
    /// Returns `None` if there are [`WATCHERS_MAX`] watchers already.
    pub fn watch(
        self: &Arc<Self>,
        wanted: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Option<Watch> {
        let queue = Arc::new(Queue {
            wanted: Box::new(wanted),
            state: Mutex::default(),
        });
        let mut all = self.all.write();
        if all.len() >= WATCHERS_MAX {
            return None;
        }
        all.push(Arc::clone(&queue));
        self.count.store(all.len(), Ordering::SeqCst);
        Some(Watch {
            watchers: Arc::clone(self),
            queue,
        })
    }

    #[inline]
    pub(crate) fn publish(&self, session: &Session, what: EventKind, at: Timestamp) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.publish_to_all(session, what, at);
        }
    }

    /// Publishes an event of a session of which only the public part is known here.
    #[inline]
    pub(crate) fn publish_facts(&self, facts: &SessionInfo, what: EventKind, at: Timestamp) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.publish_event_to_all(Event {
                at,
                what,
                facts: facts.clone(),
                open_connections: 0,
                data_bytes: 0,
            });
        }
    }

    #[cold]
    fn publish_to_all(&self, session: &Session, what: EventKind, at: Timestamp) {
        self.publish_event_to_all(Event {
            at,
            what,
            facts: session.facts().clone(),
            open_connections: session.open_connections(),
            data_bytes: session.secret().len(),
        });
    }

    #[cold]
    fn publish_event_to_all(&self, event: Event) {
        self.push(
            NewsKind::Change,
            &event.facts.kind.account.name,
            event.facts.kind.size(),
            || Delivery::Event(Box::new(event.clone())),
        );
    }

    /// Publishes a lookup that missed, if there are watchers.
    #[inline]
    pub(crate) fn publish_miss(&self, miss: impl FnOnce() -> MissEvent) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.tell_miss_to_all(miss());
        }
    }

    #[cold]
    fn tell_miss_to_all(&self, miss: MissEvent) {
        let bytes = size_of::<MissEvent>() + miss.server_name.len();
        self.push(NewsKind::Miss, &Arc::clone(&miss.context), bytes, || {
            Delivery::Missed(Box::new(miss.clone()))
        });
    }

    fn push(&self, kind: NewsKind, context: &str, bytes: usize, news: impl Fn() -> Delivery) {
        for queue in self
            .all
            .read()
            .iter()
            .filter(|queue| (queue.wanted)(context))
        {
            if let Some(waker) = queue.push(kind, bytes, &news) {
                waker.wake();
            }
        }
    }
}

impl Queue {
    fn push(&self, kind: NewsKind, bytes: usize, news: impl FnOnce() -> Delivery) -> Option<Waker> {
        let mut state = self.state.lock();
        let room = |part: usize| {
            state.events.len() < EVENTS_MAX / part && state.bytes + bytes <= EVENTS_BYTES_MAX / part
        };
        // Peers and workers decide the number of misses, so misses take at most half of the queue.
        match kind {
            NewsKind::Miss if state.dropped > 0 || !room(2) => state.dropped_misses += 1,
            // After a dropped change, later events are dropped too until the watcher was told.
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
    /// Returns the events since the last call, oldest first.
    ///
    /// If there are none, keeps `waker` and wakes it at the next event.
    pub fn poll(&self, waker: &Waker) -> Poll<Vec<Delivery>> {
        let mut state = self.queue.state.lock();
        if state.events.is_empty() && state.dropped + state.dropped_misses == 0 {
            if !state
                .waker
                .as_ref()
                .is_some_and(|held| held.will_wake(waker))
            {
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
            news.push(Delivery::Dropped(dropped));
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
