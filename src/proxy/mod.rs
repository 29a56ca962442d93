//! The command `proxy`: TLS in this process for backends that speak plaintext, with the sessions in
//! a daemon, so that returning clients resume at every replica. And TLS to servers for local programs
//! that speak plaintext.
//!
//! A proxy is a worker like any other: it uses the client of `clients/rust`, and no right of its own.
//!
//! * `settings`: the settings of a proxy, with the files that they name; `daemon_tls`: those for TLS to a daemon
//! * `reload`: other settings while the proxies run
//! * `sessions`: whether the daemons have the sessions
//! * `door`: the listener of a proxy, and what its connections share
//! * `places`: the places of its connections
//! * `visit`: one connection of a proxy that terminates TLS
//! * `originate`: one connection of a proxy that originates TLS
//! * `header`: the PROXY protocol
//! * `dial`: the way to a backend; `plain`: the plaintext side; `carry`: bytes between both sides
//! * `tally`, `sight`, `metrics`, `probes`: what is counted and shown

use std::{
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tls_sessiond_core::clock::{Clock, WallTime};
use tokio::time::{sleep, timeout};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

mod carry;
mod daemon_tls;
mod dial;
mod door;
mod header;
mod metrics;
mod originate;
mod places;
mod plain;
mod probes;
mod reload;
mod sessions;
mod settings;
mod sight;
mod tally;
mod visit;

use door::{ProxyDoor, ProxyListener};
pub use reload::ProxiesReload;
use reload::{live, role_changed};
use sessions::SessionsDesk;
use settings::{Keeper, Loaded};

use crate::{
    admin::AdminListener,
    config::{Config, ConfigError, Drain, ProxyConfig, ProxyListen, SessionsAt},
    daemon::{self, Daemon, Error},
    log::{Log, panics::caught},
    server::{listen::Inside, passed::PassedSockets, tls},
};

/// How long connections have to end after a drain, once their backends got the end of the clients.
const FINISH: Duration = Duration::from_secs(2);
/// How long sockets have to end after that.
const KILL: Duration = Duration::from_secs(2);
/// How long the daemon may take for the last reports.
const REPORTS: Duration = Duration::from_secs(1);
/// Open files that are not sockets of connections: listeners, event queues, the log, files of a
/// reload, connections to daemons and to the admin address.
const FILES_RESERVED: u64 = 256;
/// Open files of one connection: the client's socket and the backend's.
const FILES_OF_ONE: u64 = 2;

/// A configuration and the content of its files, before any socket is open.
pub struct PreparedProxies {
    loaded: Loaded,
    own: Option<daemon::Prepared>,
    admin: Option<Arc<tls::Acceptor>>,
    open_files: Option<u64>,
}

impl PreparedProxies {
    /// Opens every file that `[[proxy]]` names, and may block on them.
    ///
    /// # Errors
    /// Names the key, the file and the fault. There is no proxy.
    pub fn read(config: &Config) -> Result<Self, ConfigError> {
        if config.proxies.is_empty() {
            return Err(config.no_proxy());
        }
        let own = match has_own(config) {
            true => Some(daemon::Prepared::read(own_config(config))?),
            false => None,
        };
        Ok(Self {
            loaded: Loaded::read(config, None)?,
            own,
            admin: tls::Acceptor::load(config)?,
            open_files: None,
        })
    }

    /// Checks every file that `[[proxy]]` names, for a configuration that may have no proxy. May
    /// block on them. Returns warnings about settings that are valid but seldom intended.
    ///
    /// # Errors
    /// Names the key, the file and the fault.
    pub fn check(config: &Config) -> Result<Vec<ConfigError>, ConfigError> {
        Loaded::read(config, None).map(|loaded| loaded.warnings(Clock::System.now().wall()))
    }

    /// Returns warnings about settings that are valid but seldom intended, as of now.
    pub fn warnings(&self) -> Vec<ConfigError> {
        self.loaded.warnings(Clock::System.now().wall())
    }

    /// Sets the number of files that the process may have open (RLIMIT_NOFILE). If that leaves fewer
    /// connections than the proxies allow, they have fewer. `None`: no limit.
    #[must_use]
    pub fn with_open_files(self, open_files: Option<u64>) -> Self {
        Self { open_files, ..self }
    }
}

/// Returns whether a proxy has its sessions in this process.
fn has_own(config: &Config) -> bool {
    let mut proxies = config.proxies.iter();
    proxies.any(|proxy| proxy.sessions == SessionsAt::Own)
}

/// Returns the configuration of the daemon of this process: the contexts and the store, without
/// anything that others reach.
fn own_config(config: &Config) -> Config {
    let mut own = config.clone();
    own.api = Vec::new();
    own.admin = None;
    own.tls = None;
    own.access = Vec::new();
    own.otlp = None;
    // The proxies have drained before it stops.
    own.drain = Drain {
        delay: Duration::ZERO,
        timeout: REPORTS,
    };
    // Proxies use rings no more than other workers that run TLS themselves.
    own.ticket_keys = Vec::new();
    own.contexts
        .iter_mut()
        .for_each(|context| context.ticket_ring = None);
    own
}

/// What the proxies, the probes and a reload share.
struct ProxiesState {
    proxies: Vec<Arc<ProxyDoor>>,
    keepers: Vec<Keeper>,
    desks: Vec<SessionsDesk>,
    loaded: ArcSwap<Loaded>,
    /// Held by the one reload that runs.
    turn: Mutex<()>,
    own: Option<daemon::Reload>,
    open_files: Option<u64>,
    started: WallTime,
    is_ready: AtomicBool,
    applied: AtomicU64,
    refused: AtomicU64,
    /// When the last reload ended, and whether it was applied.
    last_reload: Mutex<Option<(WallTime, bool)>>,
    log: OnceLock<Log>,
}

/// The proxies of a configuration, which listen. They serve once they run.
pub struct Proxies {
    shared: Arc<ProxiesState>,
    listeners: Vec<ProxyListener>,
    own: Option<OwnDaemon>,
    admin: Option<(SocketAddr, AbortOnDropHandle<()>)>,
    drain: CancellationToken,
    finish: CancellationToken,
    abort: CancellationToken,
}

/// The daemon of this process.
struct OwnDaemon {
    daemon: Daemon,
    inside: Inside,
}

impl Proxies {
    /// Opens the sockets. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// A proxy cannot listen on its address, or the daemon of this process cannot start.
    pub async fn listen(prepared: PreparedProxies) -> Result<Self, Error> {
        let PreparedProxies {
            loaded,
            own,
            admin,
            open_files,
        } = prepared;
        let own = match own {
            None => None,
            Some(prepared) => {
                let (mut daemon, inside) = Daemon::inside(prepared, Clock::System)?;
                daemon.ready().await?;
                Some(OwnDaemon { daemon, inside })
            }
        };
        let (abort, finish) = (CancellationToken::new(), CancellationToken::new());
        let mut desks: Vec<SessionsDesk> = Vec::new();
        let mut passed = PassedSockets::of_environment()?;
        let (mut keepers, mut proxies, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
        let mut known: Vec<(ProxyConfig, Keeper)> = Vec::new();
        for (place, config) in loaded.config.proxies.iter().enumerate() {
            let inside = own.as_ref().map(|own| &own.inside);
            let same = known.iter().find(|(other, _)| share_keeper(other, config));
            let keeper = match same {
                Some((_, keeper)) => keeper.clone(),
                None => {
                    let keeper = Keeper::new(&config.role, loaded.options(place, inside)?);
                    if let Keeper::Worker(worker) = &keeper {
                        desks.push(SessionsDesk::new(
                            sessions_name(config, &desks),
                            worker.clone(),
                        ));
                    }
                    keeper
                }
            };
            known.push((config.clone(), keeper.clone()));
            let listener = ProxyListener::bind(config, loaded.config.unix, &mut passed)?;
            let live = live(&loaded, place, &keeper, open_files)
                .ok_or_else(|| role_changed(&loaded.config, place))?;
            let name = listener.address().to_string();
            proxies.push(Arc::new(ProxyDoor::new(
                name,
                live,
                abort.clone(),
                finish.clone(),
            )));
            listeners.push(listener);
            keepers.push(keeper);
        }
        let shared = Arc::new(ProxiesState {
            proxies,
            keepers,
            desks,
            own: own.as_ref().map(|own| own.daemon.reload()),
            open_files,
            started: Clock::System.now().wall(),
            is_ready: AtomicBool::new(false),
            applied: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_reload: Mutex::new(None),
            log: OnceLock::new(),
            loaded: ArcSwap::from_pointee(loaded),
            turn: Mutex::default(),
        });
        let endpoint = shared.loaded.load().config.proxy_admin;
        let listener = match endpoint {
            Some(endpoint) => AdminListener::bind("listen.proxy_admin", endpoint, admin)?,
            None => None,
        };
        let admin = match listener {
            None => None,
            Some(listener) => {
                let address = listener.address()?;
                let routes = probes::routes(Arc::clone(&shared));
                let serving = AbortOnDropHandle::new(tokio::spawn(listener.serve_routes(routes)));
                Some((address, serving))
            }
        };
        Ok(Self {
            shared,
            listeners,
            own,
            admin,
            drain: CancellationToken::new(),
            finish,
            abort,
        })
    }

    /// Returns the addresses that the proxies listen on, and where each sends its connections.
    pub fn ways(&self) -> Vec<(ProxyListen, String)> {
        let loaded = self.shared.loaded.load();
        let to = loaded.config.proxies.iter().map(settings::destination);
        self.listeners
            .iter()
            .map(ProxyListener::address)
            .zip(to)
            .collect()
    }

    /// Returns the address of metrics and probes, if they are served.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(address, _)| *address)
    }

    /// Gives the metrics the log, whose dropped lines they count.
    pub fn give_log(&self, log: Log) {
        // A second log is a defect of the caller, and the first one stays.
        let _ = self.shared.log.set(log);
    }

    /// Returns a handle that reloads the proxies while they run.
    pub fn reload(&self) -> ProxiesReload {
        ProxiesReload(Arc::clone(&self.shared))
    }

    /// Serves until `stop` is ready. Then the probes say "not ready", and after `drain.delay` no
    /// connection is accepted. Those that are open have `drain.timeout` to end. After that their
    /// backends get the end of the clients, so that quiet connections end cleanly and their sessions
    /// stay. What is still open then is reset.
    ///
    /// # Errors
    /// The daemon of this process failed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let tracker = TaskTracker::new();
        let (own_stop, own_stops) = (CancellationToken::new(), CancellationToken::new());
        let own_stopped = own_stop.clone();
        let own_ended = own_stops.clone();
        let own = self.own.map(|own| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                let ended = caught(own.daemon.run(own_stopped.cancelled_owned())).await;
                own_ended.cancel();
                ended.unwrap_or(Err(Error::Panicked))
            }))
        });
        let accepting: Vec<_> = self
            .listeners
            .into_iter()
            .zip(&self.shared.proxies)
            .map(|(listener, proxy)| {
                let accept = door::accept(
                    listener,
                    Arc::clone(proxy),
                    self.drain.clone(),
                    tracker.clone(),
                );
                AbortOnDropHandle::new(tokio::spawn(accept))
            })
            .collect();
        let shared = Arc::clone(&self.shared);
        let _watching = AbortOnDropHandle::new(tokio::spawn(async move {
            join_all(shared.desks.iter().map(SessionsDesk::watch)).await;
        }));
        self.shared.is_ready.store(true, Ordering::Relaxed);
        let mut stop = pin!(stop);
        tokio::select! {
            () = &mut stop => {}
            // It ends by itself only if it has failed.
            () = own_stops.cancelled(), if own.is_some() => {}
        }
        self.shared.is_ready.store(false, Ordering::Relaxed);
        let drain = self.shared.loaded.load().config.drain;
        tracing::info!(connections = tracker.len(), "stopping");
        sleep(drain.delay).await;
        self.drain.cancel();
        for accept in accepting {
            // A panic is already logged.
            let _ = accept.await;
        }
        tracker.close();
        if timeout(drain.timeout, tracker.wait()).await.is_err() {
            tracing::warn!(
                connections = tracker.len(),
                "drain time-out: ending the remaining connections"
            );
            self.finish.cancel();
            if timeout(FINISH, tracker.wait()).await.is_err() {
                self.abort.cancel();
                let _ = timeout(KILL, tracker.wait()).await;
            }
        }
        for desk in &self.shared.desks {
            if desk.worker.is_attached() && !desk.worker.flush(REPORTS).await {
                tracing::warn!(
                    sessions = desk.name,
                    "the daemon did not take the last reports"
                );
            }
        }
        own_stop.cancel();
        let ended = match own {
            None => Ok(()),
            Some(own) => own.await.unwrap_or(Err(Error::Panicked)),
        };
        tracing::info!("stopped");
        ended
    }
}

/// Returns whether two proxies use one worker, or one engine.
fn share_keeper(one: &ProxyConfig, other: &ProxyConfig) -> bool {
    (&one.sessions, &one.context) == (&other.sessions, &other.context)
        && one.terminates() == other.terminates()
}

/// Names the sessions of a proxy. Two proxies may reach one daemon with different certificates.
fn sessions_name(config: &ProxyConfig, desks: &[SessionsDesk]) -> String {
    let place = match &config.sessions {
        SessionsAt::Own => "own",
        SessionsAt::Daemon { endpoint, .. } => endpoint,
    };
    let name = format!("{place} {}", config.context);
    let same = desks
        .iter()
        .filter(|desk| desk.name == name || desk.name.starts_with(&format!("{name} (")))
        .count();
    match same {
        0 => name,
        count => format!("{name} ({})", count + 1),
    }
}
