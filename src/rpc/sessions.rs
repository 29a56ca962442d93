//! Implements SessionService.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tls_sessiond_core::{
    cache::{Cache, EXPECTED_MAX, NotStored},
    clock::Now,
    connection::{
        Table,
        worker_engine::{NotKept, Put},
    },
    context::{Context, Registry},
    session::{Format, Miss, Secret, Session, Terms},
};
use tls_sessiond_proto::{self as pb, session_service_server::SessionService};
use tls_sessiond_types::{Role, Version, server_name::ServerName};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};

use super::{
    access::{Caller, Roles, named},
    connections::{answer, caller},
    convert,
    each_second::EachSecond,
    edge::Deadline,
    page::Pages,
    status::Refusal,
    turns::Turns,
    watch::Watched,
};

/// Holds the state that the calls of SessionService share.
pub(super) struct Sessions {
    pub(super) table: Arc<Table>,
    pub(super) pages: Arc<Pages>,
    pub(super) lists: Arc<Turns>,
    /// Limits the misses of each owner in a second.
    pub(super) misses: EachSecond,
    pub(super) draining: CancellationToken,
}

/// State shared by consecutive lookups of one batch: the time, the last context, the last format.
#[derive(Default)]
pub(super) struct Moment {
    pub(super) now: Now,
    /// The context of the last lookup. Its caller has the role `worker` there.
    context: Option<Arc<Context>>,
    /// The format of the last lookup.
    format: Option<Format>,
}

impl Moment {
    pub(super) fn at(now: Now) -> Self {
        Self { now, ..Self::default() }
    }

    /// Sets the time for the next lookups.
    pub(super) fn begin(&mut self, now: Now) {
        self.now = now;
    }

    /// Ends a run of consecutive lookups. Drops the context, because a reload may change contexts
    /// and rights before the next run, and because a waiting stream must not keep an old context
    /// alive.
    pub(super) fn end(&mut self) {
        self.context = None;
    }
}

/// Returns the context of this name, in which the caller has the role `worker`. Takes it from the
/// last lookup if the name is the same, else from the current registry.
///
/// # Errors
/// Those of [`Caller::context`].
fn granted<'l>(
    last: &'l mut Option<Arc<Context>>,
    table: &Table,
    by: &Caller,
    name: &str,
) -> Result<&'l Arc<Context>, Refusal> {
    let name = named(name);
    let context = match last.take().filter(|last| *last.name == *name) {
        Some(context) => context,
        None => Arc::clone(by.context(&table.registry(), name, Roles::WORKER)?),
    };
    Ok(last.insert(context))
}

/// The fields of a LookupSession request, borrowed from its message.
#[derive(Clone, Copy, Default)]
pub(super) struct Wanted<'r> {
    pub(super) context: &'r str,
    pub(super) role: i32,
    /// Hex digits, if the id is well-formed.
    pub(super) session_id: &'r [u8],
    pub(super) server_name: &'r str,
    pub(super) format: &'r str,
    pub(super) binding: &'r [u8],
}

impl<'r> From<&'r pb::LookupSessionRequest> for Wanted<'r> {
    fn from(request: &'r pb::LookupSessionRequest) -> Self {
        Self {
            context: &request.context,
            role: request.role,
            session_id: request.session_id.as_bytes(),
            server_name: &request.server_name,
            format: &request.format,
            binding: &request.binding,
        }
    }
}

/// The most bytes of a binding.
const BINDING_MAX: usize = 1024;
/// The most bytes of a cipher suite's name, and of a server name.
const CIPHER_SUITE_MAX: usize = 64;
pub(super) const SERVER_NAME_MAX: usize = 255;

/// Checks that a field has at most `max` bytes.
pub(super) fn within(field: &'static str, length: usize, max: usize) -> Result<(), Refusal> {
    if length > max { Err(Refusal::FieldTooLong { field, length, max }) } else { Ok(()) }
}

/// Parses a format. Workers choose the names of their formats, but `rustls` is reserved for the
/// daemon.
fn format(name: &str) -> Result<Format, Refusal> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !(1..=32).contains(&name.len()) || !name.chars().all(plain) || name == Format::Rustls.name() {
        return Err(Refusal::FormatInvalid);
    }
    Ok(Format::Worker(name.into()))
}

impl Sessions {
    pub(super) fn put(
        &self,
        by: &Caller,
        request: pb::PutSessionRequest,
    ) -> Result<pb::PutSessionResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let registry = self.table.registry();
        self.table.belongs(id, |owner, context| by.drives(&registry, owner, context))?;
        let put = self.read_put(request)?;
        let stored = self.table.apply_alone(id, |connection, now| {
            match (connection.role(), &put.id) {
                (Role::Server, None) => return Ok(Err(Refusal::SessionIdRequired)),
                (Role::Client, Some(_)) => return Ok(Err(Refusal::SessionIdUnexpected)),
                _ => {}
            }
            Ok(Ok((connection.put_session(put, now)?, now.offset)))
        })??;
        Ok(match stored {
            (Ok(session), offset) => pb::PutSessionResponse {
                session: Some(convert::session(&session, offset)),
                reason: String::new(),
            },
            (Err(why), _) => pb::PutSessionResponse { session: None, reason: not_kept(why).into() },
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
                let now = self.table.now();
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
    pub(super) fn expect<'w>(
        &self,
        by: &Caller,
        moment: &mut Moment,
        wanted: impl Iterator<Item = Wanted<'w>>,
    ) {
        let mut wanted = wanted.peekable();
        let Some(&Wanted { context: name, role: side, .. }) = wanted.peek() else { return };
        let Ok(context) = granted(&mut moment.context, &self.table, by, name) else { return };
        let Ok(role) = convert::role(side) else { return };
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
    pub(super) fn look(
        &self,
        by: &Caller,
        moment: &mut Moment,
        wanted: Wanted<'_>,
    ) -> Result<Result<Arc<Session>, pb::MissReason>, Refusal> {
        let &mut Moment { now, ref mut context, format: ref mut last } = moment;
        let context = granted(context, &self.table, by, wanted.context)?;
        let role = convert::role(wanted.role)?;
        let id = convert::session_id(wanted.session_id)?;
        let format = match last.take().filter(|last| last.name() == wanted.format) {
            Some(format) => last.insert(format),
            None => last.insert(format(wanted.format)?),
        };
        within("binding", wanted.binding.len(), BINDING_MAX)?;
        within("server_name", wanted.server_name.len(), SERVER_NAME_MAX)?;
        let server_name = ServerName::new(wanted.server_name);
        let terms = Terms {
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
            (Role::Client, _) if server_name.is_empty() => return Err(Refusal::LookupTargetRequired),
            (role, id) if context.options.no_session_cache => {
                if let Some(id) = id {
                    let cache = context.cache(role);
                    cache.missed(&context.stats, &id, &server_name, Miss::CacheOff, now);
                }
                Err(pb::MissReason::CacheOff)
            }
            (role, Some(id)) => context.cache(role).find(&id, &terms, now).map_err(|miss| {
                context.cache(role).missed(&context.stats, &id, &server_name, miss, now);
                self.misses.count(by.owner());
                convert::miss_reason(miss)
            }),
            (Role::Client, None) => context.client_cache.newest(&terms, now).ok_or(pb::MissReason::Unknown),
        })
    }

    fn lookup(
        &self,
        by: &Caller,
        request: &pb::LookupSessionRequest,
    ) -> Result<pb::LookupSessionResponse, Refusal> {
        let mut moment = Moment::at(self.table.now());
        Ok(match self.look(by, &mut moment, request.into())? {
            Ok(session) => pb::LookupSessionResponse {
                found: true,
                data: session.secret().as_bytes().map(Bytes::copy_from_slice).unwrap_or_default(),
                session: Some(convert::session(&session, moment.now.offset)),
                miss_reason: pb::MissReason::Unspecified.into(),
            },
            Err(miss) => missed(miss),
        })
    }

    pub(super) fn remove(
        &self,
        by: &Caller,
        request: &pb::RemoveSessionRequest,
    ) -> Result<pb::RemoveSessionResponse, Refusal> {
        let registry = self.table.registry();
        let context = by.context(&registry, &request.context, Roles::ADMIN)?;
        let role = convert::role(request.role)?;
        let id = convert::session_id(&request.session_id)?.ok_or(Refusal::SessionIdRequired)?;
        let removed = context.cache(role).remove(&id, self.table.now());
        tracing::info!(target: "audit", owner = %by.owner(), context = %context.name, session = ?id, removed, "RemoveSession");
        Ok(pb::RemoveSessionResponse { removed })
    }
}

/// Returns the caches of the context `name`, or of all contexts if `name` is empty, as far as the
/// caller has one of these roles there. Each cache is returned once, even if several contexts share
/// it.
///
/// # Errors
/// Those of [`Caller::context`].
pub(super) fn caches(
    registry: &Registry,
    by: &Caller,
    name: &str,
    roles: Roles,
) -> Result<Vec<Arc<Cache>>, Refusal> {
    let contexts: Vec<_> = match name {
        "" => registry.all().iter().filter(|context| by.may(registry, roles, &context.name)).collect(),
        name => vec![by.context(registry, name, roles)?],
    };
    let mut caches: Vec<Arc<Cache>> = Vec::with_capacity(2 * contexts.len());
    for context in contexts {
        for cache in [&context.server_cache, &context.client_cache] {
            if !caches.iter().any(|held| Arc::ptr_eq(held, cache)) {
                caches.push(Arc::clone(cache));
            }
        }
    }
    Ok(caches)
}

/// Builds the LookupSession response of a miss.
pub(super) fn missed(why: pb::MissReason) -> pb::LookupSessionResponse {
    pb::LookupSessionResponse { miss_reason: why.into(), ..Default::default() }
}

/// Returns the name that the contract has for the reason not to store a session.
fn not_kept(why: NotKept) -> &'static str {
    match why {
        NotKept::CacheOff => "CACHE_OFF",
        NotKept::Resumed => "RESUMED",
        NotKept::TooMany => "TOO_MANY",
        NotKept::AuthenticationUnknown => "AUTHENTICATION_UNKNOWN",
        NotKept::Cache(NotStored::Expired) => "EXPIRED",
        NotKept::Cache(NotStored::TooLarge) => "TOO_LARGE",
        NotKept::Cache(NotStored::IdTaken) => "ID_TAKEN",
        NotKept::Cache(NotStored::NoRandomness) => "NO_RANDOMNESS",
        NotKept::Cache(NotStored::Revoked) => "REVOKED",
    }
}

#[async_trait]
impl SessionService for Sessions {
    type WatchSessionsStream = Watched;

    async fn revoke_sessions(
        &self,
        request: Request<pb::RevokeSessionsRequest>,
    ) -> Result<Response<pb::RevokeSessionsResponse>, Status> {
        let by = caller(&request)?;
        answer(self.revoke(&by, request.into_inner()).await)
    }

    async fn explain_session(
        &self,
        request: Request<pb::ExplainSessionRequest>,
    ) -> Result<Response<pb::ExplainSessionResponse>, Status> {
        answer(self.explain(&*caller(&request)?, request.get_ref()))
    }

    async fn watch_sessions(
        &self,
        request: Request<pb::WatchSessionsRequest>,
    ) -> Result<Response<Watched>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        answer(self.watch(&caller(&request)?, &request.get_ref().context, deadline))
    }

    async fn put_session(
        &self,
        request: Request<pb::PutSessionRequest>,
    ) -> Result<Response<pb::PutSessionResponse>, Status> {
        let by = caller(&request)?;
        answer(self.put(&by, request.into_inner()))
    }

    async fn lookup_session(
        &self,
        request: Request<pb::LookupSessionRequest>,
    ) -> Result<Response<pb::LookupSessionResponse>, Status> {
        answer(self.lookup(&*caller(&request)?, request.get_ref()))
    }

    async fn remove_session(
        &self,
        request: Request<pb::RemoveSessionRequest>,
    ) -> Result<Response<pb::RemoveSessionResponse>, Status> {
        answer(self.remove(&*caller(&request)?, request.get_ref()))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        answer(self.list(&*caller(&request)?, request.get_ref()).await)
    }
}
