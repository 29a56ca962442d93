//! Other settings while the proxies run.

use std::sync::{Arc, atomic::Ordering};

use tls_sessiond_core::clock::Clock;

use super::{
    FILES_OF_ONE, FILES_RESERVED, ProxiesState,
    door::Live,
    own_config,
    settings::{Keeper, Loaded},
};
use crate::config::{Config, ConfigError};

/// Returns the error of a proxy whose role has changed.
pub(super) fn role_changed(config: &Config, place: usize) -> ConfigError {
    config.proxy_error(
        place,
        "connect",
        "terminating and originating cannot be exchanged at run time; restart the proxy",
    )
}

/// Divides `room` among those that want it: small wishes are granted first, and the others have equal
/// shares of the rest. Each has one at least.
fn shares(wanted: &[u64], room: u64) -> Vec<u64> {
    let mut order: Vec<_> = (0..wanted.len()).collect();
    order.sort_by_key(|place| wanted[*place]);
    let mut shares = vec![1; wanted.len()];
    let mut left = room;
    for (done, place) in order.into_iter().enumerate() {
        let waiting = (wanted.len() - done) as u64;
        shares[place] = wanted[place].min(left / waiting).max(1);
        left = left.saturating_sub(shares[place]);
    }
    shares
}

/// Returns the settings of a proxy for new connections.
pub(super) fn live(
    loaded: &Loaded,
    place: usize,
    keeper: &Keeper,
    open_files: Option<u64>,
) -> Option<Live> {
    let mut config = loaded.config.proxies[place].clone();
    let wanted: Vec<u64> = loaded
        .config
        .proxies
        .iter()
        .map(|proxy| proxy.connections as u64)
        .collect();
    let room = open_files.map(|files| files.saturating_sub(FILES_RESERVED) / FILES_OF_ONE);
    let share = room.map_or(wanted[place], |room| shares(&wanted, room)[place]);
    if share < wanted[place] {
        let wanted = config.connections;
        config.connections = usize::try_from(share).unwrap_or(wanted);
        tracing::warn!(
            proxy = %config.listen,
            wanted,
            connections = config.connections,
            open_files,
            "connections of the proxy cannot be reached: raise the limit of open files (LimitNOFILE=, ulimit -n)"
        );
    }
    Some(Live {
        doing: loaded.doing(place, keeper)?,
        ends: loaded.ends(place),
        config,
    })
}

/// Applies a new configuration to running proxies. Clones reload the same proxies.
#[derive(Clone)]
pub struct ProxiesReload(pub(super) Arc<ProxiesState>);

impl ProxiesReload {
    /// Applies another configuration, as a whole or not at all. Connections keep the settings that
    /// they began with. Reads files, and may block on them.
    ///
    /// # Errors
    /// The configuration is invalid, or it may not follow the running one. Nothing has changed then.
    pub fn apply(&self, config: &Config) -> Result<Vec<ConfigError>, ConfigError> {
        let applied = self.try_apply(config);
        self.count(applied.is_ok());
        applied
    }

    /// Counts a reload that ended before its configuration was applied, because it cannot be read.
    pub fn refused(&self) {
        self.count(false);
    }

    fn count(&self, is_applied: bool) {
        let shared = &self.0;
        let counter = match is_applied {
            true => &shared.applied,
            false => &shared.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        *shared.last_reload.lock() = Some((Clock::System.now().wall(), is_applied));
    }

    fn try_apply(&self, config: &Config) -> Result<Vec<ConfigError>, ConfigError> {
        let shared = &self.0;
        // Files may hang. Nothing but another reload waits for the turn.
        let _turn = shared.turn.lock();
        let running = shared.loaded.load_full();
        config.proxies_can_follow(&running.config)?;
        let mut loaded = Loaded::read(config, Some(&running))?;
        let mut lives = Vec::with_capacity(shared.proxies.len());
        for (place, keeper) in shared.keepers.iter().enumerate() {
            let live = live(&loaded, place, keeper, shared.open_files);
            lives.push(live.ok_or_else(|| role_changed(config, place))?);
        }
        if let Some(own) = &shared.own {
            own.apply(&own_config(config))?;
        }
        for (proxy, live) in shared.proxies.iter().zip(lives) {
            proxy.swap(live);
        }
        loaded.take_over(&running);
        let warnings = loaded.warnings(Clock::System.now().wall());
        shared.loaded.store(Arc::new(loaded));
        Ok(warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn small_wishes_are_granted_first() {
        assert_eq!(shares(&[50, 1_000_000], 10_000), [50, 9_950]);
        assert_eq!(shares(&[10_000, 5, 10_000], 1_005), [500, 5, 500]);
        assert_eq!(shares(&[3, 4], 10), [3, 4]);
        assert_eq!(shares(&[5, 5], 0), [1, 1]);
    }
}
