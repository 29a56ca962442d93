//! What the API asks of the store.

use std::{
    sync::Arc,
    thread::{self, ThreadId},
    time::Duration,
};

use dashmap::DashMap;
use tls_sessiond_core::{
    cache::{Ask, Found, PendingPut, PoolSearch, SharedRevocations, revocation::Selector},
    clock::{Clock, WallTime},
    fleet::{Failure, FleetStore},
    session::{Miss, RemovalReason},
    state::CoreState,
};
use tls_sessiond_store::script::{Answer, Request};
use tokio::time::{Instant, sleep};

use super::{
    check::{CheckError, check},
    link::{Common, Link},
    revisions::refresh,
    target::Target,
};
use crate::trace::CallSpan;

/// How long one request of an administrator's call waits for its answer.
const ADMIN_MAX: Duration = Duration::from_secs(2);

/// The time from one attempt to the next.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Why a revocation is in force at this daemon alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRevoked {
    /// The store did not take it, or did not answer.
    Away,
    /// The store has as many as it may have.
    TooMany,
}

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

    /// Checks that the store can be used. Returns warnings about its settings.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn check(&self) -> Result<Vec<String>, CheckError> {
        self.common.open().await?;
        check(&self.link(), self.address()).await
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
        let span = CallSpan::of_store();
        let deadline = Instant::now() + self.deadline;
        let answer = self.link().ask(request, deadline).await;
        if answer.is_err() {
            span.fails("no answer");
        }
        answer
    }

    /// Sends a request that no handshake waits for. While the store has not run it, for want of a connection
    /// for example, it is sent again. The error is that with which the store refused a request meanwhile, if it
    /// did.
    pub(crate) async fn ask_patiently(&self, request: &Request) -> Result<Answer, Option<String>> {
        let begun = Instant::now();
        let until = begun + ADMIN_MAX;
        loop {
            let answer = self.link().ask(request, until).await;
            let refusal = || self.common.refusal_since(begun);
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Failure::NotRun)
                    if refusal().is_none() && Instant::now() + ASK_AGAIN < until =>
                {
                    sleep(ASK_AGAIN).await;
                }
                Err(_) => return Err(refusal()),
            }
        }
    }

    /// Asks for a session.
    pub(crate) async fn find(&self, ask: Box<Ask>) -> Result<Found, Miss> {
        let answer = self.ask(ask.request()).await;
        ask.answered(answer, self.common.clock.now())
    }

    /// Asks for a session, to explain it.
    pub(crate) async fn explain(
        &self,
        ask: Box<Ask>,
    ) -> Result<Found, (Miss, Option<RemovalReason>)> {
        let answer = self.ask(ask.request()).await;
        ask.explained(answer, self.common.clock.now())
    }

    /// Searches for the newest session of a client. Waits until the deadline for each of at most
    /// sixteen sessions, and in all no longer than twice the deadline.
    pub(crate) async fn newest(&self, search: PoolSearch) -> Option<Found> {
        let ends = Instant::now() + 2 * self.deadline;
        let answer = self.ask(search.request()).await;
        let mut members = search.answered(answer);
        let mut found = None;
        while found.is_none()
            && Instant::now() < ends
            && let Some(ask) = members.next_lookup(self.common.clock.now())
        {
            let looked_up = self.find(Box::new(ask)).await;
            found = members.looked_up(looked_up);
        }
        if let Some(forget) = members.forget() {
            let link = self.link();
            let deadline = Instant::now() + self.deadline;
            // The caller does not wait for that.
            tokio::spawn(async move { link.ask(&forget, deadline).await });
        }
        found
    }

    /// Revokes sessions of these contexts at every daemon: returns once no bucket answers a daemon that
    /// does not know of it.
    ///
    /// # Errors
    /// The store did not take it, or did not answer. It may be in force.
    pub(crate) async fn revoke(
        &self,
        state: &CoreState,
        contexts: &[&str],
        selector: &Selector,
        before: WallTime,
    ) -> Result<(), NotRevoked> {
        let request = SharedRevocations::add(self.fleet(), contexts, selector, before)
            .ok_or(NotRevoked::Away)?;
        match self.link().ask(&request, Instant::now() + ADMIN_MAX).await {
            Ok(Answer::Revocations { .. }) => {}
            Ok(Answer::TooMany) => return Err(NotRevoked::TooMany),
            Ok(_) | Err(_) => return Err(NotRevoked::Away),
        }
        refresh(&self.link(), state)
            .await
            .map_err(|_| NotRevoked::Away)
    }

    /// Sends puts together, and waits for all answers. The connection drops the sessions that are
    /// not stored.
    pub(crate) async fn put_all(&self, puts: Vec<PendingPut>) {
        let _span = CallSpan::of_store();
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
