//! ExplainSession: whether a session can be resumed, and why not.

use tls_sessiond_core::{
    cache::{
        Ask, Known, Look,
        tombstones::{TOMBSTONES_MAX, Tombstone},
    },
    clock::{Now, WallOffset},
    context::Context,
    session::{Miss, RemovalReason, Session, SessionId, sealing::HANDLE_BYTES},
};
use tls_sessiond_proto as pb;
use tls_sessiond_types::Role;

use super::{calls::Sessions, reach::caches};
use crate::api::{access::Caller, convert, error::Refusal, role::Roles};

impl Sessions {
    pub(crate) async fn explain(
        &self,
        by: &Caller,
        request: &pb::ExplainSessionRequest,
    ) -> Result<pb::ExplainSessionResponse, Refusal> {
        let (told, ask) = self.explain_here(by, request)?;
        let (Some(ask), Some(store)) = (ask, &self.store) else {
            return Ok(told);
        };
        let now = self.state.now();
        Ok(match store.explain(ask).await {
            Ok(found) => shared(&found.session, now),
            Err((Miss::Unknown, _)) => pb::ExplainSessionResponse {
                summary: format!("The shared store does not have it. {}", told.summary),
                ..told
            },
            Err((miss, removal)) => missed_in_store(miss, removal),
        })
    }

    /// Explains a session by what this daemon knows. Returns the lookup in the shared store, if that
    /// may know more.
    fn explain_here(
        &self,
        by: &Caller,
        request: &pb::ExplainSessionRequest,
    ) -> Result<(pb::ExplainSessionResponse, Option<Box<Ask>>), Refusal> {
        let registry = self.state.registry();
        let context = by.context(&registry, &request.context, Roles::OBSERVER)?;
        let role = convert::role(request.role)?;
        let id = convert::session_id(&request.session_id)?.ok_or(Refusal::SessionIdRequired)?;
        let now = self.state.now();
        let mut ask = None;
        let mut told = match context.cache(role).explain(&id, now) {
            Known::Held(session, miss) => pb::ExplainSessionResponse {
                resumable: miss.is_none(),
                session: Some(convert::session(&session, now.offset)),
                miss_reason: miss
                    .map_or(pb::MissReason::Unspecified, convert::miss_reason)
                    .into(),
                summary: match miss {
                    None => format!(
                        "It can be resumed by a lookup or handshake with its format, binding, version and \
                         server name; it expires in {} s.",
                        session.expires().since(now.at).as_secs()
                    ),
                    Some(Miss::Revoked) => {
                        "It is revoked, and will be removed from the cache.".into()
                    }
                    Some(_) => "It has expired, and will be removed from the cache.".into(),
                },
                ..Default::default()
            },
            Known::Departed(departure) => departed(&departure, now.offset),
            Known::Nothing => {
                match context.cache(role).peek_shared(&id, &context.stats, now) {
                    Some(Look::Ask(asks)) => ask = Some(asks),
                    Some(Look::Done(Err(miss))) => return Ok((missed_in_store(miss, None), None)),
                    Some(Look::Done(Ok(_))) | None => {}
                }
                let seen = caches(&registry, by, "", Roles::OBSERVER)?;
                let foreign = seen.iter().any(|cache| cache.peek(&id, now).is_some());
                match (foreign, context.formerly(role, &id)) {
                    (true, _) => pb::ExplainSessionResponse {
                        miss_reason: pb::MissReason::Scope.into(),
                        summary: "It is in the cache of another scope or role, and no lookup here finds it."
                            .into(),
                        ..Default::default()
                    },
                    (false, Some(departure)) => formerly_departed(&departure, now.offset),
                    (false, None) if may_be_sealed(context, role, &id) => {
                        pb::ExplainSessionResponse {
                            miss_reason: pb::MissReason::Unknown.into(),
                            summary: SEALED_ELSEWHERE.into(),
                            ..Default::default()
                        }
                    }
                    (false, None) => pb::ExplainSessionResponse {
                        miss_reason: pb::MissReason::Unknown.into(),
                        summary: format!(
                            "It was never in this scope, or the daemon was restarted since, or its removal is \
                             forgotten: the daemon remembers at most {TOMBSTONES_MAX} removals of each kind."
                        ),
                        ..Default::default()
                    },
                }
            }
        };
        if context.options.no_session_cache {
            ask = None;
            told.resumable = false;
            told.miss_reason = pb::MissReason::CacheOff.into();
            told.summary =
                "The context has the option no-session-cache: no session is resumed.".into();
        }
        Ok((told, ask))
    }
}

/// What is told of a session that may be in a ticket.
const SEALED_ELSEWHERE: &str = "The context seals sessions in the tickets of its clients, and the daemon has none of these: the session may be good. It is \
                                not among the removals that the daemon remembers.";

/// Returns whether an id may be that of a session in a ticket.
fn may_be_sealed(context: &Context, role: Role, id: &SessionId) -> bool {
    role == Role::Server && context.sealing.is_some() && id.as_bytes().len() == HANDLE_BYTES
}

/// Explains a session that the shared store has.
fn shared(session: &Session, now: Now) -> pb::ExplainSessionResponse {
    let open = match session.open_connections() {
        1 => "1 open connection".to_owned(),
        count => format!("{count} open connections"),
    };
    pb::ExplainSessionResponse {
        resumable: true,
        session: Some(convert::session(session, now.offset)),
        summary: format!(
            "The shared store has it, and any daemon of this scope can resume it with its format, binding, version \
             and server name; it is held by {open}; it \
             expires in {} s.",
            session.expires().since(now.at).as_secs()
        ),
        ..Default::default()
    }
}

fn missed_in_store(miss: Miss, removal: Option<RemovalReason>) -> pb::ExplainSessionResponse {
    pb::ExplainSessionResponse {
        miss_reason: convert::miss_reason(miss).into(),
        removal_reason: removal.map_or_else(Default::default, |why| {
            convert::removal_reason(why).into()
        }),
        summary: match (miss, removal) {
            (_, Some(why)) => format!(
                "A daemon removed it from the shared store: {}.",
                why_removed(why)
            ),
            (Miss::Removed, None) => {
                "It was removed from the shared store: its daemon did not know whether the store had it.".into()
            }
            (Miss::HolderLost, _) => {
                "The shared store has it, but a daemon that holds it open has died or is cut off: its connection may \
                 have ended unclosed. If that daemon comes back, the session can be resumed again."
                    .into()
            }
            (Miss::Expired, _) => "It has expired, and the shared store will forget it.".into(),
            (Miss::Revoked, _) => "It is revoked: the shared store has it, and no daemon resumes it.".into(),
            _ => "The shared store did not answer, or what it has does not open with a key of this daemon.".into(),
        },
        ..Default::default()
    }
}

/// Explains a tombstone of a scope that a reload has replaced. The miss reason is `UNKNOWN`,
/// because lookups do not consult such tombstones.
fn formerly_departed(departure: &Tombstone, offset: WallOffset) -> pb::ExplainSessionResponse {
    let told = departed(departure, offset);
    pb::ExplainSessionResponse {
        miss_reason: pb::MissReason::Unknown.into(),
        summary: format!(
            "A reload has since replaced the scope of the context. {}",
            told.summary
        ),
        ..told
    }
}

fn departed(departure: &Tombstone, offset: WallOffset) -> pb::ExplainSessionResponse {
    pb::ExplainSessionResponse {
        miss_reason: convert::miss_reason(departure.miss()).into(),
        removal_reason: convert::removal_reason(departure.reason).into(),
        remove_time: Some(convert::timestamp(offset.wall(departure.at))),
        summary: format!(
            "It was made under context `{}` and was removed from the cache: {}.",
            departure.kind.account.name,
            why_removed(departure.reason)
        ),
        ..Default::default()
    }
}

fn why_removed(reason: RemovalReason) -> &'static str {
    match reason {
        RemovalReason::Unclosed => {
            "its connection was cleared, freed or lost while open (its SENT flag was not set)"
        }
        RemovalReason::FatalAlert => {
            "a fatal alert, or an end without close_notify, ended one of its connections"
        }
        RemovalReason::Expired => "it expired",
        RemovalReason::CacheFull => "the cache was full, and it had not been used lately",
        RemovalReason::Taken => "it is single-use and was handed out",
        RemovalReason::Removed => "RemoveSession removed it",
        RemovalReason::Revoked => "RevokeSessions revoked it",
        RemovalReason::ScopeChanged => {
            "a reload changed the scope of the context, for example its certificate or trust anchors"
        }
    }
}
