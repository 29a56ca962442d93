//! The settings of a proxy, with the files that they name.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use rustls::ServerConfig;
use tls_sessiond_client::{
    Options, PeerIdentity, Worker,
    engine::Engine,
    rustls::{self as sessions, Acceptor, ClientCertificate},
};
use tls_sessiond_core::{
    clock::WallTime,
    context::{ContextConfig, ContextRefusal, Registry, Settings, identity::identity, warnings},
    session::sealing::Sealers,
};
use tls_sessiond_types::hex;

use super::{daemon_tls::DaemonTls, dial::Dial};
use crate::{
    config::{
        Away, Config, ConfigError, Network, Originate, ProxyConfig, ProxyRole, SessionsAt, Site,
    },
    server::listen::Inside,
};

/// The settings of all proxies, with their files. No socket is open.
pub(super) struct Loaded {
    pub(super) config: Config,
    settings: Settings,
    /// The proxy of each context, and the table of its keys within that proxy.
    owners: Vec<(usize, String)>,
    registry: Registry,
    /// The contexts of the sites of each proxy: the default one, and those of its routes.
    places: Vec<Vec<usize>>,
    /// TLS to the daemons that have the sessions, by proxy.
    daemons: Vec<Option<Arc<DaemonTls>>>,
}

impl Loaded {
    /// Reads every file that `[[proxy]]` names.
    ///
    /// # Errors
    /// Names the key, the file and the fault.
    pub(super) fn read(config: &Config, before: Option<&Self>) -> Result<Self, ConfigError> {
        let mut contexts: Vec<ContextConfig> = Vec::new();
        let mut owners = Vec::new();
        let mut places = Vec::with_capacity(config.proxies.len());
        for (number, proxy) in config.proxies.iter().enumerate() {
            let mut of_proxy = Vec::new();
            for site in sites(proxy) {
                let known = contexts.iter().position(|context| *context == site.tls);
                of_proxy.push(known.unwrap_or_else(|| {
                    contexts.push(site.tls.clone());
                    owners.push((number, site.table.clone()));
                    contexts.len() - 1
                }));
            }
            places.push(of_proxy);
        }
        let settings = Settings {
            contexts,
            // The caches of these contexts stay empty: sessions are in the daemon.
            total: config.settings().total,
            rules: Vec::new(),
            sealers: Sealers::new(),
        };
        let registry = match before {
            Some(before) => before.registry.rebuild(&settings),
            None => Registry::build(&settings),
        };
        let registry = registry.map_err(|refusal| refused(config, &owners, &refusal))?;
        let daemons = config.proxies.iter().enumerate().map(|(number, proxy)| {
            let tls = match &proxy.sessions {
                SessionsAt::Daemon { tls: Some(tls), .. } => Some(tls),
                SessionsAt::Daemon { tls: None, .. } | SessionsAt::Own => None,
            };
            tls.map(|tls| DaemonTls::read(config, number, tls))
                .transpose()
        });
        Ok(Self {
            daemons: daemons.collect::<Result<_, _>>()?,
            config: config.clone(),
            settings,
            owners,
            registry,
            places,
        })
    }

    /// Goes on with the connections to daemons of `before`, which use the files of these settings from
    /// now on.
    pub(super) fn take_over(&mut self, before: &Self) {
        for (ours, theirs) in self.daemons.iter_mut().zip(&before.daemons) {
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                theirs.renew(ours);
                *ours = Arc::clone(theirs);
            }
        }
    }

    /// Returns warnings about settings that are valid but seldom intended.
    pub(super) fn warnings(&self, now: WallTime) -> Vec<ConfigError> {
        let found = warnings::contexts(&self.settings, now);
        found
            .iter()
            .map(|warning| refused(&self.config, &self.owners, warning))
            .collect()
    }

    /// Returns when the first certificate of a proxy expires. `None`: it has none.
    pub(super) fn ends(&self, proxy: usize) -> Option<WallTime> {
        let contexts = self.places[proxy].iter();
        contexts
            .filter_map(|place| self.registry.all()[*place].certificate_ends)
            .min()
    }

    /// Returns the settings of a proxy whose sessions `keeper` has. `None`: the proxy has another role
    /// than when the keeper was made.
    pub(super) fn doing(&self, proxy: usize, keeper: &Keeper) -> Option<Doing> {
        let config = &self.config.proxies[proxy];
        let (terminate, worker) = match (&config.role, keeper) {
            (ProxyRole::Terminate(terminate), Keeper::Worker(worker)) => (terminate, worker),
            (ProxyRole::Originate(originate), Keeper::Engine(engine)) => {
                return Some(Doing::Originate(Originating {
                    config: originate.clone(),
                    dial: Arc::new(Dial::new(originate.connect.clone())),
                    engine: engine.clone(),
                }));
            }
            _ => return None,
        };
        let mut acceptors: BTreeMap<usize, Acceptor> = BTreeMap::new();
        let mut live: Vec<LiveSite> = Vec::new();
        for (site, &place) in sites(config).zip(&self.places[proxy]) {
            let context = &self.registry.all()[place];
            // Always there: the configuration requires a certificate.
            let Some(server) = &context.server else {
                continue;
            };
            let acceptor = acceptors
                .entry(place)
                .or_insert_with(|| acceptor(worker, server.all(), context.server_scope.as_bytes()));
            // Routes to one backend look its name up together.
            let same = live.iter().find(|other| other.site.backend == site.backend);
            let dial = match same {
                Some(other) => Arc::clone(&other.dial),
                None => Arc::new(Dial::new(site.backend.clone())),
            };
            live.push(LiveSite {
                site: site.clone(),
                dial,
                acceptor: acceptor.clone(),
            });
        }
        let mut live = live.into_iter();
        let default = terminate.default.as_ref().and_then(|_| live.next());
        Some(Doing::Terminate(Box::new(Terminating {
            default,
            routes: live.collect(),
            sends_header: terminate.sends_header,
            header_from: terminate.header_from.clone(),
            away: terminate.away,
        })))
    }

    /// Returns the options of a worker for the sessions of a proxy. `own`: the daemon of this
    /// process.
    ///
    /// # Errors
    /// The endpoint is not one, or there is no daemon in this process.
    pub(super) fn options(
        &self,
        proxy: usize,
        own: Option<&Inside>,
    ) -> Result<Options, ConfigError> {
        let config = &self.config.proxies[proxy];
        let refuse = |why: String| self.config.proxy_error(proxy, "sessions", why);
        let mut options = match (&config.sessions, &self.daemons[proxy]) {
            (SessionsAt::Own, _) => {
                let inside = own.cloned();
                let inside = inside.ok_or_else(|| refuse("this process has no cache".into()))?;
                Options::inside(move || inside.connect(), sessions::FORMAT)
            }
            (SessionsAt::Daemon { endpoint, .. }, None) => {
                Options::new(endpoint, sessions::FORMAT).map_err(|err| refuse(err.to_string()))?
            }
            (SessionsAt::Daemon { endpoint, .. }, Some(tls)) => {
                let client = tls.client().map_err(|err| refuse(err.to_string()))?;
                Options::over_tls(endpoint, sessions::FORMAT, &client)
                    .map_err(|err| refuse(err.to_string()))?
            }
        };
        options.context.clone_from(&config.context);
        Ok(options)
    }
}

/// Returns a fault of a context, or a warning about it, as one of the keys that it was made from.
fn refused(config: &Config, owners: &[(usize, String)], refusal: &ContextRefusal) -> ConfigError {
    let (number, table) = &owners[refusal.place];
    let key = match refusal.refusal.key.as_str() {
        "ca" => "client_ca".to_owned(),
        key => format!("{table}{key}"),
    };
    config.proxy_error(*number, &key, &refusal.refusal.why)
}

/// Returns where the connections of a proxy go, in words.
pub(super) fn destination(proxy: &ProxyConfig) -> String {
    match &proxy.role {
        ProxyRole::Originate(originate) => format!("{} over TLS", originate.connect),
        ProxyRole::Terminate(terminate) => {
            let mut to: Vec<_> = sites(proxy).map(|site| site.backend.to_string()).collect();
            let names = terminate.routes.len();
            to.dedup();
            match names {
                0 => to.join(", "),
                names => format!("{} by {names} routes", to.join(", ")),
            }
        }
    }
}

/// What a proxy does with a connection.
pub(super) enum Doing {
    Terminate(Box<Terminating>),
    Originate(Originating),
}

/// The settings of a proxy that originates TLS.
pub(super) struct Originating {
    pub(super) config: Originate,
    pub(super) dial: Arc<Dial>,
    pub(super) engine: Engine,
}

/// What has the sessions of a proxy.
#[derive(Clone)]
pub(super) enum Keeper {
    Worker(Worker),
    Engine(Engine),
}

impl Keeper {
    /// Makes the worker of a proxy that terminates TLS, or the engine of one that originates it.
    pub(super) fn new(role: &ProxyRole, options: Options) -> Self {
        match role {
            ProxyRole::Terminate(_) => Self::Worker(Worker::connect(options)),
            ProxyRole::Originate(_) => Self::Engine(Engine::new(options)),
        }
    }
}

/// The settings of a proxy that terminates TLS.
pub(super) struct Terminating {
    pub(super) default: Option<LiveSite>,
    pub(super) routes: Vec<LiveSite>,
    pub(super) sends_header: bool,
    pub(super) header_from: Option<Vec<Network>>,
    pub(super) away: Away,
}

/// A site, and the acceptor for its clients.
pub(super) struct LiveSite {
    site: Site,
    pub(super) dial: Arc<Dial>,
    pub(super) acceptor: Acceptor,
}

impl Terminating {
    /// Returns the site for a server name. `None`: no site has it.
    pub(super) fn site(&self, server_name: &str) -> Option<&LiveSite> {
        let has = |site: &&LiveSite| site.site.names.iter().any(|name| name.matches(server_name));
        self.routes.iter().find(has).or(self.default.as_ref())
    }
}

/// Returns the sites of a proxy: the default one, then those of its routes.
fn sites(proxy: &ProxyConfig) -> impl Iterator<Item = &Site> {
    let terminate = match &proxy.role {
        ProxyRole::Terminate(terminate) => Some(terminate),
        ProxyRole::Originate(_) => None,
    };
    terminate
        .into_iter()
        .flat_map(|terminate| terminate.default.iter().chain(&terminate.routes))
}

/// Makes an acceptor. The scope is the binding: it covers everything that decides which clients may
/// resume.
fn acceptor(worker: &Worker, server: &Arc<ServerConfig>, scope: &[u8]) -> Acceptor {
    let mut options = sessions::Options::new(scope);
    options.read_certificate = Some(read_certificate);
    Acceptor::new(worker.clone(), Arc::clone(server), options)
}

/// Reads a client's certificate, for its sessions.
fn read_certificate(der: &[u8]) -> ClientCertificate {
    let identity = identity(der);
    ClientCertificate {
        identity: PeerIdentity {
            certificate_sha256: hex::string(&identity.certificate_sha256),
            subject: identity.subject.clone(),
            dns_names: identity.dns_names.clone(),
            uris: identity.uris.clone(),
        },
        not_after: SystemTime::UNIX_EPOCH + identity.not_after.since(WallTime::from_secs(0)),
    }
}
