//! `listen.admin`: the address of metrics, probes and the status page.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{ConfigError, check::Check, raw};

/// The admin address while none is set.
pub(super) const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9551);
/// The admin address of the command `proxy` while none is set.
pub const DEFAULT_PROXY_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9552);

/// The address of metrics, probes and the status page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminEndpoint {
    /// The address.
    pub address: SocketAddr,
    /// How callers reach it.
    pub door: AdminDoor,
    /// Whether the daemon serves without it if another process has the address. Only the default is
    /// optional.
    pub optional: bool,
}

/// How callers reach the admin address, and what they get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminDoor {
    /// Plaintext on a loopback address: metrics, probes and the page.
    Local,
    /// Plaintext on any address: metrics without names, and probes.
    Public,
    /// Mutual TLS with the files of `[listen.tls]`: metrics and probes.
    MutualTls,
}

/// Checks `listen.admin`. `None`: it is off.
pub(super) fn read(
    check: &Check<'_>,
    raw: &raw::RawListen,
) -> Result<Option<AdminEndpoint>, ConfigError> {
    endpoint(
        check,
        raw,
        "listen.admin",
        raw.admin.as_deref(),
        DEFAULT_ADMIN,
    )
}

/// Checks `listen.proxy_admin`. `None`: it is off.
pub(super) fn read_proxy(
    check: &Check<'_>,
    raw: &raw::RawListen,
) -> Result<Option<AdminEndpoint>, ConfigError> {
    let text = raw.proxy_admin.as_deref();
    endpoint(check, raw, "listen.proxy_admin", text, DEFAULT_PROXY_ADMIN)
}

fn endpoint(
    check: &Check<'_>,
    raw: &raw::RawListen,
    key: &str,
    text: Option<&str>,
    default: SocketAddr,
) -> Result<Option<AdminEndpoint>, ConfigError> {
    let refuse = |message: String| Err(check.refuse(key, message));
    let text = match text {
        None => {
            return Ok(Some(AdminEndpoint {
                address: default,
                door: AdminDoor::Local,
                optional: true,
            }));
        }
        Some("") => return Ok(None),
        Some(text) => text,
    };
    let Some((scheme @ ("tcp" | "tls"), rest)) = text.split_once("://") else {
        return refuse(format!(
            "invalid address `{text}`: expected tcp://IP:PORT, tls://IP:PORT, or \"\" for none"
        ));
    };
    let Ok(address) = rest.parse::<SocketAddr>() else {
        return refuse(format!(
            "`{text}` is not {scheme}://IP:PORT; host names are not looked up"
        ));
    };
    let door = match (scheme, address.ip().is_loopback()) {
        ("tcp", true) => AdminDoor::Local,
        ("tcp", false) if raw.admin_public => AdminDoor::Public,
        _ if raw.tls.is_some() => AdminDoor::MutualTls,
        ("tcp", false) => {
            return refuse(format!(
                "`{address}` is not a loopback address: set [listen.tls] for mutual TLS, or listen.admin_public = true for \
                 metrics without names in plaintext"
            ));
        }
        _ => return refuse("tls:// needs the files of [listen.tls]".into()),
    };
    Ok(Some(AdminEndpoint {
        address,
        door,
        optional: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn load(set: &[&str]) -> Result<Option<AdminEndpoint>, String> {
        let set: Vec<_> = set.iter().map(|&text| text.to_owned()).collect();
        let config = Config::load(None, std::iter::empty(), &set);
        config
            .map(|config| config.admin)
            .map_err(|err| err.to_string())
    }

    #[test]
    fn admin_address_is_local_unless_it_is_made_public() {
        let default = load(&[]).unwrap().unwrap();
        assert!(default.optional && default.address == DEFAULT_ADMIN);
        assert_eq!(load(&["listen.admin="]).unwrap(), None);
        let local = load(&["listen.admin=tcp://[::1]:1"]).unwrap().unwrap();
        assert_eq!((local.door, local.optional), (AdminDoor::Local, false));
        let public = ["listen.admin=tcp://0.0.0.0:1", "listen.admin_public=true"];
        assert_eq!(load(&public).unwrap().unwrap().door, AdminDoor::Public);
        for (wrong, why) in [
            ("tcp://10.0.0.1:1", "is not a loopback address"),
            ("tls://127.0.0.1:1", "needs the files of [listen.tls]"),
            ("tcp://localhost:1", "host names are not looked up"),
            ("127.0.0.1:1", "invalid address"),
            ("http://127.0.0.1:1", "invalid address"),
        ] {
            let refused = load(&[&format!("listen.admin={wrong}")]).unwrap_err();
            assert!(
                refused.contains("listen.admin") && refused.contains(why),
                "{refused}"
            );
        }
    }
}
