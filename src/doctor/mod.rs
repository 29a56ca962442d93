//! What is wrong with a daemon, in words: each finding with its figure and its remedy, worst first.
//!
//! * `resumption`: why clients do not resume
//! * `operation`: limits, certificates, store, log, clocks

mod operation;
mod resumption;
#[cfg(test)]
mod tests;

use tls_sessiond_proto as pb;

/// What is known of a daemon.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'e> {
    /// Its state.
    pub status: &'e pb::GetStatusResponse,
    /// Its recent misses, newest first.
    pub misses: &'e [pb::RecentMiss],
    /// Its recent failures, newest first.
    pub failures: &'e [pb::RecentFailure],
    /// By how many seconds its clock is ahead of that of the caller. `None`: the caller has not
    /// compared them.
    pub clock_offset: Option<i64>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Clients or workers are refused, or will be within days.
    Critical,
    /// Clients make full handshakes that they need not make, or an operator is blind to something.
    Warning,
}

impl Level {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Its name, which does not change between versions.
    pub name: &'static str,
    /// What is wrong, with the figure behind it.
    pub text: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Returns all findings, worst first. None: all is well.
pub fn examine(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    operation::examine(evidence, &mut findings);
    resumption::examine(evidence, &mut findings);
    // A stable sort: the order of the rules is kept among equals.
    findings.sort_by_key(|finding| finding.level);
    findings
}

/// Returns a share in per cent, rounded down. Zero of zero is zero.
fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}
