//! ConnectionService.

use std::sync::Arc;

use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    convert,
    drive::Drive,
    edge::Deadline,
    listen::Peer,
    page::Pages,
    request_ids::RequestIds,
    sessions::context,
    status::{BYTES_MAX, Refusal},
};
use crate::{
    clock::Timestamp,
    config::IDLE_TIMEOUT_MAX,
    connection::{self, Alert, ConnectionId, EngineKind, Input, Plan, ShutdownStatus, Table, table::Cursor},
    proto::{self as pb, connection_service_server::ConnectionService},
};

/// Holds what the calls need.
pub(super) struct Connections {
    pub(super) opener: Arc<Opener>,
    pub(super) pages: Arc<Pages>,
    pub(super) draining: CancellationToken,
    pub(super) plaintext_buffer: usize,
}

/// Makes connections from requests: for New, and for the first message of a Drive.
pub(super) struct Opener {
    pub(super) table: Arc<Table>,
    pub(super) request_ids: RequestIds,
}

impl Opener {
    pub(super) fn open(&self, request: pb::NewRequest, owner: &Arc<str>) -> Result<pb::NewResponse, Refusal> {
        // RFC 1035 section 2.3.4. Also for a server, who does not need it: requests are remembered.
        if request.server_name.len() > 255 {
            return Err(connection::Error::ServerNameMalformed(request.server_name).into());
        }
        self.request_ids.once(owner, request, self.table.now(), |request| {
            let plan = self.plan(&request, owner)?;
            let session = convert::session_id(&request.session_id)?;
            let connection = self.table.create(plan, session.as_ref(), convert::connection)?;
            Ok(pb::NewResponse { connection: Some(connection) })
        })
    }

    fn plan(&self, request: &pb::NewRequest, owner: &Arc<str>) -> Result<Plan, Refusal> {
        let role = convert::role(request.role)?;
        let engine = match pb::Engine::try_from(request.engine) {
            Ok(pb::Engine::Unspecified | pb::Engine::Daemon) => EngineKind::Daemon,
            Ok(pb::Engine::Worker) => EngineKind::Worker,
            Err(_) => return Err(Refusal::EngineUnknown),
        };
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
        let context = Arc::clone(context(&self.table.registry(), &request.context)?);
        Ok(Plan {
            context,
            role,
            engine,
            server_name: request.server_name.clone(),
            owner: Arc::clone(owner),
            idle_timeout,
        })
    }
}

/// The name of a context; empty means the default one.
pub(super) fn or_default(name: &str) -> &str {
    if name.is_empty() { "default" } else { name }
}

/// Bytes that are not more than one message may bring.
pub(super) fn within_limit(field: &'static str, bytes: &[u8]) -> Result<(), Refusal> {
    match bytes.len() {
        length if length > BYTES_MAX => Err(Refusal::BytesTooLong { field, length }),
        _ => Ok(()),
    }
}

/// Who calls.
pub(super) fn owner<T>(request: &Request<T>) -> Arc<str> {
    request.extensions().get::<Peer>().map_or_else(|| "unknown".into(), |peer| Arc::clone(&peer.owner))
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

    fn view(&self, id: ConnectionId) -> Result<Option<pb::Connection>, Refusal> {
        Ok(Some(self.table().look(id, convert::connection)?))
    }

    pub(super) fn clear(&self, request: &pb::ClearRequest) -> Result<pb::ClearResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let (connection, removed) = self.table().apply_alone(id, |connection, now| {
            let removed = connection.clear();
            Ok((convert::connection(connection, now.after(connection.idle_timeout())), removed))
        })?;
        let removed_sessions = convert::removed(removed);
        Ok(pb::ClearResponse { connection: Some(connection), removed_sessions })
    }

    pub(super) fn shutdown(&self, request: &pb::ShutdownRequest) -> Result<pb::ShutdownResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let response = self.table().apply_alone(id, |connection, now| {
            let mut ciphertext = Vec::new();
            let done = connection.shutdown(&mut ciphertext)?;
            Ok(pb::ShutdownResponse {
                status: status(done).into(),
                ciphertext: ciphertext.into(),
                connection: Some(convert::connection(connection, now.after(connection.idle_timeout()))),
            })
        })?;
        Ok(response)
    }

    pub(super) fn set_shutdown(
        &self,
        request: &pb::SetShutdownRequest,
    ) -> Result<pb::SetShutdownResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let flags = convert::flags(request.shutdown.ok_or(Refusal::ShutdownRequired)?);
        let connection = self.table().apply(id, |connection, now| {
            connection.set_shutdown(flags);
            Ok(convert::connection(connection, now.after(connection.idle_timeout())))
        })?;
        Ok(pb::SetShutdownResponse { connection: Some(connection) })
    }

    pub(super) fn free(&self, request: &pb::FreeRequest) -> Result<pb::FreeResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        match self.table().free(id) {
            Ok(removed) => Ok(pb::FreeResponse { removed_sessions: convert::removed(removed) }),
            Err(crate::connection::Error::NotFound(_)) if request.allow_missing => {
                Ok(pb::FreeResponse::default())
            }
            Err(err) => Err(err.into()),
        }
    }

    fn list(&self, request: &pb::ListConnectionsRequest) -> Result<pb::ListConnectionsResponse, Refusal> {
        let size = Pages::size(request.page_size)?;
        let filters = ["connections", request.context.as_str()];
        let context = match request.context.as_str() {
            "" => None,
            name if self.table().registry().get(name).is_some() => Some(name),
            name => return Err(Refusal::ContextNotFound(name.to_owned())),
        };
        let after = match self.pages.place(&filters, &request.page_token)? {
            None => None,
            Some(place) => Some(cursor(&place).ok_or(Refusal::PageTokenInvalid)?),
        };
        let places = self.table().page(context, after, size);
        let next_page_token = match places.last() {
            Some(last) if places.len() == size => self.pages.token(&filters, &place(last)),
            _ => String::new(),
        };
        // One that was freed since is simply not listed.
        let connections =
            places.iter().filter_map(|place| self.table().look(place.id, convert::connection).ok()).collect();
        Ok(pb::ListConnectionsResponse { connections, next_page_token })
    }

    pub(super) fn set_session(
        &self,
        request: &pb::SetSessionRequest,
    ) -> Result<pb::SetSessionResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let session = convert::session_id(&request.session_id)?;
        let removed = self.table().set_session(id, session.as_ref(), |_, removed| removed)?;
        Ok(pb::SetSessionResponse { connection: self.view(id)?, removed_sessions: convert::removed(removed) })
    }

    fn get_session(&self, request: &pb::GetSessionRequest) -> Result<pb::GetSessionResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let session = self
            .table()
            .look(id, |connection, _| connection.session().map(|session| convert::session(session)))?;
        Ok(pb::GetSessionResponse { session })
    }

    pub(super) fn report_alert(
        &self,
        request: &pb::ReportAlertRequest,
    ) -> Result<pb::ReportAlertResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let alert = request.alert.as_ref().ok_or(Refusal::AlertInvalid)?;
        let code = u8::try_from(alert.code).ok().filter(|&code| code != 0).ok_or(Refusal::AlertInvalid)?;
        let alert = Alert { code, received: alert.received };
        let (connection, removed) = self.table().apply_alone(id, |connection, now| {
            let removed = connection.report_alert(alert)?;
            Ok((convert::connection(connection, now.after(connection.idle_timeout())), removed))
        })?;
        let removed_sessions = convert::removed(removed);
        Ok(pb::ReportAlertResponse { connection: Some(connection), removed_sessions })
    }

    fn exchange(&self, request: &pb::ExchangeRequest) -> Result<pb::ExchangeResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        within_limit("ciphertext", &request.ciphertext)?;
        within_limit("plaintext", &request.plaintext)?;
        let input = Input {
            ciphertext: &request.ciphertext,
            plaintext: &request.plaintext,
            end_of_stream: request.end_of_stream,
        };
        let response = self.table().apply_alone(id, |connection, now| {
            let output = connection.exchange(input, now)?;
            Ok(pb::ExchangeResponse {
                ciphertext: output.ciphertext.into(),
                plaintext: output.plaintext.into(),
                connection: Some(convert::connection(connection, now.after(connection.idle_timeout()))),
                alert: output.alert.map(convert::alert),
                removed_sessions: convert::removed(output.removed),
            })
        })?;
        Ok(response)
    }
}

/// A cursor as the bytes of a page token.
fn place(cursor: &Cursor) -> Vec<u8> {
    [&cursor.created.as_millis().to_be_bytes()[..], cursor.id.as_bytes()].concat()
}

fn cursor(place: &[u8]) -> Option<Cursor> {
    let (created, id) = place.split_first_chunk::<8>()?;
    let created = Timestamp::from_millis(u64::from_be_bytes(*created));
    Some(Cursor { created, id: ConnectionId::from_bytes(id.try_into().ok()?) })
}

/// What a call answers, as tonic wants it.
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
        let owner = owner(&request);
        answer(self.opener.open(request.into_inner(), &owner))
    }

    async fn clear(&self, request: Request<pb::ClearRequest>) -> Result<Response<pb::ClearResponse>, Status> {
        answer(self.clear(request.get_ref()))
    }

    async fn shutdown(
        &self,
        request: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownResponse>, Status> {
        answer(self.shutdown(request.get_ref()))
    }

    async fn set_shutdown(
        &self,
        request: Request<pb::SetShutdownRequest>,
    ) -> Result<Response<pb::SetShutdownResponse>, Status> {
        answer(self.set_shutdown(request.get_ref()))
    }

    async fn free(&self, request: Request<pb::FreeRequest>) -> Result<Response<pb::FreeResponse>, Status> {
        answer(self.free(request.get_ref()))
    }

    async fn get_connection(
        &self,
        request: Request<pb::GetConnectionRequest>,
    ) -> Result<Response<pb::GetConnectionResponse>, Status> {
        answer(
            convert::connection_id(&request.get_ref().connection_id)
                .and_then(|id| self.view(id))
                .map(|connection| pb::GetConnectionResponse { connection }),
        )
    }

    async fn list_connections(
        &self,
        request: Request<pb::ListConnectionsRequest>,
    ) -> Result<Response<pb::ListConnectionsResponse>, Status> {
        answer(self.list(request.get_ref()))
    }

    async fn set_session(
        &self,
        request: Request<pb::SetSessionRequest>,
    ) -> Result<Response<pb::SetSessionResponse>, Status> {
        answer(self.set_session(request.get_ref()))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        answer(self.get_session(request.get_ref()))
    }

    async fn report_alert(
        &self,
        request: Request<pb::ReportAlertRequest>,
    ) -> Result<Response<pb::ReportAlertResponse>, Status> {
        answer(self.report_alert(request.get_ref()))
    }

    async fn exchange(
        &self,
        request: Request<pb::ExchangeRequest>,
    ) -> Result<Response<pb::ExchangeResponse>, Status> {
        answer(self.exchange(request.get_ref()))
    }

    async fn drive(&self, request: Request<Streaming<pb::DriveRequest>>) -> Result<Response<Drive>, Status> {
        if self.draining.is_cancelled() {
            return Err(Refusal::Draining.into());
        }
        let owner = owner(&request);
        let deadline =
            request.extensions().get::<Deadline>().map(|deadline| Box::pin(sleep_until(deadline.0)));
        Ok(Response::new(Drive::new(
            request.into_inner(),
            Arc::clone(&self.opener),
            owner,
            deadline,
            self.plaintext_buffer,
        )))
    }
}
