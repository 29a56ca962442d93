//! What is shown of a ring: no key.

use std::time::Duration;

use super::{MemberView, Phase, Ring};

/// The state of a ring at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingView {
    /// The phase.
    pub phase: Phase,
    /// The number of the last instruction.
    pub sequence: u64,
    /// How long the phase has lasted.
    pub since: Duration,
    /// The epoch that the ring encrypts with.
    pub epoch: u64,
    /// How long ago that epoch was activated.
    pub age: Duration,
    /// The epochs whose tickets are opened, the current one first.
    pub opened: Vec<u64>,
    /// Number of rotations since the ring began.
    pub rotations: u64,
    /// Whether an emergency rotation is under way.
    pub is_emergency: bool,
    /// The members, by name.
    pub members: Vec<MemberView>,
}

/// What members have to hear of: a new instruction, leases that have ended, other keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    sequence: u64,
    leases: u64,
    members: usize,
    run: [u8; 16],
}

impl Ring {
    /// Returns what members have to hear of. It differs from that of before if there is something new.
    pub fn news(&self) -> News {
        News {
            sequence: self.sequence,
            leases: self.leases,
            members: self.members.len(),
            run: self.run,
        }
    }

    /// Returns the state of the ring, without keys.
    pub fn view(&self, now: Duration) -> RingView {
        let members = self.members.iter();
        RingView {
            phase: self.phase,
            sequence: self.sequence,
            since: now.saturating_sub(self.since),
            epoch: self.window.current.number,
            age: now.saturating_sub(self.activated),
            opened: self.opened().iter().map(|epoch| epoch.number).collect(),
            rotations: self.rotations,
            is_emergency: self.is_emergency,
            members: members
                .map(|(name, member)| member.view(name, self.sequence, now))
                .collect(),
        }
    }
}
