//! The life of a daemon: config → contexts → state → api → ready → wait → drain, and contexts again
//! at a reload.

use std::{fs, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use aws_lc_rs::rand;

use tls_sessiond_core::{
    clock::{Clock, WallTime},
    connection::{self, table::Most},
    context::{Dropped, Registry, Settings, warnings},
    fleet::FleetStore,
    state::CoreState,
};
use tls_sessiond_store::seal::SealingKeys;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use crate::{
    admin::AdminListener,
    api::{
        access::Access,
        admin::{
            Admin,
            operator::{AppliedReload, Operator, Replacing},
        },
        health::Serving,
        reloads::{Outcome, Reloads},
    },
    config::{Config, ConfigError, Endpoint, Limits, StoreConfig},
    log::panics::caught,
    otlp::Telemetry,
    rings::Rings,
    server::{
        Api, Beside, Ingress, LiveLimits, Memory, Pulse, ServeError,
        listen::{Inside, Listeners},
        tls::Acceptor,
    },
    shutdown::Shutdown,
    store::{CheckError, Keepers, Store, Target},
};

/// Interval between two sweeps for idle connections and expired sessions.
const SWEEP: Duration = Duration::from_millis(250);
/// Time that sockets have to end after a hard close.
const KILL: Duration = Duration::from_secs(5);

/// How long a start waits for the shared store.
const STORE_MAX: Duration = Duration::from_secs(5);

/// Why a daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon cannot listen on an address.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// The services could not be created.
    #[error(transparent)]
    Api(#[from] connection::Error),
    /// The API failed while it served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A panic outside of every task that can start again.
    #[error("a defect ended the daemon: see the panic in the log, and please report it")]
    Panicked,
}

/// Applies a new configuration to a running daemon. Clones reload the same daemon.
#[derive(Clone)]
pub struct Reload {
    state: Arc<CoreState>,
    doors: Ingress,
    limits: LiveLimits,
    reloads: Arc<Reloads>,
    store: Option<Arc<Store>>,
    rings: Arc<Rings>,
    operator: Arc<Operator>,
}

/// The outcome of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// Number of contexts now.
    pub contexts: usize,
    /// Number of contexts that the reload removed.
    pub removed: usize,
    /// Number of sessions that the reload removed, for each context whose scope has changed.
    pub dropped: Dropped,
    /// The keys whose values have changed.
    pub changed: Vec<String>,
}

impl Reloaded {
    /// Returns the answer to the caller that has asked for the reload.
    pub fn answer(self, warnings: &[ConfigError]) -> AppliedReload {
        AppliedReload {
            contexts: self.contexts,
            changed: self.changed,
            dropped: self.dropped,
            warnings: warnings.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Reload {
    /// Applies contexts, access rules, limits and TLS of another configuration, as a whole or not
    /// at all.
    ///
    /// Connections keep the settings that they began with, except the rights of their callers.
    /// Reads files, and may block on them.
    ///
    /// # Errors
    /// The configuration is invalid, or it may not follow the running one ([`Config::can_follow`]).
    /// Nothing has changed then.
    pub fn apply(&self, config: &Config) -> Result<Reloaded, ConfigError> {
        self.replace(config, self.operator.replacing())
    }

    /// Applies a configuration like [`Self::apply`], unless another reload has replaced this one.
    ///
    /// `is_wanted` returns whether this reload is still wanted. Returns `None` if it is not.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_while(
        &self,
        config: &Config,
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<Option<Reloaded>, ConfigError> {
        let turn = self.operator.replacing();
        is_wanted().then(|| self.replace(config, turn)).transpose()
    }

    /// Records that a reload was refused before it came here, for example because a file could not
    /// be read.
    pub fn refused(&self, error: &str) {
        self.reloads.refuse(self.state.now().wall(), error);
    }

    /// Returns warnings about settings that are valid but seldom intended, as of now.
    pub fn warnings(&self, config: &Config) -> Vec<ConfigError> {
        warnings_about(config, self.state.now().wall())
    }

    fn replace(&self, config: &Config, turn: Replacing<'_>) -> Result<Reloaded, ConfigError> {
        let reloaded = self.try_replace(config, turn);
        match &reloaded {
            Ok(reloaded) => {
                let outcome = Outcome::Applied {
                    dropped: reloaded.dropped.clone(),
                };
                self.reloads.tell(self.state.now().wall(), outcome);
            }
            Err(err) => self.refused(&err.to_string()),
        }
        reloaded
    }

    fn try_replace(&self, config: &Config, turn: Replacing<'_>) -> Result<Reloaded, ConfigError> {
        let running = &*turn.running();
        config.can_follow(running)?;
        let rings = self.rings.prepare(config)?;
        let settings = Settings {
            sealers: rings.sealers(),
            ..config.settings()
        };
        let registry = self
            .state
            .registry()
            .rebuild(&settings)
            .map_err(|err| config.context_error(&err))?;
        let tls = Acceptor::reload(config)?;
        let store = match (&self.store, &config.store) {
            (Some(store), Some(settings)) => {
                let keys = sealing_keys(config, settings)?;
                if !keys.names_as(&store.fleet().keys()) {
                    return Err(config.store_error(
                        "redis.sealing_keys",
                        "the key of names has changed, so no session in the store would be found: give it the id `names`, \
                         or keep it as the last line; restart the daemon to begin an empty cache",
                    ));
                }
                Some((store, keys, Target::read(config, settings)?))
            }
            _ => None,
        };
        let removed = config.removed_contexts(running).len();
        let changed = config.changed_from(running);
        let contexts = registry.all().len();
        // No step below can fail. Contexts and rules are one value, and change at once.
        let dropped = self.state.swap(Arc::new(registry));
        self.state.connections().resize(most(&config.limits));
        self.limits.apply(&config.limits);
        self.rings.swap(rings);
        self.doors.access.rules_changed();
        // TLS is swapped last, so that the old rules never apply to a certificate of a new
        // authority. A certificate of an old authority that is accepted until here is like one
        // accepted before.
        if let (Some(acceptor), Some(tls)) = (&self.doors.acceptor, tls) {
            acceptor.swap(tls);
        }
        if let Some((store, keys, target)) = store {
            store.fleet().rotate(keys);
            store.retarget(target);
        }
        turn.finish(Arc::new(config.clone()));
        Ok(Reloaded {
            contexts,
            removed,
            dropped,
            changed,
        })
    }
}

/// Returns what a configuration allows and seldom means, as of `now`: each warning with its key and line.
fn warnings_about(config: &Config, now: WallTime) -> Vec<ConfigError> {
    let contexts = warnings::contexts(&config.settings(), now);
    let mut all: Vec<_> = contexts
        .iter()
        .map(|warning| config.context_error(warning))
        .collect();
    if let Some(tls) = &config.tls {
        warnings::certificate(&tls.certificate, now, &mut |why| {
            all.push(config.tls_error("certificate", why));
        });
        warnings::expired(&tls.client_ca, now, &mut |why| {
            all.push(config.tls_error("client_ca", why));
        });
    }
    all
}

fn most(limits: &Limits) -> Most {
    Most {
        all: limits.connections,
        of_one: limits.connections_per_owner,
    }
}

/// A configuration and the content of its files, before the daemon listens.
pub struct Prepared {
    config: Config,
    registry: Registry,
    acceptor: Option<Arc<Acceptor>>,
    shared: Option<PreparedStore>,
    telemetry: Telemetry,
    rings: Rings,
    open_files: Option<u64>,
}

/// A store that other daemons share, before the daemon is connected to it.
struct PreparedStore {
    fleet: Arc<FleetStore>,
    target: Target,
    deadline: Duration,
    /// Notified when there is something to send.
    woken: Arc<Notify>,
}

impl PreparedStore {
    fn read(config: &Config, settings: &StoreConfig) -> Result<Self, ConfigError> {
        let keys = sealing_keys(config, settings)?;
        let target = Target::read(config, settings)?;
        let mut seed = Zeroizing::new([0; 32]);
        rand::fill(&mut *seed)
            .map_err(|_| config.store_error("kind", "the system has no random numbers"))?;
        let woken = Arc::new(Notify::new());
        let wakes = Arc::clone(&woken);
        let layout = settings.layout.clone();
        let fleet = FleetStore::new(layout, keys, &seed, settings.deadline, move || {
            wakes.notify_one();
        });
        Ok(Self {
            fleet: Arc::new(fleet),
            target,
            deadline: settings.deadline,
            woken,
        })
    }
}

/// The most bytes of a file of sealing keys.
const KEYS_BYTES_MAX: u64 = 16 << 10;

fn sealing_keys(config: &Config, settings: &StoreConfig) -> Result<SealingKeys, ConfigError> {
    let path = &settings.sealing_keys;
    let refuse = |why: String| {
        config.store_error("redis.sealing_keys", format!("{}: {why}", path.display()))
    };
    let metadata = fs::metadata(path).map_err(|err| refuse(err.to_string()))?;
    if !metadata.is_file() || metadata.len() > KEYS_BYTES_MAX {
        return Err(refuse(format!(
            "expected a file of at most {KEYS_BYTES_MAX} bytes with a key on each line"
        )));
    }
    let bytes = Zeroizing::new(fs::read(path).map_err(|err| refuse(err.to_string()))?);
    let text = std::str::from_utf8(&bytes).map_err(|_| refuse("not UTF-8".into()))?;
    SealingKeys::read(text).map_err(|err| refuse(err.to_string()))
}

impl Prepared {
    /// Opens every file that the configuration names, and may block on them.
    ///
    /// # Errors
    /// Names the file and the fault.
    pub fn read(config: Config) -> Result<Self, ConfigError> {
        let shared = match &config.store {
            Some(settings) => Some(PreparedStore::read(&config, settings)?),
            None => None,
        };
        let fleet = shared.as_ref().map(|shared| Arc::clone(&shared.fleet));
        let rings = Rings::read(&config, Clock::System)?;
        let settings = Settings {
            sealers: rings.sealers(),
            ..config.settings()
        };
        let registry =
            Registry::build_over(&settings, fleet).map_err(|err| config.context_error(&err))?;
        let acceptor = Acceptor::load(&config)?;
        let telemetry = Telemetry::read(&config)?;
        Ok(Self {
            config,
            registry,
            acceptor,
            shared,
            telemetry,
            rings,
            open_files: None,
        })
    }

    /// Sets the number of files that the process may have open (RLIMIT_NOFILE). If that leaves
    /// fewer sockets than `limits.sockets`, the daemon has fewer. `None`: no limit.
    #[must_use]
    pub fn with_open_files(self, open_files: Option<u64>) -> Self {
        Self { open_files, ..self }
    }

    /// Returns warnings about settings that are valid but seldom intended, as of now.
    pub fn warnings(&self) -> Vec<ConfigError> {
        warnings_about(&self.config, Clock::System.now().wall())
    }

    /// Connects to the shared store, and checks that it can be used. Returns warnings about its
    /// settings. Returns none at once where no store is shared. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// Why it cannot be used, with the key of the configuration.
    pub async fn check_store(self) -> Result<Vec<ConfigError>, ConfigError> {
        let Self { config, shared, .. } = self;
        let Some(shared) = shared else {
            return Ok(Vec::new());
        };
        let store = Store::new(shared.fleet, shared.target, shared.deadline, Clock::System);
        let warnings = store
            .check()
            .await
            .map_err(|err| config.store_error(&format!("redis.{}", err.key()), err))?;
        let mut warnings: Vec<_> = warnings
            .iter()
            .map(|why| config.store_error("redis.urls", why))
            .collect();
        if config.contexts.iter().any(|context| context.self_made) {
            let why = "the built-in context has a certificate of its own, made at each start: it shares no session \
                       with other daemons, and none with itself after a restart";
            warnings.push(config.store_error("kind", why));
        }
        Ok(warnings)
    }

    /// Returns the names of the contexts, in the order of the configuration.
    pub fn context_names(&self) -> Vec<&str> {
        self.registry
            .all()
            .iter()
            .map(|context| &*context.name)
            .collect()
    }

    /// Returns the maximum number of sockets.
    ///
    /// # Errors
    /// The system allows too few open files.
    fn sockets_max(&self) -> io::Result<usize> {
        let wanted = self.config.limits.sockets;
        let sockets = match self.open_files.map(usize::try_from) {
            Some(Ok(open_files)) => wanted.min(sockets_within(open_files)?),
            Some(Err(_)) | None => wanted,
        };
        if sockets < wanted {
            tracing::warn!(
                limits_sockets = wanted,
                sockets,
                open_files = self.open_files,
                "limits.sockets cannot be reached: raise the limit of open files (LimitNOFILE=, ulimit -n)"
            );
        }
        Ok(sockets)
    }
}

/// Open files that are not sockets of callers: listeners, event queues, the log, the files of a
/// reload, and sockets beyond the limit that ask for health.
const FILES_RESERVED: usize = 64;
/// Minimum number of sockets with which the daemon starts.
const SOCKETS_MIN: usize = 16;

/// Returns the number of sockets that fit into a limit of open files, besides all other files.
///
/// # Errors
/// There are fewer than [`SOCKETS_MIN`].
fn sockets_within(open_files: usize) -> io::Result<usize> {
    open_files.checked_sub(FILES_RESERVED).filter(|sockets| *sockets >= SOCKETS_MIN).ok_or_else(|| {
        let least = FILES_RESERVED + SOCKETS_MIN;
        io::Error::other(format!(
            "the system allows {open_files} open files, and {least} are needed: raise the limit (LimitNOFILE=, ulimit -n)"
        ))
    })
}

/// A daemon that listens. It answers once it runs.
pub struct Daemon {
    config: Arc<Config>,
    doors: Ingress,
    state: Arc<CoreState>,
    api: Api,
    listeners: Listeners,
    shutdown: Shutdown,
    store: Option<Arc<Store>>,
    keepers: Option<Keepers>,
    operator: Arc<Operator>,
    admin: Option<AdminDesk>,
    telemetry: Telemetry,
    rings: Arc<Rings>,
    started: Option<Started>,
}

/// What is done once the server threads run.
type Started = Box<dyn FnOnce(Pulse) + Send>;

/// The admin address, which answers until the daemon ends.
struct AdminDesk {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl AdminDesk {
    fn open(
        config: &Config,
        acceptor: Option<Arc<Acceptor>>,
        admin: Arc<Admin>,
    ) -> io::Result<Option<Self>> {
        let Some(endpoint) = config.admin else {
            return Ok(None);
        };
        let Some(listener) = AdminListener::bind("listen.admin", endpoint, acceptor)? else {
            return Ok(None);
        };
        let address = listener.address()?;
        let serving = AbortOnDropHandle::new(tokio::spawn(listener.serve(admin)));
        Ok(Some(Self {
            address,
            _serving: serving,
        }))
    }
}

impl Daemon {
    /// Opens every file and socket that the configuration names. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The configuration is invalid, or the daemon cannot listen on an address.
    pub fn bind(config: &Config, clock: Clock) -> Result<Self, Error> {
        Self::listen(Prepared::read(config.clone())?, clock)
    }

    /// Opens the sockets. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The daemon cannot listen on an address, or the system allows too few open files.
    pub fn listen(prepared: Prepared, clock: Clock) -> Result<Self, Error> {
        let config = &prepared.config;
        let listeners = Listeners::bind(&config.api, config.unix, config.tls.is_some())?;
        Self::serving(listeners, prepared, clock)
    }

    /// Opens no socket: the daemon serves this process alone. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// As [`Self::listen`].
    pub fn inside(prepared: Prepared, clock: Clock) -> Result<(Self, Inside), Error> {
        let (listeners, inside) = Listeners::inside();
        Ok((Self::serving(listeners, prepared, clock)?, inside))
    }

    fn serving(listeners: Listeners, prepared: Prepared, clock: Clock) -> Result<Self, Error> {
        let sockets_max = prepared.sockets_max()?;
        let Prepared {
            config,
            registry,
            acceptor,
            shared,
            telemetry,
            rings,
            ..
        } = prepared;
        let rings = Arc::new(rings);
        let state = Arc::new(CoreState::new(
            Arc::new(registry),
            clock.clone(),
            most(&config.limits),
        ));
        let (store, keepers) = match shared {
            None => (None, None),
            Some(shared) => {
                let PreparedStore {
                    fleet,
                    target,
                    deadline,
                    woken,
                } = shared;
                let store = Arc::new(Store::new(fleet, target, deadline, clock.clone()));
                rings.share(&store);
                let keepers = Keepers::new(Arc::clone(&store), Arc::clone(&state), clock, woken);
                (Some(store), Some(keepers))
            }
        };
        let shutdown = Shutdown::default();
        let doors = Ingress {
            access: Arc::new(Access::new()),
            acceptor,
        };
        let limits = Limits {
            sockets: sockets_max,
            ..config.limits
        };
        let config = Arc::new(config);
        let operator = Arc::new(Operator::new(Arc::clone(&config)));
        let api = Api::new(
            Arc::clone(&state),
            &limits,
            doors.clone(),
            store.clone(),
            Arc::clone(&operator),
            Beside {
                tracer: telemetry.tracer(),
                rings: Arc::clone(&rings),
            },
            &shutdown,
        )?;
        let admin = AdminDesk::open(&config, doors.acceptor.clone(), api.admin())?;
        Ok(Self {
            config,
            doors,
            state,
            api,
            listeners,
            shutdown,
            store,
            keepers,
            operator,
            admin,
            telemetry,
            rings,
            started: None,
        })
    }

    /// Sets what [`Self::run`] does once the server threads run and health answers SERVING.
    pub fn when_started(&mut self, act: impl FnOnce(Pulse) + Send + 'static) {
        self.started = Some(Box::new(act));
    }

    /// Returns the admin address, if the daemon serves it.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|admin| admin.address)
    }

    /// Returns what administrators change while the daemon runs.
    pub fn operator(&self) -> &Arc<Operator> {
        &self.operator
    }

    /// Returns the configuration that the daemon was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the addresses that the daemon listens on.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners.endpoints()
    }

    /// Returns the state of the core.
    pub fn core(&self) -> &Arc<CoreState> {
        &self.state
    }

    /// Returns a handle that reloads the daemon while it runs.
    pub fn reload(&self) -> Reload {
        Reload {
            state: Arc::clone(&self.state),
            doors: self.doors.clone(),
            limits: self.api.live_limits(),
            reloads: self.api.reloads(),
            store: self.store.clone(),
            rings: Arc::clone(&self.rings),
            operator: Arc::clone(&self.operator),
        }
    }

    /// Waits until the shared store can be used: after the first heartbeats, and the time in which
    /// other daemons repeat what a store that was restored may have lost. Returns at once where no
    /// store is shared, and after five seconds if it does not answer: the daemon then serves without
    /// resumption until the store answers.
    ///
    /// # Errors
    /// The store refuses the daemon's certificate or password, or has a certificate that is not
    /// trusted.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let (Some(store), Some(keepers)) = (&self.store, &mut self.keepers) else {
            return Ok(());
        };
        match store.check().await {
            Ok(warnings) => {
                for warning in &warnings {
                    tracing::warn!(store = store.address(), warning, "the shared store");
                }
            }
            Err(err) if err.may_pass() => {
                tracing::warn!(
                    %err,
                    "the shared store is away or full: the daemon serves without resumption as far as it does not answer"
                );
                if matches!(err, CheckError::Open(_)) {
                    return Ok(());
                }
            }
            Err(err) => {
                let key = format!("redis.{}", err.key());
                return Err(self.config.store_error(&key, err).into());
            }
        }
        let is_open = keepers.open(STORE_MAX).await;
        if is_open {
            tracing::info!(
                store = store.address(),
                "sessions are shared over the store"
            );
        } else {
            tracing::warn!(
                store = store.address(),
                "the shared store does not take heartbeats: the daemon serves without resumption until it does"
            );
        }
        Ok(())
    }

    /// Serves until `stop` is ready. Then sets health to NOT_SERVING, waits for running calls, and
    /// closes the remaining sockets.
    ///
    /// # Errors
    /// The transport failed by itself.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let keeping = self.keepers.take().map(Keeping::begin);
        let rings = Arc::clone(&self.rings);
        let _rotating = AbortOnDropHandle::new(tokio::spawn(async move { rings.run().await }));
        let sending = self.telemetry.begin(self.api.admin());
        let health = self.api.health();
        let (began, act) = (health.clone(), self.started.take());
        let started = move |pulse| {
            began.set(Serving::Yes);
            if let Some(act) = act {
                act(pulse);
            }
        };
        let sweeper = tokio::spawn(sweeps(
            Arc::clone(&self.state),
            Arc::clone(&self.doors.access),
            self.api.memory(),
        ));
        let mut serve = pin!(self.api.serve(self.listeners, &self.shutdown, started));

        let ended = tokio::select! {
            // `stop` comes before the drain that a caller asks for, because it may wait for both and
            // act on them.
            biased;
            result = &mut serve => Some(result),
            () = stop => None,
            () = self.operator.stop_asked() => None,
        };
        let result = match ended {
            Some(result) => result,
            None => {
                tracing::info!(connections = self.state.connections().len(), "stopping");
                // A reload may have changed the settings.
                let drain = self.operator.running().drain;
                health.set(Serving::Draining);
                tokio::select! {
                    result = &mut serve => result?,
                    () = sleep(drain.delay) => {}
                }
                self.shutdown.drain.cancel();
                match timeout(drain.timeout, &mut serve).await {
                    Ok(result) => result,
                    Err(_) => {
                        tracing::warn!(
                            connections = self.state.connections().len(),
                            "drain time-out: closing the remaining sockets"
                        );
                        self.shutdown.abort.cancel();
                        timeout(KILL, &mut serve).await.unwrap_or(Ok(()))
                    }
                }
            }
        };
        sweeper.abort();
        self.state.connections().free_all();
        if let Some(keeping) = keeping {
            keeping.stop().await;
        }
        sending.stop().await;
        tracing::info!("stopped");
        Ok(result?)
    }
}

/// The task of the keepers, which is stopped last: connections that end decide removals.
struct Keeping {
    stop: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Keeping {
    fn begin(mut keepers: Keepers) -> Self {
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = keepers.run() => {}
                () = stopped.notified() => {}
            }
            keepers.stop().await;
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.notify_one();
        if let Err(err) = self.task.await {
            tracing::error!(%err, "the task of the shared store failed");
        }
    }
}

/// Sweeps for as long as the daemon runs. A panic in one sweep does not end the next ones.
async fn sweeps(state: Arc<CoreState>, access: Arc<Access>, memory: Memory) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A panic is already logged.
        let _ = caught(async { sweep(&state, &access, &memory) }).await;
    }
}

/// Frees idle connections, removes expired sessions, forgets old requests, and reports log lines
/// that were left out.
fn sweep(state: &CoreState, access: &Access, memory: &Memory) {
    let freed = state.connections().sweep();
    if freed > 0 {
        tracing::debug!(freed, "idle connections freed as unclosed");
    }
    let now = state.now().at;
    let overflows = state.registry().reap(now);
    if overflows > 0 {
        tracing::warn!(
            caches = overflows,
            "sealed tickets: the list of tickets that are no longer good was full, so no earlier ticket of the cache is resumed; raise cache_bytes_max"
        );
    }
    memory.expire(now);
    access.tell_left_out();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_leave_a_reserve_of_open_files() {
        for (open_files, sockets) in [(80, 16), (256, 192), (1024, 960)] {
            assert_eq!(
                sockets_within(open_files).ok(),
                Some(sockets),
                "{open_files}"
            );
        }
        for open_files in [0, 8, 64, 79] {
            assert!(sockets_within(open_files).is_err(), "{open_files}");
        }
    }
}
