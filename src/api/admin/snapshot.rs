//! What metrics and the status page show.

use std::sync::Arc;

use tls_sessiond_core::{context::Registry, session::histogram::HistogramCounts};
use tls_sessiond_proto as pb;

use super::{Admin, status::View};
use crate::api::{
    access::{Grants, Peer},
    durations::CallDurations,
    health::Serving,
    reloads::ReloadTotals,
    role::Roles,
};

/// The state of the daemon at one time, as one visitor of the admin address sees it.
pub(crate) struct Snapshot {
    /// Whether names of contexts, identities, files and servers may be shown. Without, `status` has
    /// those of all contexts, to be added up.
    pub(crate) names: bool,
    pub(crate) status: pb::GetStatusResponse,
    /// Durations of handshakes, in the order of the contexts of `status`.
    pub(crate) handshakes: Vec<HistogramCounts>,
    pub(crate) reloads: ReloadTotals,
    pub(crate) virtual_bytes: u64,
}

impl Admin {
    /// Returns what this peer sees. Without the role observer in all contexts, or without a peer, the
    /// snapshot is one without names: history and totals are those of all contexts.
    pub(crate) async fn snapshot(&self, peer: Option<&Peer>) -> Snapshot {
        let registry = Arc::clone(&self.state.registry());
        let granted = peer.map(|peer| Grants::of(registry.rules(), peer));
        let granted = granted.filter(|grants| grants.in_all(Roles::OBSERVER));
        let names = granted.is_some();
        let grants = granted.unwrap_or_else(Self::all_grants);
        self.snapshot_by(registry, grants, names).await
    }

    /// Returns everything, with all names. Only for a receiver that the configuration names.
    #[cfg(feature = "otel")]
    pub(crate) async fn whole_snapshot(&self) -> Snapshot {
        let registry = Arc::clone(&self.state.registry());
        self.snapshot_by(registry, Self::all_grants(), true).await
    }

    /// Without rules, a local peer has all roles.
    fn all_grants() -> Grants {
        Grants::of(&[], &Peer::local())
    }

    async fn snapshot_by(&self, registry: Arc<Registry>, grants: Grants, names: bool) -> Snapshot {
        let view = View {
            registry,
            grants: Arc::new(grants),
        };
        let status = self.status(&view).await;
        let durations = |context: &pb::Context| {
            let context = view.registry.get(&context.name);
            context.map_or_else(HistogramCounts::default, |context| {
                context.stats.durations.counts()
            })
        };
        Snapshot {
            names,
            handshakes: status.contexts.iter().map(durations).collect(),
            reloads: self.reloads.totals(),
            virtual_bytes: super::process::ProcessUse::now().virtual_bytes,
            status,
        }
    }

    /// Returns the durations of calls.
    pub(crate) fn durations(&self) -> &CallDurations {
        &self.durations
    }

    /// Returns where the daemon is in its life.
    pub(crate) fn serving(&self) -> Serving {
        self.health.serving()
    }
}
