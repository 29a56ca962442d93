//! The configuration: turns a file, the environment and the command line into a valid [`Config`],
//! or an error with key and line.
//!
//! Order of precedence, highest first:
//!
//! 1. `--set listen.api=...` 2. `TLS_SESSIOND__LISTEN__API` 3. the file 4. the default
//!
//! `RUST_LOG` overrides every `log.level`.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

mod admin;
mod check;
mod context;
mod effective;
mod error;
mod log;
mod omission;
mod origin;
mod otlp;
mod proxy;
mod raw;
mod store;
mod ticket_keys;
mod units;
mod withhold;

pub use admin::{AdminDoor, AdminEndpoint, DEFAULT_PROXY_ADMIN};
use check::Check;
use context::context;
pub use effective::EffectiveValue;
pub use error::{ConfigError, InvalidValue, Source};
pub use log::{Audit, Filter, Level, LogConfig, LogFormat};
use origin::ENV_PREFIX;
pub use otlp::OtlpConfig;
pub use proxy::{
    Away, Destination, Network, Originate, ProxyConfig, ProxyListen, ProxyRole, ServerNamePattern,
    SessionsAt, SessionsTls, Site, Terminate,
};
pub use store::{StoreAddress, StoreConfig};
pub use ticket_keys::{SavedRing, TicketKeysConfig};
use tls_sessiond_core::{
    access::{Access, AccessRole, IdentityPattern},
    context::{ContextConfig, ContextRefusal, Refusal, Settings},
    session::sealing::Sealers,
    store::memory,
};
pub(crate) use units::{duration, mode, user_and_group};

/// The addresses to listen on by default.
pub(crate) const DEFAULT_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 50551);
pub(crate) const DEFAULT_SOCKET: &str = "/run/tls-sessiond/api.sock";

/// A valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The addresses that serve the API.
    pub api: Vec<Endpoint>,
    /// Permissions and owner of the files of Unix sockets.
    pub unix: UnixFile,
    /// The address of metrics, probes and the status page. `None`: there is none.
    pub admin: Option<AdminEndpoint>,
    /// The files for mutual TLS, if the API is served over TLS.
    pub tls: Option<ListenTls>,
    /// The access rules; the first match counts. Empty: local callers may do everything.
    pub access: Vec<Access>,
    /// Limits of the whole daemon.
    pub limits: Limits,
    /// Settings for stopping.
    pub drain: Drain,
    /// Settings of the log.
    pub log: LogConfig,
    /// The collector of traces and metrics. `None`: nothing is sent.
    pub otlp: Option<OtlpConfig>,
    /// The store that other daemons share. `None`: sessions are in the memory of this process.
    pub store: Option<StoreConfig>,
    /// The rings of ticket keys.
    pub ticket_keys: Vec<TicketKeysConfig>,
    /// The contexts, at least one.
    pub contexts: Vec<ContextConfig>,
    /// The proxies, which the command `proxy` runs.
    pub proxies: Vec<ProxyConfig>,
    /// The address of metrics and probes of the command `proxy`. `None`: there is none.
    pub proxy_admin: Option<AdminEndpoint>,
    origin: origin::Origin,
}

/// The file of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixFile {
    /// Its permissions.
    pub mode: u32,
    /// User and group, by number. `None`: those of the daemon.
    pub owner: Option<(u32, u32)>,
}

/// The files for mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenTls {
    /// The daemon's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authorities that sign the certificates of callers, PEM.
    pub client_ca: PathBuf,
}

/// An address to listen on. Plaintext is served only on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A loopback address, in plaintext.
    Tcp(SocketAddr),
    /// Any address, with mutual TLS.
    Tls(SocketAddr),
    /// The sockets that systemd has bound and passed (sd_listen_fds(3)).
    Systemd,
    /// A Unix socket.
    Unix {
        /// The path of the socket.
        path: PathBuf,
        /// Whether the socket is left out if its folder cannot be made. Only the default socket is
        /// optional.
        optional: bool,
    },
}

/// Limits of the whole daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of connection objects.
    pub connections: usize,
    /// Maximum number of connection objects of one identity.
    pub connections_per_owner: usize,
    /// Maximum number of calls that have begun and are not answered.
    pub calls_in_flight: usize,
    /// Maximum number of such calls of one identity.
    pub calls_per_owner: usize,
    /// Maximum bytes of incomplete requests, of answers that wait for a flow-control window, and of
    /// requests queued behind such answers.
    pub request_bytes: usize,
    /// Maximum number of such bytes of one identity.
    pub request_bytes_per_owner: usize,
    /// Maximum number of sockets.
    pub sockets: usize,
    /// Maximum number of lookups per second of one identity that find nothing.
    pub misses_per_second: u32,
    /// Maximum size of a gRPC message, in bytes.
    pub message: usize,
    /// Maximum plaintext that waits for a handshake on one Drive, in bytes.
    pub plaintext_buffer: usize,
    /// Maximum number of concurrent calls on one HTTP/2 connection whose caller has the role
    /// worker.
    pub streams: u32,
    /// Maximum number of concurrent calls on one HTTP/2 connection of any other caller; at most
    /// `streams`.
    pub streams_non_worker: u32,
    /// Maximum number of sessions in all caches together.
    pub sessions: usize,
    /// Maximum number of bytes in all caches together.
    pub session_bytes: usize,
}

/// Settings for stopping the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Time from the health answer NOT_SERVING until new calls are refused.
    pub delay: Duration,
    /// Time that running calls have after that.
    pub timeout: Duration,
}

/// Replaces the types of Rust in an error of serde by the words of TOML.
fn in_words_of_toml(message: &str) -> String {
    [
        (
            "expected usize",
            "expected a whole number that is not negative",
        ),
        (
            "expected u32",
            "expected a whole number from 0 to 4294967295",
        ),
        ("expected path string", "expected a file name"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected a table"),
        ("invalid type: map", "invalid type: table"),
        ("invalid type: sequence", "invalid type: list"),
    ]
    .iter()
    .fold(message.to_owned(), |text, (rust, toml)| {
        text.replace(rust, toml)
    })
}

/// Returns whether part of a text looks like a private key. No error may print such a text.
pub fn holds_key(text: &str) -> bool {
    withhold::holds_key(text)
}

/// Returns the variables of this process's environment that belong to the configuration.
///
/// # Errors
/// One of them is not UTF-8. Other variables may hold any bytes.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            (name.starts_with(ENV_PREFIX) || name == origin::RUST_LOG).then_some((name, value))
        })
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(ConfigError::of_source(
                Source::Variable(name),
                "the value is not UTF-8",
            )),
        })
        .collect()
}

impl Config {
    /// Reads and checks the configuration. Opens no file but the configuration itself.
    ///
    /// # Errors
    /// The first error, with its key and line.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        set: &[String],
    ) -> Result<Self, ConfigError> {
        let origin = origin::Origin::read(file, environment, set)?;
        let keys = origin.merged().clone();
        Self::check(origin, keys)
    }

    /// Checks the values of `keys`. `origin` locates them for errors.
    fn check(origin: origin::Origin, keys: toml::Table) -> Result<Self, ConfigError> {
        let raw: raw::RawFile = serde_path_to_error::deserialize(keys).map_err(|err| {
            let key = err.path().to_string();
            let what = err.into_inner();
            ConfigError::of_key(origin.locate(&key), &key, &in_words_of_toml(what.message()))
        })?;
        let check = Check { origin: &origin };
        let api = match &raw.listen.api {
            None => {
                vec![
                    Endpoint::Tcp(DEFAULT_ADDRESS),
                    Endpoint::Unix {
                        path: DEFAULT_SOCKET.into(),
                        optional: true,
                    },
                ]
            }
            Some(list) if list.is_empty() => {
                let message = "the list is empty, so no caller could reach the daemon; remove the key for the default";
                return Err(check.refuse("listen.api", message.into()));
            }
            Some(list) => list
                .iter()
                .enumerate()
                .map(|(place, text)| check.key(&format!("listen.api[{place}]"), endpoint(text)))
                .collect::<Result<_, _>>()?,
        };
        let unix = UnixFile {
            mode: check.key("listen.unix_mode", units::mode(&raw.listen.unix_mode))?,
            owner: check.key(
                "listen.unix_owner",
                units::user_and_group(&raw.listen.unix_owner),
            )?,
        };
        let admin = admin::read(&check, &raw.listen)?;
        let tls = raw.listen.tls.as_ref().map(|tls| ListenTls {
            certificate: check.origin.folder().join(&tls.certificate),
            key: check.origin.folder().join(&tls.key),
            client_ca: check.origin.folder().join(&tls.client_ca),
        });
        if tls.is_none()
            && let Some(place) = api
                .iter()
                .position(|endpoint| matches!(endpoint, Endpoint::Tls(_)))
        {
            let message = "plaintext is served on loopback addresses and Unix sockets only, because the API \
                           carries session secrets: this one needs [listen.tls]";
            return Err(check.refuse(&format!("listen.api[{place}]"), message.into()));
        }
        let access = access(&check, raw.access.as_deref().unwrap_or_default())?;
        if tls.is_some() && access.is_empty() {
            let message =
                "there is no [[access]] rule, so every caller over TLS would be refused; add a rule".into();
            return Err(check.refuse("listen.tls", message));
        }
        let limits = Limits {
            connections: check.at_least_one("limits.connections", raw.limits.connections)?,
            connections_per_owner: check.at_least_one(
                "limits.connections_per_owner",
                raw.limits.connections_per_owner,
            )?,
            calls_in_flight: check
                .at_least_one("limits.calls_in_flight", raw.limits.calls_in_flight)?,
            calls_per_owner: check
                .at_least_one("limits.calls_per_owner", raw.limits.calls_per_owner)?,
            request_bytes: check.size("limits.request_bytes", &raw.limits.request_bytes)?,
            request_bytes_per_owner: check.size(
                "limits.request_bytes_per_owner",
                &raw.limits.request_bytes_per_owner,
            )?,
            sockets: check.at_least_one("limits.sockets", raw.limits.sockets)?,
            misses_per_second: check
                .at_least_one("limits.misses_per_second", raw.limits.misses_per_second)?,
            message: check.size("limits.message", &raw.limits.message)?,
            plaintext_buffer: check
                .size("limits.plaintext_buffer", &raw.limits.plaintext_buffer)?,
            streams: check.at_least_one("limits.streams", raw.limits.streams)?,
            streams_non_worker: check
                .at_least_one("limits.streams_non_worker", raw.limits.streams_non_worker)?
                .min(raw.limits.streams),
            sessions: check.at_least_one("limits.sessions", raw.limits.sessions)?,
            session_bytes: check.size("limits.session_bytes", &raw.limits.session_bytes)?,
        };
        let drain = Drain {
            delay: check.duration("drain.delay", &raw.drain.delay)?,
            timeout: check.duration("drain.timeout", &raw.drain.timeout)?,
        };
        let log = LogConfig {
            filter: check.key("log.level", Filter::read(&raw.log.level))?,
            format: check.word(
                "log.format",
                &raw.log.format,
                &[
                    ("auto", LogFormat::Auto),
                    ("text", LogFormat::Text),
                    ("json", LogFormat::Json),
                ],
            )?,
            audit: check.key(
                "log.audit",
                log::audit(&raw.log.audit, check.origin.folder()),
            )?,
        };
        let otlp = otlp::read(&check, &raw.otlp)?;
        let store = store::read(&check, &raw.store)?;
        // `context = []` says explicitly what a missing key means.
        let contexts = match raw.context.filter(|list| !list.is_empty()) {
            None => {
                vec![ContextConfig {
                    self_made: true,
                    ..context(&check, "context[0]", &raw::RawContext::default())?
                }]
            }
            Some(list) => {
                let mut contexts: Vec<ContextConfig> = Vec::with_capacity(list.len());
                for (place, raw) in list.iter().enumerate() {
                    let context = context(&check, &format!("context[{place}]"), raw)?;
                    if contexts.iter().any(|other| other.name == context.name) {
                        let message = format!(
                            "a context named `{}` is defined above; names must be unique",
                            context.name
                        );
                        return Err(check.refuse(&format!("context[{place}].name"), message));
                    }
                    contexts.push(context);
                }
                if let [only] = contexts.as_mut_slice()
                    && only.certificates.is_empty()
                    && !check.origin.file_defines_contexts()
                {
                    // The built-in context, with some keys set by overrides.
                    only.self_made = true;
                }
                contexts
            }
        };
        let ticket_keys = ticket_keys::read(&check, &raw.ticket_keys, &contexts, store.is_some())?;
        ticket_keys::check_sealing(&check, &contexts, &ticket_keys)?;
        for (place, rule) in access.iter().enumerate() {
            let known =
                |name: &String| name == "*" || contexts.iter().any(|context| context.name == *name);
            if let Some(at) = rule.contexts.iter().position(|name| !known(name)) {
                let message = format!(
                    "unknown context `{}`: expected the name of a [[context]], or `*` for all",
                    rule.contexts[at]
                );
                return Err(check.refuse(&format!("access[{place}].contexts[{at}]"), message));
            }
        }
        let proxies = proxy::read(&check, &raw.proxy)?;
        let proxy_admin = admin::read_proxy(&check, &raw.listen)?;
        Ok(Self {
            api,
            unix,
            admin,
            tls,
            access,
            limits,
            drain,
            log,
            otlp,
            store,
            ticket_keys,
            contexts,
            proxies,
            proxy_admin,
            origin,
        })
    }

    /// Returns the defaults, which apply without a file.
    ///
    /// # Panics
    /// Never: a test checks that the defaults are valid.
    pub fn defaults() -> Self {
        Self::load(None, std::iter::empty(), &[]).expect("the defaults are valid")
    }

    /// Checks whether a reload may replace `running` by this configuration.
    ///
    /// These parts may differ: contexts, access rules, the files of `listen.tls`, and every setting
    /// that can change at run time. No key may return to its default because it is missing.
    ///
    /// # Errors
    /// Names the first key that is missing, or the first one that differs and cannot change at run
    /// time.
    pub fn can_follow(&self, running: &Self) -> Result<(), ConfigError> {
        omission::check(self, running)?;
        let fixed = [
            ("listen.api", self.api == running.api),
            (
                "listen.unix_mode or listen.unix_owner",
                self.unix == running.unix,
            ),
            (
                "listen.admin or listen.admin_public",
                self.admin == running.admin,
            ),
            ("listen.tls", self.tls.is_some() == running.tls.is_some()),
            (
                "limits.sockets",
                self.limits.sockets == running.limits.sockets,
            ),
            (
                "limits.message",
                self.limits.message == running.limits.message,
            ),
            (
                "store.kind",
                self.store.is_some() == running.store.is_some(),
            ),
            (
                "store.deadline",
                same_in_store(self, running, |store| store.deadline),
            ),
            (
                "store.redis.urls",
                same_in_store(self, running, |store| {
                    (store.address.clone(), store.database)
                }),
            ),
            (
                "store.redis.prefix",
                same_in_store(self, running, |store| store.layout.clone()),
            ),
            ("log.format", self.log.format == running.log.format),
            ("log.audit", self.log.audit == running.log.audit),
            (
                "otlp.endpoint",
                same_in_otlp(self, running, |otlp| {
                    (otlp.host.clone(), otlp.port, otlp.has_tls)
                }),
            ),
            (
                "otlp.ca",
                same_in_otlp(self, running, |otlp| otlp.ca.clone()),
            ),
            (
                "otlp.interval",
                same_in_otlp(self, running, |otlp| otlp.interval),
            ),
            (
                "otlp.sample",
                same_in_otlp(self, running, |otlp| otlp.sample),
            ),
        ];
        match fixed.into_iter().find(|(_, same)| !same) {
            None => Ok(()),
            Some((key, _)) => Err(ConfigError::whole(&format!(
                "{key} cannot change at run time; restart the daemon to apply it. Nothing of the new configuration is used"
            ))),
        }
    }

    /// Checks whether a reload of the proxies may replace `running` by this configuration. Listeners
    /// and the place of the sessions are fixed, and no key may return to its default because it is
    /// missing.
    ///
    /// # Errors
    /// Names the first key that is missing, or the first one that differs and cannot change at run
    /// time.
    pub fn proxies_can_follow(&self, running: &Self) -> Result<(), ConfigError> {
        omission::check(self, running)?;
        let admin = match self.proxy_admin == running.proxy_admin {
            true => Ok(()),
            false => Err("listen.proxy_admin".to_owned()),
        };
        let same = admin.and_then(|()| proxy::can_follow(&self.proxies, &running.proxies));
        same.map_err(|key| {
            ConfigError::whole(&format!(
                "{key} cannot change at run time; restart the proxy to apply it. Nothing of the new configuration is used"
            ))
        })
    }

    /// Returns the error of a command that needs a proxy.
    pub fn no_proxy(&self) -> ConfigError {
        ConfigError::whole(
            "there is no proxy to run: write a [[proxy]], or say where it goes with --backend or --connect",
        )
    }

    /// Returns the error of a proxy that flags describe beside those of the configuration.
    pub fn proxies_twice(&self) -> ConfigError {
        ConfigError::whole(
            "the configuration has [[proxy]] already: leave out the flags that describe one, or set a key with --set proxy.0.KEY=VALUE",
        )
    }

    /// Returns an error about `log.audit`, found when the file was opened.
    pub fn audit_error(&self, what: impl fmt::Display) -> ConfigError {
        Check {
            origin: &self.origin,
        }
        .refuse("log.audit", what.to_string())
    }

    /// Returns the names of the contexts that `running` has and this configuration does not have.
    pub fn removed_contexts<'r>(&self, running: &'r Self) -> Vec<&'r str> {
        let names = running.contexts.iter().map(|context| context.name.as_str());
        names
            .filter(|name| self.contexts.iter().all(|context| context.name != *name))
            .collect()
    }

    /// Returns an error about a key of `listen.tls`, found when its files were opened.
    pub fn tls_error(&self, key: &str, what: impl fmt::Display) -> ConfigError {
        Check {
            origin: &self.origin,
        }
        .refuse(&format!("listen.tls.{key}"), what.to_string())
    }

    /// Returns an error about a key of a ring, found when its files were opened.
    pub fn ticket_keys_error(
        &self,
        place: usize,
        key: &str,
        what: impl fmt::Display,
    ) -> ConfigError {
        Check {
            origin: &self.origin,
        }
        .refuse(&format!("ticket_keys[{place}].{key}"), what.to_string())
    }

    /// Returns an error about a key of a proxy, found when its files were opened.
    pub fn proxy_error(&self, place: usize, key: &str, what: impl fmt::Display) -> ConfigError {
        Check {
            origin: &self.origin,
        }
        .refuse(&format!("proxy[{place}].{key}"), what.to_string())
    }

    /// Returns an error about a key of `otlp`, found when its files were opened.
    pub fn otlp_error(&self, key: &str, what: impl fmt::Display) -> ConfigError {
        Check {
            origin: &self.origin,
        }
        .refuse(&format!("otlp.{key}"), what.to_string())
    }

    /// Returns an error about a key of `store`, found when its files were opened or the store was
    /// asked.
    pub fn store_error(&self, key: &str, what: impl fmt::Display) -> ConfigError {
        Check {
            origin: &self.origin,
        }
        .refuse(&format!("store.{key}"), what.to_string())
    }

    /// Returns a fault of a context's settings, or a warning about them, with the line of its key.
    pub fn context_error(&self, refusal: &ContextRefusal) -> ConfigError {
        let ContextRefusal {
            place,
            refusal: Refusal { key, why },
        } = refusal;
        Check {
            origin: &self.origin,
        }
        .refuse(&format!("context[{place}].{key}"), why.clone())
    }

    /// Returns the settings that contexts are made from, for contexts that store their sessions.
    /// [`Settings::sealers`] is empty, and a context that seals sessions needs its ring there.
    pub fn settings(&self) -> Settings {
        Settings {
            contexts: self.contexts.clone(),
            total: memory::Limits {
                entries_max: self.limits.sessions,
                bytes_max: self.limits.session_bytes,
            },
            rules: self.access.clone(),
            sealers: Sealers::new(),
        }
    }
}

/// Returns whether both have the same part of the settings of their store.
fn same_in_store<T: PartialEq>(
    one: &Config,
    two: &Config,
    part: impl Fn(&StoreConfig) -> T,
) -> bool {
    one.store.as_ref().map(&part) == two.store.as_ref().map(&part)
}

/// Returns whether both have the same part of the settings of their collector.
fn same_in_otlp<T: PartialEq>(one: &Config, two: &Config, part: impl Fn(&OtlpConfig) -> T) -> bool {
    one.otlp.as_ref().map(&part) == two.otlp.as_ref().map(&part)
}

fn endpoint(text: &str) -> Result<Endpoint, InvalidValue> {
    if let Some(path) = text.strip_prefix("unix://") {
        if !path.starts_with('/') {
            let why = format!(
                "`{text}`: the path of a socket must be absolute, as in unix://{DEFAULT_SOCKET}"
            );
            return Err(why.into());
        }
        if path.contains('\0') {
            return Err("the path of a socket must not contain NUL".into());
        }
        return Ok(Endpoint::Unix {
            path: path.into(),
            optional: false,
        });
    }
    if text == "systemd" {
        return Ok(Endpoint::Systemd);
    }
    let (scheme, address) =
        text.split_once("://").filter(|(scheme, _)| ["tcp", "tls"].contains(scheme)).ok_or_else(|| {
            format!(
                "invalid address `{text}`: expected tcp://IP:PORT, tls://IP:PORT, unix:///PATH or systemd"
            )
        })?;
    let address = address.parse::<SocketAddr>().map_err(|_| {
        InvalidValue::from(format!(
            "`{text}` is not {scheme}://IP:PORT; host names are not looked up"
        ))
    })?;
    Ok(match scheme == "tcp" && address.ip().is_loopback() {
        true => Endpoint::Tcp(address),
        false => Endpoint::Tls(address),
    })
}

fn access(check: &Check<'_>, raw: &[raw::RawAccess]) -> Result<Vec<Access>, ConfigError> {
    raw.iter()
        .enumerate()
        .map(|(place, rule)| {
            let key = |name: &str| format!("access[{place}].{name}");
            if rule.contexts.is_empty() {
                return Err(check.refuse(
                    &key("contexts"),
                    "must not be empty; use `[\"*\"]` for all contexts".into(),
                ));
            }
            Ok(Access {
                identity: check.key(
                    &key("identity"),
                    rule.identity
                        .parse::<IdentityPattern>()
                        .map_err(|err| err.to_string().into()),
                )?,
                contexts: rule.contexts.clone(),
                roles: roles(check, &key("role"), rule.role.words())?,
            })
        })
        .collect()
}

/// Reads the roles of a rule: at least one, each once.
fn roles(check: &Check<'_>, key: &str, words: &[String]) -> Result<Vec<AccessRole>, ConfigError> {
    let known = [
        ("worker", AccessRole::Worker),
        ("observer", AccessRole::Observer),
        ("admin", AccessRole::Admin),
        ("keys", AccessRole::Keys),
    ];
    let mut roles = Vec::with_capacity(words.len());
    for word in words {
        let role = check.word(key, word, &known)?;
        if roles.contains(&role) {
            return Err(check.refuse(key, format!("`{word}` is in the list twice")));
        }
        roles.push(role);
    }
    if roles.is_empty() {
        let message = "must not be empty: write a role, or remove the rule";
        return Err(check.refuse(key, message.into()));
    }
    Ok(roles)
}

#[cfg(test)]
mod tests;
