//! The worker: what a program holds to look sessions up and to tell of its connections.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use tls_sessiond_types::hex;
use tokio::{
    sync::{oneshot, watch},
    time::{timeout, timeout_at},
};

use super::{
    answers::Answer,
    attach,
    breaker::{Outcome, Permit},
    calls::{Question, Terms},
    connection::Connection,
    counters::{Counters, Tallies},
    found::Found,
    gate::Gate,
    link::{Link, NotTaken, Waiting},
    message::{Lookup, Role},
    options::Options,
    places::Asker,
};
use crate::proto as pb;

/// A worker's line to its daemon. Clones share it.
///
/// No call fails, and none waits longer than the lookup deadline, whatever becomes of the daemon. It is as if
/// there were no cache then, and handshakes are full ones. When the last clone is dropped, connections that
/// are still open keep their stream until they are dropped as well.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<Shared>,
    /// Its drop tells the task that keeps the stream.
    _held: Arc<oneshot::Sender<Infallible>>,
}

/// What a worker and its tasks have in common.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) tallies: Arc<Tallies>,
    terms: Terms,
    gate: Gate,
    /// The stream that takes new calls. None: the daemon is away.
    link: RwLock<Option<Arc<Link>>>,
    /// Changes when a stream has begun.
    joined: watch::Sender<()>,
}

impl Worker {
    /// Returns at once and connects in the background, again and again, on the current runtime, which needs
    /// its timer and its network. Until then the daemon is away.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(options: Options) -> Self {
        let shared = Arc::new(Shared {
            terms: Terms::of(&options),
            gate: Gate::new(options.breaker_timeouts, options.back_off),
            options,
            tallies: Arc::default(),
            link: RwLock::new(None),
            joined: watch::Sender::new(()),
        });
        let (held, gone) = oneshot::channel();
        tokio::spawn(attach::keep(Arc::clone(&shared), gone));
        Self { shared, _held: Arc::new(held) }
    }

    /// SSL_CTX_sess_set_get_cb(3): the session that a handshake wants to resume. No answer by the deadline is
    /// a miss; a daemon that is away, and one that has not answered for a while, is a miss at once.
    ///
    /// To be awaited on a tokio runtime with a timer.
    pub async fn lookup(&self, lookup: Lookup<'_>) -> Option<Found> {
        let begun = Instant::now();
        self.lookup_until(&lookup, begun, begun + self.shared.options.lookup_deadline).await
    }

    /// The first of several that is found. They are asked for one after the other, and share one deadline.
    #[cfg(feature = "rustls")]
    pub(super) async fn lookup_first(&self, lookups: impl Iterator<Item = Lookup<'_>>) -> Option<Found> {
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

    async fn lookup_until(&self, lookup: &Lookup<'_>, begun: Instant, deadline: Instant) -> Option<Found> {
        let mut asked =
            poll_fn(|cx| Poll::Ready(self.shared.ask(lookup, begun, cx.waker(), Asker::Task))).await?;
        let end = match timeout_at(deadline.into(), &mut asked.waiting).await {
            Ok(answer) => answer.ok_or(NoAnswer::Broken),
            Err(_) => Err(NoAnswer::TimedOut),
        };
        asked.end(end)
    }

    /// [`Worker::lookup`] for callers that are no task, OpenSSL's callbacks for example: blocks the thread
    /// until the deadline at most. On the only thread of the runtime that [`Worker::connect`] was called on
    /// it always misses.
    pub fn lookup_blocking(&self, lookup: Lookup<'_>) -> Option<Found> {
        let waker = Waker::from(Arc::new(Parked(thread::current())));
        let begun = Instant::now();
        let deadline = begun + self.shared.options.lookup_deadline;
        let mut asked = self.shared.ask(&lookup, begun, &waker, Asker::Thread)?;
        let end = loop {
            if let Poll::Ready(answer) = pin!(&mut asked.waiting).poll(&mut Context::from_waker(&waker)) {
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

    /// A connection object for a handshake of this worker. Clients name the server. `resumed` is the session
    /// that the handshake has resumed: the close of this connection decides about it from now on.
    ///
    /// Waits for nothing. Where the daemon is away or the queue is full, the handle is one that tells nobody
    /// anything: the connection makes no sessions, and a `resumed` one stays as it is.
    pub fn open(&self, role: Role, server_name: &str, resumed: Option<&[u8]>) -> Connection {
        let options = &self.shared.options;
        let request = pb::NewRequest {
            context: options.context.clone(),
            role: pb::Role::from(role).into(),
            engine: pb::Engine::Worker.into(),
            server_name: server_name.to_owned(),
            session_id: resumed.map(hex::string).unwrap_or_default(),
            ..pb::NewRequest::default()
        };
        let tallies = Arc::clone(&self.shared.tallies);
        let opened = self.shared.link().and_then(|link| match link.open(request) {
            Ok(alias) => Some((link, alias)),
            Err(NotTaken::Full) => {
                tallies.reports_dropped.count();
                None
            }
            Err(NotTaken::Closed) => None,
        });
        Connection::new(opened, options.format.clone(), tallies)
    }

    /// Waits until the daemon has taken all that was told before, for processes that are about to end. Says
    /// whether it has: not where it is away, or does not answer in time.
    ///
    /// To be awaited on a tokio runtime with a timer.
    pub async fn flush(&self, within: Duration) -> bool {
        let Some(link) = self.shared.link() else { return false };
        let marked = poll_fn(|cx| Poll::Ready(Arc::clone(&link).mark(cx.waker()))).await;
        let Ok(marked) = marked else { return false };
        matches!(timeout(within, marked).await, Ok(Some(_)))
    }

    /// Waits until there is a stream that takes calls, for processes that begin with a handshake: without it
    /// their first lookup is a miss. Says whether there is one.
    ///
    /// To be awaited on a tokio runtime with a timer.
    pub async fn attached(&self, within: Duration) -> bool {
        let attached = async {
            let mut joined = self.shared.joined.subscribe();
            // An error would be the end of what this worker holds itself.
            while self.shared.link().is_none() && joined.changed().await.is_ok() {}
        };
        timeout(within, attached).await.is_ok() && self.is_attached()
    }

    /// Whether there is a stream that takes calls now.
    pub fn is_attached(&self) -> bool {
        self.shared.link().is_some()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.tallies.read()
    }
}

impl Shared {
    fn link(&self) -> Option<Arc<Link>> {
        self.link.read().clone()
    }

    /// A stream has begun.
    pub(super) fn join(&self, link: &Arc<Link>) {
        self.tallies.streams.count();
        self.gate.close();
        *self.link.write() = Some(Arc::clone(link));
        self.joined.send_replace(());
    }

    /// A stream takes nothing new.
    pub(super) fn leave(&self, link: &Arc<Link>) {
        let mut current = self.link.write();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            *current = None;
        }
    }

    /// Asks for who is woken by `waker`. `None`: it was a miss at once.
    fn ask(&self, lookup: &Lookup<'_>, begun: Instant, waker: &Waker, asker: Asker) -> Option<Asked<'_>> {
        let permitted = self.link().and_then(|link| Some((link, self.gate.admit(begun)?)));
        let Some((link, permit)) = permitted else {
            self.tallies.away.count();
            return None;
        };
        match link.ask(&Question { terms: &self.terms, lookup }, waker, asker) {
            Ok(waiting) => Some(Asked { shared: self, waiting, permit, outcome: Outcome::Unknown }),
            Err(not_taken) => {
                self.gate.settle(permit, Outcome::Unknown, || begun);
                match not_taken {
                    NotTaken::Full => self.tallies.lookups_dropped.count(),
                    NotTaken::Closed => self.tallies.away.count(),
                }
                None
            }
        }
    }
}

/// A lookup that is out. Dropped without an end, nobody waits for its answer.
struct Asked<'s> {
    shared: &'s Shared,
    waiting: Waiting,
    permit: Permit,
    outcome: Outcome,
}

enum NoAnswer {
    /// The stream is gone.
    Broken,
    TimedOut,
}

impl Asked<'_> {
    fn end(mut self, end: Result<Answer, NoAnswer>) -> Option<Found> {
        let tallies = &self.shared.tallies;
        let (outcome, found) = match end {
            Ok(Answer::Looked(response)) => (Outcome::Answered, Found::read(response)),
            Ok(Answer::Nothing | Answer::Refused) => (Outcome::Answered, None),
            Err(NoAnswer::Broken) => (Outcome::Unknown, None),
            Err(NoAnswer::TimedOut) => (Outcome::TimedOut, None),
        };
        let tally = match (outcome, &found) {
            (Outcome::Answered, Some(_)) => &tallies.hits,
            (Outcome::Answered, None) => &tallies.misses,
            (Outcome::Unknown, _) => &tallies.away,
            (Outcome::TimedOut, _) => &tallies.timeouts,
        };
        tally.count();
        self.outcome = outcome;
        found
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.shared.gate.settle(self.permit, self.outcome, Instant::now) {
            self.shared.tallies.breaker_openings.count();
        }
    }
}

/// A thread that waits for an answer.
struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
