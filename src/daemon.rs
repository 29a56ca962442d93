//! The recipe: config → contexts → table → api → ready → wait → drain.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::{
    clock::Clock,
    config::{Config, ConfigError, Drain, Endpoint},
    connection::{self, Table},
    context::Registry,
    rpc::{
        Api, ServeError, Serving,
        listen::{Listeners, Signals},
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

/// A daemon that listens, and answers once it runs.
pub struct Daemon {
    table: Arc<Table>,
    api: Api,
    listeners: Listeners,
    signals: Signals,
    drain: Drain,
}

impl Daemon {
    /// Opens every file and socket that the configuration names. Wants a tokio runtime around it.
    ///
    /// # Errors
    /// What is wrong with the configuration, or which address cannot be had.
    pub fn bind(config: &Config, clock: Clock) -> Result<Self, Error> {
        let registry = Arc::new(Registry::build(config)?);
        let table = Arc::new(Table::new(registry, clock, config.limits.connections));
        let signals = Signals::default();
        let api = Api::new(Arc::clone(&table), &config.limits, &signals)?;
        let listeners = Listeners::bind(&config.api)?;
        Ok(Self { table, api, listeners, signals, drain: config.drain })
    }

    /// Where it listens.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners.endpoints()
    }

    /// Its connections.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
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
                    () = sleep(self.drain.delay) => {}
                }
                self.signals.draining.cancel();
                match timeout(self.drain.timeout, &mut serve).await {
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
