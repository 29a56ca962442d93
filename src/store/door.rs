//! What the API asks of the store.

use std::{
    sync::Arc,
    thread::{self, ThreadId},
    time::Duration,
};

use dashmap::DashMap;
use tls_sessiond_core::{
    cache::{Ask, Found, PendingPut},
    clock::Clock,
    fleet::{Failure, FleetStore},
    session::Miss,
};
use tls_sessiond_store::script::{Answer, Request};
use tokio::time::Instant;

use super::{
    link::{Common, Link},
    target::{OpenError, Target},
};

/// The shared store, as the API asks it. Each thread of the API has a connection of its own, so that
/// no answer passes from one thread to another.
pub struct Store {
    pub(super) common: Arc<Common>,
    links: DashMap<ThreadId, Arc<Link>>,
    deadline: Duration,
}

impl Store {
    /// Makes the connections' common state. Opens none.
    pub fn new(fleet: Arc<FleetStore>, target: Target, deadline: Duration, clock: Clock) -> Self {
        Self {
            common: Arc::new(Common::new(fleet, target, clock)),
            links: DashMap::new(),
            deadline,
        }
    }

    /// Returns the state of this daemon in the store.
    pub fn fleet(&self) -> &Arc<FleetStore> {
        &self.common.fleet
    }

    /// Replaces what later connections are opened with.
    pub fn retarget(&self, target: Target) {
        self.common.target.store(Arc::new(target));
    }

    /// Returns the address of the store, without user and password.
    pub fn address(&self) -> String {
        self.common.target.load().address()
    }

    /// Opens a connection, to find out whether the store can be reached.
    pub(crate) async fn probe(&self) -> Result<(), OpenError> {
        self.common.open().await.map(drop)
    }

    fn link(&self) -> Arc<Link> {
        let thread = thread::current().id();
        if let Some(link) = self.links.get(&thread) {
            return Arc::clone(&link);
        }
        let made = || Link::new(Arc::clone(&self.common));
        Arc::clone(&self.links.entry(thread).or_insert_with(made))
    }

    /// Sends a request, and waits for its answer until the deadline.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Answer, Failure> {
        let deadline = Instant::now() + self.deadline;
        self.link().ask(request, deadline).await
    }

    /// Asks for a session.
    pub(crate) async fn find(&self, ask: Box<Ask>) -> Result<Found, Miss> {
        let answer = self.ask(ask.request()).await;
        ask.answered(answer, self.common.clock.now())
    }

    /// Sends puts together, and waits for all answers. The connection drops the sessions that are
    /// not stored.
    pub(crate) async fn put_all(&self, puts: Vec<PendingPut>) {
        let deadline = Instant::now() + self.deadline;
        let link = self.link();
        let one = |put: PendingPut| {
            let link = Arc::clone(&link);
            async move {
                let Some(request) = put.request() else {
                    return;
                };
                let answer = link.ask(request, deadline).await;
                // The connection sees by its hold that the session is not stored.
                let _ = put.answered(answer, self.common.clock.now());
            }
        };
        futures_util::future::join_all(puts.into_iter().map(one)).await;
    }

    /// Sends one put, and waits for its answer.
    ///
    /// # Errors
    /// Why the session is not stored.
    pub(crate) async fn put(
        &self,
        put: PendingPut,
    ) -> Result<(), tls_sessiond_core::cache::NotStored> {
        let answer = match put.request() {
            Some(request) => self.ask(request).await,
            None => Err(Failure::NotRun),
        };
        put.answered(answer, self.common.clock.now())
    }
}
