//! The task that sends what the keepers of all buckets decide: heartbeats, removals, releases.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tls_sessiond_core::{
    clock::{Clock, Timestamp},
    fleet::{Failure, FleetStore},
    state::CoreState,
};
use tls_sessiond_store::{
    keeper::RequestId,
    layout::{BUCKETS, Bucket},
    script::Answer,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{door::Store, link::Link, revisions::refresh};
use crate::log::panics::caught;

/// How long a request of a keeper may wait for its answer.
const ANSWER_MAX: Duration = Duration::from_millis(250);
/// How long the task waits before it reads the revocations again.
const REFRESH_AGAIN: Duration = Duration::from_millis(250);
/// How long the task sleeps if no keeper is due.
const IDLE: Duration = Duration::from_millis(500);
/// The shortest sleep, and how long a removal or a release may wait for others.
const NAP: Duration = Duration::from_millis(2);
/// How long a stop waits until the store has everything.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// How often the buckets are counted, and how long some may be closed before the log is told.
const COUNTED_EVERY: Duration = Duration::from_secs(1);
const CLOSED_MAX: Duration = Duration::from_secs(4);
/// How often the counts are looked at, to log what has become worse.
const TOLD_EVERY: Duration = Duration::from_secs(60);

type Sent = Pin<Box<dyn Future<Output = (Bucket, RequestId, Result<Answer, Failure>)> + Send>>;

type Refresh = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Sends what the keepers decide.
pub struct Keepers {
    store: Arc<Store>,
    link: Arc<Link>,
    clock: Clock,
    woken: Arc<Notify>,
    under_way: FuturesUnordered<Sent>,
    state: Arc<CoreState>,
    /// The refresh of the revocations that is under way.
    refresh: Option<Refresh>,
    /// When the next refresh may begin.
    refresh_from: Instant,
    told: (Instant, Told),
    /// Since when some buckets are closed, and when the log was last told so.
    closed: Option<(Instant, Option<Instant>)>,
    /// When the buckets were last counted.
    counted: Instant,
}

/// The counts of which the log was told.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    failures: u64,
    shed: u64,
    unopened: u64,
    losses: u64,
    abandoned: u64,
}

impl Keepers {
    /// `woken` is notified when a keeper decides something.
    pub fn new(store: Arc<Store>, state: Arc<CoreState>, clock: Clock, woken: Arc<Notify>) -> Self {
        let link = Link::new(Arc::clone(&store.common));
        Self {
            store,
            link,
            clock,
            woken,
            under_way: FuturesUnordered::new(),
            state,
            refresh: None,
            refresh_from: Instant::now(),
            told: (Instant::now(), Told::default()),
            closed: None,
            counted: Instant::now(),
        }
    }

    fn fleet(&self) -> &Arc<FleetStore> {
        self.store.fleet()
    }

    /// Returns once sessions can be found in every bucket: after the first heartbeats, and the time
    /// in which other daemons repeat what a store that was restored has lost. Returns false if
    /// that takes longer than `most`.
    pub async fn open(&mut self, most: Duration) -> bool {
        let until = Instant::now() + most;
        while self.fleet().is_stale() || self.fleet().open_buckets(self.clock.now().at) < BUCKETS {
            if Instant::now() >= until {
                return false;
            }
            let _ = timeout(Duration::from_millis(50), self.turn()).await;
        }
        true
    }

    /// Runs until it is dropped. A panic in one turn does not end the next ones.
    pub async fn run(&mut self) {
        loop {
            // A panic is already logged.
            if caught(self.turn()).await.is_err() {
                sleep(IDLE).await;
            }
            self.tell();
            self.tell_closed();
        }
    }

    /// Logs that the store takes no heartbeats in some buckets, with the reason, once a minute; and
    /// that it takes them again.
    fn tell_closed(&mut self) {
        if self.counted.elapsed() < COUNTED_EVERY {
            return;
        }
        self.counted = Instant::now();
        let open = self.fleet().open_buckets(self.clock.now().at);
        match (open, self.closed) {
            (BUCKETS, None) => {}
            (BUCKETS, Some((since, told))) => {
                self.closed = None;
                if told.is_some() {
                    tracing::info!(
                        store = self.store.address(),
                        seconds = since.elapsed().as_secs(),
                        "the shared store is used again"
                    );
                }
            }
            (_, None) => self.closed = Some((Instant::now(), None)),
            // A store that was restarted is closed for two seconds.
            (open, Some((since, told)))
                if since.elapsed() >= CLOSED_MAX
                    && told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) =>
            {
                self.closed = Some((since, Some(Instant::now())));
                let refusal = self.store.common.take_refusal();
                tracing::warn!(
                    store = self.store.address(),
                    open,
                    of = BUCKETS,
                    error = refusal.as_deref().unwrap_or("no answer in time"),
                    "the shared store does not take heartbeats: sessions are not resumed"
                );
            }
            (_, Some(_)) => {}
        }
    }

    /// Sends what is due, and waits for an answer or for the next that is due.
    async fn turn(&mut self) {
        let next = self.send_due();
        let now = self.clock.now().at;
        let sleeps = next.map_or(IDLE, |due| due.since(now)).clamp(NAP, IDLE);
        let woken = Arc::clone(&self.woken);
        if self.fleet().is_stale() && self.refresh.is_none() && Instant::now() >= self.refresh_from
        {
            let (link, state) = (Arc::clone(&self.link), Arc::clone(&self.state));
            self.refresh = Some(Box::pin(async move { refresh(&link, &state).await }));
        }
        let refreshes = async {
            match &mut self.refresh {
                Some(refresh) => refresh.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = refreshes => {
                // Whether it failed or not: what is still stale then is looked at a moment later.
                self.refresh = None;
                self.refresh_from = Instant::now() + REFRESH_AGAIN;
            }
            Some((bucket, id, answer)) = self.under_way.next(), if !self.under_way.is_empty() => {
                self.fleet().answered(bucket, id, answer, self.clock.now().at);
                // All that have come are taken before all keepers are looked at.
                while let Some(Some((bucket, id, answer))) = self.under_way.next().now_or_never() {
                    self.fleet().answered(bucket, id, answer, self.clock.now().at);
                }
            }
            // A moment later, so that a thousand ends of connections wake the task a few times.
            () = woken.notified() => sleep(NAP).await,
            () = sleep(sleeps) => {}
        }
    }

    /// Sends the requests that are due. Returns when the next one will be.
    fn send_due(&mut self) -> Option<Timestamp> {
        let now = self.clock.now().at;
        let fleet = Arc::clone(self.fleet());
        fleet.looks(now);
        let mut next = None::<Timestamp>;
        for bucket in Bucket::all() {
            if let Some((id, request)) = fleet.poll(bucket, now) {
                let link = Arc::clone(&self.link);
                self.under_way.push(Box::pin(async move {
                    let answer = link.ask(&request, Instant::now() + ANSWER_MAX).await;
                    (bucket, id, answer)
                }));
            }
            if let Some(due) = fleet.due(bucket, now) {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        next
    }

    /// Delivers everything that was decided, and ends the life of this daemon in the store, as far
    /// as the store answers in time.
    pub async fn stop(mut self) {
        let until = Instant::now() + FLUSH_MAX;
        let is_flushed = |fleet: &FleetStore| Bucket::all().all(|bucket| fleet.is_flushed(bucket));
        while !is_flushed(self.fleet()) && Instant::now() < until {
            let _ = timeout(Duration::from_millis(20), self.turn()).await;
        }
        let unflushed = Bucket::all()
            .filter(|bucket| !self.fleet().is_flushed(*bucket))
            .count();
        if unflushed > 0 {
            tracing::warn!(
                buckets = unflushed,
                "the shared store did not take everything before the stop: sessions that were open here are not \
                 resumed, and neither are some that were closed in the last moments"
            );
        }
        // A bucket that has not taken all removals keeps its heartbeat, which lapses.
        let resignations = Bucket::all()
            .filter(|bucket| self.fleet().is_flushed(*bucket))
            .map(|bucket| {
                let (link, request) = (Arc::clone(&self.link), self.fleet().resign(bucket));
                async move {
                    // Without an answer the heartbeat lapses.
                    let _ = link.ask(&request, Instant::now() + ANSWER_MAX).await;
                }
            });
        futures_util::future::join_all(resignations).await;
    }

    /// Logs what has become worse, once a minute.
    fn tell(&mut self) {
        let (at, before) = self.told;
        if at.elapsed() < TOLD_EVERY {
            return;
        }
        let counters = &self.fleet().counters;
        let read = |counter: &std::sync::atomic::AtomicU64| {
            counter.load(std::sync::atomic::Ordering::Relaxed)
        };
        let now = Told {
            failures: read(&counters.failures),
            shed: read(&counters.shed),
            unopened: read(&counters.unopened),
            losses: read(&counters.losses),
            abandoned: read(&counters.abandoned),
        };
        if now != before {
            tracing::warn!(
                failures = now.failures - before.failures,
                shed = now.shed - before.shed,
                unopened = now.unopened - before.unopened,
                losses = now.losses - before.losses,
                abandoned = now.abandoned - before.abandoned,
                "the shared store had trouble since the last such line"
            );
        }
        self.told = (Instant::now(), now);
    }
}
