//! The rings of ticket keys of this daemon: their time, their log lines, and their files.
//!
//! * `desk`: one ring, as the API uses it
//! * `membership`: a server in a ring
//! * `not_shared`: why a ring in the shared store was not reached
//! * `own`: a ring of this daemon alone
//! * `saving`: a ring on disk
//! * `sealer`: a ring that seals sessions of the daemon's engine
//! * `sharing`: a ring in the shared store
//! * `spent`: tickets that were opened with `single_use`
//! * `tally`: how many tickets were sealed and opened

mod desk;
mod membership;
mod not_shared;
mod own;
mod saving;
mod sealer;
mod sharing;
mod spent;
mod tally;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use futures_util::future::join_all;
use tls_sessiond_core::{
    clock::{Clock, Now},
    session::sealing::{Sealers, SealsTickets},
};
use tls_sessiond_keys::epoch::NoRandomness;
use tokio::{sync::Notify, time::sleep};

pub(crate) use self::{
    desk::{NotOpenedHere, RingDesk},
    membership::{Membership, NotJoined},
    not_shared::NotShared,
    tally::Tickets,
};
use self::{sealer::RingSealer, sharing::StoreOfRings};
use crate::{
    config::{Config, ConfigError, TicketKeysConfig},
    store::Store,
};

/// Longest wait between two looks at the rings: the clock may be set, or the system suspended.
const LOOK: Duration = Duration::from_secs(5);
/// Wait after a step that the system refused random numbers for, and after one that the shared store
/// did not answer.
const AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The rings of the configuration, in its order.
pub struct Rings {
    desks: ArcSwap<Vec<Arc<RingDesk>>>,
    clock: Clock,
    /// Notified when a ring may have something to do earlier than before.
    woken: Arc<Notify>,
    /// This daemon, at this start.
    daemon: u64,
    store: StoreOfRings,
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
        let mut daemon = [0; 8];
        rand::fill(&mut daemon).map_err(|_| config.ticket_keys_error(0, "name", NoRandomness))?;
        let rings = Self {
            desks: ArcSwap::from_pointee(Vec::new()),
            clock,
            woken: Arc::new(Notify::new()),
            daemon: u64::from_be_bytes(daemon),
            store: Arc::new(OnceLock::new()),
        };
        let desks = rings.prepare(config)?;
        rings.swap(desks);
        Ok(rings)
    }

    /// Gives the rings the store that they are shared over. Has no effect a second time.
    pub(crate) fn share(&self, store: &Arc<Store>) {
        let _shared_already = self.store.set(Arc::clone(store)).is_err();
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
                    let store = config.store.as_ref().map(|_| Arc::clone(&self.store));
                    let clock = self.clock.clone();
                    let desk = RingDesk::begin(wanted, clock, woken, self.daemon, store)
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

    /// Returns what seals sessions with the rings.
    pub(crate) fn sealers(&self) -> Sealers {
        sealers(self.desks.load().iter())
    }

    /// Returns a ring by its name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<RingDesk>> {
        let desks = self.desks.load();
        desks.iter().find(|desk| **desk.name() == *name).cloned()
    }

    /// Goes on with all rings as time passes. Ends with the daemon.
    pub(crate) async fn run(&self) {
        loop {
            let desks = self.desks.load_full();
            let waits = join_all(desks.iter().map(|desk| async {
                match desk.turn().await {
                    Ok(wait) => wait,
                    Err(NotShared::NoRandomness(why)) => {
                        tracing::error!(ring = &**desk.name(), "{why}: the rotation waits");
                        AGAIN
                    }
                    Err(_) => ASK_AGAIN,
                }
            }));
            let wait = waits.await.into_iter().fold(LOOK, Duration::min);
            tokio::select! {
                () = sleep(wait) => {}
                () = self.woken.notified() => {}
            }
        }
    }
}

/// Rings that can be used without a step that fails.
pub(crate) struct PreparedRings(Vec<(Arc<RingDesk>, tls_sessiond_keys::ring::Settings)>);

impl PreparedRings {
    /// Returns what seals sessions with the rings.
    pub(crate) fn sealers(&self) -> Sealers {
        sealers(self.0.iter().map(|(desk, _)| desk))
    }
}

fn sealers<'d>(desks: impl Iterator<Item = &'d Arc<RingDesk>>) -> Sealers {
    let sealer = |desk: &Arc<RingDesk>| -> (Box<str>, Arc<dyn SealsTickets>) {
        (
            (&**desk.name()).into(),
            Arc::new(RingSealer(Arc::clone(desk))),
        )
    };
    desks.map(sealer).collect()
}
