//! Implements ContextService.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tls_sessiond_core::{
    clock::{Now, Timestamp},
    state::CoreState,
};
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
use crate::store::Store;

/// Holds the state that the calls of ContextService share.
pub(crate) struct Contexts {
    pub(crate) state: Arc<CoreState>,
    pub(crate) started: Timestamp,
    pub(crate) stream_totals: Arc<StreamTotals>,
    pub(crate) reloads: Arc<Reloads>,
    /// The store that other daemons share.
    pub(crate) store: Option<Arc<Store>>,
}

/// Returns the counters of the daemon as a whole. `operates`: whether the caller may see the address
/// of the store.
pub(crate) fn daemon_stats(
    streams: &StreamTotals,
    store: Option<&Store>,
    operates: bool,
    now: Now,
) -> pb::DaemonStats {
    pb::DaemonStats {
        stream_limit_connections: streams.connections(),
        stream_limit_reached: streams.reached(),
        shared_store: store.map(|store| shared_store(store, operates, now)),
    }
}

fn shared_store(store: &Store, operates: bool, now: Now) -> pb::SharedStore {
    let counters = &store.fleet().counters;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    pb::SharedStore {
        address: if operates {
            store.address()
        } else {
            String::new()
        },
        open_parts: u32::try_from(store.fleet().open_buckets(now.at)).unwrap_or(u32::MAX),
        requests: read(&counters.requests),
        failures: read(&counters.failures),
        shed: read(&counters.shed),
        unopened: read(&counters.unopened),
        losses: read(&counters.losses),
        abandoned: read(&counters.abandoned),
        keys: store.fleet().keys().names().fingerprint(),
    }
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
        let operates = by.has_any(&registry, Roles::OBSERVER);
        let store = self.store.as_deref();
        let daemon = daemon_stats(&self.stream_totals, store, operates, self.state.now());
        // The error of a reload may name files of any context.
        let sees_all = by.grants(&registry).in_all(Roles::OBSERVER);
        let last_reload = self
            .reloads
            .last(|context| by.may(&registry, SEES, context), sees_all);
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
