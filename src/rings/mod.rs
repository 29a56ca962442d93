//! The rings of ticket keys of this daemon: their time, their log lines, and their files.
//!
//! * `desk`: one ring, as the API uses it
//! * `saving`: a ring on disk
//! * `spent`: tickets that were opened with `single_use`

mod desk;
mod saving;
mod spent;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tls_sessiond_core::clock::{Clock, Now};
use tls_sessiond_keys::epoch::NoRandomness;
use tokio::{sync::Notify, time::sleep};

pub(crate) use self::desk::{Membership, NotOpenedHere, RingDesk};
use crate::config::{Config, ConfigError, TicketKeysConfig};

/// Longest wait between two looks at the rings: the clock may be set, or the system suspended.
const LOOK: Duration = Duration::from_secs(5);
/// Wait after a step that the system refused random numbers for.
const AGAIN: Duration = Duration::from_secs(1);

/// The rings of the configuration, in its order.
pub struct Rings {
    desks: ArcSwap<Vec<Arc<RingDesk>>>,
    clock: Clock,
    /// Notified when a ring may have something to do earlier than before.
    woken: Arc<Notify>,
}

/// Returns a time on the daemon's time line, as rings count it.
fn on_the_line(now: Now) -> Duration {
    Duration::from_millis(now.at.as_millis())
}

impl Rings {
    /// Begins the rings of a configuration. A ring that was saved goes on.
    ///
    /// # Errors
    /// A credential cannot be read or is too short, or the system has no random numbers.
    pub fn read(config: &Config, clock: Clock) -> Result<Self, ConfigError> {
        let rings = Self {
            desks: ArcSwap::from_pointee(Vec::new()),
            clock,
            woken: Arc::new(Notify::new()),
        };
        let desks = rings.prepare(config)?;
        rings.swap(desks);
        Ok(rings)
    }

    /// Makes the rings of another configuration, without using them. Rings of the same name go on.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn prepare(&self, config: &Config) -> Result<PreparedRings, ConfigError> {
        let running = self.desks.load();
        let desk = |(place, wanted): (usize, &TicketKeysConfig)| {
            let kept = running.iter().find(|desk| desk.is_of(wanted));
            let desk = match kept {
                Some(desk) => Arc::clone(desk),
                None => {
                    let woken = Arc::clone(&self.woken);
                    let desk = RingDesk::begin(wanted, self.clock.clone(), woken)
                        .map_err(|(key, why)| config.ticket_keys_error(place, key, why))?;
                    Arc::new(desk)
                }
            };
            Ok((desk, wanted.settings))
        };
        let desks = config.ticket_keys.iter().enumerate().map(desk);
        Ok(PreparedRings(desks.collect::<Result<_, ConfigError>>()?))
    }

    /// Uses prepared rings. The streams of rings that are no longer there end.
    pub(crate) fn swap(&self, prepared: PreparedRings) {
        let desks: Vec<_> = prepared
            .0
            .into_iter()
            .map(|(desk, settings)| {
                desk.set(settings);
                desk
            })
            .collect();
        let before = self.desks.swap(Arc::new(desks));
        let now = self.desks.load();
        for desk in before.iter() {
            if !now.iter().any(|kept| Arc::ptr_eq(kept, desk)) {
                desk.end();
            }
        }
        self.woken.notify_one();
    }

    /// Returns all rings.
    pub(crate) fn all(&self) -> Arc<Vec<Arc<RingDesk>>> {
        self.desks.load_full()
    }

    /// Returns a ring by its name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<RingDesk>> {
        let desks = self.desks.load();
        desks.iter().find(|desk| **desk.name() == *name).cloned()
    }

    /// Goes on with all rings as time passes. Ends with the daemon.
    pub(crate) async fn run(&self) {
        loop {
            let now = on_the_line(self.clock.now());
            let mut wait = LOOK;
            for desk in self.desks.load_full().iter() {
                match desk.tick() {
                    Ok(due) => wait = wait.min(due.saturating_sub(now)),
                    Err(NoRandomness) => {
                        tracing::error!(
                            ring = &**desk.name(),
                            "the system has no random numbers: the rotation waits"
                        );
                        wait = wait.min(AGAIN);
                    }
                }
                desk.save().await;
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.woken.notified() => {}
            }
        }
    }
}

/// Rings that can be used without a step that fails.
pub(crate) struct PreparedRings(Vec<(Arc<RingDesk>, tls_sessiond_keys::ring::Settings)>);
