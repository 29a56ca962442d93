//! A ring: three epochs, the members that hold them, and the phase of the rotation.
//!
//! Invariants, as far as members do what they acknowledge:
//!
//! * **I1.** A member is told to encrypt with an epoch only after every counted member has acknowledged
//!   that it opens the epoch.
//! * **I2.** Members are told to drop an epoch only when a ticket lifetime has passed since every counted
//!   member acknowledged that it encrypts with a later one.
//! * **I3.** So no two counted members are more than one epoch apart.
//!
//! A member counts from its first acknowledgement of the last instruction until it leaves or is fenced. A rotation waits for
//! counted members until the key is [`Settings::max_key_age`] old. Then it fences the members that it
//! waits for: forward secrecy comes before resumption.
//!
//! * `member`: what the ring knows of a server
//! * `rotation`: the phases
//! * `view`: what is shown of a ring
//! * `words`: why a member does not run an instruction
//! * `state`: a ring as bytes, for the daemons that share it
//! * `exploration_tests`: all interleavings of a small fleet, in tests

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_lc_rs::rand;

use crate::epoch::{EpochSecret, Layout, NoRandomness, TicketKey};

#[cfg(test)]
mod exploration_tests;
mod member;
mod rotation;
mod state;
#[cfg(test)]
mod tests;
mod view;
mod words;

use member::Member;
pub use member::{Attachment, MemberView, Style};
pub(crate) use state::Reader;
pub use state::STATE_MAX;
pub use view::{News, RingView};

/// Most members of a ring.
pub const MEMBERS_MAX: usize = 1024;
/// Most bytes of the name of a member.
pub const NAME_MAX: usize = 256;
/// The settings of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Time from one rotation to the next. The next one waits for [`Self::lifetime`] too.
    pub rotate: Duration,
    /// How long a ticket is accepted after it was made.
    pub lifetime: Duration,
    /// The age at which members that have not acknowledged are fenced, so that none that counts encrypts
    /// with an epoch that is older. A phase that begins at that age has [`Self::members_wait`] more.
    pub max_key_age: Duration,
    /// How long a phase waits for a member before the member counts as late.
    pub members_wait: Duration,
}

/// One epoch.
#[derive(Clone, Debug)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    pub(crate) secret: EpochSecret,
}

/// The epochs before, now and next.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) before: Epoch,
    pub(crate) current: Epoch,
    pub(crate) next: Epoch,
}

/// The phase of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Members encrypt with the current epoch, and open it alone.
    Idle,
    /// Members learn to open the next epoch.
    Prepare,
    /// Members begin to encrypt with what is now the current epoch, and still open the one before.
    Activate,
    /// All members encrypt with the current epoch. Tickets of the one before expire.
    Settle,
}

/// What a member is to run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// The number that an acknowledgement names. It grows.
    pub sequence: u64,
    /// The phase of the ring.
    pub phase: Phase,
    /// The epoch to encrypt with.
    pub encrypt: u64,
    /// The epochs to open, in the order in which the server takes them: for [`Style::Push`] the oldest
    /// first, for others the one to encrypt with first.
    pub open: Vec<u64>,
}

/// Random bytes that tickets are bound to.
pub(crate) type Run = [u8; 16];

fn run() -> Result<Run, NoRandomness> {
    let mut run = [0; 16];
    rand::fill(&mut run).map_err(|_| NoRandomness)?;
    Ok(run)
}

/// A membership. A later one of the same name replaces it. It has the number of the membership, and the daemon
/// that gave it: a ring that went back to an earlier state may give a number again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease(u64, u64);

impl Lease {
    /// Returns the daemon that gave it.
    pub fn daemon(self) -> u64 {
        self.1
    }
}

/// Why a member is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The name is empty or too long, or has control characters.
    #[error("the name of a member has 1 to {NAME_MAX} bytes without control characters")]
    Name,
    /// The ring has as many members as it may have.
    #[error("the ring has {MEMBERS_MAX} members")]
    TooMany,
    /// The lease has ended: the member was fenced, has left, or has joined again.
    #[error("the lease has ended: the member was fenced, or has joined again elsewhere")]
    Fenced,
    /// The member acknowledges an instruction that it was never given.
    #[error("there is no instruction {0}: the last one is {1}")]
    Unknown(u64, u64),
    /// The member acknowledges an instruction of an earlier lease. What it runs since is not known.
    #[error("instruction {0} is of an earlier lease: the first one of this lease is {1}")]
    Earlier(u64, u64),
}

/// What has happened in a ring, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A phase has begun.
    Began(Phase, u64),
    /// A phase waits for this member longer than [`Settings::members_wait`].
    Late(Arc<str>),
    /// The ring no longer waits for this member, and its lease has ended.
    Fenced(Arc<str>),
}

/// A ring of ticket keys.
#[derive(Clone, Debug)]
pub struct Ring {
    name: Arc<str>,
    settings: Settings,
    window: Window,
    phase: Phase,
    sequence: u64,
    /// When the phase began.
    since: Duration,
    /// When the current epoch was activated.
    activated: Duration,
    /// When the epoch that members may still encrypt with was activated: the one before during
    /// [`Phase::Activate`], else the current one.
    oldest_in_use: Duration,
    /// In [`Phase::Settle`]: since when all counted members encrypt with the current epoch.
    settled_from: Option<Duration>,
    /// Whether the rotation drops all older epochs, and waits for no member longer than
    /// [`Settings::members_wait`].
    is_emergency: bool,
    /// Whether a rotation was asked for.
    is_asked: bool,
    members: BTreeMap<Arc<str>, Member>,
    leases: u64,
    rotations: u64,
    /// What the tickets that the daemon seals are bound to, besides their epoch.
    run: Run,
    #[cfg(test)]
    mutant: Option<exploration_tests::Mutant>,
}

impl Ring {
    /// Begins a ring with new epochs.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(name: &str, settings: Settings, now: Duration) -> Result<Self, NoRandomness> {
        let epoch = |number| {
            let secret = EpochSecret::random()?;
            Ok(Epoch { number, secret })
        };
        let window = Window {
            before: epoch(0)?,
            current: epoch(1)?,
            next: epoch(2)?,
        };
        Ok(Self::of(name, settings, window, run()?, now))
    }

    fn of(name: &str, settings: Settings, window: Window, run: Run, now: Duration) -> Self {
        Self {
            name: name.into(),
            settings,
            window,
            phase: Phase::Idle,
            sequence: 1,
            since: now,
            activated: now,
            oldest_in_use: now,
            settled_from: None,
            is_emergency: false,
            is_asked: false,
            members: BTreeMap::new(),
            leases: 0,
            rotations: 0,
            run,
            #[cfg(test)]
            mutant: None,
        }
    }

    /// Goes on with a ring of an earlier process: its epochs, the age of the current one, and the names
    /// of its counted members, for which it waits as for members that are away. Tickets of the epoch
    /// before are accepted for another lifetime.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(crate) fn restored(
        name: &str,
        settings: Settings,
        window: Window,
        age: Duration,
        members: Vec<Arc<str>>,
        now: Duration,
    ) -> Result<Self, NoRandomness> {
        let mut ring = Self::of(name, settings, window, run()?, now);
        ring.activated = now.saturating_sub(age);
        ring.oldest_in_use = ring.activated;
        ring.phase = Phase::Settle;
        for name in members.into_iter().take(MEMBERS_MAX) {
            ring.members.insert(name, Member::away(now));
        }
        ring.settled_from = ring.members.is_empty().then_some(now);
        Ok(ring)
    }

    /// Returns the name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Replaces the settings. They apply from the next [`Self::tick`] on.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Returns the settings.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Lets a member join, or join again. It counts once it runs the last instruction. A lease that it had ends.
    ///
    /// # Errors
    /// [`Refused::Name`], [`Refused::TooMany`].
    pub fn join(
        &mut self,
        name: &str,
        style: Style,
        by: &Attachment,
        now: Duration,
    ) -> Result<Lease, Refused> {
        if name.is_empty() || name.len() > NAME_MAX || name.contains(char::is_control) {
            return Err(Refused::Name);
        }
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(name) {
            return Err(Refused::TooMany);
        }
        self.leases += 1;
        let lease = Lease(self.leases, by.daemon);
        let entry = self.members.entry(name.into());
        let member = entry.or_insert_with(|| Member::new(now));
        member.attach(lease, style, by, self.sequence, now);
        // The server may have been restarted, so it is not known what it runs.
        if self.phase == Phase::Settle && member.counts {
            self.settled_from = None;
        }
        Ok(lease)
    }

    /// Records that the way to a member is lost. The ring goes on to wait for a member that counts.
    pub fn detach(&mut self, lease: Lease, now: Duration) {
        let Some((name, member)) = self.of_lease(lease) else {
            return;
        };
        if !member.counts {
            let name = Arc::clone(name);
            self.members.remove(&name);
            return;
        }
        if let Some(member) = self.leased(lease) {
            member.detach(now);
        }
    }

    /// Records that the ways to members are lost whose leases are not good any more. Returns whether there
    /// were any.
    pub fn detach_all(&mut self, is_lost: impl Fn(Lease) -> bool, now: Duration) -> bool {
        let leases = self.members.values().filter_map(|member| member.lease);
        let lost: Vec<_> = leases.filter(|lease| is_lost(*lease)).collect();
        for lease in &lost {
            self.detach(*lease, now);
        }
        !lost.is_empty()
    }

    /// Returns whether a member has such a lease.
    pub fn has_lease(&self, is_such: impl Fn(Lease) -> bool) -> bool {
        let mut leases = self.members.values().filter_map(|member| member.lease);
        leases.any(is_such)
    }

    /// Gives no lease a number that is not higher than this one.
    pub(crate) fn pass_leases(&mut self, number: u64) {
        self.leases = self.leases.max(number);
    }

    pub(crate) fn leases(&self) -> u64 {
        self.leases
    }

    /// Binds tickets that are sealed from now on to a new run. Those sealed before do not open any more,
    /// because the list of spent ones is gone.
    ///
    /// # Errors
    /// The system has no random numbers. Nothing has changed then.
    pub fn begin_run(&mut self) -> Result<(), NoRandomness> {
        self.run = run()?;
        Ok(())
    }

    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    /// Removes a member that says goodbye. A lease that has ended changes nothing.
    pub fn leave(&mut self, lease: Lease, now: Duration) {
        if let Some((name, _)) = self.of_lease(lease) {
            let name = Arc::clone(name);
            self.members.remove(&name);
            self.note_settled(now);
        }
    }

    /// Ends the membership with this name, as [`Self::leave`] does. Returns whether there was one.
    pub fn fence(&mut self, name: &str, now: Duration) -> bool {
        let was = self.members.remove(name).is_some();
        self.note_settled(now);
        was
    }

    /// Takes an acknowledgement: the member runs the instruction with this number. Earlier numbers and
    /// repetitions change nothing.
    ///
    /// # Errors
    /// [`Refused::Fenced`], [`Refused::Unknown`], [`Refused::Earlier`].
    pub fn acknowledge(
        &mut self,
        lease: Lease,
        sequence: u64,
        now: Duration,
    ) -> Result<(), Refused> {
        let last = self.sequence;
        self.answering(lease, sequence)?
            .acknowledge(sequence, last, now);
        self.note_settled(now);
        Ok(())
    }

    /// Returns the member that answers this instruction.
    fn answering(&mut self, lease: Lease, sequence: u64) -> Result<&mut Member, Refused> {
        let last = self.sequence;
        let member = self.leased(lease).ok_or(Refused::Fenced)?;
        if sequence > last {
            return Err(Refused::Unknown(sequence, last));
        }
        if sequence < member.first {
            return Err(Refused::Earlier(sequence, member.first));
        }
        Ok(member)
    }

    /// Returns whether the lease is in force.
    pub fn holds(&self, lease: Lease) -> bool {
        self.of_lease(lease).is_some()
    }

    fn of_lease(&self, lease: Lease) -> Option<(&Arc<str>, &Member)> {
        self.members
            .iter()
            .find(|(_, member)| member.lease == Some(lease))
    }

    fn leased(&mut self, lease: Lease) -> Option<&mut Member> {
        let mut members = self.members.values_mut();
        members.find(|member| member.lease == Some(lease))
    }

    /// Returns what the member of this lease is to run. `None`: the lease has ended.
    pub fn instruction(&self, lease: Lease) -> Option<Instruction> {
        let (_, member) = self.of_lease(lease)?;
        Some(self.instruct(member.style))
    }

    /// Returns what members of this style are to run.
    pub fn instruct(&self, style: Style) -> Instruction {
        let Window {
            before,
            current,
            next,
        } = &self.window;
        let (before, current, next) = (before.number, current.number, next.number);
        let open = match (style, self.phase) {
            (Style::Push, _) => vec![before, current, next],
            (Style::Single, _) | (Style::List, Phase::Idle) => vec![current],
            (Style::List, Phase::Prepare) => vec![current, next],
            (Style::List, Phase::Activate | Phase::Settle) => vec![current, before],
        };
        Instruction {
            sequence: self.sequence,
            phase: self.phase,
            encrypt: current,
            open,
        }
    }

    /// Returns the key of an epoch. `None`: the ring no longer has it, or not yet.
    pub fn key(&self, number: u64, layout: Layout) -> Option<TicketKey> {
        let epoch = self
            .epochs()
            .into_iter()
            .find(|epoch| epoch.number == number)?;
        Some(epoch.secret.key(&self.name, layout))
    }

    /// Returns the number of the current epoch.
    pub fn epoch(&self) -> u64 {
        self.window.current.number
    }

    pub(crate) fn epochs(&self) -> [&Epoch; 3] {
        [&self.window.before, &self.window.current, &self.window.next]
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Returns the epochs whose tickets are opened now. The daemon can open the next one as soon as any
    /// member may be told to encrypt with it.
    pub(crate) fn opened(&self) -> Vec<&Epoch> {
        match self.phase {
            Phase::Idle => vec![&self.window.current],
            Phase::Prepare => vec![&self.window.current, &self.window.next],
            Phase::Activate | Phase::Settle => vec![&self.window.current, &self.window.before],
        }
    }

    /// Returns the names of the counted members.
    pub(crate) fn counted(&self) -> impl Iterator<Item = &Arc<str>> {
        let counted = self.members.iter().filter(|(_, member)| member.counts);
        counted.map(|(name, _)| name)
    }
}
