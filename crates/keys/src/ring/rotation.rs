//! The phases of a rotation: what begins them, what they wait for, and when they wait no longer.

use std::{sync::Arc, time::Duration};

#[cfg(test)]
use super::exploration_tests;
use super::{Epoch, Event, Phase, Ring, Window, member::Member};
use crate::epoch::{EpochSecret, NoRandomness};

/// Returns when a member counts as late, if the ring waits for it since the phase began or since it joined.
fn late_from(member: &Member, since: Duration, wait: Duration) -> Duration {
    since.max(member.joined) + wait
}

impl Ring {
    /// Asks for a rotation as soon as the tickets of the epoch before have expired.
    pub fn rotate(&mut self) {
        self.is_asked = true;
    }

    /// Replaces all epochs at once: no ticket that exists is opened after that by a member that
    /// acknowledges. Members that do not acknowledge within [`super::Settings::members_wait`] are fenced.
    ///
    /// # Errors
    /// The system has no random numbers. Nothing has changed then.
    pub fn rotate_at_once(&mut self, now: Duration) -> Result<Event, NoRandomness> {
        let first = self.window.next.number + 1;
        let epoch = |number| {
            let secret = EpochSecret::random()?;
            Ok(Epoch { number, secret })
        };
        self.window = Window {
            before: epoch(first)?,
            current: epoch(first + 1)?,
            next: epoch(first + 2)?,
        };
        self.is_emergency = true;
        self.is_asked = false;
        self.rotations += 1;
        self.activated = now;
        Ok(self.begin(Phase::Activate, now))
    }

    fn begin(&mut self, phase: Phase, now: Duration) -> Event {
        self.phase = phase;
        self.since = now;
        self.sequence += 1;
        self.settled_from = None;
        self.members
            .values_mut()
            .for_each(|member| member.is_late = false);
        Event::Began(phase, self.window.current.number)
    }

    /// Returns the names of the counted members that have not acknowledged the last instruction.
    fn behind(&self) -> Vec<Arc<str>> {
        let behind = self.members.iter().filter(|(_, member)| {
            #[cfg(test)]
            if self.mutant == Some(exploration_tests::Mutant::WaitForNone) {
                return false;
            }
            member.counts && member.acknowledged < self.sequence
        });
        behind.map(|(name, _)| Arc::clone(name)).collect()
    }

    pub(super) fn note_settled(&mut self, now: Duration) {
        if self.phase == Phase::Settle && self.settled_from.is_none() && self.behind().is_empty() {
            self.settled_from = Some(now);
        }
    }

    /// Returns when the phase gives up the members that it waits for.
    fn gives_up(&self) -> Duration {
        // Every member has this time, also in a phase that begins with a key that is too old.
        let at_least = self.since + self.settings.members_wait;
        match self.is_emergency {
            true => at_least,
            false => at_least.max(self.oldest_in_use + self.settings.max_key_age),
        }
    }

    /// Goes on as far as the time and the acknowledgements allow. Returns what has happened.
    ///
    /// # Errors
    /// The system has no random numbers. The ring stays in its phase then.
    pub fn tick(&mut self, now: Duration) -> Result<Vec<Event>, NoRandomness> {
        let mut events = Vec::new();
        while let Some(event) = self.step(now, &mut events)? {
            events.push(event);
        }
        Ok(events)
    }

    fn step(
        &mut self,
        now: Duration,
        events: &mut Vec<Event>,
    ) -> Result<Option<Event>, NoRandomness> {
        match self.phase {
            Phase::Idle => {
                let is_due = self.is_asked || now >= self.activated + self.settings.rotate;
                if !is_due {
                    return Ok(None);
                }
                self.is_asked = false;
                Ok(Some(self.begin(Phase::Prepare, now)))
            }
            Phase::Prepare => {
                if !self.all_have_answered(now, events) {
                    return Ok(None);
                }
                // The last step that can fail comes first.
                let later = Epoch {
                    number: self.window.next.number + 1,
                    secret: self.window.next.secret.next()?,
                };
                let next = std::mem::replace(&mut self.window.next, later);
                let current = std::mem::replace(&mut self.window.current, next);
                self.window.before = current;
                self.oldest_in_use = self.activated;
                self.activated = now;
                self.rotations += 1;
                Ok(Some(self.begin(Phase::Activate, now)))
            }
            Phase::Activate => {
                if !self.all_have_answered(now, events) {
                    return Ok(None);
                }
                self.is_emergency = false;
                self.oldest_in_use = self.activated;
                let event = self.begin(Phase::Settle, now);
                // Nothing changes for members: their acknowledgement of the activation is one of this.
                let sequence = self.sequence;
                for member in self.members.values_mut() {
                    member.carry(sequence);
                }
                self.settled_from = Some(now);
                Ok(Some(event))
            }
            Phase::Settle => {
                let lifetime = self.settings.lifetime;
                #[cfg(test)]
                let lifetime = match self.mutant {
                    Some(exploration_tests::Mutant::DropEarly) => Duration::ZERO,
                    _ => lifetime,
                };
                match self.settled_from {
                    Some(from) if now >= from + lifetime => Ok(Some(self.begin(Phase::Idle, now))),
                    Some(_) => Ok(None),
                    None => {
                        if self.all_have_answered(now, events) {
                            self.settled_from = Some(now);
                        }
                        Ok(None)
                    }
                }
            }
        }
    }

    /// Returns whether every counted member has acknowledged the last instruction, after it has fenced
    /// those for which the ring may not wait longer.
    fn all_have_answered(&mut self, now: Duration, events: &mut Vec<Event>) -> bool {
        let behind = self.behind();
        if behind.is_empty() {
            return true;
        }
        if now >= self.gives_up() {
            for name in behind {
                self.members.remove(&name);
                events.push(Event::Fenced(name));
            }
            return true;
        }
        let (since, wait) = (self.since, self.settings.members_wait);
        for name in behind {
            if let Some(member) = self.members.get_mut(&name)
                && now >= late_from(member, since, wait)
                && !std::mem::replace(&mut member.is_late, true)
            {
                events.push(Event::Late(name));
            }
        }
        false
    }

    /// Returns the next time at which [`Self::tick`] may do something without a call of a member.
    pub fn due(&self) -> Duration {
        let waits = || {
            let behind = self.behind();
            let members = behind.iter().filter_map(|name| self.members.get(name));
            let in_time = members.filter(|member| !member.is_late);
            let wait = self.settings.members_wait;
            let late = in_time
                .map(|member| late_from(member, self.since, wait))
                .min();
            late.map_or(self.gives_up(), |late| late.min(self.gives_up()))
        };
        match (self.phase, self.settled_from) {
            (Phase::Idle, _) if self.is_asked => self.since,
            (Phase::Idle, _) => self.activated + self.settings.rotate,
            (Phase::Settle, Some(from)) => from + self.settings.lifetime,
            (Phase::Prepare | Phase::Activate | Phase::Settle, _) => waits(),
        }
    }
}
