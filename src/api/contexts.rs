//! Implements ContextService.

use std::sync::Arc;

use tls_sessiond_core::{clock::Timestamp, state::CoreState};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::context_service_server::ContextService;
use tonic::{Request, Response, Status, async_trait};

use super::{
    call::{answer, caller},
    convert,
    quota::streams::StreamTotals,
    reloads::Reloads,
    role::{Roles, SEES},
};

/// Holds the state that the calls of ContextService share.
pub(crate) struct Contexts {
    pub(crate) state: Arc<CoreState>,
    pub(crate) started: Timestamp,
    pub(crate) stream_totals: Arc<StreamTotals>,
    pub(crate) reloads: Arc<Reloads>,
}

#[async_trait]
impl ContextService for Contexts {
    async fn list_contexts(
        &self,
        request: Request<pb::ListContextsRequest>,
    ) -> Result<Response<pb::ListContextsResponse>, Status> {
        let by = caller(&request)?;
        let uptime = self.state.now().at.since(self.started);
        let registry = self.state.registry();
        let contexts = registry
            .all()
            .iter()
            .filter(|context| by.may(&registry, SEES, &context.name))
            .map(|context| convert::context(context, uptime))
            .collect();
        let daemon = pb::DaemonStats {
            stream_limit_connections: self.stream_totals.connections(),
            stream_limit_reached: self.stream_totals.reached(),
        };
        let operates = by.has_any(&registry, Roles::OBSERVER);
        let last_reload = self
            .reloads
            .last(|context| by.may(&registry, SEES, context), operates);
        Ok(Response::new(pb::ListContextsResponse {
            contexts,
            daemon: Some(daemon),
            last_reload,
        }))
    }

    async fn get_context(
        &self,
        request: Request<pb::GetContextRequest>,
    ) -> Result<Response<pb::GetContextResponse>, Status> {
        let name = &request.get_ref().name;
        let uptime = self.state.now().at.since(self.started);
        let registry = self.state.registry();
        answer(
            caller(&request)?
                .context(&registry, name, SEES)
                .map(|context| pb::GetContextResponse {
                    context: Some(convert::context(context, uptime)),
                }),
        )
    }
}
