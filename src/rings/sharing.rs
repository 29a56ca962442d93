//! A ring in the shared store, as this daemon knows it.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tls_sessiond_keys::{
    epoch::NoRandomness,
    ring::{Event, Lease, Phase, Refused, Ring, Settings},
    shared::{Change, NotNow, Seen, SharedRing, Shown},
    ticket::Handle,
};
use tls_sessiond_store::{
    layout::RingName,
    script::{Answer, Holder, MARK_BYTES, Request, RingVersion, RingWrite},
};

use super::not_shared::NotShared;
use crate::store::Store;

/// How long a daemon counts as alive after a look, and has the lease to rotate.
const LEASE: Duration = Duration::from_secs(3);
/// Time from one look to the next, while nothing happens and during a rotation.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_SOON: Duration = Duration::from_millis(150);
/// How often a change is tried that other daemons' changes have come before.
const ATTEMPTS: usize = 16;
/// What is wrong with a ring that does not open.
const UNREADABLE: &str = "the ring in the shared store cannot be read: a later version of the daemon has written it, or it was changed. \
                          Servers go on with the keys that they have";
/// How long the store may be away before the log is told.
const AWAY: Duration = Duration::from_secs(3);

/// The shared store of all rings, once the daemon has it.
pub(super) type StoreOfRings = Arc<OnceLock<Arc<Store>>>;

/// The turn of a task to talk with the store about a ring.
type Turn<'t> = tokio::sync::MutexGuard<'t, ()>;

/// A ring in the shared store.
pub(super) struct Sharing {
    name: Arc<str>,
    /// This daemon, at this start.
    daemon: u64,
    store: StoreOfRings,
    state: Mutex<State>,
    /// Held by the one task that talks with the store about the ring.
    turn: tokio::sync::Mutex<()>,
}

struct State {
    copy: SharedRing,
    /// The beginning of the sealed value that this daemon knows.
    mark: Vec<u8>,
    /// The leases of the streams that are open here. Members with another lease of this daemon are away.
    live: BTreeSet<Lease>,
    /// Leases of members that said goodbye while the ring could not be changed.
    leaving: Vec<Lease>,
    /// Since when, in local time, the store does not answer, and whether the log was told.
    away: Option<(Duration, bool)>,
    /// Why the ring cannot be read or changed. `None`: it can.
    trouble: Option<Arc<str>>,
    /// Whether the log was told of a value that cannot be read.
    is_unreadable: bool,
    /// The lowest version that a daemon knew when it looked last.
    least: u64,
    /// Whether the log was told that this daemon rotates the ring.
    leads: bool,
    /// Whether the log was told that another daemon has other settings.
    differs: bool,
}

impl Sharing {
    pub(super) fn new(
        name: &Arc<str>,
        settings: Settings,
        daemon: u64,
        store: StoreOfRings,
    ) -> Self {
        Self {
            name: Arc::clone(name),
            daemon,
            store,
            state: Mutex::new(State {
                copy: SharedRing::new(name, settings),
                mark: Vec::new(),
                live: BTreeSet::new(),
                leaving: Vec::new(),
                away: None,
                trouble: None,
                is_unreadable: false,
                least: 0,
                leads: false,
                differs: false,
            }),
            turn: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn set(&self, settings: Settings) {
        self.state.lock().copy.set(settings);
    }

    pub(super) fn settings(&self) -> Settings {
        self.state.lock().copy.settings()
    }

    /// Returns whether this daemon rotates the ring, and how many daemons look after it.
    pub(super) fn daemons(&self) -> (bool, usize) {
        let state = self.state.lock();
        (state.copy.leads(), state.copy.daemons())
    }

    /// Reads the ring, and the time of the store. `None`: the store has not shown it yet.
    pub(super) fn read<T>(
        &self,
        local: Duration,
        read: impl FnOnce(&Ring, Duration) -> T,
    ) -> Option<T> {
        let state = self.state.lock();
        let now = state.copy.time(local);
        state.copy.ring().map(|ring| read(ring, now))
    }

    /// Returns why the ring cannot be read or changed. `None`: it can.
    pub(super) fn trouble(&self) -> Option<Arc<str>> {
        self.state.lock().trouble.clone()
    }

    /// Records that the way to a member is lost. The next turn tells the other daemons.
    pub(super) fn part(&self, lease: Lease) {
        self.state.lock().live.remove(&lease);
    }

    /// Records that a member has left, although the ring could not be changed. The next turn tells the other
    /// daemons.
    pub(super) fn leave(&self, lease: Lease) {
        let mut state = self.state.lock();
        state.live.remove(&lease);
        state.leaving.push(lease);
    }

    /// Makes a server a member. A join whose caller does not wait for it ends again: its lease is not live.
    ///
    /// # Errors
    /// See [`Self::change`].
    pub(super) async fn join(
        &self,
        local: impl Fn() -> Duration + Send + Sync,
        join: impl Fn(&mut Ring, Duration) -> Result<Lease, Refused> + Send + Sync,
    ) -> Result<Result<Lease, Refused>, NotShared> {
        let turn = self.turn.lock().await;
        let joined = self.change_in_turn(&turn, local, join).await?;
        if let Ok(lease) = &joined {
            self.state.lock().live.insert(*lease);
        }
        Ok(joined)
    }

    /// Waits until every daemon that looks after the ring knows its present version.
    ///
    /// # Errors
    /// A daemon has not looked again while its lease could last.
    pub(super) async fn confirm(
        &self,
        local: impl Fn() -> Duration + Send + Sync,
    ) -> Result<(), NotShared> {
        let wanted = self.known().number;
        let until = local() + 2 * LEASE;
        while local() < until {
            {
                let turn = self.turn.lock().await;
                self.look::<()>(&turn, &local, None).await?;
            }
            if self.state.lock().least >= wanted {
                return Ok(());
            }
            tokio::time::sleep(LOOK_SOON / 3).await;
        }
        Err(NotShared::Unconfirmed)
    }

    /// Changes the ring for all daemons.
    ///
    /// # Errors
    /// See [`NotShared`]. An answer that was lost may have changed the ring.
    pub(super) async fn change<T: Send>(
        &self,
        local: impl Fn() -> Duration + Send + Sync,
        change: impl Fn(&mut Ring, Duration) -> T + Send + Sync,
    ) -> Result<T, NotShared> {
        let turn = self.turn.lock().await;
        self.change_in_turn(&turn, local, change).await
    }

    async fn change_in_turn<T: Send>(
        &self,
        turn: &Turn<'_>,
        local: impl Fn() -> Duration + Send + Sync,
        change: impl Fn(&mut Ring, Duration) -> T + Send + Sync,
    ) -> Result<T, NotShared> {
        for _ in 0..ATTEMPTS {
            let made = self.state.lock().copy.change(local(), &change)?;
            if let Some(outcome) = self.look(turn, &local, Some(made)).await? {
                return Ok(outcome);
            }
        }
        Err(NotShared::Contended)
    }

    /// Looks at the ring, and lets time go on in it if this daemon has the lease. Returns what has
    /// happened, and when to look again.
    ///
    /// # Errors
    /// See [`NotShared`].
    pub(super) async fn turn(
        &self,
        local: impl Fn() -> Duration + Send + Sync,
    ) -> Result<(Vec<Event>, Duration), NotShared> {
        let turn = self.turn.lock().await;
        self.look::<()>(&turn, &local, None).await?;
        let mend = self.state.lock().copy.mend(local())?;
        if let Some(mend) = mend {
            self.look(&turn, &local, Some(mend)).await?;
        }
        self.tell_gone(&turn, &local).await?;
        let tick = match self.state.lock().copy.tick(local()) {
            Ok(tick) => tick,
            Err(NotNow::NotSeen) => None,
            Err(NotNow::NoRandomness(why)) => return Err(why.into()),
        };
        let events = match tick {
            // A change of another daemon may have come before: then the next turn does it.
            Some(tick) => self
                .look(&turn, &local, Some(tick))
                .await?
                .unwrap_or_default(),
            None => Vec::new(),
        };
        Ok((events, self.wait(local())))
    }

    fn wait(&self, local: Duration) -> Duration {
        let state = self.state.lock();
        let Some(ring) = state.copy.ring() else {
            return LOOK_SOON;
        };
        let now = state.copy.time(local);
        let is_idle = ring.view(now).phase == Phase::Idle;
        let most = if is_idle { LOOK } else { LOOK_SOON };
        match state.copy.leads() {
            true => most
                .min(ring.due().saturating_sub(now))
                .max(Duration::from_millis(10)),
            false => most,
        }
    }

    /// Tells the other daemons of members that have left, and of those whose streams are not open here any more.
    async fn tell_gone(
        &self,
        turn: &Turn<'_>,
        local: &(impl Fn() -> Duration + Send + Sync),
    ) -> Result<(), NotShared> {
        let (live, leaving) = {
            let state = self.state.lock();
            (state.live.clone(), state.leaving.clone())
        };
        let is_gone = |lease: Lease| lease.daemon() == self.daemon && !live.contains(&lease);
        let is_any = self
            .read(local(), |ring, _| {
                ring.has_lease(|lease| is_gone(lease) || leaving.contains(&lease))
            })
            .unwrap_or(false);
        if is_any {
            let tell = |ring: &mut Ring, now| {
                leaving.iter().for_each(|lease| ring.leave(*lease, now));
                ring.detach_all(is_gone, now);
            };
            let made = match self.state.lock().copy.change(local(), tell) {
                Ok(made) => made,
                Err(NotNow::NotSeen) => return Ok(()),
                Err(NotNow::NoRandomness(why)) => return Err(why.into()),
            };
            if self.look(turn, local, Some(made)).await?.is_none() {
                return Ok(());
            }
        }
        self.state.lock().leaving.drain(..leaving.len());
        Ok(())
    }

    fn store(&self) -> Result<&Arc<Store>, NotShared> {
        self.store.get().ok_or(NotShared::Away)
    }

    fn ring_name(&self, store: &Store) -> RingName {
        store.fleet().keys().names().ring(&self.name)
    }

    /// Looks at the ring in the store, and writes a change. Returns what the change returned, if the
    /// store has taken it.
    async fn look<T: Send>(
        &self,
        _turn: &Turn<'_>,
        local: &(impl Fn() -> Duration + Send + Sync),
        change: Option<Change<T>>,
    ) -> Result<Option<T>, NotShared> {
        let store = self.store()?;
        let ring = self.ring_name(store);
        let write = match &change {
            None => None,
            Some(change) => Some(RingWrite {
                version: change.version(),
                sealed: store
                    .fleet()
                    .keys()
                    .seal_ring(ring, change.version(), &change.state())
                    .map_err(|_| NoRandomness)?,
                restores: change.restores(),
            }),
        };
        let written = write.as_ref().map(|write| mark(&write.sealed));
        let request = Request::Ring {
            ring,
            daemon: Holder(self.daemon.to_be_bytes()),
            lease: u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX),
            known: self.known(),
            write,
        };
        let answer = match store.ask_patiently(&request).await {
            Ok(Answer::Ring(answer)) => answer,
            Ok(_) => return Err(self.away(local(), Some("an answer that no script gives".into()))),
            Err(refusal) => return Err(self.away(local(), refusal)),
        };
        let opened = answer.sealed.as_deref().map(|sealed| {
            let opened = store.fleet().keys().open_ring(ring, answer.version, sealed);
            (mark(sealed), opened.ok())
        });
        let seen = Seen {
            now: Duration::from_millis(answer.now),
            version: answer.version,
            leads: answer.leads,
            is_written: answer.is_written,
            // A value that does not open is one that cannot be read.
            state: opened
                .as_ref()
                .map(|(_, opened)| opened.as_deref().unwrap_or_default()),
            alive: answer
                .alive
                .iter()
                .map(|Holder(id)| u64::from_be_bytes(*id))
                .collect(),
        };
        let mut state = self.state.lock();
        let shown = state.copy.saw(&seen, local());
        state.least = answer.least;
        match (&opened, shown) {
            (Some((mark, _)), Shown::New) => state.mark.clone_from(mark),
            (_, Shown::Lost) => tracing::warn!(
                ring = &*self.name,
                "ticket keys: the shared store has lost the ring; this daemon gives it back"
            ),
            _ => {}
        }
        state.tell(&self.name, shown, local());
        let Some(change) = change.filter(|_| answer.is_written) else {
            return Ok(None);
        };
        state.mark = written.unwrap_or_default();
        Ok(Some(state.copy.written(change)))
    }

    fn known(&self) -> RingVersion {
        let state = self.state.lock();
        RingVersion {
            number: state.copy.version(),
            mark: state.mark.clone(),
        }
    }

    /// Records that the store did not answer, or how it refused, and logs that after a while.
    fn away(&self, local: Duration, refusal: Option<String>) -> NotShared {
        let mut state = self.state.lock();
        let why: Arc<str> = match refusal {
            Some(refusal) => format!("the shared store refuses: {refusal}").into(),
            None => "the shared store does not answer".into(),
        };
        state.trouble = Some(Arc::clone(&why));
        let away = state.away.get_or_insert((local, false));
        if local.saturating_sub(away.0) >= AWAY && !std::mem::replace(&mut away.1, true) {
            tracing::warn!(
                ring = &*self.name,
                why = &*why,
                "ticket keys: the ring cannot be read or changed; servers go on with the keys that they have"
            );
        }
        NotShared::Away
    }

    /// Looks whether a ticket is spent, and spends it if `spends`. Returns whether it was good.
    ///
    /// # Errors
    /// See [`NotShared`].
    pub(super) async fn is_good(
        &self,
        handle: Handle,
        spends: bool,
        life: Duration,
    ) -> Result<bool, NotShared> {
        let store = self.store()?;
        let request = Request::Spend {
            ring: self.ring_name(store),
            known: self.known(),
            handle,
            spends,
            life: u64::try_from(life.as_millis()).unwrap_or(u64::MAX),
        };
        match store.ask_patiently(&request).await {
            Ok(Answer::Stored) => Ok(true),
            Ok(Answer::Taken) => Ok(false),
            Ok(Answer::Behind) => Err(NotShared::NotSeen),
            Ok(_) | Err(_) => Err(NotShared::Away),
        }
    }

    /// Looks at the ring, because the store has another version of it.
    ///
    /// # Errors
    /// See [`NotShared`].
    pub(super) async fn refresh(
        &self,
        local: impl Fn() -> Duration + Send + Sync,
    ) -> Result<(), NotShared> {
        let turn = self.turn.lock().await;
        self.look::<()>(&turn, &local, None).await.map(|_| ())
    }
}

impl State {
    /// Logs what has changed about the store, once.
    fn tell(&mut self, ring: &str, shown: Shown, local: Duration) {
        if let Some((since, true)) = self.away.take() {
            let seconds = local.saturating_sub(since).as_secs();
            tracing::info!(ring, seconds, "ticket keys: the shared store answers again");
        }
        let is_unreadable = shown == Shown::Unreadable;
        self.trouble = is_unreadable.then(|| UNREADABLE.into());
        if is_unreadable && !self.is_unreadable {
            tracing::error!(ring, "ticket keys: {UNREADABLE}");
        }
        self.is_unreadable = is_unreadable;
        let leads = self.copy.leads();
        if leads && !self.leads {
            tracing::info!(ring, "ticket keys: this daemon rotates the ring");
        }
        self.leads = leads;
        let differs = self.copy.differs();
        if differs && !self.differs {
            tracing::warn!(
                ring,
                "ticket keys: another daemon has other settings for this ring; the daemon that rotates applies its own"
            );
        }
        self.differs = differs;
    }
}

fn mark(sealed: &[u8]) -> Vec<u8> {
    sealed.iter().take(MARK_BYTES).copied().collect()
}
