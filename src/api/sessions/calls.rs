//! Implements SessionService.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tls_sessiond_core::{
    cache::{Cache, EXPECTED_MAX, Look, Missed, NotStored, PendingPut, PoolSearch},
    connection::{
        ConnectionId,
        worker_engine::{NotKept, Put, PutOutcome},
    },
    fleet::{Failure, Purpose},
    session::{Miss, ResumeCriteria, Secret, Session, SessionId},
    state::CoreState,
};
use tls_sessiond_proto as pb;
use tls_sessiond_store::script::{Answer, Request};
use tls_sessiond_types::{Role, Version, server_name::ServerName};
use tokio_util::sync::CancellationToken;

use super::lookup::{AskedLookup, LookedUp, LookupRef, LookupScratch, format, granted, missed};
use crate::{
    api::{
        access::Caller,
        convert,
        convert::within,
        error::Refusal,
        page_token::PageTokens,
        quota::{each_second::EachSecond, turns::Turns},
        role::Roles,
    },
    store::Store,
};

/// Holds the state that the calls of SessionService share.
pub(crate) struct Sessions {
    pub(crate) state: Arc<CoreState>,
    pub(crate) pages: Arc<PageTokens>,
    pub(crate) lists: Arc<Turns>,
    /// Limits the misses of each owner in a second.
    pub(crate) misses: EachSecond,
    pub(crate) draining: CancellationToken,
    /// The store that other daemons share.
    pub(crate) store: Option<Arc<Store>>,
}

/// The outcome of a put.
pub(crate) enum PutDone {
    /// The answer is known.
    Now(pb::PutSessionResponse),
    /// The shared store has to answer: see [`Sessions::stored`].
    Later(Box<PendingPut>, ConnectionId, pb::PutSessionResponse),
}

/// The removal of a session in the shared store.
pub(crate) struct RemovalInStore {
    audit: RemovalAudit,
    request: Request,
}

/// The audit line of a removal. It is written when this is dropped, also if the call is cancelled. In a
/// shared store the keeper delivers the removal then, if the store has not answered, and repeats it
/// after a loss.
struct RemovalAudit {
    owner: Arc<str>,
    context: Arc<str>,
    cache: Arc<Cache>,
    id: SessionId,
    removed: bool,
    /// Whether the id may be that of a session in a ticket.
    may_be_sealed: bool,
    /// Whether the shared store, if there is one, has answered.
    delivered: bool,
}

impl Drop for RemovalAudit {
    fn drop(&mut self) {
        self.cache.queue_removal(&self.id, self.may_be_sealed);
        tracing::info!(
            target: "audit",
            owner = %self.owner,
            context = %self.context,
            session = ?self.id,
            removed = self.removed,
            delivered = self.delivered,
            "RemoveSession"
        );
    }
}

/// The most bytes of a binding.
const BINDING_MAX: usize = 1024;
/// The most bytes of a cipher suite's name, and of a server name.
const CIPHER_SUITE_MAX: usize = 64;
pub(crate) const SERVER_NAME_MAX: usize = 255;

impl Sessions {
    pub(crate) fn put(
        &self,
        by: &Caller,
        request: pb::PutSessionRequest,
    ) -> Result<PutDone, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let registry = self.state.registry();
        self.state
            .connections()
            .authorize(id, |owner, context| by.drives(&registry, owner, context))?;
        let put = self.read_put(request)?;
        let stored = self
            .state
            .connections()
            .with_exclusive(id, |connection, now| {
                match (connection.role(), &put.id) {
                    (Role::Server, None) => return Ok(Err(Refusal::SessionIdRequired)),
                    (Role::Client, Some(_)) => return Ok(Err(Refusal::SessionIdUnexpected)),
                    _ => {}
                }
                Ok(Ok((connection.put_session(put, now)?, now.offset)))
            })??;
        Ok(match stored {
            (PutOutcome::Stored(session, put), offset) => {
                let response = pb::PutSessionResponse {
                    session: Some(convert::session(&session, offset)),
                    ..Default::default()
                };
                match put {
                    None => PutDone::Now(response),
                    Some(put) => PutDone::Later(put, id, response),
                }
            }
            (PutOutcome::NotKept(why), _) => PutDone::Now(not_stored(why)),
        })
    }

    /// Sends a put to the shared store, and returns the response once the store has answered.
    pub(crate) async fn stored(
        &self,
        put: PendingPut,
        id: ConnectionId,
        response: pb::PutSessionResponse,
    ) -> pb::PutSessionResponse {
        let stored = match &self.store {
            Some(store) => store.put(put).await,
            None => Err(NotStored::StoreAway),
        };
        let Err(why) = stored else {
            return response;
        };
        // An error means that the connection was freed meanwhile.
        let _ = self.state.connections().with(id, |connection, _| {
            connection.puts_answered();
            Ok(())
        });
        not_stored(NotKept::Cache(why))
    }

    /// Stores a session, and waits for the shared store.
    pub(crate) async fn put_and_wait(
        &self,
        by: &Caller,
        request: pb::PutSessionRequest,
    ) -> Result<pb::PutSessionResponse, Refusal> {
        Ok(match self.put(by, request)? {
            PutDone::Now(response) => response,
            PutDone::Later(put, id, response) => self.stored(*put, id, response).await,
        })
    }

    fn read_put(&self, request: pb::PutSessionRequest) -> Result<Put, Refusal> {
        if request.data.is_empty() {
            return Err(Refusal::DataRequired);
        }
        within("binding", request.binding.len(), BINDING_MAX)?;
        within("cipher_suite", request.cipher_suite.len(), CIPHER_SUITE_MAX)?;
        within("server_name", request.server_name.len(), SERVER_NAME_MAX)?;
        let version = match pb::ProtocolVersion::try_from(request.version) {
            Ok(pb::ProtocolVersion::Tls12) => Version::Tls12,
            Ok(pb::ProtocolVersion::Tls13) => Version::Tls13,
            Ok(pb::ProtocolVersion::Unspecified) | Err(_) => return Err(Refusal::VersionRequired),
        };
        let timeout = match request.timeout {
            None => None,
            Some(wanted) => Some(
                Duration::try_from(wanted)
                    .ok()
                    .filter(|timeout| !timeout.is_zero())
                    .ok_or(Refusal::TimeoutInvalid)?,
            ),
        };
        let authenticated = match request.authenticate_time {
            None => None,
            Some(told) => {
                let now = self.state.now();
                Some(convert::past(&told, now, now.at).ok_or(Refusal::AuthenticateTimeInvalid)?)
            }
        };
        Ok(Put {
            id: convert::session_id(&request.session_id)?,
            secret: Secret::copied(&request.data),
            format: format(&request.format)?,
            binding: (*request.binding).into(),
            single_use: request.single_use,
            version,
            cipher_suite: request.cipher_suite,
            server_name: ServerName::new(&request.server_name).into_owned(),
            peer: request.peer.map(convert::read_identity).transpose()?,
            timeout,
            authenticated,
        })
    }

    /// Prefetches the sessions of the next lookups, as long as they name the same context and role.
    /// Reports no error: the lookups themselves will.
    pub(crate) fn prefetch<'w>(
        &self,
        by: &Caller,
        moment: &mut LookupScratch,
        wanted: impl Iterator<Item = LookupRef<'w>>,
    ) {
        let mut wanted = wanted.peekable();
        let Some(&LookupRef {
            context: name,
            role: side,
            ..
        }) = wanted.peek()
        else {
            return;
        };
        let Ok(context) = granted(&mut moment.context, &self.state, by, name) else {
            return;
        };
        let Ok(role) = convert::role(side) else {
            return;
        };
        let ids = wanted
            // The limit counts malformed ids too, so that each call of a message is scanned once.
            .take(EXPECTED_MAX)
            .take_while(|wanted| wanted.context == name && wanted.role == side)
            .filter_map(|wanted| convert::session_id(wanted.session_id).ok()?);
        context.cache(role).expect(ids);
    }

    /// Looks up a session. Returns the session, or the reason for the miss. A single-use session is
    /// consumed.
    ///
    /// # Errors
    /// The caller lacks the role `worker` in the context, a field is invalid, or the caller has too
    /// many misses in this second.
    pub(crate) fn find(
        &self,
        by: &Caller,
        moment: &mut LookupScratch,
        wanted: LookupRef<'_>,
    ) -> Result<LookedUp, Refusal> {
        let &mut LookupScratch {
            now,
            ref mut context,
            format: ref mut last,
        } = moment;
        let context = granted(context, &self.state, by, wanted.context)?;
        let role = convert::role(wanted.role)?;
        let id = convert::session_id(wanted.session_id)?;
        let format = match last.take().filter(|last| last.name() == wanted.format) {
            Some(format) => last.insert(format),
            None => last.insert(format(wanted.format)?),
        };
        within("binding", wanted.binding.len(), BINDING_MAX)?;
        within("server_name", wanted.server_name.len(), SERVER_NAME_MAX)?;
        let server_name = ServerName::new(wanted.server_name);
        let terms = ResumeCriteria {
            format,
            binding: wanted.binding,
            versions: &context.versions,
            server_name: &server_name,
            cipher_suite: None,
        };
        if !self.misses.admits(by.owner(), now.at.as_secs()) {
            return Err(Refusal::MissLimit(self.misses.most()));
        }
        Ok(match (role, id) {
            (Role::Server, None) => return Err(Refusal::SessionIdRequired),
            (Role::Client, _) if server_name.is_empty() => {
                return Err(Refusal::LookupTargetRequired);
            }
            (role, id) if context.options.no_session_cache => {
                if let Some(id) = id {
                    let cache = context.cache(role);
                    let missed = Missed {
                        id: &id,
                        server_name: &server_name,
                        owner: by.owner(),
                        why: Miss::CacheOff,
                    };
                    cache.missed(&context.stats, missed, now);
                }
                LookedUp::Missed(pb::MissReason::CacheOff)
            }
            (role, Some(id)) => {
                let cache = context.cache(role);
                match cache.look(&id, &terms, Purpose::Lookup, &context.stats, now) {
                    Look::Done(Ok(found)) => LookedUp::Found(found.session),
                    Look::Done(Err(miss)) => {
                        let missed = Missed {
                            id: &id,
                            server_name: &server_name,
                            owner: by.owner(),
                            why: miss,
                        };
                        cache.missed(&context.stats, missed, now);
                        self.misses.count(by.owner());
                        LookedUp::Missed(convert::miss_reason(miss))
                    }
                    Look::Ask(ask) => LookedUp::Asked(Box::new(AskedLookup {
                        ask,
                        context: Arc::clone(context),
                        role,
                        id,
                        server_name: server_name.into_owned(),
                        owner: Arc::clone(by.owner()),
                    })),
                }
            }
            (Role::Client, None) => match context.client_cache.search(&terms, &context.stats) {
                Some(search) => LookedUp::Searched(Box::new(search)),
                None => match context.client_cache.newest(&terms, now) {
                    Some(session) => LookedUp::Found(session),
                    None => LookedUp::Missed(pb::MissReason::Unknown),
                },
            },
        })
    }

    /// Asks the shared store for a session. Returns the session, or the reason for the miss.
    pub(crate) async fn asked(&self, asked: AskedLookup) -> Result<Arc<Session>, pb::MissReason> {
        let AskedLookup {
            ask,
            context,
            role,
            id,
            server_name,
            owner,
        } = asked;
        let found = match &self.store {
            Some(store) => store.find(ask).await,
            None => Err(Miss::StoreUnavailable),
        };
        found.map(|found| found.session).map_err(|miss| {
            let now = self.state.now();
            let cache = context.cache(role);
            let missed = Missed {
                id: &id,
                server_name: &server_name,
                owner: &owner,
                why: miss,
            };
            cache.missed(&context.stats, missed, now);
            self.misses.count(&owner);
            convert::miss_reason(miss)
        })
    }

    /// Searches the shared store for the newest session of a client.
    pub(crate) async fn searched(
        &self,
        search: PoolSearch,
    ) -> Result<Arc<Session>, pb::MissReason> {
        let found = match &self.store {
            Some(store) => store.newest(search).await,
            None => None,
        };
        found
            .map(|found| found.session)
            .ok_or(pb::MissReason::Unknown)
    }

    pub(crate) async fn lookup(
        &self,
        by: &Caller,
        request: &pb::LookupSessionRequest,
    ) -> Result<pb::LookupSessionResponse, Refusal> {
        let mut moment = LookupScratch::at(self.state.now());
        let looked_up = match self.find(by, &mut moment, request.into())? {
            LookedUp::Asked(asked) => self.asked(*asked).await,
            LookedUp::Searched(search) => self.searched(*search).await,
            LookedUp::Found(session) => Ok(session),
            LookedUp::Missed(miss) => Err(miss),
        };
        Ok(match looked_up {
            Ok(session) => pb::LookupSessionResponse {
                found: true,
                data: session
                    .secret()
                    .as_bytes()
                    .map(Bytes::copy_from_slice)
                    .unwrap_or_default(),
                session: Some(convert::session(&session, moment.now.offset)),
                miss_reason: pb::MissReason::Unspecified.into(),
            },
            Err(miss) => missed(miss),
        })
    }

    /// Removes a session from the memory of this process. Returns the removal in the shared store, if
    /// there is one.
    pub(crate) fn remove_here(
        &self,
        by: &Caller,
        request: &pb::RemoveSessionRequest,
    ) -> Result<(bool, Option<RemovalInStore>), Refusal> {
        let context =
            Arc::clone(by.context(&self.state.registry(), &request.context, Roles::ADMIN)?);
        let role = convert::role(request.role)?;
        let id = convert::session_id(&request.session_id)?.ok_or(Refusal::SessionIdRequired)?;
        let cache = context.cache(role);
        let now = self.state.now();
        let is_sealed = role == Role::Server && context.sealing.is_some();
        let removed = cache.remove(&id, now) || (is_sealed && cache.remove_sealed(&id, now));
        let mut audit = RemovalAudit {
            owner: Arc::clone(by.owner()),
            context: Arc::clone(&context.name),
            cache: Arc::clone(cache),
            id,
            removed,
            may_be_sealed: is_sealed,
            delivered: true,
        };
        // Written when the value is dropped: here, or after the store has answered.
        let in_store = cache.removal(&audit.id, is_sealed).map(|request| {
            audit.delivered = false;
            RemovalInStore { audit, request }
        });
        Ok((removed, in_store))
    }

    /// Removes a session from the shared store. Returns whether it was there.
    pub(crate) async fn remove_in_store(&self, removal: RemovalInStore) -> Result<bool, Refusal> {
        let RemovalInStore { mut audit, request } = removal;
        let answer = match &self.store {
            Some(store) => store.ask(&request).await,
            None => Err(Failure::NotRun),
        };
        match answer {
            Ok(Answer::Done(count)) => {
                audit.delivered = true;
                audit.removed |= count > 0;
                Ok(count > 0)
            }
            Ok(_) | Err(_) => Err(Refusal::StoreAway),
        }
    }

    pub(crate) async fn remove(
        &self,
        by: &Caller,
        request: &pb::RemoveSessionRequest,
    ) -> Result<pb::RemoveSessionResponse, Refusal> {
        let (mut removed, in_store) = self.remove_here(by, request)?;
        if let Some(removal) = in_store {
            removed |= self.remove_in_store(removal).await?;
        }
        Ok(pb::RemoveSessionResponse { removed })
    }
}

fn not_stored(why: NotKept) -> pb::PutSessionResponse {
    let (reason, text) = not_kept(why);
    pb::PutSessionResponse {
        session: None,
        reason: text.into(),
        not_stored_reason: reason.into(),
    }
}

/// Returns the reason not to store a session, as the contract has it in both forms.
fn not_kept(why: NotKept) -> (pb::NotStoredReason, &'static str) {
    match why {
        NotKept::CacheOff => (pb::NotStoredReason::CacheOff, "CACHE_OFF"),
        NotKept::Resumed => (pb::NotStoredReason::Resumed, "RESUMED"),
        NotKept::TooMany => (pb::NotStoredReason::TooMany, "TOO_MANY"),
        NotKept::AuthenticationUnknown => (
            pb::NotStoredReason::AuthenticationUnknown,
            "AUTHENTICATION_UNKNOWN",
        ),
        NotKept::Cache(NotStored::Expired) => (pb::NotStoredReason::Expired, "EXPIRED"),
        NotKept::Cache(NotStored::TooLarge) => (pb::NotStoredReason::TooLarge, "TOO_LARGE"),
        NotKept::Cache(NotStored::IdTaken) => (pb::NotStoredReason::IdTaken, "ID_TAKEN"),
        NotKept::Cache(NotStored::NoRandomness) => {
            (pb::NotStoredReason::NoRandomness, "NO_RANDOMNESS")
        }
        NotKept::Cache(NotStored::Revoked) => (pb::NotStoredReason::Revoked, "REVOKED"),
        NotKept::Cache(NotStored::StoreAway) => {
            (pb::NotStoredReason::StoreUnavailable, "STORE_UNAVAILABLE")
        }
    }
}
