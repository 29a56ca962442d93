//! The address of a daemon: `tcp://HOST:PORT`, `tls://HOST:PORT` or `unix:///PATH`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use super::failure::Failure;
use crate::config::{DEFAULT_ADDRESS, DEFAULT_SOCKET};

/// Where a daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DaemonAddress {
    /// Plaintext over TCP, only to this host.
    Tcp(HostPort),
    /// Mutual TLS over TCP.
    Tls(HostPort),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    /// A name or an IP address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl DaemonAddress {
    /// Returns the default Unix socket if it exists, and the default TCP address otherwise.
    pub(super) fn default_of_this_host() -> Self {
        if Path::new(DEFAULT_SOCKET).exists() {
            Self::Unix(DEFAULT_SOCKET.into())
        } else {
            Self::Tcp(HostPort {
                host: DEFAULT_ADDRESS.ip().to_string(),
                port: DEFAULT_ADDRESS.port(),
            })
        }
    }
}

impl FromStr for DaemonAddress {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid(text))?;
        match scheme {
            "unix" if rest.len() > 1 && rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "tls" | "https" => Ok(Self::Tls(HostPort::parse(text, rest)?)),
            "tcp" | "http" => {
                let at = HostPort::parse(text, rest)?;
                if at.is_loopback() {
                    Ok(Self::Tcp(at))
                } else {
                    Err(Failure::Usage(format!(
                        "--address {text:?}: plaintext is allowed to loopback only; use tls://{at}"
                    )))
                }
            }
            _ => Err(invalid(text)),
        }
    }
}

fn invalid(text: &str) -> Failure {
    Failure::Usage(format!(
        "invalid --address {text:?}: expected tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH"
    ))
}

impl HostPort {
    /// Parses `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`, with or without a slash at the end.
    /// Without a port it is that of the daemon's default address.
    fn parse(text: &str, rest: &str) -> Result<Self, Failure> {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(|| invalid(text))?;
                host.parse::<Ipv6Addr>().map_err(|_| invalid(text))?;
                (host, port)
            }
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || !host.chars().all(is_name) {
            return Err(invalid(text));
        }
        let port = match port.strip_prefix(':') {
            Some(digits) => digits.parse().map_err(|_| invalid(text))?,
            None if port.is_empty() => DEFAULT_ADDRESS.port(),
            None => return Err(invalid(text)),
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Returns whether the host is `localhost` or a loopback address.
    fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

/// Returns whether a host is `localhost` or a loopback address, without brackets.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

impl fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => write!(f, "tcp://{at}"),
            Self::Tls(at) => write!(f, "tls://{at}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_shown() {
        for (text, shown) in [
            ("tcp://127.0.0.1:50551", "tcp://127.0.0.1:50551"),
            ("http://localhost:1/", "tcp://localhost:1"),
            ("tcp://[::1]", "tcp://[::1]:50551"),
            ("tcp://[::ffff:127.0.0.1]:9", "tcp://[::ffff:127.0.0.1]:9"),
            ("https://example.org", "tls://example.org:50551"),
            ("tls://[2001:db8::1]:443", "tls://[2001:db8::1]:443"),
            ("unix:///run/a b.sock", "unix:///run/a b.sock"),
        ] {
            let address: DaemonAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn malformed_addresses_and_remote_plaintext_are_refused() {
        for text in [
            "",
            "127.0.0.1:50551",
            "tcp://",
            "tcp://:1",
            "tcp://127.0.0.1:65536",
            "tcp://127.0.0.1:",
            "tcp://[::1",
            "tcp://[127.0.0.1]:1",
            "tcp://user@localhost:1",
            "tcp://localhost:1/path",
            "unix://relative",
            "unix:///",
            "udp://127.0.0.1:1",
        ] {
            let err = text.parse::<DaemonAddress>().unwrap_err();
            assert!(matches!(err, Failure::Usage(_)), "{text}: {err:?}");
        }
        for text in ["tcp://192.0.2.1:1", "http://example.org", "tcp://[::2]:1"] {
            let err = text.parse::<DaemonAddress>().unwrap_err().to_string();
            assert!(err.contains("use tls://"), "{text}: {err}");
        }
    }
}
