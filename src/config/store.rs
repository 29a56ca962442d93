//! `[store]`: where sessions are kept.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use tls_sessiond_store::layout::Layout;

use super::{ConfigError, InvalidValue, check::Check, raw};

/// The shortest and the longest `store.deadline`. A daemon whose store does not answer delays a
/// handshake by so much.
const DEADLINE_MIN: Duration = Duration::from_millis(5);
const DEADLINE_MAX: Duration = Duration::from_secs(1);

/// A store that several daemons share: `[store] kind = "redis"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// How long a lookup or a put waits for the store.
    pub deadline: Duration,
    /// Where the store is.
    pub address: StoreAddress,
    /// The number of the database.
    pub database: i64,
    /// The user, if the store has users.
    pub user: Option<String>,
    /// The file with the password.
    pub password_file: Option<PathBuf>,
    /// The authorities that sign the certificate of the store, PEM. `None`: those of this system.
    pub ca: Option<PathBuf>,
    /// The certificate chain and the key that this daemon shows to the store.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The names of keys in the store begin with this.
    pub layout: Layout,
    /// The file of sealing keys.
    pub sealing_keys: PathBuf,
}

/// The address of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAddress {
    /// Without TLS.
    Plain {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
    },
    /// With TLS.
    Tls {
        /// A name or an address, which the certificate of the store must prove.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |host: &str| match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        match self {
            Self::Plain { host: name, port } => write!(f, "redis://{}:{port}", host(name)),
            Self::Tls { host: name, port } => write!(f, "rediss://{}:{port}", host(name)),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[derive(Clone, Copy)]
enum StoreKind {
    Memory,
    Redis,
}

/// Checks the values of `[store]`.
pub(super) fn read(
    check: &Check<'_>,
    raw: &raw::RawStore,
) -> Result<Option<StoreConfig>, ConfigError> {
    let kinds = [("memory", StoreKind::Memory), ("redis", StoreKind::Redis)];
    let kind = check.word("store.kind", &raw.kind, &kinds)?;
    let deadline = check.duration("store.deadline", &raw.deadline)?;
    if !(DEADLINE_MIN..=DEADLINE_MAX).contains(&deadline) {
        let message = format!("`{}` is not between 5ms and 1s", raw.deadline);
        return Err(check.refuse("store.deadline", message));
    }
    let redis = &raw.redis;
    if let StoreKind::Memory = kind {
        if !redis.urls.is_empty() {
            let message =
                "the store is not used, because store.kind is `memory`; set store.kind = \"redis\"";
            return Err(check.refuse("store.redis.urls", message.into()));
        }
        return Ok(None);
    }
    if cfg!(not(feature = "redis")) {
        let message =
            "this build of tls-sessiond has no `redis`: build it with the feature `redis`";
        return Err(check.refuse("store.kind", message.into()));
    }
    let [url] = redis.urls.as_slice() else {
        let message = match redis.urls.len() {
            0 => "required with kind = \"redis\": one URL, as in [\"rediss://redis.example:6379\"]",
            _ => "one URL is expected: this version uses one server, neither Sentinel nor Cluster",
        };
        return Err(check.refuse("store.redis.urls", message.into()));
    };
    let (address, database) = check.key("store.redis.urls[0]", parse(url))?;
    if let StoreAddress::Plain { host, .. } = &address
        && !redis.plaintext
        && !is_loopback(host)
    {
        let message = format!(
            "`{host}` is not a loopback address, and redis:// has no encryption: use rediss://, or say \
             store.redis.plaintext = true (values are sealed, the password is not)"
        );
        return Err(check.refuse("store.redis.urls[0]", message));
    }
    let file = |name: &str| match name {
        "" => None,
        name => Some(check.origin.folder().join(name)),
    };
    let certificate = match (file(&redis.certificate), file(&redis.key)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            let message = "required with store.redis.certificate";
            return Err(check.refuse("store.redis.key", message.into()));
        }
        (None, Some(_)) => {
            let message = "required with store.redis.key";
            return Err(check.refuse("store.redis.certificate", message.into()));
        }
    };
    if redis.ca.is_empty() {
        let message = "must be `system`, or the name of a PEM file";
        return Err(check.refuse("store.redis.ca", message.into()));
    }
    if !matches!(address, StoreAddress::Tls { .. }) {
        let unused = [
            ("ca", redis.ca != "system"),
            ("certificate", certificate.is_some()),
        ];
        if let Some((key, _)) = unused.iter().find(|(_, is_set)| *is_set) {
            let message = "used with rediss:// only: the URL of the store has no TLS";
            return Err(check.refuse(&format!("store.redis.{key}"), message.into()));
        }
    }
    let user = Some(redis.user.clone()).filter(|user| !user.is_empty());
    let password_file = file(&redis.password_file);
    if user.is_some() && password_file.is_none() {
        let message = "required with store.redis.user";
        return Err(check.refuse("store.redis.password_file", message.into()));
    }
    let sealing_keys = file(&redis.sealing_keys).ok_or_else(|| {
        let message = "required with kind = \"redis\": a file with 64 hex digits, for example from `openssl rand -hex 32`";
        check.refuse("store.redis.sealing_keys", message.into())
    })?;
    let layout = Layout::new(&redis.prefix)
        .map_err(|err| check.refuse("store.redis.prefix", err.to_string()))?;
    Ok(Some(StoreConfig {
        deadline,
        address,
        database,
        user,
        password_file,
        ca: match redis.ca.as_str() {
            "system" => None,
            name => file(name),
        },
        certificate,
        layout,
        sealing_keys,
    }))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Reads `redis://HOST[:PORT][/DATABASE]`, `rediss://...` or `unix:///PATH`.
fn parse(url: &str) -> Result<(StoreAddress, i64), InvalidValue> {
    let expected = "expected redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH";
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| InvalidValue::from(format!("not the URL of a store: {expected}")))?;
    if scheme == "unix" {
        if !rest.starts_with('/') || rest.contains('\0') {
            return Err(
                "the path of a socket must be absolute, as in unix:///run/redis.sock".into(),
            );
        }
        return Ok((StoreAddress::Unix(rest.into()), 0));
    }
    if rest.contains('@') {
        // Not quoted: it may have a password.
        return Err(
            "a URL has neither user nor password here: use store.redis.user and store.redis.password_file".into(),
        );
    }
    let (place, database) = match rest.split_once('/') {
        None | Some((_, "")) => (rest.trim_end_matches('/'), 0),
        Some((place, number)) => {
            let number = number.parse::<u16>().map_err(|_| {
                InvalidValue::from(format!("`{number}` is not the number of a database"))
            })?;
            (place, number.into())
        }
    };
    let (host, port) = match place
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match place.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        None => 6379,
        Some(port) => port
            .parse()
            .map_err(|_| InvalidValue::from(format!("`{port}` is not a port: {expected}")))?,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(plain) {
        return Err(format!("`{host}` is not a host: {expected}").into());
    }
    let host = host.to_owned();
    let address = match scheme {
        "redis" => StoreAddress::Plain { host, port },
        "rediss" => StoreAddress::Tls { host, port },
        scheme => return Err(format!("unknown scheme `{scheme}`: {expected}").into()),
    };
    Ok((address, database))
}
