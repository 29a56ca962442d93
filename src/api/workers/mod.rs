//! Implements WorkerService.

mod attach;
mod decode;
mod encode;
mod turns;

use std::sync::Arc;

use tls_sessiond_proto as pb;
use tls_sessiond_proto::worker_service_server::WorkerService;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    call::{Deadline, caller},
    connections::Connections,
    durations::CallDurations,
    error::Refusal,
    sessions::Sessions,
    workers::attach::{Attach, AttachCalls},
};

/// Holds the state that the streams of WorkerService share.
pub(crate) struct Workers {
    pub(crate) connections: Arc<Connections>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) draining: CancellationToken,
    pub(crate) durations: Arc<CallDurations>,
}

#[async_trait]
impl WorkerService for Workers {
    type AttachStream = Attach;

    async fn attach(
        &self,
        request: Request<Streaming<pb::codec::Calls>>,
    ) -> Result<Response<Attach>, Status> {
        if self.draining.is_cancelled() {
            return Err(Refusal::Draining.into());
        }
        let by = caller(&request)?;
        let deadline = request
            .extensions()
            .get::<Deadline>()
            .map(|deadline| Box::pin(sleep_until(deadline.0)));
        let calls = AttachCalls::new(
            Arc::clone(&self.connections),
            Arc::clone(&self.sessions),
            Arc::clone(&self.durations),
            by,
        )?;
        let draining = self.draining.clone().cancelled_owned();
        Ok(Response::new(Attach::new(
            request.into_inner(),
            calls,
            deadline,
            draining,
        )))
    }
}
