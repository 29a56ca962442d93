//! Sessions that are sealed in the tickets of their clients, where several daemons share the list of those
//! that are not good any more.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use tls_sessiond_store::{
    keeper::{LocalTime, Removal},
    layout::Name,
    script::{Answer, Claim, Holder, Note, Reason, Request},
};

use super::{Failure, FindMiss, FleetStore, Refusal};
use crate::clock::Timestamp;

/// A question about the session of a ticket that opened, to be sent.
///
/// Dropping it without its answer counts as an answer that was lost: the session may be spent.
pub struct TicketLook {
    store: Arc<FleetStore>,
    name: Name,
    claim: Claim,
    /// The note of a session that the question spends.
    note: Option<Note>,
    request: Request,
    is_settled: bool,
}

impl FleetStore {
    /// Returns the holder that a ticket names which is sealed now: while it lives, or if it ends well, its
    /// tickets are good.
    pub(crate) fn sealer(&self, name: Name, now: Timestamp) -> Result<Holder, Refusal> {
        self.may_put(name, now).map(|(claim, ..)| claim.holder)
    }

    /// Makes the question about a session that this holder has sealed. `life`: how long its ticket lives,
    /// in milliseconds.
    pub(crate) fn look_at_ticket(
        self: &Arc<Self>,
        name: Name,
        sealer: Holder,
        spends: bool,
        life: u64,
        now: Timestamp,
    ) -> Result<TicketLook, Refusal> {
        let (claim, valid_until, _) = self.may_find(name, now)?;
        let note = spends.then_some(Note {
            reason: Reason::Spent,
            ticket_life: Some(life),
        });
        Ok(TicketLook {
            store: Arc::clone(self),
            name,
            claim,
            note,
            request: Request::Ticket {
                name,
                claim,
                sealer,
                server: self.server(),
                spends,
                life,
                valid_until,
            },
            is_settled: false,
        })
    }

    /// Queues a removal with this note.
    pub(crate) fn remove_noted(&self, name: Name, note: Note) {
        let mut keeper = self.part(name.bucket()).keeper.lock();
        let removal = keeper.remove_noted(name, Some(note));
        drop(keeper);
        if removal == Removal::Abandoned {
            self.counters.abandoned.fetch_add(1, Ordering::Relaxed);
        }
        self.wake();
    }
}

impl TicketLook {
    /// Returns the request to send.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Takes the answer.
    pub(crate) fn answered(
        mut self,
        answer: Result<Answer, Failure>,
        now: Timestamp,
    ) -> Result<(), FindMiss> {
        self.is_settled = true;
        self.store.note(self.name, &self.claim, &answer, now);
        match answer {
            Ok(Answer::Good) => self.good(now),
            Ok(Answer::Gone { reason, .. }) => Err(FindMiss::Gone(reason)),
            Ok(Answer::HolderLost) => Err(FindMiss::HolderLost),
            Ok(Answer::Malformed) => Err(FindMiss::Scope),
            Ok(Answer::Refused(_) | Answer::Overdue { .. }) | Err(Failure::NotRun) => {
                Err(FindMiss::Away)
            }
            Ok(_) | Err(Failure::NoAnswer) => {
                self.outcome_unknown(now);
                Err(FindMiss::Away)
            }
        }
    }

    fn good(&self, now: Timestamp) -> Result<(), FindMiss> {
        let mut keeper = self.store.part(self.name.bucket()).keeper.lock();
        // As in a lookup: the store may have lost what it had since the question was made, and a
        // connection may have ended here meanwhile.
        let is_present = keeper.is_present(&self.claim);
        let is_removing = keeper.is_removing(self.name);
        if self.note.is_some() {
            let at = LocalTime(now.as_millis());
            keeper.spent(self.name, self.note, &self.claim, at);
        }
        match (is_present, is_removing) {
            (false, _) => Err(FindMiss::Away),
            (true, true) => Err(FindMiss::Gone(None)),
            (true, false) => Ok(()),
        }
    }

    /// Records that the session may be spent.
    fn outcome_unknown(&self, now: Timestamp) {
        if self.note.is_some() {
            let at = LocalTime(now.as_millis());
            let mut keeper = self.store.part(self.name.bucket()).keeper.lock();
            keeper.spent(self.name, self.note, &self.claim, at);
        }
    }
}

impl fmt::Debug for TicketLook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketLook")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for TicketLook {
    fn drop(&mut self) {
        if !self.is_settled {
            let latest = Timestamp::from_millis(self.store.latest().0);
            self.outcome_unknown(latest);
        }
    }
}
