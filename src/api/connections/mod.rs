//! Implements ConnectionService.
//!
//! * `calls`: the unary calls
//! * `open`: opens connections
//! * `drive`: the stream of one connection
//! * `steps`: steps that ask the shared store

mod calls;
mod drive;
mod open;
mod steps;

pub(crate) use calls::Connections;
pub(crate) use open::Opener;

use std::sync::{Arc, atomic::Ordering};

use drive::Drive;
use tls_sessiond_proto as pb;
use tls_sessiond_proto::connection_service_server::ConnectionService;
use tokio::time::sleep_until;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::api::{
    call::{Deadline, Place, StreamPlace, answer, caller},
    error::Refusal,
};

#[async_trait]
impl ConnectionService for Connections {
    type DriveStream = Drive;

    async fn new_connection(
        &self,
        request: Request<pb::NewRequest>,
    ) -> Result<Response<pb::NewResponse>, Status> {
        let by = caller(&request)?;
        answer(self.opener.open(request.into_inner(), &by).await)
    }

    async fn clear(
        &self,
        request: Request<pb::ClearRequest>,
    ) -> Result<Response<pb::ClearResponse>, Status> {
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

    async fn free(
        &self,
        request: Request<pb::FreeRequest>,
    ) -> Result<Response<pb::FreeResponse>, Status> {
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
        answer(
            self.set_session(&*caller(&request)?, request.get_ref())
                .await,
        )
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
        answer(self.exchange(&*caller(&request)?, request.get_ref()).await)
    }

    async fn drive(
        &self,
        request: Request<Streaming<pb::DriveRequest>>,
    ) -> Result<Response<Drive>, Status> {
        if self.draining.is_cancelled() {
            return Err(Refusal::Draining.into());
        }
        let by = caller(&request)?;
        let deadline = request
            .extensions()
            .get::<Deadline>()
            .map(|deadline| Box::pin(sleep_until(deadline.0)));
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
