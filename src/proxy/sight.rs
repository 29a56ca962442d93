//! The proxies as a visitor of the admin address sees them.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use tls_sessiond_core::clock::WallTime;

use super::{ProxiesState, door::ProxyDoor, sessions::SessionsDesk};
use crate::log::Log;

/// The counts of reloads.
pub(super) struct ReloadCounts {
    pub(super) applied: u64,
    pub(super) refused: u64,
    pub(super) last: Option<(WallTime, bool)>,
}

/// The proxies as one visitor of the admin address sees them.
pub(super) struct Sight {
    pub(super) shared: Arc<ProxiesState>,
    /// Whether addresses are shown.
    pub(super) names: bool,
}

impl fmt::Debug for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sight")
    }
}

impl Sight {
    pub(super) fn is_ready(&self) -> bool {
        self.shared.is_ready.load(Ordering::Relaxed)
    }

    pub(super) fn proxies(&self) -> impl Iterator<Item = &ProxyDoor> {
        self.shared.proxies.iter().map(|proxy| &**proxy)
    }

    pub(super) fn name(&self, proxy: &ProxyDoor) -> String {
        match self.names {
            true => proxy.name.clone(),
            false => self
                .proxies()
                .position(|other| std::ptr::eq(other, proxy))
                .unwrap_or(0)
                .to_string(),
        }
    }

    /// The sessions, each with the name to show.
    pub(super) fn desks(&self) -> impl Iterator<Item = (String, &SessionsDesk)> {
        let desks = self.shared.desks.iter().enumerate();
        desks.map(|(place, desk)| match self.names {
            true => (desk.name.clone(), desk),
            false => (place.to_string(), desk),
        })
    }

    pub(super) fn reloads(&self) -> ReloadCounts {
        ReloadCounts {
            applied: self.shared.applied.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            last: *self.shared.last_reload.lock(),
        }
    }

    pub(super) fn log_lines_dropped(&self) -> u64 {
        self.shared.log.get().map_or(0, Log::dropped)
    }

    pub(super) fn started(&self) -> WallTime {
        self.shared.started
    }
}
