//! The configuration: a file, or nothing, in; a valid [`Config`] out, or an error with key and line.
//!
//! Order of precedence: `--set listen.api=...` over `TLS_SESSIOND__LISTEN__API` over the file over the default.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

mod access;
mod origin;
mod raw;
mod units;

pub use access::{Access, AccessRole, IdentityPattern, Text};

/// Where it listens where nothing else is said.
const DEFAULT_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 50551);
const DEFAULT_SOCKET: &str = "/run/tls-sessiond/api.sock";

/// What is wrong with a configuration. Displays as `FILE:LINE: key: what`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    fn plain(message: String) -> Self {
        Self(message)
    }
}

/// A valid configuration.
#[derive(Clone, Debug)]
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
    /// Most sockets.
    pub sockets: usize,
    /// Most lookups of one identity in a second that find nothing.
    pub misses_per_second: u32,
    /// Largest gRPC message, in bytes.
    pub message: usize,
    /// Most plaintext that waits for a handshake on one Drive, in bytes.
    pub plaintext_buffer: usize,
    /// Most concurrent calls of one HTTP/2 connection.
    pub streams: u32,
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

/// Whether a server asks its clients for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// SSL_VERIFY_NONE.
    None,
    /// SSL_VERIFY_PEER.
    Request,
    /// SSL_VERIFY_PEER with SSL_VERIFY_FAIL_IF_NO_PEER_CERT.
    Require,
}

/// A protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        })
    }
}

/// Whether a new client connection may be offered sessions that nobody named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offering {
    /// Newest first, from any worker.
    Shared,
    /// Only what New or SetSession names, as OpenSSL does.
    Explicit,
}

/// How strict a context is about the close rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosePolicy {
    /// SSL_clear(3): the SENT flag decides.
    Flag,
    /// Only a close_notify that was made counts.
    Written,
    /// Only fatal alerts remove sessions.
    ErrorsOnly,
}

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The anchors of this system.
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

/// SSL_CTX_set_options(3), by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// SSL_OP_CIPHER_SERVER_PREFERENCE.
    pub cipher_server_preference: bool,
    /// SSL_OP_IGNORE_UNEXPECTED_EOF.
    pub ignore_unexpected_eof: bool,
    /// SSL_CTX_set_quiet_shutdown(3).
    pub quiet_shutdown: bool,
    /// SSL_SESS_CACHE_OFF.
    pub no_session_cache: bool,
}

/// One `[[context]]`.
#[derive(Clone, Debug)]
pub struct ContextConfig {
    /// Its name.
    pub name: String,
    /// Certificate chain and key, for each server name or kind of key. Empty: it cannot be a server, unless it is
    /// the built-in one, which makes its own.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// Whether it makes a certificate for localhost at start: only where no file defines contexts.
    pub self_made: bool,
    /// What a client chooses from when a server asks.
    pub client_certificates: Vec<(PathBuf, PathBuf)>,
    /// Whom to trust.
    pub trust: Trust,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
    /// Versions, older first.
    pub versions: Vec<Version>,
    /// Names of cipher suites; empty: all that rustls has by default.
    pub cipher_suites: Vec<String>,
    /// Names of key exchange groups; empty: all that rustls has by default.
    pub key_exchange: Vec<String>,
    /// Application protocols in the order of preference.
    pub alpn: Vec<String>,
    /// SSL_CTX_set_options(3).
    pub options: Options,
    /// SSL_CTX_set_session_id_context(3).
    pub session_id_context: String,
    /// Whether client connections are offered sessions that nobody named.
    pub offering: Offering,
    /// TLS 1.3 tickets of a full handshake.
    pub tickets: usize,
    /// How strict it is about the close rule.
    pub close_policy: ClosePolicy,
    /// How long after the authentication a session lives.
    pub session_timeout: Duration,
    /// Largest session, in bytes.
    pub session_bytes_max: usize,
    /// Most sessions in the cache of each role.
    pub cache_entries_max: usize,
    /// Most bytes in the cache of each role.
    pub cache_bytes_max: usize,
    /// How long a connection may lie unused before it is freed as unclosed.
    pub idle_timeout: Duration,
}

/// The longest idle time-out and the longest session time-out (RFC 8446 section 4.6.1), in seconds.
pub const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// Longest life of a session after its authentication: seven days (RFC 8446 section 4.6.1).
pub const SESSION_TIMEOUT_MAX: Duration = Duration::from_secs(604_800);

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
        let (origin, table) = origin::Origin::merge(file, environment, set)?;
        let raw: raw::File = serde_path_to_error::deserialize(table).map_err(|err| {
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
            sockets: check.at_least_one("limits.sockets", raw.limits.sockets)?,
            misses_per_second: check
                .at_least_one("limits.misses_per_second", raw.limits.misses_per_second)?,
            message: check.size("limits.message", &raw.limits.message)?,
            plaintext_buffer: check.size("limits.plaintext_buffer", &raw.limits.plaintext_buffer)?,
            streams: check.at_least_one("limits.streams", raw.limits.streams)?,
            sessions: check.at_least_one("limits.sessions", raw.limits.sessions)?,
            session_bytes: check.size("limits.session_bytes", &raw.limits.session_bytes)?,
        };
        let drain = Drain {
            delay: check.duration("drain.delay", &raw.drain.delay)?,
            timeout: check.duration("drain.timeout", &raw.drain.timeout)?,
        };
        let contexts = match raw.context {
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
                    && !check.origin.file_has("context")
                {
                    // The built-in one, with some keys set over it.
                    only.self_made = true;
                }
                if contexts.is_empty() {
                    return Err(check.refuse("context", "there must be at least one".into()));
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
        Ok(Self { api, unix, tls, access, limits, drain, contexts, origin })
    }

    /// The defaults, as without a file.
    ///
    /// # Panics
    /// Never: a test holds the defaults valid.
    pub fn defaults() -> Self {
        Self::load(None, std::iter::empty(), &[]).expect("the defaults are valid")
    }

    /// Whether this may follow `running` without a restart: contexts may differ, who may do what, and the files of
    /// `listen.tls`.
    ///
    /// # Errors
    /// The first section that differs and cannot change while the daemon runs.
    pub fn can_follow(&self, running: &Self) -> Result<(), ConfigError> {
        let fixed = [
            ("listen.api", self.api == running.api),
            ("listen.unix_mode or listen.unix_owner", self.unix == running.unix),
            ("listen.tls", self.tls.is_some() == running.tls.is_some()),
            ("limits", self.limits == running.limits),
            ("drain", self.drain == running.drain),
        ];
        match fixed.into_iter().find(|(_, same)| !same) {
            None => Ok(()),
            Some((key, _)) => Err(ConfigError::plain(format!(
                "{key} differs from what the daemon runs with; that wants a restart, and nothing of the new \
                 configuration is used before"
            ))),
        }
    }

    /// An error about a key of `listen.tls`, found when its files were opened.
    pub fn tls_error(&self, key: &str, what: impl fmt::Display) -> ConfigError {
        Check { origin: &self.origin }.refuse(&format!("listen.tls.{key}"), what.to_string())
    }

    /// An error about a key of the context at `place`, found when its files were opened.
    pub fn context_error(&self, place: usize, key: &str, what: impl fmt::Display) -> ConfigError {
        Check { origin: &self.origin }.refuse(&format!("context[{place}].{key}"), what.to_string())
    }
}

/// Checks values and names the key in every refusal.
struct Check<'a> {
    origin: &'a origin::Origin,
}

impl Check<'_> {
    fn refuse(&self, key: &str, message: String) -> ConfigError {
        ConfigError::plain(format!("{}: {key}: {message}", self.origin.locate(key)))
    }

    fn key<T>(&self, key: &str, value: Result<T, String>) -> Result<T, ConfigError> {
        value.map_err(|message| self.refuse(key, message))
    }

    fn duration(&self, key: &str, text: &str) -> Result<Duration, ConfigError> {
        self.key(key, units::duration(text))
    }

    fn duration_within(&self, key: &str, text: &str, max: Duration) -> Result<Duration, ConfigError> {
        let duration = self.duration(key, text)?;
        if duration < Duration::from_secs(1) || duration > max {
            return Err(self.refuse(key, format!("`{text}` is not between 1s and {}s", max.as_secs())));
        }
        Ok(duration)
    }

    fn size(&self, key: &str, text: &str) -> Result<usize, ConfigError> {
        let size = self.key(key, units::size(text))?;
        self.at_least_one(key, size)
    }

    fn at_least_one<N: PartialEq + From<u8>>(&self, key: &str, number: N) -> Result<N, ConfigError> {
        if number == N::from(0) {
            return Err(self.refuse(key, "must be more than zero: everything has a limit".into()));
        }
        Ok(number)
    }

    /// One of a few words.
    fn word<T: Copy>(&self, key: &str, text: &str, words: &[(&str, T)]) -> Result<T, ConfigError> {
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.refuse(key, format!("`{text}` is not known; it may be {}", known.join(", ")))
        })
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    if let Some(path) = text.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return Err(format!("`{text}`: a socket's path is absolute, as in unix://{DEFAULT_SOCKET}"));
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
                identity: check.key(&key("identity"), IdentityPattern::read(&rule.identity))?,
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

fn context(check: &Check<'_>, place: usize, raw: &raw::Context) -> Result<ContextConfig, ConfigError> {
    let key = |name: &str| format!("context[{place}].{name}");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    for (field, name) in [("name", &raw.name), ("session_id_context", &raw.session_id_context)] {
        if name.len() > 64 || !name.chars().all(plain) || (field == "name" && name.is_empty()) {
            let message = format!("`{name}` is not 1 to 64 of a-z, A-Z, 0-9, `-`, `_` and `.`");
            return Err(check.refuse(&key(field), message));
        }
    }
    let relative = |path: &PathBuf| check.origin.folder().join(path);
    let (chains, keys) = (raw.certificate.paths(), raw.key.paths());
    if chains.len() != keys.len() {
        let message = format!("{} certificates, but {} keys: they go in pairs", chains.len(), keys.len());
        return Err(check.refuse(&key("key"), message));
    }
    let mut versions = Vec::new();
    for (at, text) in raw.versions.iter().enumerate() {
        versions.push(check.word(
            &key(&format!("versions[{at}]")),
            text,
            &[("1.2", Version::Tls12), ("1.3", Version::Tls13)],
        )?);
    }
    versions.sort_unstable();
    versions.dedup();
    if versions.is_empty() {
        return Err(
            check.refuse(&key("versions"), "there must be at least one of \"1.2\" and \"1.3\"".into())
        );
    }
    for (at, protocol) in raw.alpn.iter().enumerate() {
        // RFC 7301 section 3.1: a name has 1 to 255 bytes.
        if !(1..=255).contains(&protocol.len()) {
            let message = "a protocol name has 1 to 255 bytes".into();
            return Err(check.refuse(&key(&format!("alpn[{at}]")), message));
        }
    }
    let mut options = Options::default();
    for (at, text) in raw.options.iter().enumerate() {
        let set: fn(&mut Options) = check.word(
            &key(&format!("options[{at}]")),
            text,
            &[
                ("cipher-server-preference", (|o| o.cipher_server_preference = true) as fn(&mut Options)),
                ("ignore-unexpected-eof", |o| o.ignore_unexpected_eof = true),
                ("quiet-shutdown", |o| o.quiet_shutdown = true),
                ("no-session-cache", |o| o.no_session_cache = true),
            ],
        )?;
        set(&mut options);
    }
    // Each ticket costs a signature of the key schedule and an entry; OpenSSL's own clients keep two.
    if raw.tickets > 16 {
        return Err(check.refuse(&key("tickets"), format!("{} is more than 16", raw.tickets)));
    }
    Ok(ContextConfig {
        name: raw.name.clone(),
        certificates: chains.iter().zip(keys).map(|(c, k)| (relative(c), relative(k))).collect(),
        self_made: false,
        client_certificates: raw
            .client_certificates
            .iter()
            .map(|pair| (relative(&pair.certificate), relative(&pair.key)))
            .collect(),
        trust: if raw.ca == "system" {
            Trust::System
        } else {
            Trust::File(relative(&PathBuf::from(&raw.ca)))
        },
        client_auth: check.word(
            &key("client_auth"),
            &raw.client_auth,
            &[("none", ClientAuth::None), ("request", ClientAuth::Request), ("require", ClientAuth::Require)],
        )?,
        versions,
        cipher_suites: raw.cipher_suites.clone(),
        key_exchange: raw.key_exchange.clone(),
        alpn: raw.alpn.clone(),
        options,
        session_id_context: if raw.session_id_context.is_empty() {
            raw.name.clone()
        } else {
            raw.session_id_context.clone()
        },
        offering: check.word(
            &key("client_sessions"),
            &raw.client_sessions,
            &[("shared", Offering::Shared), ("explicit", Offering::Explicit)],
        )?,
        tickets: raw.tickets,
        close_policy: check.word(
            &key("close_policy"),
            &raw.close_policy,
            &[
                ("flag", ClosePolicy::Flag),
                ("written", ClosePolicy::Written),
                ("errors-only", ClosePolicy::ErrorsOnly),
            ],
        )?,
        session_timeout: check.duration_within(
            &key("session_timeout"),
            &raw.session_timeout,
            SESSION_TIMEOUT_MAX,
        )?,
        session_bytes_max: check.size(&key("session_bytes_max"), &raw.session_bytes_max)?,
        cache_entries_max: check.at_least_one(&key("cache_entries_max"), raw.cache_entries_max)?,
        cache_bytes_max: check.size(&key("cache_bytes_max"), &raw.cache_bytes_max)?,
        idle_timeout: check.duration_within(&key("idle_timeout"), &raw.idle_timeout, IDLE_TIMEOUT_MAX)?,
    })
}

#[cfg(test)]
mod tests;
