//! Sessions that are sealed in tickets: a daemon that seals one stores nothing, and the store knows only which of
//! them are not good any more.

use tls_sessiond_store::{
    keeper::Removal,
    layout::Name,
    script::{Answer, Claim, Holder, Note, Reason, Request},
};

use super::{CALL_DEADLINE, Open, PUT_VALID, Purpose, Truth, World};

/// How long a ticket lives: longer than a history.
const LIFE: u64 = 600_000;

/// A ticket that a client has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    name: Name,
    sealer: Holder,
}

/// An open connection whose sessions are sealed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed(Name);

fn note(reason: Reason) -> Note {
    Note {
        reason,
        ticket_life: Some(LIFE),
    }
}

impl World {
    /// A handshake makes a ticket.
    pub(super) fn seal(&mut self, place: usize) {
        let now = self.local(place);
        let Ok((claim, _)) = self.daemons[place].keeper.may_put(now, PUT_VALID) else {
            return;
        };
        let Some(&name) = self.ticket_names.get(self.tickets.len()) else {
            return;
        };
        self.tickets.push(Ticket {
            name,
            sealer: claim.holder,
        });
        self.truths.insert(name, Truth::default());
        self.daemons[place].sealed.push(Sealed(name));
    }

    /// A client comes back to this daemon with one of its tickets.
    pub(super) fn offer_ticket(&mut self, place: usize) {
        let now = self.local(place);
        let keeper = &self.daemons[place].keeper;
        let Ok((claim, valid_until)) = keeper.may_find(now, CALL_DEADLINE) else {
            return;
        };
        let count = self.tickets.len() as u64;
        if count == 0 {
            return;
        }
        let back = match self.random.below(4) {
            0 => self.random.below(count),
            _ => self.random.below(20.min(count)),
        };
        let Ticket { name, sealer } = self.tickets[(count - 1 - back) as usize];
        if self.daemons[place].keeper.is_removing(name) {
            return;
        }
        let look = Request::Ticket {
            name,
            claim,
            sealer,
            server: self.server(place),
            spends: true,
            life: LIFE,
            valid_until,
        };
        self.send(place, look, Purpose::Ticket { name });
    }

    /// Returns what the process of the store calls itself, as this daemon knows it.
    fn server(&self, place: usize) -> Box<str> {
        self.daemons[place].knows.to_string().into()
    }

    /// One connection with tickets ends: closed, or not.
    pub(super) fn end_sealed(&mut self, place: usize) {
        let count = self.daemons[place].sealed.len() as u64;
        if count == 0 {
            return;
        }
        let at = self.random.below(count) as usize;
        let Sealed(name) = self.daemons[place].sealed.swap_remove(at);
        if self.random.once_in(3) {
            self.spoil(name, place, self.now);
            let note = Some(note(Reason::Unclosed));
            if self.daemons[place].keeper.remove_noted(name, note) == Removal::Abandoned {
                self.daemons[place].sealed.clear();
            }
        }
    }

    /// Spoils the tickets of a daemon that dies.
    pub(super) fn spoil_sealed(&mut self, place: usize) {
        for Sealed(name) in std::mem::take(&mut self.daemons[place].sealed) {
            self.spoil(name, place, self.now);
        }
    }

    /// The daemon closes its connections, and stops soon.
    pub(super) fn close_all(&mut self, place: usize) {
        let now = self.local(place);
        let daemon = &mut self.daemons[place];
        for Open { name, hold, .. } in std::mem::take(&mut daemon.open) {
            daemon.keeper.release(hold.0, name, hold.1, now);
        }
        daemon.sealed.clear();
        daemon.stops = true;
    }

    /// The daemon stops, if the store has everything.
    pub(super) fn stop(&mut self, place: usize) {
        let daemon = &self.daemons[place];
        if !daemon.keeper.is_flushed() || !daemon.puts.is_empty() || !daemon.open.is_empty() {
            return;
        }
        let server = self.server(place);
        let resign = self.daemons[place].keeper.resign(&server);
        self.send(place, resign, Purpose::Forged);
        self.die(place);
    }

    /// The daemon gets the answer about a ticket, or waits no longer.
    pub(super) fn ticket_ended(
        &mut self,
        place: usize,
        name: Name,
        claim: Claim,
        since: u64,
        answer: Option<&Answer>,
    ) -> Result<(), String> {
        let now = self.local(place);
        let is_good = matches!(answer, Some(Answer::Good));
        if !is_good && answer.is_some() {
            return Ok(());
        }
        let is_present = self.daemons[place].keeper.is_present(&claim);
        // A look whose answer was lost may have spent it.
        let note = Some(note(Reason::Spent));
        self.daemons[place].keeper.spent(name, note, &claim, now);
        if !is_good || !is_present {
            return Ok(());
        }
        self.handed_out += 1;
        self.resumed += 1;
        let taken = self.truths.entry(name).or_default().taken;
        if let Some((at, taker)) = taken
            && !self.is_excused(taker, at)
        {
            return Err(format!(
                "G2: the ticket {name:?} was resumed at {taker} at {at}, and at {place} at {}",
                self.now
            ));
        }
        self.truths.entry(name).or_default().taken = Some((since, place));
        Ok(())
    }
}
