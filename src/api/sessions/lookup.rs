//! The parts of a lookup that one call and a batch of an Attach share.

use std::sync::Arc;

use tls_sessiond_core::{
    cache::{Ask, PoolSearch},
    clock::Now,
    context::Context,
    session::{Format, Session, SessionId},
    state::CoreState,
};
use tls_sessiond_proto as pb;
use tls_sessiond_types::{Role, server_name::ServerName};

use crate::api::{
    access::{Caller, named},
    error::Refusal,
    role::Roles,
};

/// State shared by consecutive lookups of one batch: the time, the last context, the last format.
#[derive(Default)]
pub(crate) struct LookupScratch {
    pub(crate) now: Now,
    /// The context of the last lookup. Its caller has the role `worker` there.
    pub(crate) context: Option<Arc<Context>>,
    /// The format of the last lookup.
    pub(crate) format: Option<Format>,
}

impl LookupScratch {
    pub(crate) fn at(now: Now) -> Self {
        Self {
            now,
            ..Self::default()
        }
    }

    /// Sets the time for the next lookups.
    pub(crate) fn begin(&mut self, now: Now) {
        self.now = now;
    }

    /// Ends a run of consecutive lookups. Drops the context, because a reload may change contexts
    /// and rights before the next run, and because a waiting stream must not keep an old context
    /// alive.
    pub(crate) fn end(&mut self) {
        self.context = None;
    }
}

/// The fields of a LookupSession request, borrowed from its message.
#[derive(Clone, Copy, Default)]
pub(crate) struct LookupRef<'r> {
    pub(crate) context: &'r str,
    pub(crate) role: i32,
    /// Hex digits, if the id is well-formed.
    pub(crate) session_id: &'r [u8],
    pub(crate) server_name: &'r str,
    pub(crate) format: &'r str,
    pub(crate) binding: &'r [u8],
}

impl<'r> From<&'r pb::LookupSessionRequest> for LookupRef<'r> {
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

/// Returns the context of this name, in which the caller has the role `worker`. Takes it from the
/// last lookup if the name is the same, else from the current registry.
///
/// # Errors
/// Those of [`Caller::context`].
pub(crate) fn granted<'l>(
    last: &'l mut Option<Arc<Context>>,
    state: &CoreState,
    by: &Caller,
    name: &str,
) -> Result<&'l Arc<Context>, Refusal> {
    let name = named(name);
    let context = match last.take().filter(|last| *last.name == *name) {
        Some(context) => context,
        None => Arc::clone(by.context(&state.registry(), name, Roles::WORKER)?),
    };
    Ok(last.insert(context))
}

/// Parses a format. Workers choose the names of their formats, but `rustls` is reserved for the
/// daemon.
pub(crate) fn format(name: &str) -> Result<Format, Refusal> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !(1..=32).contains(&name.len()) || !name.chars().all(plain) || name == Format::Rustls.name()
    {
        return Err(Refusal::FormatInvalid);
    }
    Ok(Format::Worker(name.into()))
}

/// The outcome of a lookup.
pub(crate) enum LookedUp {
    /// The session. A single-use session has left the cache.
    Found(Arc<Session>),
    /// The reason why there is none.
    Missed(pb::MissReason),
    /// The shared store must be asked.
    Asked(Box<AskedLookup>),
    /// The shared store must be searched for the newest session of a client.
    Searched(Box<PoolSearch>),
}

/// A lookup that waits for the shared store.
pub(crate) struct AskedLookup {
    pub(super) ask: Box<Ask>,
    pub(super) context: Arc<Context>,
    pub(super) role: Role,
    pub(super) id: SessionId,
    pub(super) server_name: ServerName<'static>,
    pub(super) owner: Arc<str>,
}

/// Builds the LookupSession response of a miss.
pub(crate) fn missed(why: pb::MissReason) -> pb::LookupSessionResponse {
    pb::LookupSessionResponse {
        miss_reason: why.into(),
        ..Default::default()
    }
}
