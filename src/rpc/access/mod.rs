//! The rights of each caller: identities against the rules of `[[access]]`, and calls against the table of rights.

mod caller;
mod grants;
mod peer;
mod rights;

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{each_second::EachSecond, line_budget::LineBudget, status::Refusal};

pub(super) use self::{
    caller::{Caller, named},
    rights::SEES,
};
pub use self::{
    peer::{Identity, Owner, Peer},
    rights::{RIGHTS, Roles},
};

/// Tells streams that the rules have changed, and the log which calls were refused. The rules themselves stand beside the
/// contexts in the [`Registry`](tls_sessiond_core::context::Registry), so that both change at once.
#[derive(Debug)]
pub struct Access {
    changed: watch::Sender<()>,
    began: Instant,
    /// Lines about calls that were refused, of all callers and of each: a flood of one hides no refusal of another.
    refusals: LineBudget,
    refusals_of_one: EachSecond,
    /// Lines about peers that have not proved an identity: a flood of them hides no refused call.
    strangers: LineBudget,
}

/// Lines in a second about refused calls, and about strangers: no more than a person can read.
const REFUSALS: u32 = 100;
const REFUSALS_OF_ONE: u32 = 20;
const STRANGERS: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

impl Access {
    /// Nothing has changed yet.
    pub fn new() -> Self {
        Self {
            changed: watch::Sender::new(()),
            began: Instant::now(),
            refusals: LineBudget::new(REFUSALS, SECOND),
            refusals_of_one: EachSecond::new(REFUSALS_OF_ONE),
            strangers: LineBudget::new(STRANGERS, SECOND),
        }
    }

    /// The table has other rules now: every stream asks for its rights again.
    pub fn rules_changed(&self) {
        self.changed.send_replace(());
    }

    /// A line about a call that was refused.
    pub(super) fn audit(&self, owner: &Arc<str>, refusal: &Refusal, path: Option<&str>) {
        let now = Instant::now();
        if !self.refusals_of_one.admits(owner, now.saturating_duration_since(self.began).as_secs()) {
            return self.refusals.leave_out(now);
        }
        self.refusals_of_one.count(owner);
        if let Some(left_out) = self.refusals.take(now) {
            tracing::info!(target: "audit", %owner, path, %refusal, left_out, "a call was refused");
        }
    }

    /// A line about a peer that proved no identity.
    pub(super) fn audit_stranger(&self, peer: SocketAddr, err: &dyn fmt::Display) {
        if let Some(left_out) = self.strangers.take(Instant::now()) {
            tracing::info!(target: "audit", %peer, %err, left_out, "API client refused: TLS handshake failed");
        }
    }

    /// A line about a caller without a role that has too many connections, or came when all of its kind have.
    pub(super) fn audit_crowd(&self, owner: &str) {
        if let Some(left_out) = self.strangers.take(Instant::now()) {
            tracing::info!(target: "audit", owner, left_out, "API client refused: too many sockets of callers without a role");
        }
    }

    /// Tells how many lines were left out, where no later line does.
    pub fn tell_left_out(&self) {
        for (budget, of) in [(&self.refusals, "refused calls"), (&self.strangers, "failed TLS handshakes")] {
            if let Some(left_out) = budget.left_out(Instant::now()) {
                tracing::info!(target: "audit", of, left_out, "audit lines left out: too many in one second");
            }
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::new()
    }
}
