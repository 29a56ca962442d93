//! What a ring knows of one server.

use std::{sync::Arc, time::Duration};

use super::Lease;

/// How a server takes its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Style {
    /// A list: the first key encrypts, and all open. nginx, Envoy, Go.
    List,
    /// Three keys in the order of their epochs, of which the second encrypts. A push appends one and
    /// drops the oldest. HAProxy.
    Push,
    /// One key. Each rotation costs its clients one full handshake. Apache, Node.
    Single,
}

/// The way to a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The identity that owns its stream. Empty: it is of an earlier process.
    pub owner: Arc<str>,
    /// The daemon that has its stream.
    pub daemon: u64,
}

/// One server.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// `None`: it is away.
    pub(super) lease: Option<Lease>,
    /// The last way to it.
    pub(super) by: Attachment,
    pub(super) style: Style,
    /// Whether the ring waits for it: it has run the last instruction once.
    pub(super) counts: bool,
    /// The number of the last instruction that it runs. 0: it is not known.
    pub(super) acknowledged: u64,
    /// The number of the first instruction of its lease.
    pub(super) first: u64,
    /// When it acknowledged the last time.
    pub(super) seen: Duration,
    /// When it joined the last time: the ring waits for it from then on at the earliest.
    pub(super) joined: Duration,
    /// Why it did not run an instruction, in its own words.
    pub(super) trouble: Option<Arc<str>>,
    /// Whether it was told to be late in this phase.
    pub(super) is_late: bool,
}

impl Member {
    /// Returns a member of an earlier process: it counts, and is away.
    pub(super) fn away(now: Duration) -> Self {
        Self {
            counts: true,
            ..Self::new(now)
        }
    }

    /// Returns a member that does not count yet.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            lease: None,
            by: Attachment::default(),
            style: Style::List,
            counts: false,
            acknowledged: 0,
            first: 0,
            seen: now,
            joined: now,
            trouble: None,
            is_late: false,
        }
    }

    /// `first`: the number of the first instruction of the lease.
    pub(super) fn attach(
        &mut self,
        lease: Lease,
        style: Style,
        by: &Attachment,
        first: u64,
        now: Duration,
    ) {
        self.lease = Some(lease);
        self.by = by.clone();
        self.first = first;
        self.style = style;
        self.acknowledged = 0;
        self.seen = now;
        self.joined = now;
        self.trouble = None;
        self.is_late = false;
    }

    pub(super) fn detach(&mut self, now: Duration) {
        self.lease = None;
        self.seen = now;
    }

    /// `last`: the number of the last instruction.
    pub(super) fn acknowledge(&mut self, sequence: u64, last: u64, now: Duration) {
        self.acknowledged = self.acknowledged.max(sequence);
        self.seen = now;
        // Before it runs the last instruction, others may encrypt with an epoch that it cannot open.
        self.counts |= sequence == last;
        if sequence == last {
            self.trouble = None;
            self.is_late = false;
        }
    }

    /// Counts the acknowledgement of the instruction before `sequence` as one of `sequence`.
    pub(super) fn carry(&mut self, sequence: u64) {
        if self.acknowledged + 1 == sequence {
            self.acknowledged = sequence;
        }
    }

    pub(super) fn view(&self, name: &Arc<str>, last: u64, now: Duration) -> MemberView {
        MemberView {
            name: Arc::clone(name),
            style: self.style,
            by: self.by.clone(),
            is_attached: self.lease.is_some(),
            counts: self.counts,
            acknowledged: self.acknowledged,
            behind: (self.counts && self.acknowledged < last)
                .then(|| now.saturating_sub(self.seen)),
            trouble: self.trouble.clone(),
            is_late: self.is_late,
        }
    }
}

/// A member at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its name.
    pub name: Arc<str>,
    /// How it takes keys.
    pub style: Style,
    /// The last way to it.
    pub by: Attachment,
    /// Whether it is attached. The ring goes on to wait for a counted member that is not.
    pub is_attached: bool,
    /// Whether the ring waits for it.
    pub counts: bool,
    /// The number of the last instruction that it runs.
    pub acknowledged: u64,
    /// How long ago it was heard of, if it does not run the last instruction.
    pub behind: Option<Duration>,
    /// Why it did not run an instruction.
    pub trouble: Option<Arc<str>>,
    /// Whether the phase waits for it longer than `members_wait`.
    pub is_late: bool,
}
