//! A ring that several daemons share: the copy that one of them has.
//!
//! A store has the ring, sealed, and a version of it. A daemon looks at it again and again. A change is
//! made on the copy and written as the next version, which the store takes only if the daemon knew the
//! version before. So changes of all daemons have one order. One daemon at a time has a lease, and alone
//! lets time go on in the ring.
//!
//! A store that has lost the ring, or went back to an earlier version, gets it back from the daemons that
//! know it. For [`QUIET`] after that none of them changes it, so that the latest version wins.
//!
//! Nothing here does I/O: the caller carries a [`Change`] to the store, and [`Seen`] back.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::{
    epoch::NoRandomness,
    ring::{Event, Ring, Settings},
};

/// How long no daemon changes a ring after the store has lost it, and before the first one is made.
pub const QUIET: Duration = Duration::from_secs(2);

/// Why a ring cannot be changed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// The store has not shown the ring to this daemon yet, or has lost it a moment ago.
    #[error("the shared store has not shown the ring yet")]
    NotSeen,
    /// The system has no random numbers.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// What the store has shown.
#[derive(Debug, Default)]
pub struct Seen<'s> {
    /// The time of the store.
    pub now: Duration,
    /// The version that it has. 0: none.
    pub version: u64,
    /// Whether this daemon has the lease.
    pub leads: bool,
    /// Whether the store took the write of the look.
    pub is_written: bool,
    /// The state, if it is not the one that the daemon knows.
    pub state: Option<&'s [u8]>,
    /// The daemons that look at the ring.
    pub alive: Vec<u64>,
}

/// What a look has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// What this daemon knew, or has written.
    Same,
    /// A later version, which this daemon knows from now on.
    New,
    /// A state that cannot be read. It is of a later version of the daemon.
    Unreadable,
    /// The store has lost what this daemon knows: [`SharedRing::mend`] gives it back.
    Lost,
}

/// A change that is to be written.
pub struct Change<T> {
    ring: Ring,
    version: u64,
    restores: bool,
    /// What the change returned.
    pub outcome: T,
}

impl<T> Change<T> {
    /// Returns the version that it makes.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns whether it gives back what the store has lost: then the store takes it in the place of
    /// any earlier version.
    pub fn restores(&self) -> bool {
        self.restores
    }

    /// Returns the state to be written. The caller seals it.
    pub fn state(&self) -> Zeroizing<Vec<u8>> {
        self.ring.encode()
    }
}

/// The copy of one daemon.
pub struct SharedRing {
    name: Box<str>,
    settings: Settings,
    ring: Option<Ring>,
    version: u64,
    /// Whether the store lacks the version that this daemon knows.
    is_lost: bool,
    /// Local time before which nothing is changed.
    quiet_until: Option<Duration>,
    /// The time of the store, less the local time.
    ahead: Duration,
    leads: bool,
    alive: Vec<u64>,
    /// The highest number of a lease that this daemon has seen.
    leases: u64,
    /// Whether the daemon that wrote the ring has other settings.
    differs: bool,
}

/// Above the versions that a ring reaches in any time. The store counts in numbers that are exact up to 2^53.
const VERSION_MAX: u64 = 1 << 50;

impl SharedRing {
    /// A ring that the store has not shown yet.
    pub fn new(name: &str, settings: Settings) -> Self {
        Self {
            name: name.into(),
            settings,
            ring: None,
            version: 0,
            is_lost: false,
            quiet_until: None,
            ahead: Duration::ZERO,
            leads: false,
            alive: Vec::new(),
            leases: 0,
            differs: false,
        }
    }

    /// Replaces the settings.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
        if let Some(ring) = &mut self.ring {
            ring.set(settings);
        }
    }

    /// Returns the settings.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Returns the ring as this daemon knows it.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// Returns the version that it knows.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns whether the daemon that wrote the ring has other settings for it.
    pub fn differs(&self) -> bool {
        self.differs
    }

    /// Returns whether this daemon rotates the ring.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Returns how many daemons look at the ring.
    pub fn daemons(&self) -> usize {
        self.alive.len()
    }

    /// Returns the time of the ring: that of the store.
    pub fn time(&self, local: Duration) -> Duration {
        local + self.ahead
    }

    /// Returns what has to be written before anything else: the first ring, or what the store has lost.
    /// Tickets that were sealed before a loss do not open after it, because the store has lost which of
    /// them are spent.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn mend(&self, local: Duration) -> Result<Option<Change<()>>, NoRandomness> {
        let (ring, version) = match &self.ring {
            Some(ring) if self.is_lost => {
                let mut ring = ring.clone();
                ring.begin_run()?;
                (ring, self.version)
            }
            None if self.leads && self.is_quiet_over(local) => {
                let ring = Ring::new(&self.name, self.settings, self.time(local))?;
                (ring, 1)
            }
            _ => return Ok(None),
        };
        Ok(Some(Change {
            ring,
            version,
            restores: self.is_lost,
            outcome: (),
        }))
    }

    /// Whether a time without changes has begun, and is over.
    fn is_quiet_over(&self, local: Duration) -> bool {
        self.quiet_until.is_some_and(|until| local >= until)
    }

    /// Makes a change on a copy of the ring. It counts once the store has taken it: see
    /// [`Self::written`].
    ///
    /// # Errors
    /// See [`NotNow`].
    pub fn change<T>(
        &self,
        local: Duration,
        change: impl FnOnce(&mut Ring, Duration) -> T,
    ) -> Result<Change<T>, NotNow> {
        let is_quiet = self.quiet_until.is_some_and(|until| local < until);
        let mut ring = match &self.ring {
            Some(ring) if !is_quiet && !self.is_lost => ring.clone(),
            _ => return Err(NotNow::NotSeen),
        };
        // A ring that the store went back to must not give a lease of this daemon to another member.
        ring.pass_leases(self.leases);
        let outcome = change(&mut ring, self.time(local));
        Ok(Change {
            ring,
            version: self.version + 1,
            restores: false,
            outcome,
        })
    }

    /// Lets time go on in a copy of the ring, if this daemon has the lease: members of daemons that are
    /// not there any more are away. Returns `None` if nothing changes.
    ///
    /// # Errors
    /// See [`NotNow`].
    pub fn tick(&self, local: Duration) -> Result<Option<Change<Vec<Event>>>, NotNow> {
        if !self.leads || self.ring.is_none() {
            return Ok(None);
        }
        let change = self.change(local, |ring, now| {
            let parted = ring.detach_all(|lease| !self.alive.contains(&lease.daemon()), now);
            let events = ring.tick(now)?;
            Ok::<_, NoRandomness>((parted, events))
        })?;
        let (parted, events) = change.outcome?;
        let is_change = parted || !events.is_empty();
        Ok(is_change.then_some(Change {
            ring: change.ring,
            version: change.version,
            restores: change.restores,
            outcome: events,
        }))
    }

    /// Takes a change that the store has written. Call [`Self::saw`] before.
    pub fn written<T>(&mut self, change: Change<T>) -> T {
        self.version = change.version;
        self.leases = self.leases.max(change.ring.leases());
        self.ring = Some(change.ring);
        self.differs = false;
        change.outcome
    }

    /// Takes what the store has shown. A look that has written a change shows no state: give that change
    /// to [`Self::written`] then.
    pub fn saw(&mut self, seen: &Seen<'_>, local: Duration) -> Shown {
        self.ahead = seen.now.saturating_sub(local);
        self.leads = seen.leads;
        self.alive.clone_from(&seen.alive);
        let is_first = self.ring.is_none();
        if seen.is_written {
            if std::mem::take(&mut self.is_lost) {
                self.quiet_until = Some(local + QUIET);
            }
            return Shown::Same;
        }
        if seen.version < self.version {
            self.is_lost = true;
            self.quiet_until = Some(local + QUIET);
            return Shown::Lost;
        }
        if std::mem::take(&mut self.is_lost) {
            // A daemon that knew this version or a later one has given it back.
            self.quiet_until = Some(local + QUIET);
        }
        match seen.state {
            Some(_) if seen.version > VERSION_MAX => Shown::Unreadable,
            Some(state) => match Ring::decode(&self.name, state) {
                Some(mut ring) => {
                    self.differs = ring.settings() != self.settings;
                    ring.set(self.settings);
                    self.leases = self.leases.max(ring.leases());
                    self.ring = Some(ring);
                    self.version = seen.version;
                    Shown::New
                }
                None => Shown::Unreadable,
            },
            None => {
                if is_first && self.quiet_until.is_none() {
                    self.quiet_until = Some(local + QUIET);
                }
                Shown::Same
            }
        }
    }
}

#[cfg(test)]
mod tests;
