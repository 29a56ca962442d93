//! Implements AdminService.
//!
//! * `status`: the state of the daemon
//! * `census`: live connections by context, state, role and engine
//! * `recent`: the latest misses and failures
//! * [`operator`]: what a caller changes while the daemon runs
//! * `snapshot`: what metrics and the status page show
//! * `totals`: counters over all contexts
//! * `process`: what the process uses

mod census;
pub mod operator;
pub(crate) mod process;
mod recent;
mod snapshot;
mod status;
mod totals;

use std::sync::Arc;

use tls_sessiond_core::{
    clock::{Timestamp, WallTime},
    state::CoreState,
};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::admin_service_server::AdminService;
use tonic::{Request, Response, Status, async_trait};

pub(crate) use self::status::build;
use self::{operator::Operator, status::View};
pub(crate) use self::{snapshot::Snapshot, totals::Totals};
use super::{
    access::Caller,
    call::{answer, caller},
    convert,
    durations::CallDurations,
    error::Refusal,
    health::Health,
    quota::{Accounts, streams::StreamTotals, turns::Turns},
    reloads::Reloads,
    role::Roles,
};
use crate::{rings::Rings, store::Store};

/// Holds the state that the calls of AdminService share.
pub(crate) struct Admin {
    /// Counts of connections and lists: one at a time for each caller.
    pub(crate) lists: Arc<Turns>,
    pub(crate) state: Arc<CoreState>,
    pub(crate) started: Timestamp,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) stream_totals: Arc<StreamTotals>,
    pub(crate) reloads: Arc<Reloads>,
    pub(crate) health: Health,
    pub(crate) durations: Arc<CallDurations>,
    /// The limit of sockets that is in force.
    pub(crate) sockets_max: usize,
    /// Returns when the certificate of `[listen.tls]` expires, if there is one.
    pub(crate) listen_ends: Box<dyn Fn() -> Option<WallTime> + Send + Sync>,
    /// The store that other daemons share.
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) operator: Arc<Operator>,
    /// The rings of ticket keys.
    pub(crate) rings: Arc<Rings>,
}

impl Admin {
    fn free(
        &self,
        by: &Caller,
        request: &pb::FreeConnectionRequest,
    ) -> Result<pb::FreeConnectionResponse, Refusal> {
        let id = convert::connection_id(&request.connection_id)?;
        let registry = self.state.registry();
        let connections = self.state.connections();
        connections.authorize(id, |_, context| by.may(&registry, Roles::ADMIN, context))?;
        let removed = connections.free(id)?;
        tracing::info!(
            target: "audit",
            owner = &**by.owner(),
            connection_id = request.connection_id,
            removed = removed.len(),
            "connection freed by an administrator"
        );
        Ok(pb::FreeConnectionResponse {
            removed_sessions: convert::removed(removed),
        })
    }
}

#[async_trait]
impl AdminService for Admin {
    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        let by = caller(&request)?;
        let _turn = self.lists.wait(by.owner()).await;
        let view = View::of(&by, &self.state);
        Ok(Response::new(self.status(&view).await))
    }

    async fn list_misses(
        &self,
        request: Request<pb::ListMissesRequest>,
    ) -> Result<Response<pb::ListMissesResponse>, Status> {
        let by = caller(&request)?;
        answer(self.misses(&by, request.get_ref()))
    }

    async fn list_failures(
        &self,
        request: Request<pb::ListFailuresRequest>,
    ) -> Result<Response<pb::ListFailuresResponse>, Status> {
        let by = caller(&request)?;
        answer(self.failures(&by, request.get_ref()))
    }

    async fn free_connection(
        &self,
        request: Request<pb::FreeConnectionRequest>,
    ) -> Result<Response<pb::FreeConnectionResponse>, Status> {
        let by = caller(&request)?;
        answer(self.free(&by, request.get_ref()))
    }

    async fn reload(
        &self,
        request: Request<pb::ReloadRequest>,
    ) -> Result<Response<pb::ReloadResponse>, Status> {
        let by = caller(&request)?;
        let refused = |why: &str| self.reloads.refuse(self.state.now().wall(), why);
        answer(self.operator.reload(by.owner(), refused).await)
    }

    async fn drain(
        &self,
        request: Request<pb::DrainRequest>,
    ) -> Result<Response<pb::DrainResponse>, Status> {
        let by = caller(&request)?;
        let end_time = self.operator.drain(by.owner(), self.state.now().wall());
        Ok(Response::new(pb::DrainResponse {
            end_time: Some(convert::timestamp(end_time)),
        }))
    }

    async fn set_log_level(
        &self,
        request: Request<pb::SetLogLevelRequest>,
    ) -> Result<Response<pb::SetLogLevelResponse>, Status> {
        let by = caller(&request)?;
        answer(
            self.operator
                .set_log_level(by.owner(), &request.get_ref().level),
        )
    }

    async fn get_config(
        &self,
        _: Request<pb::GetConfigRequest>,
    ) -> Result<Response<pb::GetConfigResponse>, Status> {
        Ok(Response::new(self.operator.config()))
    }
}
