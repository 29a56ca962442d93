//! The membership of a server in a ring.

use std::sync::Arc;

use tls_sessiond_keys::{
    epoch::{Layout, TicketKey},
    ring::{Attachment, Instruction, Lease, Refused, Style},
};
use tokio::sync::watch;

use super::{desk::RingDesk, not_shared::NotShared};

/// The membership of a server. Dropping it means that the way to the server is lost.
pub(crate) struct Membership {
    desk: Arc<RingDesk>,
    lease: Lease,
    changed: watch::Receiver<()>,
    has_left: bool,
}

/// Why a server is not a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotJoined {
    /// The ring is no longer there.
    Gone,
    /// The ring refuses it.
    Refused(Refused),
    /// The ring was not reached.
    NotShared(NotShared),
}

impl RingDesk {
    /// Makes a server a member. Its stream holds the membership.
    ///
    /// # Errors
    /// See [`NotJoined`].
    pub(crate) async fn join(
        self: &Arc<Self>,
        member: &str,
        style: Style,
        owner: &Arc<str>,
    ) -> Result<Membership, NotJoined> {
        let changed = self.subscribe().ok_or(NotJoined::Gone)?;
        let by = Attachment {
            owner: Arc::clone(owner),
            daemon: self.daemon(),
        };
        let joined = self.make_member(|ring, now| ring.join(member, style, &by, now));
        let lease = joined
            .await
            .map_err(NotJoined::NotShared)?
            .map_err(NotJoined::Refused)?;
        // A stream that this one replaces must notice.
        self.notify();
        Ok(Membership {
            desk: Arc::clone(self),
            lease,
            changed,
            has_left: false,
        })
    }
}

impl Membership {
    /// Returns the instruction, and its keys. `None`: the lease has ended.
    pub(crate) fn instruction(
        &self,
        layout: Layout,
    ) -> Option<(Instruction, Vec<(u64, TicketKey)>)> {
        let read = self.desk.read(|ring, _| {
            let instruction = ring.instruction(self.lease)?;
            let keys = instruction.open.iter().filter_map(|epoch| {
                let key = ring.key(*epoch, layout)?;
                Some((*epoch, key))
            });
            let keys = keys.collect();
            Some((instruction, keys))
        });
        read.flatten()
    }

    /// Waits for a change of the ring. Returns false if the ring is no longer there.
    pub(crate) async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }

    /// Takes an acknowledgement.
    ///
    /// # Errors
    /// As [`tls_sessiond_keys::ring::Ring::acknowledge`], inside. Outside: the ring was not reached.
    pub(crate) async fn acknowledge(
        &self,
        sequence: u64,
    ) -> Result<Result<(), Refused>, NotShared> {
        let change = self
            .desk
            .change(|ring, now| ring.acknowledge(self.lease, sequence, now));
        change.await
    }

    /// Takes a refusal.
    ///
    /// # Errors
    /// As [`Self::acknowledge`].
    pub(crate) async fn refuse(
        &self,
        sequence: u64,
        why: &str,
    ) -> Result<Result<(), Refused>, NotShared> {
        let change = self
            .desk
            .change(|ring, _| ring.refuse(self.lease, sequence, why));
        change.await
    }

    /// Ends the membership for good. If the ring is not reached, it ends as soon as it is.
    pub(crate) async fn leave(mut self) {
        self.has_left = true;
        self.desk.leave(self.lease).await;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !self.has_left {
            self.desk.part(self.lease);
        }
    }
}
