//! The worker: looks sessions up and opens connections.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use tls_sessiond_proto as pb;
use tls_sessiond_types::hex;
use tokio::{
    sync::oneshot,
    time::{timeout, timeout_at},
};

use crate::{
    connection::Connection,
    counters::Counters,
    found::Found,
    lookup::{NoAnswer, WorkerState},
    message::{Lookup, Role},
    options::Options,
    outbox::{NotTaken, pending::Asker},
    stream::reconnect,
};

/// The connection of a worker to its daemon. Clones share it.
///
/// No call fails. Without the daemon every lookup is a miss, and handshakes are full ones. A lookup
/// waits no longer than [`Options::lookup_deadline`]. When the last clone is dropped, connections
/// that are not freed keep their stream until they are dropped as well.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<WorkerState>,
    /// Dropping the last clone tells the task that keeps the stream.
    _held: Arc<oneshot::Sender<Infallible>>,
}

impl Worker {
    /// Returns at once and connects in the background, on the current runtime. It reconnects
    /// whenever the stream breaks. Until a stream begins every lookup is a miss.
    ///
    /// The runtime must have its timer and its I/O driver enabled.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub fn connect(options: Options) -> Self {
        let shared = Arc::new(WorkerState::new(options));
        let (held, gone) = oneshot::channel();
        tokio::spawn(reconnect::keep(Arc::clone(&shared), gone));
        Self {
            shared,
            _held: Arc::new(held),
        }
    }

    /// Looks up the session that a handshake wants to resume, as a callback of
    /// SSL_CTX_sess_set_get_cb(3) does. Without an answer by the deadline it is a miss. Without a
    /// stream, or while the breaker is open, it is a miss at once.
    ///
    /// Must be awaited on a tokio runtime with a timer.
    pub async fn lookup(&self, lookup: Lookup<'_>) -> Option<Found> {
        let begun = Instant::now();
        self.lookup_until(&lookup, begun, begun + self.shared.options.lookup_deadline)
            .await
    }

    /// Returns the first session that is found. The lookups are made one after the other and share
    /// one deadline.
    #[cfg(feature = "rustls")]
    pub(super) async fn lookup_first(
        &self,
        lookups: impl Iterator<Item = Lookup<'_>>,
    ) -> Option<Found> {
        let mut begun = Instant::now();
        let deadline = begun + self.shared.options.lookup_deadline;
        for lookup in lookups {
            let found = self.lookup_until(&lookup, begun, deadline).await;
            begun = Instant::now();
            if found.is_some() || begun >= deadline {
                return found;
            }
        }
        None
    }

    async fn lookup_until(
        &self,
        lookup: &Lookup<'_>,
        begun: Instant,
        deadline: Instant,
    ) -> Option<Found> {
        let mut asked =
            poll_fn(|cx| Poll::Ready(self.shared.ask(lookup, begun, cx.waker(), Asker::Task)))
                .await?;
        let end = match timeout_at(deadline.into(), &mut asked.waiting).await {
            Ok(answer) => answer.ok_or(NoAnswer::Broken),
            Err(_) => Err(NoAnswer::TimedOut),
        };
        asked.end(end)
    }

    /// Does [`Worker::lookup`] for callers that are not async tasks, such as OpenSSL's callbacks.
    /// Blocks the thread until the deadline at most. On the only thread of the runtime that
    /// [`Worker::connect`] was called on it always misses, because the stream cannot run meanwhile.
    pub fn lookup_blocking(&self, lookup: Lookup<'_>) -> Option<Found> {
        let waker = Waker::from(Arc::new(Parked(thread::current())));
        let begun = Instant::now();
        let deadline = begun + self.shared.options.lookup_deadline;
        let mut asked = self.shared.ask(&lookup, begun, &waker, Asker::Thread)?;
        let end = loop {
            if let Poll::Ready(answer) =
                pin!(&mut asked.waiting).poll(&mut Context::from_waker(&waker))
            {
                break answer.ok_or(NoAnswer::Broken);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(NoAnswer::TimedOut);
            }
            thread::park_timeout(left);
        };
        asked.end(end)
    }

    /// Opens a connection object for a handshake of this worker. `server_name` is for clients.
    /// `resumed` is the session that the handshake has resumed: from now on the close of this
    /// connection decides whether it stays in the cache.
    ///
    /// Returns at once. Without a stream, or if the queue is full, the handle sends no reports: the
    /// sessions of the connection are not stored, and the `resumed` one stays in the cache.
    pub fn open(&self, role: Role, server_name: &str, resumed: Option<&[u8]>) -> Connection {
        let options = &self.shared.options;
        let request = pb::NewRequest {
            context: options.context.clone(),
            role: pb::Role::from(role).into(),
            engine: pb::Engine::Worker.into(),
            server_name: server_name.to_owned(),
            session_id: resumed.map(hex::string).unwrap_or_default(),
            // Always fits: it is a day at most.
            idle_timeout: options.idle_timeout_within_bounds().try_into().ok(),
            ..pb::NewRequest::default()
        };
        let tallies = Arc::clone(&self.shared.tallies);
        let opened = self
            .shared
            .link()
            .and_then(|link| match link.open(request) {
                Ok(alias) => Some((link, alias)),
                Err(NotTaken::Full) => {
                    tallies.reports_dropped.count();
                    None
                }
                Err(NotTaken::Closed) => None,
            });
        Connection::new(opened, options.format.clone(), tallies)
    }

    /// Waits until the daemon has processed all reports that were queued before. For processes that
    /// are about to exit. Returns false if there is no stream, or if the daemon does not answer
    /// `within` this time.
    ///
    /// Must be awaited on a tokio runtime with a timer.
    pub async fn flush(&self, within: Duration) -> bool {
        let Some(link) = self.shared.link() else {
            return false;
        };
        let marked = poll_fn(|cx| Poll::Ready(Arc::clone(&link).mark(cx.waker()))).await;
        let Ok(marked) = marked else { return false };
        matches!(timeout(within, marked).await, Ok(Some(_)))
    }

    /// Waits until a stream takes calls. For processes that begin with a handshake: without a
    /// stream their first lookup is a miss. Returns whether there is a stream.
    ///
    /// Must be awaited on a tokio runtime with a timer.
    pub async fn attached(&self, within: Duration) -> bool {
        let attached = async {
            let mut joined = self.shared.subscribe();
            // An error is impossible: this worker holds the sender.
            while self.shared.link().is_none() && joined.changed().await.is_ok() {}
        };
        timeout(within, attached).await.is_ok() && self.is_attached()
    }

    /// Returns whether a stream takes calls now.
    pub fn is_attached(&self) -> bool {
        self.shared.link().is_some()
    }

    /// Returns why the last attempt to begin a stream failed, in words for people. `None`: it did not fail,
    /// or none was made yet.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        self.shared.tallies.read()
    }
}

/// A thread that waits for an answer.
struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
