//! Lookups of a worker, from the breaker over the outbox to the answer.

use std::{sync::Arc, task::Waker, time::Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::{
    breaker::{Outcome, Permit, shared::Gate},
    counters::Tallies,
    found::Found,
    message::Lookup,
    options::Options,
    outbox::{
        NotTaken, Outbox, Waiting,
        decode::Answer,
        encode::{LookupPrefix, Question},
        pending::Asker,
    },
};

/// State that a worker shares with its tasks.
pub(crate) struct WorkerState {
    pub(crate) options: Options,
    pub(crate) tallies: Arc<Tallies>,
    terms: LookupPrefix,
    gate: Gate,
    /// The outbox of the stream that takes new calls. `None`: there is no such stream.
    link: RwLock<Option<Arc<Outbox>>>,
    /// Notified when a stream begins.
    joined: watch::Sender<()>,
    /// Why the last attempt to begin a stream failed. `None`: it did not.
    trouble: Mutex<Option<String>>,
}

impl WorkerState {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            terms: LookupPrefix::of(&options),
            gate: Gate::new(options.breaker_timeouts, options.back_off),
            options,
            tallies: Arc::default(),
            link: RwLock::new(None),
            joined: watch::Sender::new(()),
            trouble: Mutex::default(),
        }
    }

    /// Returns a receiver that is notified when a stream begins.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.joined.subscribe()
    }

    pub(crate) fn link(&self) -> Option<Arc<Outbox>> {
        self.link.read().clone()
    }

    /// Uses a stream that has begun for new calls.
    pub(crate) fn join(&self, link: &Arc<Outbox>) {
        self.tallies.streams.count();
        self.gate.close();
        *self.trouble.lock() = None;
        *self.link.write() = Some(Arc::clone(link));
        self.joined.send_replace(());
    }

    pub(crate) fn set_trouble(&self, why: &str) {
        *self.trouble.lock() = Some(why.to_owned());
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Stops using this stream for new calls.
    pub(crate) fn leave(&self, link: &Arc<Outbox>) {
        let mut current = self.link.write();
        if current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, link))
        {
            *current = None;
        }
    }

    /// Queues a lookup for the caller that `waker` wakes. `None`: it is a miss at once.
    pub(crate) fn ask(
        &self,
        lookup: &Lookup<'_>,
        begun: Instant,
        waker: &Waker,
        asker: Asker,
    ) -> Option<Asked<'_>> {
        let permitted = self
            .link()
            .and_then(|link| Some((link, self.gate.admit(begun)?)));
        let Some((link, permit)) = permitted else {
            self.tallies.away.count();
            return None;
        };
        match link.ask(
            &Question {
                terms: &self.terms,
                lookup,
            },
            waker,
            asker,
        ) {
            Ok(waiting) => Some(Asked {
                shared: self,
                waiting,
                permit,
                outcome: Outcome::Unknown,
            }),
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

/// A lookup that was queued. When it is dropped without an outcome, the caller has stopped waiting.
pub(crate) struct Asked<'s> {
    shared: &'s WorkerState,
    pub(crate) waiting: Waiting,
    permit: Permit,
    outcome: Outcome,
}

pub(crate) enum NoAnswer {
    /// The stream broke.
    Broken,
    TimedOut,
}

impl Asked<'_> {
    /// Ends the lookup, counts its outcome, and returns the session that was found.
    pub(crate) fn end(mut self, end: Result<Answer, NoAnswer>) -> Option<Found> {
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
        if self
            .shared
            .gate
            .settle(self.permit, self.outcome, Instant::now)
        {
            self.shared.tallies.breaker_openings.count();
        }
    }
}
