//! Warnings about settings that are valid but probably mistakes. `check` prints them; the daemon
//! logs them after a start and after a reload.

use std::{path::Path, time::Duration};

use tls_sessiond_types::Version;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    clock::WallTime,
    context::{ClosePolicy, ContextConfig, ContextRefusal, Refusal, Settings, Trust},
    pem,
};

/// A certificate that expires within 7 days gives a warning. See [`LAST_PART`] for short-lived
/// ones.
const ENDS_SOON: Duration = Duration::from_secs(7 * 86_400);
/// The smallest useful size limit of a session, in bytes: a session of rustls has 150, and its
/// cache entry takes as much again.
const SESSION_LEAST: usize = 512;
/// A certificate with a lifetime of less than `LAST_PART` * [`ENDS_SOON`] gives a warning in the
/// last third of its lifetime.
const LAST_PART: i64 = 3;

/// Returns the warnings about a configuration at a wall-clock time, each with its key and line.
///
/// Reads the certificates that the configuration names. A file that cannot be read is an error of
/// [`Registry::build`](super::Registry::build), and gives no warning here.
pub fn contexts(settings: &Settings, now: WallTime) -> Vec<ContextRefusal> {
    let mut all = Vec::new();
    for (place, context) in settings.contexts.iter().enumerate() {
        let mut warn = |key: String, why: String| {
            all.push(ContextRefusal {
                place,
                refusal: Refusal { key, why },
            });
        };
        limits(context, settings.total.bytes_max, &mut warn);
        anchors(context, now, &mut |why| warn("ca".into(), why));
        let several = context.certificates.len() > 1;
        for (at, (chain, _)) in context.certificates.iter().enumerate() {
            let key = if several {
                format!("certificate[{at}]")
            } else {
                "certificate".into()
            };
            certificate(chain, now, &mut |why| warn(key.clone(), why));
        }
        for (at, (chain, _)) in context.client_certificates.iter().enumerate() {
            certificate(chain, now, &mut |why| {
                warn(format!("client_certificates[{at}].certificate"), why);
            });
        }
    }
    all
}

/// Warns about the settings of a context. `all_bytes`: most bytes of all caches together.
fn limits(context: &ContextConfig, all_bytes: usize, warn: &mut impl FnMut(String, String)) {
    let options = context.options;
    let room = context
        .session_bytes_max
        .min(context.cache_bytes_max)
        .min(all_bytes);
    if room < SESSION_LEAST {
        let key = if room == context.session_bytes_max {
            "session_bytes_max"
        } else {
            "cache_bytes_max"
        };
        warn(
            key.into(),
            format!(
                "with room for {room} bytes hardly any session is kept: a session takes some hundreds of bytes or more"
            ),
        );
    }
    if options.no_session_cache {
        warn(
            "options".into(),
            "with no-session-cache no client ever resumes in this context".into(),
        );
    }
    if context.versions == [Version::Tls13]
        && context.tickets == 0
        && !context.certificates.is_empty()
    {
        warn(
            "tickets".into(),
            "TLS 1.3 without tickets: no client of this server ever resumes".into(),
        );
    }
    if context.close_policy == ClosePolicy::Written && options.quiet_shutdown {
        warn(
            "close_policy".into(),
            "with quiet-shutdown no close_notify is ever made, so no connection counts as closed and every session is removed".into(),
        );
    }
}

/// Warns about a chain: a leaf that is a CA certificate, and the validity of each certificate.
pub fn certificate(chain: &Path, now: WallTime, warn: &mut impl FnMut(String)) {
    let Ok(certificates) = pem::read_certificates(chain) else {
        return;
    };
    let file = chain.display();
    for (place, der) in certificates.iter().enumerate() {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            continue;
        };
        if place == 0 && certificate.is_ca() {
            warn(format!(
                "{file}: the certificate is a CA certificate (CA:TRUE), which peers refuse from a server or a client"
            ));
        }
        let which = if place == 0 {
            "the certificate".into()
        } else {
            format!("certificate {} of the chain", place + 1)
        };
        if let Some(why) = validity(now, &certificate) {
            warn(format!("{file}: {which} {why}"));
        }
    }
}

/// Warns about trust anchors that have expired, and about those of the system that cannot be read.
fn anchors(context: &ContextConfig, now: WallTime, warn: &mut impl FnMut(String)) {
    match &context.trust {
        Trust::File(path) => expired(path, now, warn),
        Trust::System if context.self_made => {}
        Trust::System => {
            for error in rustls_native_certs::load_native_certs().errors {
                warn(format!(
                    "trust anchors of this system cannot be read: {error}"
                ));
            }
        }
    }
}

/// Warns of trust anchors in a file that have expired.
pub fn expired(anchors: &Path, now: WallTime, warn: &mut impl FnMut(String)) {
    let Ok(certificates) = pem::read_certificates(anchors) else {
        return;
    };
    for (place, der) in certificates.iter().enumerate() {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            continue;
        };
        if seconds(now) > certificate.validity().not_after.timestamp() {
            let until = certificate.validity().not_after;
            warn(format!(
                "{}: trust anchor {} has expired: it was valid until {until}",
                anchors.display(),
                place + 1
            ));
        }
    }
}

fn seconds(now: WallTime) -> i64 {
    i64::try_from(now.as_millis() / 1000).unwrap_or(i64::MAX)
}

fn validity(now: WallTime, certificate: &X509Certificate<'_>) -> Option<String> {
    let (now, validity) = (seconds(now), certificate.validity());
    let (begins, ends) = (validity.not_before, validity.not_after);
    let (from, to) = (begins.timestamp(), ends.timestamp());
    let soon = i64::try_from(ENDS_SOON.as_secs())
        .unwrap_or(i64::MAX)
        .min(to.saturating_sub(from) / LAST_PART);
    if now < from {
        Some(format!("is not valid before {begins}"))
    } else if now > to {
        Some(format!("has expired: it was valid until {ends}"))
    } else if to - now < soon {
        Some(format!("expires soon: it is valid until {ends}"))
    } else {
        None
    }
}
