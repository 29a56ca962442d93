//! A ring of this daemon alone: in memory, and saved if the configuration says so.

use std::time::Duration;

use parking_lot::Mutex;
use tls_sessiond_core::clock::Clock;
use tls_sessiond_keys::{
    epoch::NoRandomness,
    ring::{Event, Ring},
};

use super::{on_the_line, saving::Saving};
use crate::config::TicketKeysConfig;

/// The ring, and its file.
pub(super) struct Own {
    state: Mutex<State>,
    saving: Option<Saving>,
}

struct State {
    ring: Ring,
    /// Whether the ring differs from the saved one.
    is_unsaved: bool,
    /// Whether the last attempt to save it failed.
    has_failed: bool,
}

impl Own {
    /// Begins a ring, or goes on with a saved one.
    ///
    /// # Errors
    /// The key of the configuration at fault, and why.
    pub(super) fn begin(
        config: &TicketKeysConfig,
        clock: &Clock,
    ) -> Result<Self, (&'static str, String)> {
        let saving = match &config.saved {
            None => None,
            Some(saved) => Some(Saving::read(saved).map_err(|why| ("credential", why))?),
        };
        let now = on_the_line(clock.now());
        let restored = saving
            .as_ref()
            .and_then(|saving| restore(config, saving, now, wall(clock)));
        let ring = match restored {
            Some(ring) => ring,
            None => Ring::new(&config.name, config.settings, now)
                .map_err(|NoRandomness| ("name", NoRandomness.to_string()))?,
        };
        Ok(Self {
            state: Mutex::new(State {
                ring,
                is_unsaved: true,
                has_failed: false,
            }),
            saving,
        })
    }

    /// Returns whether the ring survives a restart.
    pub(super) fn is_saved(&self) -> bool {
        self.saving.is_some() && !self.state.lock().has_failed
    }

    /// Reads the ring.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Ring) -> T) -> T {
        read(&self.state.lock().ring)
    }

    /// Changes the ring, and goes on as far as time and acknowledgements allow then. Returns what has
    /// happened besides.
    pub(super) fn change<T>(
        &self,
        now: Duration,
        change: impl FnOnce(&mut Ring, Duration) -> T,
    ) -> (T, Vec<Event>) {
        let mut state = self.state.lock();
        let outcome = change(&mut state.ring, now);
        state.is_unsaved = true;
        // A step that fails here is tried again, and logged, at the next tick.
        let events = state.ring.tick(now).unwrap_or_default();
        (outcome, events)
    }

    /// Goes on as far as time and acknowledgements allow. Returns what has happened, and when to look
    /// again.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn tick(&self, now: Duration) -> Result<(Vec<Event>, Duration), NoRandomness> {
        let mut state = self.state.lock();
        let events = state.ring.tick(now)?;
        state.is_unsaved |= !events.is_empty();
        Ok((events, state.ring.due()))
    }

    /// Saves the ring, if it has changed and is to be saved.
    pub(super) async fn save(&self, clock: &Clock) {
        let Some(saving) = &self.saving else { return };
        let (name, sealed) = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.is_unsaved) {
                return;
            }
            let now = on_the_line(clock.now());
            let sealed = saving.key.save(&state.ring, now, wall(clock));
            (state.ring.name().clone(), sealed)
        };
        let writer = saving.writer();
        let saved = match sealed {
            Ok(sealed) => tokio::task::spawn_blocking(move || writer(&sealed))
                .await
                .unwrap_or_else(|err| Err(std::io::Error::other(err))),
            Err(err) => Err(std::io::Error::other(err)),
        };
        let mut state = self.state.lock();
        let failed = saved.is_err();
        if let Err(err) = saved {
            state.is_unsaved = true;
            if !state.has_failed {
                tracing::error!(
                    ring = &*name,
                    %err,
                    file = %saving.path().display(),
                    "ticket keys: the ring cannot be saved, and would begin anew after a restart"
                );
            }
        }
        state.has_failed = failed;
    }
}

/// Returns the wall clock in milliseconds since the Unix epoch.
fn wall(clock: &Clock) -> u64 {
    clock.now().wall().as_millis()
}

/// Goes on with a saved ring, if there is one that opens. Logs why not.
fn restore(config: &TicketKeysConfig, saving: &Saving, now: Duration, wall: u64) -> Option<Ring> {
    let ring = config.name.as_str();
    let file = saving.path().display();
    let saved = match saving.load() {
        Ok(saved) => saved?,
        Err(err) => {
            tracing::error!(ring, %err, %file, "ticket keys: the saved ring cannot be read; the ring begins anew, and every client makes one full handshake");
            return None;
        }
    };
    match saving.key.restore(ring, config.settings, &saved, now, wall) {
        Ok(restored) => {
            tracing::info!(ring, %file, "ticket keys: the ring goes on");
            Some(restored)
        }
        Err(err) => {
            tracing::error!(ring, %err, %file, "ticket keys: the saved ring is not used; the ring begins anew, and every client makes one full handshake");
            None
        }
    }
}
