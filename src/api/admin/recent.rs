//! ListMisses and ListFailures.

use std::sync::Arc;

use tls_sessiond_core::{
    cache::Known,
    clock::Now,
    context::Context,
    session::{events::MissEvent, recent::RECENT_MAX},
};
use tls_sessiond_proto as pb;
use tls_sessiond_types::hex;

use super::{Admin, status::View};
use crate::api::{
    access::{Caller, Peer},
    convert,
    error::Refusal,
    role::Roles,
};

/// Returns how many events an answer has at most.
fn most(page_size: u32) -> usize {
    match usize::try_from(page_size) {
        Ok(size @ 1..=RECENT_MAX) => size,
        _ => RECENT_MAX,
    }
}

/// Returns the context whose cache has a session that a lookup of another context has missed.
fn other_context(view: &View, miss: &MissEvent, now: Now) -> String {
    let mut all = view.registry.all().iter();
    let missed = view.registry.get(&miss.context);
    let has_it = |context: &&Arc<Context>| {
        let cache = context.cache(miss.role);
        let is_same = missed.is_some_and(|missed| Arc::ptr_eq(missed.cache(miss.role), cache));
        !is_same
            && view.shows(&context.name)
            && matches!(cache.explain(&miss.id, now), Known::Held(_, None))
    };
    let found = all.find(has_it);
    found
        .map(|context| context.name.to_string())
        .unwrap_or_default()
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

    /// Returns the recent misses and failures that this peer may see, newest first.
    pub(crate) fn recent(&self, peer: &Peer) -> (Vec<pb::RecentMiss>, Vec<pb::RecentFailure>) {
        let view = View::of_peer(peer, &self.state);
        let misses = self.misses_in(&view, &pb::ListMissesRequest::default());
        let failures = self.failures_in(&view, &pb::ListFailuresRequest::default());
        (misses, failures)
    }

    pub(super) fn misses(
        &self,
        by: &Caller,
        request: &pb::ListMissesRequest,
    ) -> Result<pb::ListMissesResponse, Refusal> {
        let view = self.view_of(by, &request.context)?;
        let misses = self.misses_in(&view, request);
        Ok(pb::ListMissesResponse { misses })
    }

    fn misses_in(&self, view: &View, request: &pb::ListMissesRequest) -> Vec<pb::RecentMiss> {
        let shows = |context: &str| view.shows_only(&request.context, context);
        let now = self.state.now();
        let offset = now.offset;
        let recent = &view.registry.ledger().recent.misses;
        let misses = recent.newest(most(request.page_size), |miss| {
            let is_wanted =
                request.reason == 0 || request.reason == i32::from(convert::miss_reason(miss.why));
            is_wanted && shows(&miss.context)
        });
        let misses = misses.into_iter();
        misses
            .map(|miss| pb::RecentMiss {
                time: Some(convert::timestamp(offset.wall(miss.at))),
                reason: convert::miss_reason(miss.why).into(),
                context: miss.context.to_string(),
                role: pb::Role::from(miss.role).into(),
                server_name: miss.server_name.to_string(),
                owner: miss.owner.to_string(),
                session_id_prefix: hex::string(miss.id.prefix()),
                other_context: other_context(view, &miss, now),
            })
            .collect()
    }

    pub(super) fn failures(
        &self,
        by: &Caller,
        request: &pb::ListFailuresRequest,
    ) -> Result<pb::ListFailuresResponse, Refusal> {
        let view = self.view_of(by, &request.context)?;
        let failures = self.failures_in(&view, request);
        Ok(pb::ListFailuresResponse { failures })
    }

    fn failures_in(
        &self,
        view: &View,
        request: &pb::ListFailuresRequest,
    ) -> Vec<pb::RecentFailure> {
        let shows = |context: &str| view.shows_only(&request.context, context);
        let offset = self.state.now().offset;
        let recent = &view.registry.ledger().recent.failures;
        let failures = recent.newest(most(request.page_size), |failure| shows(&failure.context));
        let failures = failures.into_iter();
        failures
            .map(|failure| pb::RecentFailure {
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
            })
            .collect()
    }
}
