//! One ring, as the API uses it.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tls_sessiond_core::{clock::Clock, session::stats::Counter};
use tls_sessiond_keys::{
    epoch::{Layout, NoRandomness, TicketKey},
    ring::{Event, Lease, News, Refused, Ring, RingView, Settings, Style},
    ticket::{NotOpened, OpenedTicket},
};
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use super::{
    not_shared::NotShared,
    on_the_line,
    own::Own,
    sharing::{Sharing, StoreOfRings},
    spent::{Spending, Spent},
    tally::{Tally, Tickets},
};
use crate::config::TicketKeysConfig;

/// A ring.
pub(crate) struct RingDesk {
    config: TicketKeysConfig,
    name: Arc<str>,
    context: Option<Arc<str>>,
    clock: Clock,
    /// This daemon, at this start.
    daemon: u64,
    held: Held,
    spent: Mutex<Spent>,
    /// Closed when the ring is no longer there.
    changed: Mutex<Option<watch::Sender<()>>>,
    /// What members of a ring that daemons share were told of.
    told: Mutex<News>,
    woken: Arc<Notify>,
    /// Members that were fenced.
    pub(crate) fenced: Counter,
    pub(super) tally: Tally,
}

/// Where a ring is.
enum Held {
    /// In this daemon alone.
    Own(Box<Own>),
    /// In the shared store.
    Shared(Box<Sharing>),
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
    NotShared(NotShared),
}

impl fmt::Debug for RingDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingDesk({})", self.name)
    }
}

impl RingDesk {
    /// Begins a ring, or goes on with a saved one. `store`: that of a ring that daemons share.
    ///
    /// # Errors
    /// The key of the configuration at fault, and why.
    pub(super) fn begin(
        config: &TicketKeysConfig,
        clock: Clock,
        woken: Arc<Notify>,
        daemon: u64,
        store: Option<StoreOfRings>,
    ) -> Result<Self, (&'static str, String)> {
        let name = config.name.as_str().into();
        let held = match store {
            None => Held::Own(Box::new(Own::begin(config, &clock)?)),
            Some(store) => {
                let sharing = Sharing::new(&name, config.settings, daemon, store);
                Held::Shared(Box::new(sharing))
            }
        };
        let (changed, _) = watch::channel(());
        Ok(Self {
            name,
            context: config.context.as_deref().map(Into::into),
            config: config.clone(),
            clock,
            daemon,
            held,
            spent: Mutex::default(),
            changed: Mutex::new(Some(changed)),
            told: Mutex::default(),
            woken,
            fenced: Counter::default(),
            tally: Tally::default(),
        })
    }

    /// Returns whether this is the ring of a configuration, apart from its settings.
    pub(super) fn is_of(&self, config: &TicketKeysConfig) -> bool {
        self.config.name == config.name
            && self.config.context == config.context
            && self.config.saved == config.saved
    }

    pub(super) fn set(&self, settings: Settings) {
        match &self.held {
            Held::Own(own) => {
                let ((), events) = own.change(self.now(), |ring, _| ring.set(settings));
                self.tell(&events);
            }
            Held::Shared(sharing) => sharing.set(settings),
        }
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

    /// Returns whether it survives a restart of the daemon.
    pub(crate) fn is_saved(&self) -> bool {
        match &self.held {
            Held::Own(own) => own.is_saved(),
            Held::Shared(_) => true,
        }
    }

    /// Returns whether this daemon rotates the ring, and how many daemons look after it. `None`: it is a
    /// ring of this daemon alone.
    pub(crate) fn daemons(&self) -> Option<(bool, usize)> {
        match &self.held {
            Held::Own(_) => None,
            Held::Shared(sharing) => Some(sharing.daemons()),
        }
    }

    pub(super) fn daemon(&self) -> u64 {
        self.daemon
    }

    fn now(&self) -> Duration {
        on_the_line(self.clock.now())
    }

    pub(super) fn subscribe(&self) -> Option<watch::Receiver<()>> {
        self.changed.lock().as_ref().map(watch::Sender::subscribe)
    }

    /// Tells members of a ring that daemons share what has changed since they were told.
    fn tell_news(&self) {
        let news = self.read(|ring, _| ring.news()).unwrap_or_default();
        let told = std::mem::replace(&mut *self.told.lock(), news.clone());
        if told != news {
            self.notify();
        }
    }

    /// Tells members that the ring has changed.
    pub(super) fn notify(&self) {
        if let Some(changed) = &*self.changed.lock() {
            changed.send_modify(|()| ());
        }
    }

    /// Reads the ring, and its time. `None`: it is in the shared store, which has not shown it yet.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Ring, Duration) -> T) -> Option<T> {
        match &self.held {
            Held::Own(own) => Some(own.read(|ring| read(ring, self.now()))),
            Held::Shared(sharing) => sharing.read(self.now(), read),
        }
    }

    /// Changes the ring, for all daemons that share it.
    ///
    /// # Errors
    /// The shared store does not answer, or the system has no random numbers.
    pub(super) async fn change<T: Send>(
        &self,
        change: impl Fn(&mut Ring, Duration) -> T + Send + Sync,
    ) -> Result<T, NotShared> {
        match &self.held {
            Held::Own(own) => {
                let (outcome, events) = own.change(self.now(), change);
                self.tell(&events);
                self.woken.notify_one();
                Ok(outcome)
            }
            Held::Shared(sharing) => {
                let outcome = sharing.change(|| self.now(), change).await;
                self.tell_news();
                self.woken.notify_one();
                outcome
            }
        }
    }

    /// Makes a server a member.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub(super) async fn make_member(
        &self,
        join: impl Fn(&mut Ring, Duration) -> Result<Lease, Refused> + Send + Sync,
    ) -> Result<Result<Lease, Refused>, NotShared> {
        match &self.held {
            Held::Own(_) => self.change(join).await,
            Held::Shared(sharing) => {
                let joined = sharing.join(|| self.now(), join).await;
                self.tell_news();
                self.woken.notify_one();
                joined
            }
        }
    }

    /// Removes a member that says goodbye.
    pub(super) async fn leave(&self, lease: Lease) {
        let left = self.change(|ring, now| ring.leave(lease, now)).await;
        if let Held::Shared(sharing) = &self.held {
            match left {
                Ok(()) => sharing.part(lease),
                Err(_) => sharing.leave(lease),
            }
        }
        self.woken.notify_one();
    }

    /// Records that the way to a member is lost.
    pub(super) fn part(&self, lease: Lease) {
        match &self.held {
            Held::Own(own) => {
                let ((), events) = own.change(self.now(), |ring, now| ring.detach(lease, now));
                self.tell(&events);
            }
            Held::Shared(sharing) => sharing.part(lease),
        }
        self.woken.notify_one();
    }

    /// Goes on as far as time and acknowledgements allow. Returns how long to wait for the next look.
    ///
    /// # Errors
    /// The shared store does not answer, or the system has no random numbers.
    pub(super) async fn turn(&self) -> Result<Duration, NotShared> {
        match &self.held {
            Held::Own(own) => {
                let (events, due) = own.tick(self.now())?;
                self.tell(&events);
                own.save(&self.clock).await;
                Ok(due.saturating_sub(self.now()))
            }
            Held::Shared(sharing) => {
                let (events, wait) = sharing.turn(|| self.now()).await?;
                self.tell(&events);
                self.tell_news();
                Ok(wait)
            }
        }
    }

    /// Logs what has happened, and tells members of a new instruction.
    fn tell(&self, events: &[Event]) {
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
                    tracing::error!(
                        ring,
                        member = &**member,
                        "ticket keys: the ring no longer waits for this member; its clients make full handshakes until it joins again"
                    );
                }
            }
        }
        if !events.is_empty() {
            self.notify();
        }
    }

    /// Asks for a rotation, or replaces all epochs at once.
    ///
    /// # Errors
    /// The shared store does not answer, or the system has no random numbers.
    pub(crate) async fn rotate(&self, is_emergency: bool) -> Result<(), NotShared> {
        if is_emergency {
            let event = self.change(|ring, now| ring.rotate_at_once(now)).await??;
            self.tell(&[event]);
            if let Held::Shared(sharing) = &self.held {
                // Until then another daemon may open a ticket from before.
                let confirmed = sharing.confirm(|| self.now()).await;
                self.tell_news();
                confirmed?;
            }
        } else {
            self.change(|ring, _| ring.rotate()).await?;
        }
        Ok(())
    }

    /// Ends a membership. Returns whether there was one.
    ///
    /// # Errors
    /// The shared store does not answer.
    pub(crate) async fn fence(&self, member: &str) -> Result<bool, NotShared> {
        let was = self.change(|ring, now| ring.fence(member, now)).await?;
        if was {
            self.tell(&[Event::Fenced(member.into())]);
        }
        Ok(was)
    }

    /// Returns the state. `None`: the shared store has not shown it yet.
    pub(crate) fn view(&self) -> Option<RingView> {
        self.read(Ring::view)
    }

    /// Returns the number of the last instruction and the keys of a server with a list. `None`: the
    /// shared store has not shown them yet.
    pub(crate) fn keys_now(&self, layout: Layout) -> Option<(u64, Vec<TicketKey>)> {
        self.read(|ring, _| {
            let instruction = ring.instruct(Style::List);
            let keys = instruction.open.iter();
            let keys = keys.filter_map(|epoch| ring.key(*epoch, layout));
            (instruction.sequence, keys.collect())
        })
    }

    /// Returns how many tickets this daemon has sealed and opened, in all and with the latest epochs.
    pub(crate) fn tickets(&self) -> (Tickets, Vec<(u64, Tickets)>) {
        self.tally.view()
    }

    /// Returns the settings in force.
    pub(crate) fn settings(&self) -> Settings {
        match &self.held {
            Held::Own(own) => own.read(Ring::settings),
            Held::Shared(sharing) => sharing.settings(),
        }
    }

    /// Returns why the ring cannot be read or changed. `None`: it can.
    pub(crate) fn trouble(&self) -> Option<Arc<str>> {
        match &self.held {
            Held::Own(_) => None,
            Held::Shared(sharing) => sharing.trouble(),
        }
    }

    /// Seals a state as a ticket.
    ///
    /// # Errors
    /// The shared store has not shown the ring yet, or the system has no random numbers.
    pub(crate) fn seal(&self, state: &[u8], binding: &[u8]) -> Result<Vec<u8>, NotShared> {
        let sealed = self.read(|ring, _| {
            let (_, ticket) = ring.seal(state, &of_calls(binding))?;
            Ok::<_, NoRandomness>((ticket, ring.epoch()))
        });
        let (ticket, epoch) = sealed.ok_or(NotShared::NotSeen)??;
        self.tally.sealed(epoch);
        Ok(ticket)
    }

    /// Opens a ticket, and spends it if it is for single use.
    ///
    /// # Errors
    /// See [`NotOpenedHere`].
    pub(crate) async fn open(
        &self,
        ticket: &[u8],
        binding: &[u8],
        single_use: bool,
    ) -> Result<OpenedHere, NotOpenedHere> {
        let settings = self.settings();
        // It opens until the epoch is dropped: a rotation and a lifetime from now at the latest.
        let life = settings.max_key_age + settings.rotate + settings.lifetime;
        let (opened, current) = match self.good(ticket, binding, single_use, life).await {
            // Another daemon may have changed the ring since the last look. The ticket is opened again then:
            // it may be one from before an emergency.
            Err(NotOpenedHere::NotShared(NotShared::NotSeen) | NotOpenedHere::Ticket(_))
                if self.refresh().await? =>
            {
                self.good(ticket, binding, single_use, life).await?
            }
            done => done?,
        };
        self.tally.opened(opened.epoch);
        Ok(OpenedHere {
            state: opened.state,
            renew: opened.epoch != current,
            epoch: opened.epoch,
        })
    }

    /// Opens a ticket without a look whether it is spent. Returns the current epoch too.
    fn opened(&self, ticket: &[u8], binding: &[u8]) -> Result<(OpenedTicket, u64), NotOpenedHere> {
        let opened = self.read(|ring, _| {
            let opened = ring
                .open(ticket, &of_calls(binding))
                .map_err(NotOpenedHere::Ticket)?;
            Ok((opened, ring.epoch()))
        });
        opened.ok_or(NotOpenedHere::NotShared(NotShared::NotSeen))?
    }

    /// Opens a ticket, and spends it if `spends`.
    async fn good(
        &self,
        ticket: &[u8],
        binding: &[u8],
        spends: bool,
        life: Duration,
    ) -> Result<(OpenedTicket, u64), NotOpenedHere> {
        let (opened, current) = self.opened(ticket, binding)?;
        let is_good = match &self.held {
            Held::Own(_) => {
                let mut spent = self.spent.lock();
                match spends {
                    true => spent.spend(opened.handle, self.now(), life) == Spending::Spent,
                    false => !spent.has(&opened.handle),
                }
            }
            Held::Shared(sharing) => sharing
                .is_good(opened.handle, spends, life)
                .await
                .map_err(NotOpenedHere::NotShared)?,
        };
        match is_good {
            true => Ok((opened, current)),
            false => Err(NotOpenedHere::Spent),
        }
    }

    /// Looks at a ring in the shared store. Returns false for a ring of this daemon alone.
    async fn refresh(&self) -> Result<bool, NotOpenedHere> {
        let Held::Shared(sharing) = &self.held else {
            return Ok(false);
        };
        let seen = sharing.refresh(|| self.now()).await;
        self.tell_news();
        seen.map_err(NotOpenedHere::NotShared)?;
        Ok(true)
    }
}

/// Returns what the tickets of callers are bound to. No ticket of the daemon's engine is bound to that.
fn of_calls(binding: &[u8]) -> Vec<u8> {
    [b"SealTicket\0", binding].concat()
}

impl From<NoRandomness> for NotOpenedHere {
    fn from(why: NoRandomness) -> Self {
        Self::NotShared(why.into())
    }
}
