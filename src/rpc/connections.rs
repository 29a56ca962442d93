//! Implements ConnectionService.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tls_sessiond_core::{
    connection::{
        self, Alert, ConnectionId, EngineKind, Input, Plan, ShutdownStatus, Table,
        table::{Lapse, Wanted},
    },
    context::{Context, IDLE_TIMEOUT_MAX},
};
use tls_sessiond_proto::{self as pb, connection_service_server::ConnectionService};
use tokio::{task::yield_now, time::sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    access::{Caller, Roles, SEES},
    convert,
    drive::Drive,
    edge::{Deadline, Place},
    page::Pages,
    request_ids::RequestIds,
    sessions::within,
    status::{BYTES_MAX, Refusal},
    streams::StreamPlace,
    turns::Turns,
};

/// Holds the state that the calls of ConnectionService share.
pub(super) struct Connections {
    pub(super) opener: Arc<Opener>,
    pub(super) pages: Arc<Pages>,
    pub(super) lists: Arc<Turns>,
    pub(super) draining: CancellationToken,
    /// The most plaintext, in bytes, that one Drive holds back until its handshake is finished.
    pub(super) plaintext_buffer: AtomicUsize,
}

/// Makes connections from requests, for New and for the first message of a Drive.
pub(super) struct Opener {
    pub(super) table: Arc<Table>,
    pub(super) request_ids: RequestIds,
}

impl Opener {
    pub(super) fn open(&self, request: pb::NewRequest, by: &Caller) -> Result<pb::NewResponse, Refusal> {
        // RFC 1035 section 2.3.4. A server does not need the name, but its length is limited too,
        // because answers are remembered by request id.
        if request.server_name.len() > 255 {
            return Err(connection::Error::ServerNameMalformed(request.server_name).into());
        }
        within("peer_address", request.peer_address.len(), PEER_ADDRESS_MAX)?;
        // One registry gives the rights, the context and the other contexts of a session, so all
        // are of one configuration. The role is checked before a remembered answer is returned.
        let registry = self.table.registry();
        let context = by.context(&registry, &request.context, Roles::WORKER)?;
        self.request_ids.once(by.owner(), request, self.table.now().at, |request| {
            let plan = plan(&request, context, by)?;
            let session = convert::session_id(&request.session_id)?;
            let within = |context: &str| by.may(&registry, SEES, context);
            let wanted = session.as_ref().map(|id| Wanted { id, registry: &registry, within: &within });
            let connection = self.table.create(plan, wanted, convert::connection)?;
            Ok(pb::NewResponse { connection: Some(connection) })
        })
    }

    /// Parses the id of a connection that the caller drives.
    ///
    /// # Errors
    /// The id is malformed, or there is no such connection. A connection of another worker counts
    /// as not found.
    pub(super) fn driven(&self, by: &Caller, id: &str) -> Result<ConnectionId, Refusal> {
        let id = convert::connection_id(id)?;
        let registry = self.table.registry();
        self.table.belongs(id, |owner, context| by.drives(&registry, owner, context))?;
        Ok(id)
    }
}

fn plan(request: &pb::NewRequest, context: &Arc<Context>, by: &Caller) -> Result<Plan, Refusal> {
    let role = convert::role(request.role)?;
    let engine = match pb::Engine::try_from(request.engine) {
        Ok(pb::Engine::Unspecified | pb::Engine::Daemon) => EngineKind::Daemon,
        Ok(pb::Engine::Worker) => EngineKind::Worker,
        Err(_) => return Err(Refusal::EngineUnknown),
    };
    let idle_timeout = match request.idle_timeout {
        None => None,
        Some(wanted) => {
            let wanted = std::time::Duration::try_from(wanted).map_err(|_| Refusal::IdleTimeoutInvalid)?;
            if wanted.as_secs() < 1 || wanted > IDLE_TIMEOUT_MAX {
                return Err(Refusal::IdleTimeoutInvalid);
            }
            Some(wanted)
        }
    };
    Ok(Plan {
        context: Arc::clone(context),
        role,
        engine,
        server_name: request.server_name.clone(),
        owner: Arc::clone(by.owner()),
        idle_timeout,
        peer_address: request.peer_address.clone(),
    })
}

/// The longest `peer_address`, in bytes. An IPv6 address with its zone and port is shorter.
const PEER_ADDRESS_MAX: usize = 64;

/// Logs that the handshake of this connection failed, if it did. The level is debug, because a peer
/// can cause any number of these lines.
pub(super) fn tell_failure(connection: &connection::Connection) {
    let Some(why) = connection.handshake_failure() else { return };
    tracing::debug!(
        context = %connection.context().name,
        role = ?connection.role(),
        server_name = %connection.server_name(),
        peer_address = connection.peer_address(),
        why,
        "handshake failed"
    );
}

/// Checks that a field has at most [`BYTES_MAX`] bytes.
pub(super) fn within_limit(field: &'static str, bytes: &[u8]) -> Result<(), Refusal> {
    match bytes.len() {
        length if length > BYTES_MAX => Err(Refusal::BytesTooLong { field, length }),
        _ => Ok(()),
    }
}

/// Returns the caller of a request, which admission has put into the request's extensions.
///
/// # Errors
/// [`Refusal::Unauthenticated`] for a request that did not pass admission.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Status> {
    request.extensions().get::<Arc<Caller>>().cloned().ok_or_else(|| Refusal::Unauthenticated.into())
}

fn status(status: ShutdownStatus) -> pb::ShutdownStatus {
    match status {
        ShutdownStatus::Sent => pb::ShutdownStatus::Sent,
        ShutdownStatus::Complete => pb::ShutdownStatus::Complete,
        ShutdownStatus::WantRead => pb::ShutdownStatus::WantRead,
    }
}

impl Connections {
    fn table(&self) -> &Arc<Table> {
        &self.opener.table
    }

    /// Does the same as [`Opener::driven`].
    fn driven(&self, by: &Caller, id: &str) -> Result<ConnectionId, Refusal> {
        self.opener.driven(by, id)
    }

    /// Parses the id of a connection that the caller may see.
    ///
    /// # Errors
    /// The id is malformed, or there is no such connection. A connection that the caller may not
    /// see counts as not found.
    fn seen(&self, by: &Caller, id: &str) -> Result<ConnectionId, Refusal> {
        let id = convert::connection_id(id)?;
        let registry = self.table().registry();
        self.table().belongs(id, |owner, context| by.sees(&registry, owner, context))?;
        Ok(id)
    }

    fn view(&self, id: ConnectionId) -> Result<Option<pb::Connection>, Refusal> {
        Ok(Some(self.table().look(id, convert::connection)?))
    }

    pub(super) fn clear(
        &self,
        by: &Caller,
        request: &pb::ClearRequest,
    ) -> Result<pb::ClearResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let (connection, removed) = self.table().apply_alone(id, |connection, now| {
            let removed = connection.clear();
            Ok((convert::connection(connection, Lapse::of(connection, now)), removed))
        })?;
        let removed_sessions = convert::removed(removed);
        Ok(pb::ClearResponse { connection: Some(connection), removed_sessions })
    }

    pub(super) fn shutdown(
        &self,
        by: &Caller,
        request: &pb::ShutdownRequest,
    ) -> Result<pb::ShutdownResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let response = self.table().apply_alone(id, |connection, now| {
            let mut ciphertext = Vec::new();
            let done = connection.shutdown(&mut ciphertext)?;
            Ok(pb::ShutdownResponse {
                status: status(done).into(),
                ciphertext: ciphertext.into(),
                connection: Some(convert::connection(connection, Lapse::of(connection, now))),
            })
        })?;
        Ok(response)
    }

    pub(super) fn set_shutdown(
        &self,
        by: &Caller,
        request: &pb::SetShutdownRequest,
    ) -> Result<pb::SetShutdownResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let flags = convert::flags(request.shutdown.ok_or(Refusal::ShutdownRequired)?);
        let connection = self.table().apply(id, |connection, now| {
            connection.set_shutdown(flags);
            Ok(convert::connection(connection, Lapse::of(connection, now)))
        })?;
        Ok(pb::SetShutdownResponse { connection: Some(connection) })
    }

    pub(super) fn free(&self, by: &Caller, request: &pb::FreeRequest) -> Result<pb::FreeResponse, Refusal> {
        let freed = self
            .driven(by, &request.connection_id)
            .and_then(|id| self.table().free(id).map_err(Refusal::from));
        match freed {
            Ok(removed) => Ok(pb::FreeResponse { removed_sessions: convert::removed(removed) }),
            Err(Refusal::Connection(connection::Error::NotFound(_))) if request.allow_missing => {
                Ok(pb::FreeResponse::default())
            }
            Err(refusal) => Err(refusal),
        }
    }

    async fn list(
        &self,
        by: &Caller,
        request: &pb::ListConnectionsRequest,
    ) -> Result<pb::ListConnectionsResponse, Refusal> {
        let size = Pages::size(request.page_size)?;
        let filters = ["connections", request.context.as_str()];
        let _turn = self.lists.wait(by.owner()).await;
        // The registry is loaded after the wait, so that the rights are current.
        let registry = Arc::clone(&self.table().registry());
        let filter = match request.context.as_str() {
            "" => None,
            name => {
                by.context(&registry, name, SEES)?;
                Some(name)
            }
        };
        let wanted = |owner: &str, context: &str| {
            filter.is_none_or(|name| *context == *name) && by.sees(&registry, owner, context)
        };
        let mut after = match self.pages.place(&filters, &request.page_token)? {
            None => None,
            Some(place) => Some(read_place(&place).ok_or(Refusal::PageTokenInvalid)?),
        };
        let (mut places, mut connections) = (Vec::new(), Vec::new());
        loop {
            let before = places.len();
            let next = self.table().page(wanted, after, size - before, &mut places);
            // A connection that was freed since then is not listed.
            let new = places[before..].iter();
            connections.extend(new.filter_map(|place| self.table().look(place.id, convert::connection).ok()));
            if next.is_none() || places.len() == size {
                break;
            }
            after = next;
            // The filter may match few of a hundred thousand connections. Yield, so that other
            // calls are served meanwhile.
            yield_now().await;
        }
        let next_page_token = match places.last() {
            Some(last) if places.len() == size => self.pages.token(&filters, &last.number.to_be_bytes()),
            _ => String::new(),
        };
        Ok(pb::ListConnectionsResponse { connections, next_page_token })
    }

    pub(super) fn set_session(
        &self,
        by: &Caller,
        request: &pb::SetSessionRequest,
    ) -> Result<pb::SetSessionResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let session = convert::session_id(&request.session_id)?;
        let registry = self.table().registry();
        let within = |context: &str| by.may(&registry, SEES, context);
        let wanted = session.as_ref().map(|id| Wanted { id, registry: &registry, within: &within });
        let removed = self.table().set_session(id, wanted, |_, removed| removed)?;
        Ok(pb::SetSessionResponse { connection: self.view(id)?, removed_sessions: convert::removed(removed) })
    }

    fn get_session(
        &self,
        by: &Caller,
        request: &pb::GetSessionRequest,
    ) -> Result<pb::GetSessionResponse, Refusal> {
        let id = self.seen(by, &request.connection_id)?;
        let session = self.table().look(id, |connection, lapse| {
            connection.session().map(|session| convert::session(session, lapse.offset))
        })?;
        Ok(pb::GetSessionResponse { session })
    }

    pub(super) fn report_alert(
        &self,
        by: &Caller,
        request: &pb::ReportAlertRequest,
    ) -> Result<pb::ReportAlertResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        let alert = request.alert.as_ref().ok_or(Refusal::AlertInvalid)?;
        let code = u8::try_from(alert.code).ok().filter(|&code| code != 0).ok_or(Refusal::AlertInvalid)?;
        let alert = Alert { code, received: alert.received };
        let (connection, removed) = self.table().apply_alone(id, |connection, now| {
            let removed = connection.report_alert(alert)?;
            tell_failure(connection);
            Ok((convert::connection(connection, Lapse::of(connection, now)), removed))
        })?;
        let removed_sessions = convert::removed(removed);
        Ok(pb::ReportAlertResponse { connection: Some(connection), removed_sessions })
    }

    fn exchange(&self, by: &Caller, request: &pb::ExchangeRequest) -> Result<pb::ExchangeResponse, Refusal> {
        let id = self.driven(by, &request.connection_id)?;
        within_limit("ciphertext", &request.ciphertext)?;
        within_limit("plaintext", &request.plaintext)?;
        let input = Input {
            ciphertext: &request.ciphertext,
            plaintext: &request.plaintext,
            end_of_stream: request.end_of_stream,
        };
        let response = self.table().apply_alone(id, |connection, now| {
            let output = connection.exchange(input, now)?;
            tell_failure(connection);
            Ok(pb::ExchangeResponse {
                ciphertext: output.ciphertext.into(),
                plaintext: output.plaintext.into(),
                connection: Some(convert::connection(connection, Lapse::of(connection, now))),
                alert: output.alert.map(convert::alert),
                removed_sessions: convert::removed(output.removed),
            })
        })?;
        Ok(response)
    }
}

/// Reads the number of the last listed connection from the bytes of a page token.
fn read_place(place: &[u8]) -> Option<u64> {
    place.try_into().ok().map(u64::from_be_bytes)
}

/// Converts the result of a call to the form that tonic expects.
pub(super) fn answer<T>(result: Result<T, Refusal>) -> Result<Response<T>, Status> {
    match result {
        Ok(message) => Ok(Response::new(message)),
        Err(refusal) => Err(refusal.into()),
    }
}

#[async_trait]
impl ConnectionService for Connections {
    type DriveStream = Drive;

    async fn new_connection(
        &self,
        request: Request<pb::NewRequest>,
    ) -> Result<Response<pb::NewResponse>, Status> {
        let by = caller(&request)?;
        answer(self.opener.open(request.into_inner(), &by))
    }

    async fn clear(&self, request: Request<pb::ClearRequest>) -> Result<Response<pb::ClearResponse>, Status> {
        answer(self.clear(&*caller(&request)?, request.get_ref()))
    }

    async fn shutdown(
        &self,
        request: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownResponse>, Status> {
        answer(self.shutdown(&*caller(&request)?, request.get_ref()))
    }

    async fn set_shutdown(
        &self,
        request: Request<pb::SetShutdownRequest>,
    ) -> Result<Response<pb::SetShutdownResponse>, Status> {
        answer(self.set_shutdown(&*caller(&request)?, request.get_ref()))
    }

    async fn free(&self, request: Request<pb::FreeRequest>) -> Result<Response<pb::FreeResponse>, Status> {
        answer(self.free(&*caller(&request)?, request.get_ref()))
    }

    async fn get_connection(
        &self,
        request: Request<pb::GetConnectionRequest>,
    ) -> Result<Response<pb::GetConnectionResponse>, Status> {
        let by = caller(&request)?;
        answer(
            self.seen(&by, &request.get_ref().connection_id)
                .and_then(|id| self.view(id))
                .map(|connection| pb::GetConnectionResponse { connection }),
        )
    }

    async fn list_connections(
        &self,
        request: Request<pb::ListConnectionsRequest>,
    ) -> Result<Response<pb::ListConnectionsResponse>, Status> {
        answer(self.list(&*caller(&request)?, request.get_ref()).await)
    }

    async fn set_session(
        &self,
        request: Request<pb::SetSessionRequest>,
    ) -> Result<Response<pb::SetSessionResponse>, Status> {
        answer(self.set_session(&*caller(&request)?, request.get_ref()))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        answer(self.get_session(&*caller(&request)?, request.get_ref()))
    }

    async fn report_alert(
        &self,
        request: Request<pb::ReportAlertRequest>,
    ) -> Result<Response<pb::ReportAlertResponse>, Status> {
        answer(self.report_alert(&*caller(&request)?, request.get_ref()))
    }

    async fn exchange(
        &self,
        request: Request<pb::ExchangeRequest>,
    ) -> Result<Response<pb::ExchangeResponse>, Status> {
        answer(self.exchange(&*caller(&request)?, request.get_ref()))
    }

    async fn drive(&self, request: Request<Streaming<pb::DriveRequest>>) -> Result<Response<Drive>, Status> {
        if self.draining.is_cancelled() {
            return Err(Refusal::Draining.into());
        }
        let by = caller(&request)?;
        let deadline =
            request.extensions().get::<Deadline>().map(|deadline| Box::pin(sleep_until(deadline.0)));
        let opening = request.extensions().get::<Place>().cloned();
        Ok(Response::new(Drive::new(
            request.into_inner(),
            Arc::clone(&self.opener),
            StreamPlace::hold(&by),
            opening,
            deadline,
            self.plaintext_buffer.load(Ordering::Relaxed),
        )))
    }
}
