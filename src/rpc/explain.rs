//! ExplainSession: why somebody does or does not resume.

use tls_sessiond_core::{
    cache::{
        Known,
        tombstones::{DEPARTURES_MAX, Departure},
    },
    clock::WallOffset,
    session::{Miss, RemovalReason},
};

use super::{
    access::{Caller, Roles},
    convert,
    sessions::{Sessions, caches},
    status::Refusal,
};
use crate::proto as pb;

impl Sessions {
    pub(super) fn explain(
        &self,
        by: &Caller,
        request: &pb::ExplainSessionRequest,
    ) -> Result<pb::ExplainSessionResponse, Refusal> {
        let registry = self.table.registry();
        let context = by.context(&registry, &request.context, Roles::OBSERVER)?;
        let role = convert::role(request.role)?;
        let id = convert::session_id(&request.session_id)?.ok_or(Refusal::SessionIdRequired)?;
        let now = self.table.now();
        let mut told = match context.cache(role).explain(&id, now) {
            Known::Held(session, miss) => pb::ExplainSessionResponse {
                resumable: miss.is_none(),
                session: Some(convert::session(&session, now.offset)),
                miss_reason: miss.map_or(pb::MissReason::Unspecified, convert::miss_reason).into(),
                summary: match miss {
                    None => format!(
                        "It is resumed by whoever offers it with its own format, binding, version and server \
                         name; {} s are left of its life.",
                        session.expires().since(now.at).as_secs()
                    ),
                    Some(Miss::Revoked) => "It is revoked, and about to leave the cache.".into(),
                    Some(_) => "Its life is over, and it is about to leave the cache.".into(),
                },
                ..Default::default()
            },
            Known::Departed(departure) => departed(&departure, now.offset),
            Known::Nothing => {
                let seen = caches(&registry, by, "", Roles::OBSERVER)?;
                let foreign = seen.iter().any(|cache| cache.peek(&id, now).is_some());
                match (foreign, context.formerly(role, &id)) {
                    (true, _) => pb::ExplainSessionResponse {
                        miss_reason: pb::MissReason::Scope.into(),
                        summary: "It is in the cache of another scope or role, and is not found from here."
                            .into(),
                        ..Default::default()
                    },
                    (false, Some(departure)) => formerly_departed(&departure, now.offset),
                    (false, None) => pb::ExplainSessionResponse {
                        miss_reason: pb::MissReason::Unknown.into(),
                        summary: format!(
                            "It was never in this scope, or left before the last {DEPARTURES_MAX} of its kind that \
                             are remembered, or the daemon has been restarted since."
                        ),
                        ..Default::default()
                    },
                }
            }
        };
        if context.options.no_session_cache {
            told.resumable = false;
            told.miss_reason = pb::MissReason::CacheOff.into();
            told.summary = "The context has the option no-session-cache: nothing is resumed.".into();
        }
        Ok(told)
    }
}

/// A departure from a scope that a reload has replaced. Lookups know nothing of it.
fn formerly_departed(departure: &Departure, offset: WallOffset) -> pb::ExplainSessionResponse {
    let told = departed(departure, offset);
    pb::ExplainSessionResponse {
        miss_reason: pb::MissReason::Unknown.into(),
        summary: format!("A reload has since replaced the scope of the context. {}", told.summary),
        ..told
    }
}

fn departed(departure: &Departure, offset: WallOffset) -> pb::ExplainSessionResponse {
    pb::ExplainSessionResponse {
        miss_reason: convert::miss_reason(departure.miss()).into(),
        removal_reason: convert::removal_reason(departure.reason).into(),
        remove_time: Some(convert::timestamp(offset.wall(departure.at))),
        summary: format!(
            "It was made under context `{}` and left the cache: {}.",
            departure.kind.account.name,
            match departure.reason {
                RemovalReason::Unclosed => {
                    "its connection was cleared, freed or lost while open, the SENT flag not set"
                }
                RemovalReason::FatalAlert => {
                    "a fatal alert, or an end without close_notify, ended one of its connections"
                }
                RemovalReason::Expired => "its life was over",
                RemovalReason::CacheFull => "the cache was full and nobody had asked for it lately",
                RemovalReason::Taken => "it is single-use and was handed out",
                RemovalReason::Removed => "RemoveSession",
                RemovalReason::Revoked => "RevokeSessions",
                RemovalReason::ScopeChanged => {
                    "a reload changed what decides who may resume, for example the certificate or the trust anchors"
                }
            }
        ),
        ..Default::default()
    }
}
