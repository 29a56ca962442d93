//! Access control: matches identities against the `[[access]]` rules, and calls against the table
//! of rights.

mod caller;
mod identity;
mod rights;
mod rules;

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    error::Refusal,
    quota::{each_second::EachSecond, line_budget::LineBudget},
};

pub(crate) use self::{
    caller::{Caller, named},
    rules::Grants,
};
pub use self::{
    identity::{Identity, Owner, Peer},
    rights::{IN_ALL_CONTEXTS, RIGHTS},
};

/// Notifies streams of changed rules, and writes the audit log. The rules themselves are part of
/// the [`Registry`](tls_sessiond_core::context::Registry), so that rules and contexts change together.
#[derive(Debug)]
pub struct Access {
    changed: watch::Sender<()>,
    began: Instant,
    /// Budgets of lines about refused calls, for all callers together and for each owner. A flood
    /// of one owner does not hide the refusals of another.
    refusals: LineBudget,
    refusals_of_one: EachSecond,
    /// Budget of lines about peers without a proved identity. A flood of them does not hide refused
    /// calls.
    strangers: LineBudget,
}

/// Audit lines per second: about refused calls of all owners, about those of one owner, and about
/// peers without a proved identity. An operator can read that many.
const REFUSALS: u32 = 100;
const REFUSALS_OF_ONE: u32 = 20;
const STRANGERS: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

impl Access {
    /// Creates an instance with full line budgets.
    pub fn new() -> Self {
        Self {
            changed: watch::Sender::new(()),
            began: Instant::now(),
            refusals: LineBudget::new(REFUSALS, SECOND),
            refusals_of_one: EachSecond::new(REFUSALS_OF_ONE),
            strangers: LineBudget::new(STRANGERS, SECOND),
        }
    }

    /// Notifies all streams that the registry has new rules. Each stream checks its rights again.
    pub fn rules_changed(&self) {
        self.changed.send_replace(());
    }

    /// Writes an audit line about a refused call.
    pub(crate) fn audit(&self, owner: &Arc<str>, refusal: &Refusal, path: Option<&str>) {
        let now = Instant::now();
        if !self
            .refusals_of_one
            .admits(owner, now.saturating_duration_since(self.began).as_secs())
        {
            return self.refusals.leave_out(now);
        }
        self.refusals_of_one.count(owner);
        if let Some(left_out) = self.refusals.take(now) {
            tracing::info!(target: "audit", %owner, path, %refusal, left_out, "a call was refused");
        }
    }

    /// Writes an audit line about a peer that was refused before it proved an identity.
    pub(crate) fn audit_stranger(&self, peer: SocketAddr, err: &dyn fmt::Display) {
        if let Some(left_out) = self.strangers.take(Instant::now()) {
            tracing::info!(target: "audit", %peer, %err, left_out, "API client refused: TLS handshake failed");
        }
    }

    /// Writes an audit line about a caller without a role that was refused because it, or all such
    /// callers together, have too many sockets.
    pub(crate) fn audit_crowd(&self, owner: &str) {
        if let Some(left_out) = self.strangers.take(Instant::now()) {
            tracing::info!(target: "audit", owner, left_out, "API client refused: too many sockets of callers without a role");
        }
    }

    /// Logs how many audit lines were left out in the last second, unless a later line has logged
    /// it.
    pub fn tell_left_out(&self) {
        for (budget, of) in [
            (&self.refusals, "refused calls"),
            (&self.strangers, "failed TLS handshakes"),
        ] {
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
