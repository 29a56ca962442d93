//! The recipe: config → contexts → table → api → ready → wait → drain, and contexts again where they are loaded anew.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::{
    clock::Clock,
    config::{Config, ConfigError, Endpoint},
    connection::{self, Table, table::Most},
    context::Registry,
    rpc::{
        Api, Doors, ServeError, Serving,
        access::Access,
        listen::{Listeners, Signals},
        tls::Acceptor,
    },
};

/// How often lapsed connections and expired sessions are looked for.
const SWEEP: Duration = Duration::from_millis(250);
/// How long sockets may take to end once they are closed hard.
const KILL: Duration = Duration::from_secs(5);

/// Why a daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// The services could not be made.
    #[error(transparent)]
    Api(#[from] connection::Error),
    /// The API failed while it served.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Brings a new configuration to a daemon that runs.
#[derive(Clone)]
pub struct Reload {
    table: Arc<Table>,
    doors: Doors,
    running: Arc<Config>,
}

impl Reload {
    /// Takes contexts, rules of access and TLS of another configuration, as a whole or not at all. Connections keep what they
    /// began with, but for what their callers may do. Tells how many contexts there are.
    ///
    /// # Errors
    /// What is wrong with it, or that it changes more than contexts. Nothing has changed then.
    pub fn apply(&self, config: &Config) -> Result<usize, ConfigError> {
        config.can_follow(&self.running)?;
        let registry = self.table.registry().rebuild(config)?;
        let tls = Acceptor::reload(config)?;
        let contexts = registry.all().len();
        // Nothing can fail any more. Rights first: nobody uses old ones on new contexts.
        self.doors.access.swap(&config.access);
        if let (Some(acceptor), Some(tls)) = (&self.doors.acceptor, tls) {
            acceptor.swap(tls);
        }
        self.table.swap(Arc::new(registry));
        Ok(contexts)
    }
}

/// A daemon that listens, and answers once it runs.
pub struct Daemon {
    config: Arc<Config>,
    doors: Doors,
    table: Arc<Table>,
    api: Api,
    listeners: Listeners,
    signals: Signals,
}

impl Daemon {
    /// Opens every file and socket that the configuration names. Wants a tokio runtime around it.
    ///
    /// # Errors
    /// What is wrong with the configuration, or which address cannot be had.
    pub fn bind(config: &Config, clock: Clock) -> Result<Self, Error> {
        let registry = Arc::new(Registry::build(config)?);
        let most = Most { all: config.limits.connections, of_one: config.limits.connections_per_owner };
        let table = Arc::new(Table::new(registry, clock, most));
        let signals = Signals::default();
        let access = Arc::new(Access::new(&config.access));
        let acceptor = Acceptor::load(config)?;
        let doors = Doors { access: Arc::clone(&access), acceptor: acceptor.clone() };
        let api = Api::new(Arc::clone(&table), &config.limits, doors.clone(), &signals)?;
        let listeners = Listeners::bind(&config.api, config.unix, config.tls.is_some())?;
        Ok(Self { config: Arc::new(config.clone()), doors, table, api, listeners, signals })
    }

    /// Where it listens.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners.endpoints()
    }

    /// Its connections.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// What loads contexts anew while it runs.
    pub fn reload(&self) -> Reload {
        Reload {
            table: Arc::clone(&self.table),
            doors: self.doors.clone(),
            running: Arc::clone(&self.config),
        }
    }

    /// Serves until `stop` is ready; then tells health, waits for running calls, and closes what is left.
    ///
    /// # Errors
    /// The transport failed by itself.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let health = self.api.health();
        health.set(Serving::Yes).await;
        let sweeper = tokio::spawn(sweep(Arc::clone(&self.table)));
        let mut serve = pin!(self.api.serve(self.listeners, &self.signals));

        let ended = tokio::select! {
            result = &mut serve => Some(result),
            () = stop => None,
        };
        let result = match ended {
            Some(result) => result,
            None => {
                tracing::info!(connections = self.table.len(), "stopping");
                health.set(Serving::No).await;
                tokio::select! {
                    result = &mut serve => result?,
                    () = sleep(self.config.drain.delay) => {}
                }
                self.signals.draining.cancel();
                match timeout(self.config.drain.timeout, &mut serve).await {
                    Ok(result) => result,
                    Err(_) => {
                        tracing::warn!(
                            connections = self.table.len(),
                            "drain time-out: closing what is left"
                        );
                        self.signals.kill.cancel();
                        timeout(KILL, &mut serve).await.unwrap_or(Ok(()))
                    }
                }
            }
        };
        sweeper.abort();
        self.table.free_all();
        tracing::info!("stopped");
        Ok(result?)
    }
}

/// Frees connections that lapsed and drops sessions that expired.
async fn sweep(table: Arc<Table>) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let freed = table.sweep();
        if freed > 0 {
            tracing::debug!(freed, "idle connections freed as unclosed");
        }
        table.registry().reap(table.now());
    }
}
