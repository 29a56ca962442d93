//! `[otlp]`: the collector that takes traces and metrics.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use super::{ConfigError, InvalidValue, check::Check, raw};

/// The port of OTLP over gRPC.
const PORT: u16 = 4317;
/// The longest `otlp.interval`.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// A collector that takes traces and metrics by OTLP over gRPC.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpConfig {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether the connection has TLS.
    pub has_tls: bool,
    /// The authorities that sign the certificate of the collector, PEM. `None`: those of this system.
    pub ca: Option<PathBuf>,
    /// Time from one transmission of the metrics to the next.
    pub interval: Duration,
    /// The share of calls that begin a trace, of those whose caller names none: 0 to 1.
    pub sample: f64,
}

/// Checks the values of `[otlp]`. `None`: nothing is sent.
pub(super) fn read(
    check: &Check<'_>,
    raw: &raw::RawOtlp,
) -> Result<Option<OtlpConfig>, ConfigError> {
    let interval = check.duration_within("otlp.interval", &raw.interval, INTERVAL_MAX)?;
    if !(0.0..=1.0).contains(&raw.sample) {
        let message = format!("{} is not between 0.0 and 1.0", raw.sample);
        return Err(check.refuse("otlp.sample", message));
    }
    if raw.ca.is_empty() {
        let message = "must be `system`, or the name of a PEM file";
        return Err(check.refuse("otlp.ca", message.into()));
    }
    if raw.endpoint.is_empty() {
        if raw.ca != "system" {
            let message = "not used: otlp.endpoint is not set";
            return Err(check.refuse("otlp.ca", message.into()));
        }
        return Ok(None);
    }
    if cfg!(not(feature = "otel")) {
        let message = "this build of tls-sessiond has no `otel`: build it with the feature `otel`";
        return Err(check.refuse("otlp.endpoint", message.into()));
    }
    let (has_tls, host, port) = check.key("otlp.endpoint", parse(&raw.endpoint))?;
    let ca = Some(raw.ca.as_str()).filter(|ca| *ca != "system");
    if ca.is_some() && !has_tls {
        let message = "used with https:// only: the endpoint has no TLS";
        return Err(check.refuse("otlp.ca", message.into()));
    }
    Ok(Some(OtlpConfig {
        host,
        port,
        has_tls,
        ca: ca.map(|name| check.origin.folder().join(name)),
        interval,
        sample: raw.sample,
    }))
}

/// Reads `http://HOST[:PORT]` of a loopback address, or `https://HOST[:PORT]`.
fn parse(url: &str) -> Result<(bool, String, u16), InvalidValue> {
    let expected = "expected https://HOST:PORT, or http://127.0.0.1:PORT";
    if url.contains('@') {
        // Not quoted: it may have a password.
        return Err(format!("an endpoint has neither user nor password: {expected}").into());
    }
    let invalid = || InvalidValue::from(format!("invalid endpoint `{url}`: {expected}"));
    let (scheme, place) = url.split_once("://").ok_or_else(invalid)?;
    let place = place.strip_suffix('/').unwrap_or(place);
    let ipv6 = place
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'));
    let (host, port) = match ipv6 {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(invalid)?)),
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let is_number = |port: &&str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        None => PORT,
        Some(port) => Some(port)
            .filter(is_number)
            .and_then(|port| port.parse().ok())
            .filter(|port| *port != 0)
            .ok_or_else(invalid)?,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_host = match ipv6 {
        Some(_) => host.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(is_plain),
    };
    if !is_host {
        return Err(invalid());
    }
    let has_tls = match scheme {
        "https" => true,
        "http" => false,
        _ => return Err(invalid()),
    };
    let is_loopback = host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback());
    if !has_tls && !is_loopback {
        return Err(format!(
            "`{host}` is not a loopback address, and http:// has no encryption: use https://"
        )
        .into());
    }
    Ok((has_tls, host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn endpoints_are_read() {
        let read = |url| parse(url).ok();
        let plain = Some((false, "127.0.0.1".to_owned(), 4317));
        assert_eq!(read("http://127.0.0.1"), plain);
        assert_eq!(read("http://127.0.0.1:4317/"), plain);
        assert_eq!(read("http://[::1]:1"), Some((false, "::1".into(), 1)));
        let name = Some((true, "collector.example".to_owned(), 4317));
        assert_eq!(read("https://collector.example"), name);
        for wrong in [
            "127.0.0.1:4317",
            "grpc://127.0.0.1:4317",
            "https://",
            "https://user@host",
            "https://host:port",
            "https://host/path",
            "https://[host]:1",
            "https://[::1]1",
            "http://10.0.0.1:4317",
            "https://host:0",
            "https://host:+80",
            "http://[127.0.0.1]:4317",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn values_are_refused_with_their_key() {
        let load = |set: &[&str]| {
            let set: Vec<_> = set.iter().map(|&text| text.to_owned()).collect();
            let config = Config::load(None, std::iter::empty(), &set);
            config
                .map(|config| config.otlp)
                .map_err(|err| err.to_string())
        };
        assert_eq!(load(&[]), Ok(None));
        for (set, key) in [
            (&["otlp.sample=1.5"][..], "otlp.sample"),
            (&["otlp.interval=10ms"], "otlp.interval"),
            (&["otlp.ca="], "otlp.ca"),
            (&["otlp.ca=ca.pem"], "otlp.ca"),
            (&["otlp.endpoint=http://192.0.2.1:4317"], "otlp.endpoint"),
            #[cfg(feature = "otel")]
            (
                &["otlp.endpoint=http://127.0.0.1:4317", "otlp.ca=ca.pem"],
                "otlp.ca",
            ),
        ] {
            let refused = load(set).unwrap_err();
            assert!(refused.contains(key), "{refused}");
        }
        let secret = load(&["otlp.endpoint=https://user:hunter2@host"]).unwrap_err();
        assert!(!secret.contains("hunter2"), "{secret}");
        let set = load(&["otlp.endpoint=https://collector.example", "otlp.sample=0.5"]);
        match cfg!(feature = "otel") {
            true => assert_eq!(set.unwrap().unwrap().sample, 0.5),
            false => assert!(
                set.unwrap_err()
                    .contains("build it with the feature `otel`")
            ),
        }
    }
}
