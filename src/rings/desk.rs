//! One ring, as the API uses it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use aws_lc_rs::rand;
use parking_lot::Mutex;
use tls_sessiond_core::{clock::Clock, session::stats::Counter};
use tls_sessiond_keys::{
    epoch::{Layout, NoRandomness, TicketKey},
    ring::{Event, Instruction, Lease, Refused, Ring, RingView, Settings, Style},
    ticket::NotOpened,
};
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use super::{
    on_the_line,
    saving::Saving,
    spent::{Spending, Spent},
};
use crate::config::TicketKeysConfig;

/// A ring.
pub(crate) struct RingDesk {
    config: TicketKeysConfig,
    name: Arc<str>,
    context: Option<Arc<str>>,
    clock: Clock,
    state: Mutex<DeskState>,
    /// The number of the last instruction. Closed when the ring is no longer there.
    changed: Mutex<Option<watch::Sender<u64>>>,
    woken: Arc<Notify>,
    saving: Option<Saving>,
    /// Random: tickets that were sealed before a restart do not open, because the list of spent ones is
    /// gone.
    run: [u8; 16],
    /// Members that were fenced.
    pub(crate) fenced: Counter,
}

struct DeskState {
    ring: Ring,
    /// The identities of attached members.
    owners: BTreeMap<Arc<str>, Arc<str>>,
    spent: Spent,
    /// Whether the ring differs from the saved one.
    is_unsaved: bool,
    /// Whether the last attempt to save it failed.
    has_failed: bool,
}

/// A ticket that was opened.
pub(crate) struct OpenedHere {
    pub(crate) state: Zeroizing<Vec<u8>>,
    pub(crate) epoch: u64,
    /// Whether a later epoch encrypts now.
    pub(crate) renew: bool,
}

/// Why a ticket was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOpenedHere {
    Ticket(NotOpened),
    Spent,
}

impl fmt::Debug for RingDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingDesk({})", self.name)
    }
}

impl RingDesk {
    /// Begins a ring, or goes on with a saved one.
    ///
    /// # Errors
    /// The key of the configuration at fault, and why.
    pub(super) fn begin(
        config: &TicketKeysConfig,
        clock: Clock,
        woken: Arc<Notify>,
    ) -> Result<Self, (&'static str, String)> {
        let saving = match &config.saved {
            None => None,
            Some(saved) => Some(Saving::read(saved).map_err(|why| ("credential", why))?),
        };
        let time = clock.now();
        let now = on_the_line(time);
        let restored = saving
            .as_ref()
            .and_then(|saving| restore(config, saving, now, wall(&clock)));
        let ring = match restored {
            Some(ring) => ring,
            None => Ring::new(&config.name, config.settings, now)
                .map_err(|NoRandomness| ("name", NoRandomness.to_string()))?,
        };
        let mut run = [0; 16];
        rand::fill(&mut run).map_err(|_| ("name", NoRandomness.to_string()))?;
        let (changed, _) = watch::channel(0);
        Ok(Self {
            name: config.name.as_str().into(),
            context: config.context.as_deref().map(Into::into),
            config: config.clone(),
            clock,
            state: Mutex::new(DeskState {
                ring,
                owners: BTreeMap::new(),
                spent: Spent::default(),
                is_unsaved: true,
                has_failed: false,
            }),
            changed: Mutex::new(Some(changed)),
            woken,
            saving,
            run,
            fenced: Counter::default(),
        })
    }

    /// Returns whether this is the ring of a configuration, apart from its settings.
    pub(super) fn is_of(&self, config: &TicketKeysConfig) -> bool {
        self.config.name == config.name
            && self.config.context == config.context
            && self.config.saved == config.saved
    }

    pub(super) fn set(&self, settings: Settings) {
        self.state.lock().ring.set(settings);
    }

    /// Ends the streams of all members.
    pub(super) fn end(&self) {
        self.changed.lock().take();
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the context that it belongs to.
    pub(crate) fn context(&self) -> Option<&Arc<str>> {
        self.context.as_ref()
    }

    /// Returns whether it survives a restart.
    pub(crate) fn is_saved(&self) -> bool {
        self.saving.is_some() && !self.state.lock().has_failed
    }

    fn now(&self) -> Duration {
        on_the_line(self.clock.now())
    }

    /// Goes on as far as time and acknowledgements allow. Returns when to look again.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn tick(&self) -> Result<Duration, NoRandomness> {
        let mut state = self.state.lock();
        self.go_on(&mut state)?;
        Ok(state.ring.due())
    }

    fn go_on(&self, state: &mut DeskState) -> Result<(), NoRandomness> {
        let events = state.ring.tick(self.now())?;
        self.tell(state, &events);
        Ok(())
    }

    /// Logs what has happened, and tells members of a new instruction.
    fn tell(&self, state: &mut DeskState, events: &[Event]) {
        let ring = &*self.name;
        for event in events {
            match event {
                Event::Began(phase, epoch) => {
                    tracing::debug!(ring, ?phase, epoch, "ticket keys: a phase begins");
                }
                Event::Late(member) => {
                    tracing::warn!(
                        ring,
                        member = &**member,
                        "ticket keys: the rotation waits for this member"
                    );
                }
                Event::Fenced(member) => {
                    self.fenced.count();
                    state.owners.remove(member);
                    tracing::error!(
                        ring,
                        member = &**member,
                        "ticket keys: the key is too old to wait for this member; its clients make full handshakes until it joins again"
                    );
                }
            }
        }
        if !events.is_empty() {
            state.is_unsaved = true;
            let sequence = state.ring.view(self.now()).sequence;
            if let Some(changed) = &*self.changed.lock() {
                changed.send_replace(sequence);
            }
            self.woken.notify_one();
        }
    }

    /// Makes a server a member. Its stream holds the membership.
    ///
    /// # Errors
    /// As [`Ring::join`]. `None`: the ring is no longer there.
    pub(crate) fn join(
        self: &Arc<Self>,
        member: &str,
        style: Style,
        owner: &Arc<str>,
    ) -> Option<Result<Membership, Refused>> {
        let changed = self.changed.lock().as_ref()?.subscribe();
        let mut state = self.state.lock();
        let joined = state.ring.join(member, style, self.now());
        Some(joined.map(|lease| {
            state.owners.insert(member.into(), Arc::clone(owner));
            // A stream that this one replaces must notice.
            if let Some(changed) = &*self.changed.lock() {
                changed.send_modify(|_| ());
            }
            Membership {
                desk: Arc::clone(self),
                lease,
                changed,
                has_left: false,
            }
        }))
    }

    /// Asks for a rotation, or replaces all epochs at once.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(crate) fn rotate(&self, is_emergency: bool) -> Result<(), NoRandomness> {
        let mut state = self.state.lock();
        if is_emergency {
            let event = state.ring.rotate_at_once(self.now())?;
            self.tell(&mut state, &[event]);
        } else {
            state.ring.rotate();
        }
        self.go_on(&mut state)?;
        self.woken.notify_one();
        Ok(())
    }

    /// Ends a membership. Returns whether there was one.
    pub(crate) fn fence(&self, member: &str) -> bool {
        let mut state = self.state.lock();
        let was = state.ring.fence(member, self.now());
        if was {
            let member: Arc<str> = member.into();
            self.tell(&mut state, &[Event::Fenced(member)]);
            // What fails here is logged at the next tick.
            let _ = self.go_on(&mut state);
        }
        was
    }

    /// Returns the state, and the identities of members.
    pub(crate) fn view(&self) -> (RingView, BTreeMap<Arc<str>, Arc<str>>) {
        let state = self.state.lock();
        (state.ring.view(self.now()), state.owners.clone())
    }

    /// Returns the number of the last instruction and the keys of a server with a list.
    pub(crate) fn keys_now(&self, layout: Layout) -> (u64, Vec<TicketKey>) {
        let state = self.state.lock();
        let instruction = state.ring.instruct(Style::List);
        let keys = instruction.open.iter();
        let keys = keys.filter_map(|epoch| state.ring.key(*epoch, layout));
        (instruction.sequence, keys.collect())
    }

    /// Returns the settings in force.
    pub(crate) fn settings(&self) -> Settings {
        self.state.lock().ring.settings()
    }

    /// Seals a state as a ticket.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(crate) fn seal(&self, state: &[u8], binding: &[u8]) -> Result<Vec<u8>, NoRandomness> {
        let bound = [&self.run, binding].concat();
        let sealed = self.state.lock().ring.seal(state, &bound);
        sealed.map(|(_, ticket)| ticket)
    }

    /// Opens a ticket, and spends it if it is for single use.
    ///
    /// # Errors
    /// See [`NotOpenedHere`].
    pub(crate) fn open(
        &self,
        ticket: &[u8],
        binding: &[u8],
        single_use: bool,
    ) -> Result<OpenedHere, NotOpenedHere> {
        let now = self.now();
        let mut state = self.state.lock();
        let opened = state
            .ring
            .open(ticket, &[&self.run, binding].concat())
            .map_err(NotOpenedHere::Ticket)?;
        let view = state.ring.view(now);
        let settings = state.ring.settings();
        // It opens until the epoch is dropped: a rotation and a lifetime from now at the latest.
        let lifetime = settings.max_key_age + settings.rotate + settings.lifetime;
        let is_spent = match single_use {
            true => state.spent.spend(opened.handle, now, lifetime) != Spending::Spent,
            false => state.spent.has(&opened.handle),
        };
        if is_spent {
            return Err(NotOpenedHere::Spent);
        }
        Ok(OpenedHere {
            state: opened.state,
            renew: opened.epoch != view.epoch,
            epoch: opened.epoch,
        })
    }

    /// Saves the ring, if it has changed and is to be saved.
    pub(super) async fn save(&self) {
        let Some(saving) = &self.saving else { return };
        let sealed = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.is_unsaved) {
                return;
            }
            let time = self.clock.now();
            saving
                .key
                .save(&state.ring, on_the_line(time), wall(&self.clock))
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
                    ring = &*self.name,
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

/// The membership of a server. Dropping it means that the way to the server is lost.
pub(crate) struct Membership {
    desk: Arc<RingDesk>,
    lease: Lease,
    changed: watch::Receiver<u64>,
    has_left: bool,
}

impl Membership {
    /// Returns the instruction, and its keys. `None`: the lease has ended.
    pub(crate) fn instruction(
        &self,
        layout: Layout,
    ) -> Option<(Instruction, Vec<(u64, TicketKey)>)> {
        let state = self.desk.state.lock();
        let instruction = state.ring.instruction(self.lease)?;
        let keys = instruction.open.iter().filter_map(|epoch| {
            let key = state.ring.key(*epoch, layout)?;
            Some((*epoch, key))
        });
        let keys = keys.collect();
        Some((instruction, keys))
    }

    /// Waits for a change of the ring. Returns false if the ring is no longer there.
    pub(crate) async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }

    /// Takes an acknowledgement.
    ///
    /// # Errors
    /// As [`Ring::acknowledge`].
    pub(crate) fn acknowledge(&self, sequence: u64) -> Result<(), Refused> {
        let mut state = self.desk.state.lock();
        state
            .ring
            .acknowledge(self.lease, sequence, self.desk.now())?;
        state.is_unsaved = true;
        // What fails here is logged at the next tick.
        let _ = self.desk.go_on(&mut state);
        Ok(())
    }

    /// Takes a refusal.
    ///
    /// # Errors
    /// As [`Ring::refuse`].
    pub(crate) fn refuse(&self, sequence: u64, why: &str) -> Result<(), Refused> {
        let mut state = self.desk.state.lock();
        state.ring.refuse(self.lease, sequence, why)
    }

    /// Ends the membership for good.
    pub(crate) fn leave(mut self) {
        self.has_left = true;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.desk.state.lock();
        let now = self.desk.now();
        match self.has_left {
            true => state.ring.leave(self.lease, now),
            false => state.ring.detach(self.lease, now),
        }
        state.is_unsaved = true;
        // What fails here is logged at the next tick.
        let _ = self.desk.go_on(&mut state);
    }
}
