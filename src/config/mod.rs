//! The configuration: a file, or nothing, in; a valid [`Config`] out, or an error with key and line.
//!
//! Order of precedence: `--set listen.api=...` over `TLS_SESSIOND__LISTEN__API` over the file over the default; `RUST_LOG`
//! over every `log.level`.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

mod check;
mod context;
mod log;
mod omission;
mod origin;
mod raw;
mod units;
mod withhold;

use check::Check;
use context::context;
pub use log::{Audit, Filter, Level, Log, LogFormat};
use origin::ENV_PREFIX;
use tls_sessiond_core::{
    access::{Access, AccessRole, IdentityPattern},
    context::{ContextConfig, ContextRefusal, Refusal, Settings},
    store,
};

/// Where it listens where nothing else is said.
const DEFAULT_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 50551);
const DEFAULT_SOCKET: &str = "/run/tls-sessiond/api.sock";

/// What is wrong with a configuration. Displays as `FILE:LINE: key: what`, on one line, without what looks like a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// Makes an error. There is no other way to make one, so every message passes through [`withhold::withhold`].
    fn plain(message: String) -> Self {
        Self(withhold::withhold(&message))
    }
}

/// A valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the API is served.
    pub api: Vec<Endpoint>,
    /// What a Unix socket's file gets.
    pub unix: UnixFile,
    /// What TLS is served with.
    pub tls: Option<ListenTls>,
    /// Who may do what; the first rule that matches counts. None: whoever is local may do everything.
    pub access: Vec<Access>,
    /// Limits of the whole daemon.
    pub limits: Limits,
    /// How it stops.
    pub drain: Drain,
    /// What it logs.
    pub log: Log,
    /// What connections inherit, at least one.
    pub contexts: Vec<ContextConfig>,
    origin: origin::Origin,
}

/// The file of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixFile {
    /// Its permissions.
    pub mode: u32,
    /// User and group, by number. None: those of the daemon.
    pub owner: Option<(u32, u32)>,
}

/// Mutual TLS: what this side shows, and who may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenTls {
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Who signs the certificates of workers, PEM.
    pub client_ca: PathBuf,
}

/// An address to listen on. Plaintext only on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A loopback address, in plaintext.
    Tcp(SocketAddr),
    /// Any address, with mutual TLS.
    Tls(SocketAddr),
    /// What systemd has bound and passed (sd_listen_fds(3)).
    Systemd,
    /// A Unix socket. Where `optional`, it is left out if its folder cannot be made.
    Unix {
        /// Where it lies.
        path: PathBuf,
        /// The default socket is: nobody asked for it.
        optional: bool,
    },
}

/// Limits of the whole daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most connection objects.
    pub connections: usize,
    /// Most connection objects of one identity.
    pub connections_per_owner: usize,
    /// Most calls that are begun and not answered.
    pub calls_in_flight: usize,
    /// Most of those of one identity.
    pub calls_per_owner: usize,
    /// Most bytes of requests that have not come as a whole, of answers that have no window, and of requests behind these.
    pub request_bytes: usize,
    /// Most of those of one identity.
    pub request_bytes_per_owner: usize,
    /// Most sockets.
    pub sockets: usize,
    /// Most lookups of one identity in a second that find nothing.
    pub misses_per_second: u32,
    /// Largest gRPC message, in bytes.
    pub message: usize,
    /// Most plaintext that waits for a handshake on one Drive, in bytes.
    pub plaintext_buffer: usize,
    /// Most concurrent calls of one HTTP/2 connection whose caller has the role worker.
    pub streams: u32,
    /// Most concurrent calls of one HTTP/2 connection of another caller; not above `streams`.
    pub streams_non_worker: u32,
    /// Most sessions in all caches together.
    pub sessions: usize,
    /// Most bytes in all caches together.
    pub session_bytes: usize,
}

/// How the daemon stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long it answers NOT_SERVING before it refuses new calls.
    pub delay: Duration,
    /// How long running calls may go on then.
    pub timeout: Duration,
}

/// Says whether something in a text looks like a private key, so that no error must print it.
pub fn holds_key(text: &str) -> bool {
    withhold::holds_key(text)
}

/// The variables of this process's environment that are about the configuration.
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
            Err(_) => Err(ConfigError::plain(format!("environment variable {name}: the value is not UTF-8"))),
        })
        .collect()
}

impl Config {
    /// Reads and checks the configuration. Opens no file but the configuration itself.
    ///
    /// # Errors
    /// The first thing that is wrong, with its key and where that stands.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        set: &[String],
    ) -> Result<Self, ConfigError> {
        let origin = origin::Origin::read(file, environment, set)?;
        let keys = origin.merged().clone();
        Self::check(origin, keys)
    }

    /// Checks the values of `keys`. `origin` has their places, for errors.
    fn check(origin: origin::Origin, keys: toml::Table) -> Result<Self, ConfigError> {
        let raw: raw::File = serde_path_to_error::deserialize(keys).map_err(|err| {
            let key = err.path().to_string();
            let what = err.into_inner();
            ConfigError::plain(format!("{}: {key}: {}", origin.locate(&key), what.message()))
        })?;
        let check = Check { origin: &origin };
        let api = match &raw.listen.api {
            None => {
                vec![
                    Endpoint::Tcp(DEFAULT_ADDRESS),
                    Endpoint::Unix { path: DEFAULT_SOCKET.into(), optional: true },
                ]
            }
            Some(list) => list
                .iter()
                .enumerate()
                .map(|(place, text)| check.key(&format!("listen.api[{place}]"), endpoint(text)))
                .collect::<Result<_, _>>()?,
        };
        let unix = UnixFile {
            mode: check.key("listen.unix_mode", units::mode(&raw.listen.unix_mode))?,
            owner: check.key("listen.unix_owner", units::user_and_group(&raw.listen.unix_owner))?,
        };
        let tls = raw.listen.tls.as_ref().map(|tls| ListenTls {
            certificate: check.origin.folder().join(&tls.certificate),
            key: check.origin.folder().join(&tls.key),
            client_ca: check.origin.folder().join(&tls.client_ca),
        });
        if tls.is_none()
            && let Some(place) = api.iter().position(|endpoint| matches!(endpoint, Endpoint::Tls(_)))
        {
            let message = "plaintext is served on loopback addresses and Unix sockets only, for session secrets \
                           pass there: this one needs [listen.tls]";
            return Err(check.refuse(&format!("listen.api[{place}]"), message.into()));
        }
        let access = access(&check, raw.access.as_deref().unwrap_or_default())?;
        if tls.is_some() && access.is_empty() {
            let message = "nobody who comes over TLS may do anything without an [[access]]".into();
            return Err(check.refuse("listen.tls", message));
        }
        let limits = Limits {
            connections: check.at_least_one("limits.connections", raw.limits.connections)?,
            connections_per_owner: check
                .at_least_one("limits.connections_per_owner", raw.limits.connections_per_owner)?,
            calls_in_flight: check.at_least_one("limits.calls_in_flight", raw.limits.calls_in_flight)?,
            calls_per_owner: check.at_least_one("limits.calls_per_owner", raw.limits.calls_per_owner)?,
            request_bytes: check.size("limits.request_bytes", &raw.limits.request_bytes)?,
            request_bytes_per_owner: check
                .size("limits.request_bytes_per_owner", &raw.limits.request_bytes_per_owner)?,
            sockets: check.at_least_one("limits.sockets", raw.limits.sockets)?,
            misses_per_second: check
                .at_least_one("limits.misses_per_second", raw.limits.misses_per_second)?,
            message: check.size("limits.message", &raw.limits.message)?,
            plaintext_buffer: check.size("limits.plaintext_buffer", &raw.limits.plaintext_buffer)?,
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
        let log = Log {
            filter: check.key("log.level", Filter::read(&raw.log.level))?,
            format: check.word(
                "log.format",
                &raw.log.format,
                &[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)],
            )?,
            audit: check.key("log.audit", log::audit(&raw.log.audit, check.origin.folder()))?,
        };
        // `context = []` says explicitly what a missing key means.
        let contexts = match raw.context.filter(|list| !list.is_empty()) {
            None => vec![ContextConfig { self_made: true, ..context(&check, 0, &raw::Context::default())? }],
            Some(list) => {
                let mut contexts: Vec<ContextConfig> = Vec::with_capacity(list.len());
                for (place, raw) in list.iter().enumerate() {
                    let context = context(&check, place, raw)?;
                    if contexts.iter().any(|other| other.name == context.name) {
                        let message = format!("a context named `{}` stands above already", context.name);
                        return Err(check.refuse(&format!("context[{place}].name"), message));
                    }
                    contexts.push(context);
                }
                if let [only] = contexts.as_mut_slice()
                    && only.certificates.is_empty()
                    && !check.origin.file_defines_contexts()
                {
                    // The built-in one, with some keys set over it.
                    only.self_made = true;
                }
                contexts
            }
        };
        for (place, rule) in access.iter().enumerate() {
            let known = |name: &String| name == "*" || contexts.iter().any(|context| context.name == *name);
            if let Some(at) = rule.contexts.iter().position(|name| !known(name)) {
                let message = format!("no context is named `{}`", rule.contexts[at]);
                return Err(check.refuse(&format!("access[{place}].contexts[{at}]"), message));
            }
        }
        Ok(Self { api, unix, tls, access, limits, drain, log, contexts, origin })
    }

    /// The defaults, as without a file.
    ///
    /// # Panics
    /// Never: a test holds the defaults valid.
    pub fn defaults() -> Self {
        Self::load(None, std::iter::empty(), &[]).expect("the defaults are valid")
    }

    /// Checks whether a reload may put this configuration in the place of `running`: contexts may differ, rules of access,
    /// and the files of `listen.tls`; and no key returns to its default because it is missing.
    ///
    /// # Errors
    /// The first key that is missing, or the first section that differs and cannot change at run time.
    pub fn can_follow(&self, running: &Self) -> Result<(), ConfigError> {
        omission::check(self, running)?;
        let fixed = [
            ("listen.api", self.api == running.api),
            ("listen.unix_mode or listen.unix_owner", self.unix == running.unix),
            ("listen.tls", self.tls.is_some() == running.tls.is_some()),
            ("limits.sockets", self.limits.sockets == running.limits.sockets),
            ("limits.message", self.limits.message == running.limits.message),
            ("log.format", self.log.format == running.log.format),
            ("log.audit", self.log.audit == running.log.audit),
        ];
        match fixed.into_iter().find(|(_, same)| !same) {
            None => Ok(()),
            Some((key, _)) => Err(ConfigError::plain(format!(
                "{key} cannot change at run time; restart the daemon to apply it. Nothing of the new configuration is used"
            ))),
        }
    }

    /// An error about `log.audit`, found when the file was opened.
    pub fn audit_error(&self, what: impl fmt::Display) -> ConfigError {
        Check { origin: &self.origin }.refuse("log.audit", what.to_string())
    }

    /// Returns the names of the contexts that `running` has and this configuration does not have.
    pub fn removed_contexts<'r>(&self, running: &'r Self) -> Vec<&'r str> {
        let names = running.contexts.iter().map(|context| context.name.as_str());
        names.filter(|name| self.contexts.iter().all(|context| context.name != *name)).collect()
    }

    /// An error about a key of `listen.tls`, found when its files were opened.
    pub fn tls_error(&self, key: &str, what: impl fmt::Display) -> ConfigError {
        Check { origin: &self.origin }.refuse(&format!("listen.tls.{key}"), what.to_string())
    }

    /// Returns a fault of a context's settings, or a warning about them, with the line of its key.
    pub fn context_error(&self, refusal: &ContextRefusal) -> ConfigError {
        let ContextRefusal { place, refusal: Refusal { key, why } } = refusal;
        Check { origin: &self.origin }.refuse(&format!("context[{place}].{key}"), why.clone())
    }

    /// Returns the settings that contexts are made from.
    pub fn settings(&self) -> Settings {
        Settings {
            contexts: self.contexts.clone(),
            total: store::memory::Limits {
                entries_max: self.limits.sessions,
                bytes_max: self.limits.session_bytes,
            },
            rules: self.access.clone(),
        }
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    if let Some(path) = text.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return Err(format!("`{text}`: a socket's path is absolute, as in unix://{DEFAULT_SOCKET}"));
        }
        if path.contains('\0') {
            return Err("a socket's path has no NUL".into());
        }
        return Ok(Endpoint::Unix { path: path.into(), optional: false });
    }
    if text == "systemd" {
        return Ok(Endpoint::Systemd);
    }
    let (scheme, address) =
        text.split_once("://").filter(|(scheme, _)| ["tcp", "tls"].contains(scheme)).ok_or_else(|| {
            format!("`{text}` begins with none of tcp://, tls:// and unix://, and is not `systemd`")
        })?;
    let address = address
        .parse::<SocketAddr>()
        .map_err(|_| format!("`{text}` is not {scheme}://IP:PORT; host names are not looked up"))?;
    Ok(match scheme == "tcp" && address.ip().is_loopback() {
        true => Endpoint::Tcp(address),
        false => Endpoint::Tls(address),
    })
}

fn access(check: &Check<'_>, raw: &[raw::Access]) -> Result<Vec<Access>, ConfigError> {
    raw.iter()
        .enumerate()
        .map(|(place, rule)| {
            let key = |name: &str| format!("access[{place}].{name}");
            if rule.contexts.is_empty() {
                return Err(check.refuse(&key("contexts"), "names none; `[\"*\"]` is every one".into()));
            }
            Ok(Access {
                identity: check.key(
                    &key("identity"),
                    rule.identity.parse::<IdentityPattern>().map_err(|err| err.to_string()),
                )?,
                contexts: rule.contexts.clone(),
                role: check.word(
                    &key("role"),
                    &rule.role,
                    &[
                        ("worker", AccessRole::Worker),
                        ("observer", AccessRole::Observer),
                        ("admin", AccessRole::Admin),
                    ],
                )?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
