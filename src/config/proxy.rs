//! `[[proxy]]`: a listener that terminates TLS for a backend, or that originates TLS for local
//! programs. The command `proxy` runs them; `serve` only checks them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use tls_sessiond_core::context::{ClientAuth, ContextConfig, Options, ScopeBy};
use tls_sessiond_types::server_name::ServerName;

use super::{ConfigError, InvalidValue, check::Check, context::context, raw};

/// Most proxies of a configuration, and most routes of a proxy.
const PROXIES_MAX: usize = 64;
const ROUTES_MAX: usize = 1_000;
/// Most connections of a proxy.
const CONNECTIONS_MAX: usize = 1_000_000;
/// The longest time-outs.
const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTES: Duration = Duration::from_secs(300);

/// A listener, and where its connections go.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    /// Where it accepts connections.
    pub listen: ProxyListen,
    /// What it does with them.
    pub role: ProxyRole,
    /// Where its sessions are.
    pub sessions: SessionsAt,
    /// The context of the daemon that its sessions belong to.
    pub context: String,
    /// The longest time from the accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// The longest time that connecting to a backend or a server may take.
    pub connect_timeout: Duration,
    /// How long no byte may pass before a connection ends, as unclosed.
    pub idle_timeout: Duration,
    /// Most connections at a time.
    pub connections: usize,
}

impl ProxyConfig {
    /// Returns whether the proxy terminates TLS. Otherwise it originates TLS.
    pub fn terminates(&self) -> bool {
        matches!(self.role, ProxyRole::Terminate(_))
    }
}

/// Checks whether a reload may replace `running` by `next`: listeners and sessions are made once.
pub(super) fn can_follow(next: &[ProxyConfig], running: &[ProxyConfig]) -> Result<(), String> {
    if next.len() != running.len() {
        return Err("the number of [[proxy]]".into());
    }
    for (place, (next, running)) in next.iter().zip(running).enumerate() {
        let fixed = [
            ("listen", next.listen == running.listen),
            (
                "sessions",
                next.sessions.endpoint() == running.sessions.endpoint(),
            ),
            ("sessions_ca", next.sessions.ca() == running.sessions.ca()),
            ("sessions_certificate", next.sessions == running.sessions),
            ("context", next.context == running.context),
            ("connect", next.terminates() == running.terminates()),
        ];
        if let Some((key, _)) = fixed.iter().find(|(_, same)| !same) {
            return Err(format!("proxy[{place}].{key}"));
        }
    }
    Ok(())
}

/// Where a proxy accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyListen {
    /// TLS over TCP.
    Tls(SocketAddr),
    /// Plaintext on a loopback address.
    Tcp(SocketAddr),
    /// Plaintext on a Unix socket.
    Unix(PathBuf),
    /// The socket of this name that systemd has bound and passed. TLS, or with `connect` plaintext on
    /// a Unix socket or a loopback address.
    Systemd(String),
}

impl fmt::Display for ProxyListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(address) => write!(f, "tls://{address}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

/// What a proxy does with its connections.
#[derive(Clone, Debug, PartialEq)]
pub enum ProxyRole {
    /// It accepts TLS, and connects to a backend in plaintext.
    Terminate(Box<Terminate>),
    /// It accepts plaintext, and connects to a server over TLS.
    Originate(Originate),
}

/// The settings of a proxy that terminates TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct Terminate {
    /// The site of clients whose server name no other site has. `None`: they are refused.
    pub default: Option<Site>,
    /// The sites by server name. The first match counts.
    pub routes: Vec<Site>,
    /// Whether a backend gets a PROXY header.
    pub sends_header: bool,
    /// The networks whose peers must send a PROXY header. Peers of other networks are refused.
    /// `None`: no header is expected.
    pub header_from: Option<Vec<Network>>,
    /// What clients get while their backend is away.
    pub away: Away,
}

/// A certificate, and the backend of clients that ask for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The names of the server. Empty: all.
    pub names: Vec<ServerNamePattern>,
    /// The backend.
    pub backend: Destination,
    /// The settings of TLS. The sessions of sites whose scopes are equal are the same.
    pub tls: ContextConfig,
    /// The keys of the configuration that an error names: those of this table within `proxy[..]`.
    pub table: String,
}

/// The settings of a proxy that originates TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Originate {
    /// The server.
    pub connect: Destination,
    /// The name in the server's certificate.
    pub server_name: String,
}

/// A host and a port, or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A name or an address, without brackets, and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// What a client gets while its backend is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// A close_notify: its session stays.
    Close,
    /// A TCP reset: its session is removed.
    Reset,
}

/// Where the sessions of a proxy are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionsAt {
    /// In this process.
    Own,
    /// In a daemon.
    Daemon {
        /// Its endpoint, as the client takes it.
        endpoint: String,
        /// The files for TLS to it.
        tls: Option<SessionsTls>,
    },
}

impl SessionsAt {
    fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Own => None,
            Self::Daemon { endpoint, .. } => Some(endpoint),
        }
    }

    fn ca(&self) -> Option<&PathBuf> {
        match self {
            Self::Daemon { tls: Some(tls), .. } => tls.ca.as_ref(),
            Self::Daemon { tls: None, .. } | Self::Own => None,
        }
    }
}

/// The files for mutual TLS to the daemon that has the sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsTls {
    /// The authorities of the daemon's certificate, PEM. `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// The certificate and the key of this proxy, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The name of a server, or `*.` and the names below it, of one label each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNamePattern(String);

impl ServerNamePattern {
    /// Returns whether a name in canonical form matches.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_prefix("*.") {
            Some(parent) => name
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
            None => self.0 == name,
        }
    }
}

impl FromStr for ServerNamePattern {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let labels_are_there = name
            .trim_end_matches('.')
            .split('.')
            .all(|label| !label.is_empty());
        let is_address = text.parse::<IpAddr>().is_ok();
        if !labels_are_there || is_address || name.len() > 253 || !name.chars().all(plain) {
            return Err(format!(
                "`{text}` is not the name of a server: expected example.org or *.example.org"
            )
            .into());
        }
        Ok(Self(ServerName::new(text).to_string()))
    }
}

/// Addresses with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Returns whether an address belongs to the network. An IPv4 address in IPv6 form counts as
    /// IPv4.
    pub fn has(&self, address: IpAddr) -> bool {
        let same = |one: u128, two: u128, width: u8| {
            let shift = u32::from(width - self.bits);
            one.checked_shr(shift).unwrap_or(0) == two.checked_shr(shift).unwrap_or(0)
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                same(net.to_bits().into(), ip.to_bits().into(), 32)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => same(net.to_bits(), ip.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid =
            || format!("`{text}` is not a network: expected 10.0.0.0/8, fd00::/8 or an address");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= width)
                .ok_or_else(invalid)?,
        };
        // Peers are compared in IPv4 form.
        Ok(match address.to_canonical() {
            IpAddr::V4(ip) if address.is_ipv6() && bits >= MAPPED => Self {
                address: ip.into(),
                bits: bits - MAPPED,
            },
            _ => Self { address, bits },
        })
    }
}

/// The bits before an IPv4 address in IPv6 form (RFC 4291 section 2.5.5.2).
const MAPPED: u8 = 96;

/// Checks `[[proxy]]`. Opens no file.
pub(super) fn read(
    check: &Check<'_>,
    raw: &[raw::RawProxy],
) -> Result<Vec<ProxyConfig>, ConfigError> {
    if raw.len() > PROXIES_MAX {
        let message = format!(
            "there are {} proxies; at most {PROXIES_MAX} are allowed",
            raw.len()
        );
        return Err(check.refuse("proxy", message));
    }
    let mut proxies: Vec<ProxyConfig> = Vec::with_capacity(raw.len());
    for (place, raw) in raw.iter().enumerate() {
        let one = One {
            check,
            table: format!("proxy[{place}]"),
            raw,
        };
        let proxy = one.read()?;
        let chosen =
            matches!(proxy.listen, ProxyListen::Tls(at) | ProxyListen::Tcp(at) if at.port() == 0);
        if !chosen && proxies.iter().any(|other| other.listen == proxy.listen) {
            let message = format!("another proxy listens on {}", proxy.listen);
            return Err(one.refuse("listen", message));
        }
        proxies.push(proxy);
    }
    Ok(proxies)
}

/// One `[[proxy]]` while it is read.
struct One<'r> {
    check: &'r Check<'r>,
    table: String,
    raw: &'r raw::RawProxy,
}

impl One<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.table)
    }

    fn refuse(&self, name: &str, why: impl Into<String>) -> ConfigError {
        self.check.refuse(&self.key(name), why.into())
    }

    fn read(&self) -> Result<ProxyConfig, ConfigError> {
        let Self { check, raw, .. } = self;
        let originates = !raw.connect.is_empty();
        let listen = check.key(&self.key("listen"), listen(&raw.listen, originates))?;
        let role = match originates {
            true => ProxyRole::Originate(self.originate()?),
            false => ProxyRole::Terminate(Box::new(self.terminate(&listen)?)),
        };
        let within =
            |name: &str, text: &str, max| check.duration_within(&self.key(name), text, max);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if raw.context.is_empty() || raw.context.len() > 64 || !raw.context.chars().all(plain) {
            let why = format!(
                "`{}` is not the name of a context of the daemon",
                raw.context
            );
            return Err(self.refuse("context", why));
        }
        Ok(ProxyConfig {
            listen,
            role,
            sessions: self.sessions()?,
            context: raw.context.clone(),
            handshake_timeout: within("handshake_timeout", &raw.handshake_timeout, MINUTES)?,
            connect_timeout: within("connect_timeout", &raw.connect_timeout, MINUTES)?,
            idle_timeout: within("idle_timeout", &raw.idle_timeout, DAY)?,
            connections: match raw.connections {
                most @ 1..=CONNECTIONS_MAX => most,
                other => {
                    let why = format!("{other} is not between 1 and {CONNECTIONS_MAX}");
                    return Err(self.refuse("connections", why));
                }
            },
        })
    }

    fn originate(&self) -> Result<Originate, ConfigError> {
        let raw = self.raw;
        let default = raw::RawProxy::default();
        let unused = [
            ("backend", !raw.backend.is_empty()),
            ("route", !raw.route.is_empty()),
            ("plaintext", raw.plaintext),
            ("certificate", !raw.certificate.paths().is_empty()),
            ("key", !raw.key.paths().is_empty()),
            ("client_ca", !raw.client_ca.is_empty()),
            ("client_auth", raw.client_auth != default.client_auth),
            ("versions", raw.versions != default.versions),
            ("cipher_suites", !raw.cipher_suites.is_empty()),
            ("key_exchange", !raw.key_exchange.is_empty()),
            ("alpn", !raw.alpn.is_empty()),
            (
                "proxy_protocol",
                raw.proxy_protocol != default.proxy_protocol,
            ),
        ];
        if let Some((name, _)) = unused.iter().find(|(_, is_set)| *is_set) {
            let why = "not used with `connect`: the context of the daemon has the certificates, authorities, versions and \
                       protocols of its clients";
            return Err(self.refuse(name, why));
        }
        let text = &raw.connect;
        let connect = self.check.key(&self.key("connect"), host_port(text))?;
        let Destination::Tcp(host, _) = &connect else {
            return Err(self.refuse("connect", format!("`{text}` is not HOST:PORT")));
        };
        let server_name = match raw.server_name.as_str() {
            "" => host.clone(),
            name => name.to_owned(),
        };
        if rustls::pki_types::ServerName::try_from(server_name.as_str()).is_err() {
            let why = format!("`{server_name}` is neither a DNS name nor an address");
            return Err(self.refuse("server_name", why));
        }
        Ok(Originate {
            connect,
            server_name,
        })
    }

    fn terminate(&self, listen: &ProxyListen) -> Result<Terminate, ConfigError> {
        let Self { check, raw, .. } = self;
        if !raw.server_name.is_empty() {
            return Err(self.refuse("server_name", "used with `connect` only"));
        }
        if raw.backend.is_empty() && raw.route.is_empty() {
            let why = "required: where connections go, as in \"tcp://127.0.0.1:8080\"; or `connect`, to originate TLS";
            return Err(self.refuse("backend", why));
        }
        if raw.route.len() > ROUTES_MAX {
            let why = format!(
                "there are {} routes; at most {ROUTES_MAX} are allowed",
                raw.route.len()
            );
            return Err(self.refuse("route", why));
        }
        let is_local = matches!(listen, ProxyListen::Tls(address) if address.ip().is_loopback());
        let default = match raw.backend.as_str() {
            "" => None,
            text => Some(Site {
                names: Vec::new(),
                backend: self.backend("backend", text)?,
                tls: self.tls("", &raw.certificate, &raw.key, is_local)?,
                table: String::new(),
            }),
        };
        let mut routes = Vec::with_capacity(raw.route.len());
        for (place, route) in raw.route.iter().enumerate() {
            let name = |key: &str| format!("route[{place}].{key}");
            if route.server_names.is_empty() {
                return Err(self.refuse(
                    &name("server_names"),
                    "required: the names that clients ask for (SNI)",
                ));
            }
            let names = route.server_names.iter().enumerate().map(|(at, text)| {
                check.key(
                    &self.key(&name(&format!("server_names[{at}]"))),
                    text.parse(),
                )
            });
            let names: Vec<ServerNamePattern> = names.collect::<Result<_, _>>()?;
            let is_known = |name: &ServerNamePattern| {
                routes.iter().any(|route: &Site| route.names.contains(name))
            };
            if let Some(at) = names.iter().position(is_known) {
                let why = "a route above has this name, and the first match counts";
                return Err(self.refuse(&name(&format!("server_names[{at}]")), why));
            }
            let has_own = !route.certificate.paths().is_empty() || !route.key.paths().is_empty();
            let (table, certificate, key) = match has_own {
                true => (format!("route[{place}]."), &route.certificate, &route.key),
                false => (String::new(), &raw.certificate, &raw.key),
            };
            if route.backend.is_empty() {
                return Err(self.refuse(&name("backend"), "required"));
            }
            routes.push(Site {
                names,
                backend: self.backend(&name("backend"), &route.backend)?,
                tls: self.tls(&table, certificate, key, is_local)?,
                table,
            });
        }
        let (sends_header, accepts_header) = check.word(
            &self.key("proxy_protocol"),
            &raw.proxy_protocol,
            &[
                ("off", (false, false)),
                ("send", (true, false)),
                ("accept", (false, true)),
                ("both", (true, true)),
            ],
        )?;
        let from = raw
            .proxy_protocol_from
            .iter()
            .enumerate()
            .map(|(at, text)| {
                check.key(
                    &self.key(&format!("proxy_protocol_from[{at}]")),
                    text.parse(),
                )
            });
        let from: Vec<Network> = from.collect::<Result<_, _>>()?;
        Ok(Terminate {
            default,
            routes,
            sends_header,
            header_from: accepts_header.then_some(from),
            away: check.word(
                &self.key("backend_away"),
                &raw.backend_away,
                &[("close", Away::Close), ("reset", Away::Reset)],
            )?,
        })
    }

    /// Reads the address of a backend. Plaintext leaves this host only if the configuration says so.
    fn backend(&self, name: &str, text: &str) -> Result<Destination, ConfigError> {
        let parsed = match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') && !path.contains('\0') => {
                Ok(Destination::Unix(path.into()))
            }
            Some(("tcp", rest)) => host_port(rest),
            _ => Err(
                format!("invalid address `{text}`: expected tcp://HOST:PORT or unix:///PATH")
                    .into(),
            ),
        };
        let backend = self.check.key(&self.key(name), parsed)?;
        if let Destination::Tcp(host, _) = &backend
            && !self.raw.plaintext
            && !(host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
        {
            let why = format!(
                "`{host}` is not a loopback address, and a backend gets plaintext: say plaintext = true, or use a Unix socket"
            );
            return Err(self.refuse(name, why));
        }
        Ok(backend)
    }

    /// Makes the settings of TLS of a site. `table` is its part of the keys within `proxy[..]`.
    fn tls(
        &self,
        table: &str,
        certificate: &raw::OneOrMany,
        key: &raw::OneOrMany,
        may_be_self_made: bool,
    ) -> Result<ContextConfig, ConfigError> {
        let raw = self.raw;
        let is_self_made =
            may_be_self_made && certificate.paths().is_empty() && key.paths().is_empty();
        let tls = raw::RawContext {
            certificate: certificate.clone(),
            key: key.clone(),
            client_auth: raw.client_auth.clone(),
            versions: raw.versions.clone(),
            cipher_suites: raw.cipher_suites.clone(),
            key_exchange: raw.key_exchange.clone(),
            alpn: raw.alpn.clone(),
            ..raw::RawContext::default()
        };
        let whole = self.key(table);
        let whole = whole.trim_end_matches('.');
        let tls = context(self.check, whole, &tls)?;
        if !is_self_made && tls.certificates.is_empty() {
            let why = "required: a PEM file with the chain of the server; only a proxy on a loopback address makes its own";
            return Err(self.refuse(&format!("{table}certificate"), why));
        }
        let trust = match (tls.client_auth, raw.client_ca.as_str()) {
            (ClientAuth::None, "") => tls.trust,
            (ClientAuth::None, _) => {
                let why = "used with client_auth = \"request\" or \"require\" only";
                return Err(self.refuse("client_ca", why));
            }
            (_, "") => {
                let why = "required with client_auth: the authorities that sign the certificates of clients, PEM";
                return Err(self.refuse("client_ca", why));
            }
            (_, file) => {
                tls_sessiond_core::context::Trust::File(self.check.origin.folder().join(file))
            }
        };
        Ok(ContextConfig {
            name: whole.to_owned(),
            self_made: is_self_made,
            session_id_context: "proxy".into(),
            scope_by: ScopeBy::Names,
            options: Options::default(),
            trust,
            ..tls
        })
    }

    fn sessions(&self) -> Result<SessionsAt, ConfigError> {
        let raw = self.raw;
        let file = |name: &str| match name {
            "" => None,
            name => Some(self.check.origin.folder().join(name)),
        };
        let identity = match (file(&raw.sessions_certificate), file(&raw.sessions_key)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(self.refuse("sessions_key", "required with `sessions_certificate`"));
            }
            (None, Some(_)) => {
                return Err(self.refuse("sessions_certificate", "required with `sessions_key`"));
            }
        };
        let scheme = raw.sessions.split_once("://").map(|(scheme, _)| scheme);
        let has_tls = scheme == Some("tls");
        let unused = [
            ("sessions_ca", raw.sessions_ca != "system"),
            ("sessions_certificate", identity.is_some()),
        ];
        if !has_tls && let Some((name, _)) = unused.iter().find(|(_, is_set)| *is_set) {
            return Err(self.refuse(name, "used with sessions = \"tls://HOST:PORT\" only"));
        }
        if raw.sessions == "own" {
            return Ok(SessionsAt::Own);
        }
        let expected =
            "expected \"own\", unix:///PATH, tcp://HOST:PORT on loopback, or tls://HOST:PORT";
        let refuse = |why: String| self.refuse("sessions", why);
        match (scheme, raw.sessions.split_once("://")) {
            (Some("unix"), Some((_, path))) if path.starts_with('/') && !path.contains('\0') => {}
            (Some("tcp" | "tls"), Some((_, rest))) => {
                let Destination::Tcp(host, _) =
                    self.check.key(&self.key("sessions"), host_port(rest))?
                else {
                    return Err(refuse(format!("`{rest}` is not HOST:PORT")));
                };
                let is_local =
                    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
                if !has_tls && !is_local {
                    return Err(refuse(format!(
                        "`{host}` is not a loopback address, and sessions are secrets: use tls://{rest}"
                    )));
                }
            }
            _ => {
                return Err(refuse(format!(
                    "`{}` is not known: {expected}",
                    raw.sessions
                )));
            }
        }
        Ok(SessionsAt::Daemon {
            endpoint: raw.sessions.clone(),
            tls: has_tls.then_some(SessionsTls {
                ca: match raw.sessions_ca.as_str() {
                    "system" => None,
                    name => file(name),
                },
                identity,
            }),
        })
    }
}

fn listen(text: &str, originates: bool) -> Result<ProxyListen, InvalidValue> {
    let address = |rest: &str| {
        rest.parse::<SocketAddr>().map_err(|_| {
            InvalidValue::from(format!(
                "`{text}` has no IP:PORT; host names are not looked up"
            ))
        })
    };
    if let Some(name) = text.strip_prefix("systemd:") {
        let plain = |c: char| c.is_ascii_graphic() && c != ':';
        return match !name.is_empty() && name.len() <= 255 && name.chars().all(plain) {
            true => Ok(ProxyListen::Systemd(name.to_owned())),
            false => Err(format!(
                "`{name}` is not the name of a socket of systemd (FileDescriptorName=)"
            )
            .into()),
        };
    }
    match (text.split_once("://"), originates) {
        (Some(("tls", rest)), false) => address(rest).map(ProxyListen::Tls),
        (Some(("tcp", rest)), true) => match address(rest)? {
            address if address.ip().is_loopback() => Ok(ProxyListen::Tcp(address)),
            address => Err(format!("`{address}` is not a loopback address, and programs send plaintext there").into()),
        },
        (Some(("unix", path)), true) if path.starts_with('/') && !path.contains('\0') => {
            Ok(ProxyListen::Unix(path.into()))
        }
        (_, false) => Err(format!("invalid address `{text}`: expected tls://IP:PORT, where clients connect, or systemd:NAME").into()),
        (_, true) => Err(format!(
            "invalid address `{text}`: with `connect`, expected unix:///PATH or tcp://IP:PORT on loopback, where local programs send \
             plaintext"
        )
        .into()),
    }
}

/// Reads `HOST:PORT`, with an IPv6 address in brackets.
fn host_port(text: &str) -> Result<Destination, InvalidValue> {
    let invalid = || InvalidValue::from(format!("`{text}` is not HOST:PORT"));
    let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
    let host = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
        Some(_) => return Err(invalid()),
        None => host,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    let port: u16 = port.parse().map_err(|_| invalid())?;
    if host.is_empty()
        || !host.chars().all(plain)
        || port == 0
        || (host.contains(':') && !text.starts_with('['))
    {
        return Err(invalid());
    }
    Ok(Destination::Tcp(host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_their_addresses_and_no_other() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "192.0.2.1", "fd00::1"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("::/0", "fd00::1", "10.0.0.1"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:11.0.0.1"),
            ("::ffff:10.0.0.0/104", "10.0.0.1", "11.0.0.1"),
            ("::1/128", "::1", "::2"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert!(parsed.has(inside.parse().unwrap()), "{network} {inside}");
            assert!(!parsed.has(outside.parse().unwrap()), "{network} {outside}");
        }
        for wrong in [
            "",
            "10.0.0.0/33",
            "::1/129",
            "10.0.0/8",
            "a/8",
            "10.0.0.0/",
            "10.0.0.0/-1",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn wildcard_matches_one_label() {
        let pattern: ServerNamePattern = "*.Example.org".parse().unwrap();
        assert!(pattern.matches("www.example.org"));
        for other in [
            "example.org",
            "a.b.example.org",
            ".example.org",
            "www.example.com",
            "",
        ] {
            assert!(!pattern.matches(other), "{other}");
        }
        let exact: ServerNamePattern = "Example.org.".parse().unwrap();
        assert!(exact.matches("example.org") && !exact.matches("www.example.org"));
        for wrong in [
            "",
            "*",
            "*.",
            "a*.org",
            "*.*.org",
            "a b",
            "ä.org",
            "a..b",
            "127.0.0.1",
        ] {
            assert!(wrong.parse::<ServerNamePattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_have_a_port() {
        for (text, shown) in [
            ("backend:80", "tcp://backend:80"),
            ("127.0.0.1:1", "tcp://127.0.0.1:1"),
            ("[::1]:443", "tcp://[::1]:443"),
        ] {
            assert_eq!(host_port(text).unwrap().to_string(), shown);
        }
        for wrong in [
            "", "a", ":1", "a:", "a:0", "a:65536", "::1:1", "[::1]", "[a]:1", "a b:1", "a/b:1",
            "u@a:1",
        ] {
            assert!(host_port(wrong).is_err(), "{wrong}");
        }
    }
}
