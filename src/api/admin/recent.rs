//! ListMisses and ListFailures.

use tls_sessiond_core::session::recent::RECENT_MAX;
use tls_sessiond_proto as pb;
use tls_sessiond_types::hex;

use super::{Admin, status::View};
use crate::api::{access::Caller, convert, error::Refusal, role::Roles};

/// Returns how many events an answer has at most.
fn most(page_size: u32) -> usize {
    match usize::try_from(page_size) {
        Ok(size @ 1..=RECENT_MAX) => size,
        _ => RECENT_MAX,
    }
}

impl Admin {
    /// Returns what a caller sees. A `context` that is named must be one of these.
    fn view_of(&self, by: &Caller, context: &str) -> Result<View, Refusal> {
        let view = View::of(by, &self.state);
        if !context.is_empty() {
            by.context(&view.registry, context, Roles::OBSERVER)?;
        }
        Ok(view)
    }

    pub(super) fn misses(
        &self,
        by: &Caller,
        request: &pb::ListMissesRequest,
    ) -> Result<pb::ListMissesResponse, Refusal> {
        let view = self.view_of(by, &request.context)?;
        let shows = |context: &str| view.shows_only(&request.context, context);
        let offset = self.state.now().offset;
        let recent = &view.registry.ledger().recent.misses;
        let misses = recent.newest(most(request.page_size), |miss| {
            let is_wanted =
                request.reason == 0 || request.reason == i32::from(convert::miss_reason(miss.why));
            is_wanted && shows(&miss.context)
        });
        let shown = misses.into_iter().map(|miss| pb::RecentMiss {
            time: Some(convert::timestamp(offset.wall(miss.at))),
            reason: convert::miss_reason(miss.why).into(),
            context: miss.context.to_string(),
            role: pb::Role::from(miss.role).into(),
            server_name: miss.server_name.to_string(),
            owner: miss.owner.to_string(),
            session_id_prefix: hex::string(miss.id.prefix()),
        });
        Ok(pb::ListMissesResponse {
            misses: shown.collect(),
        })
    }

    pub(super) fn failures(
        &self,
        by: &Caller,
        request: &pb::ListFailuresRequest,
    ) -> Result<pb::ListFailuresResponse, Refusal> {
        let view = self.view_of(by, &request.context)?;
        let shows = |context: &str| view.shows_only(&request.context, context);
        let offset = self.state.now().offset;
        let recent = &view.registry.ledger().recent.failures;
        let failures = recent.newest(most(request.page_size), |failure| shows(&failure.context));
        let shown = failures.into_iter().map(|failure| pb::RecentFailure {
            time: Some(convert::timestamp(offset.wall(failure.at))),
            alert: failure.alert.map(convert::alert),
            reason: failure.reason.into(),
            context: failure.context.to_string(),
            role: pb::Role::from(failure.role).into(),
            engine: match failure.in_daemon {
                true => pb::Engine::Daemon,
                false => pb::Engine::Worker,
            }
            .into(),
            server_name: failure.server_name.to_string(),
            owner: failure.owner.to_string(),
            peer_address: failure.peer_address.into(),
        });
        Ok(pb::ListFailuresResponse {
            failures: shown.collect(),
        })
    }
}
