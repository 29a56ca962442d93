//! Opens connections, for New and for the first message of a Drive.

use std::sync::Arc;

use tls_sessiond_core::{
    cache::{Found, Look},
    connection::{self, ConnectionId, ConnectionPlan, EngineKind, table::Wanted},
    context::{Context, IDLE_TIMEOUT_MAX},
    session::{Miss, SessionId},
    state::CoreState,
};
use tls_sessiond_proto as pb;
use tls_sessiond_types::Role;

use crate::{
    api::{
        access::Caller,
        convert,
        convert::within,
        error::Refusal,
        idempotency::RequestIds,
        role::{Roles, SEES},
    },
    store::Store,
};

/// Makes connections from requests, for New and for the first message of a Drive.
pub(crate) struct Opener {
    pub(crate) state: Arc<CoreState>,
    pub(crate) request_ids: RequestIds,
    /// The store that other daemons share.
    pub(crate) store: Option<Arc<Store>>,
}

impl Opener {
    /// Makes a connection (New). Asks the shared store for the session that the request names.
    pub(crate) async fn open(
        &self,
        request: pb::NewRequest,
        by: &Caller,
    ) -> Result<pb::NewResponse, Refusal> {
        let joined = match self.joining(&request, by)? {
            None => None,
            Some(look) => Some(self.found(look).await),
        };
        self.open_joined(request, by, joined)
    }

    /// Returns the lookup that a New needs first. `None`: it needs none.
    pub(crate) fn joining(
        &self,
        request: &pb::NewRequest,
        by: &Caller,
    ) -> Result<Option<Look>, Refusal> {
        if self.store.is_none() || request.session_id.is_empty() {
            return Ok(None);
        }
        let registry = self.state.registry();
        let context = by.context(&registry, &request.context, Roles::WORKER)?;
        let (role, engine) = (convert::role(request.role)?, engine(request)?);
        Ok(convert::session_id(&request.session_id)?
            .and_then(|id| self.state.connections().join(context, role, engine, &id)))
    }

    /// Asks the shared store for a session that a connection of this context and role names. `None`:
    /// it need not be asked.
    pub(crate) async fn join(
        &self,
        context: &Context,
        role: Role,
        engine: EngineKind,
        id: &SessionId,
    ) -> Option<Result<Found, Miss>> {
        let look = self.state.connections().join(context, role, engine, id)?;
        Some(self.found(look).await)
    }

    /// Returns the outcome of a lookup.
    pub(crate) async fn found(&self, look: Look) -> Result<Found, Miss> {
        match (look, &self.store) {
            (Look::Done(found), _) => found,
            (Look::Ask(ask), Some(store)) => store.find(ask).await,
            (Look::Ask(_), None) => Err(Miss::StoreUnavailable),
        }
    }

    /// Makes a connection. `joined`: the outcome of the lookup of [`Self::joining`].
    pub(crate) fn open_joined(
        &self,
        request: pb::NewRequest,
        by: &Caller,
        joined: Option<Result<Found, Miss>>,
    ) -> Result<pb::NewResponse, Refusal> {
        // RFC 1035 section 2.3.4. A server does not need the name, but its length is limited too,
        // because answers are remembered by request id.
        if request.server_name.len() > 255 {
            return Err(connection::Error::ServerNameMalformed(request.server_name).into());
        }
        within("peer_address", request.peer_address.len(), PEER_ADDRESS_MAX)?;
        // One registry gives the rights, the context and the other contexts of a session, so all
        // are of one configuration. The role is checked before a remembered answer is returned.
        let registry = self.state.registry();
        let context = by.context(&registry, &request.context, Roles::WORKER)?;
        self.request_ids
            .once(by.owner(), request, self.state.now().at, |request| {
                let plan = plan(&request, context, by)?;
                let session = convert::session_id(&request.session_id)?;
                let within = |context: &str| by.may(&registry, SEES, context);
                let wanted = session.as_ref().map(|id| Wanted {
                    id,
                    joined,
                    registry: &registry,
                    within: &within,
                });
                let connection =
                    self.state
                        .connections()
                        .create(plan, wanted, convert::connection)?;
                Ok(pb::NewResponse {
                    connection: Some(connection),
                })
            })
    }

    /// Parses the id of a connection that the caller drives.
    ///
    /// # Errors
    /// The id is malformed, or there is no such connection. A connection of another worker counts
    /// as not found.
    pub(crate) fn driven(&self, by: &Caller, id: &str) -> Result<ConnectionId, Refusal> {
        let id = convert::connection_id(id)?;
        let registry = self.state.registry();
        self.state
            .connections()
            .authorize(id, |owner, context| by.drives(&registry, owner, context))?;
        Ok(id)
    }
}

fn plan(
    request: &pb::NewRequest,
    context: &Arc<Context>,
    by: &Caller,
) -> Result<ConnectionPlan, Refusal> {
    let role = convert::role(request.role)?;
    let engine = engine(request)?;
    let idle_timeout = match request.idle_timeout {
        None => None,
        Some(wanted) => {
            let wanted =
                std::time::Duration::try_from(wanted).map_err(|_| Refusal::IdleTimeoutInvalid)?;
            if wanted.as_secs() < 1 || wanted > IDLE_TIMEOUT_MAX {
                return Err(Refusal::IdleTimeoutInvalid);
            }
            Some(wanted)
        }
    };
    Ok(ConnectionPlan {
        context: Arc::clone(context),
        role,
        engine,
        server_name: request.server_name.clone(),
        owner: Arc::clone(by.owner()),
        idle_timeout,
        peer_address: request.peer_address.clone(),
    })
}

fn engine(request: &pb::NewRequest) -> Result<EngineKind, Refusal> {
    match pb::Engine::try_from(request.engine) {
        Ok(pb::Engine::Unspecified | pb::Engine::Daemon) => Ok(EngineKind::Daemon),
        Ok(pb::Engine::Worker) => Ok(EngineKind::Worker),
        Err(_) => Err(Refusal::EngineUnknown),
    }
}

/// The longest `peer_address`, in bytes. An IPv6 address with its zone and port is shorter.
const PEER_ADDRESS_MAX: usize = 64;

/// Logs that the handshake of this connection failed, if it did. The level is debug, because a peer
/// can cause any number of these lines.
pub(crate) fn tell_failure(connection: &connection::Connection) {
    let Some(why) = connection.handshake_failure() else {
        return;
    };
    tracing::debug!(
        context = %connection.context().name,
        role = ?connection.role(),
        server_name = %connection.server_name(),
        peer_address = connection.peer_address(),
        why,
        "handshake failed"
    );
}
