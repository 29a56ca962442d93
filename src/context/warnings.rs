//! What is allowed in a configuration and seldom meant: `check` prints it, and the log has it after a start and a reload.

use std::{path::Path, time::Duration};

use x509_parser::{certificate::X509Certificate, prelude::FromDer, time::ASN1Time};

use crate::{
    clock::WallTime,
    config::{ClosePolicy, Config, ConfigError, ContextConfig, Version},
    pem,
};

/// A certificate that ends within this time is told of, unless its whole life is short.
const ENDS_SOON: Duration = Duration::from_secs(7 * 86_400);
/// Of a certificate that lives for less than three times as long: so much of its life.
const LAST_PART: i64 = 3;

/// Returns the warnings about a configuration at a time of the wall clock, each with its key and where that stands. Reads the
/// certificates that it names; a file that cannot be read is an error of [`Registry::build`](super::Registry::build), and no
/// warning.
pub fn warnings(config: &Config, now: WallTime) -> Vec<ConfigError> {
    let mut all = Vec::new();
    for (place, context) in config.contexts.iter().enumerate() {
        let mut warn = |key: String, why: String| all.push(config.context_error(place, &key, why));
        settings(context, &mut warn);
        let several = context.certificates.len() > 1;
        for (at, (chain, _)) in context.certificates.iter().enumerate() {
            let key = if several { format!("certificate[{at}]") } else { "certificate".into() };
            certificate(chain, now, &mut |why| warn(key.clone(), why));
        }
        for (at, (chain, _)) in context.client_certificates.iter().enumerate() {
            certificate(chain, now, &mut |why| warn(format!("client_certificates[{at}].certificate"), why));
        }
    }
    if let Some(tls) = &config.tls {
        certificate(&tls.certificate, now, &mut |why| all.push(config.tls_error("certificate", why)));
    }
    all
}

fn settings(context: &ContextConfig, warn: &mut impl FnMut(String, String)) {
    let options = context.options;
    if options.no_session_cache {
        warn("options".into(), "with no-session-cache no client ever resumes in this context".into());
    }
    if context.versions == [Version::Tls13] && context.tickets == 0 && !context.certificates.is_empty() {
        warn("tickets".into(), "TLS 1.3 without tickets: no client of this server ever resumes".into());
    }
    if context.close_policy == ClosePolicy::Written && options.quiet_shutdown {
        warn(
            "close_policy".into(),
            "with quiet-shutdown no close_notify is ever made, so no connection counts as closed and every session is removed".into(),
        );
    }
}

/// Of the leaf, which stands first.
fn certificate(chain: &Path, now: WallTime, warn: &mut impl FnMut(String)) {
    let Ok(certificates) = pem::read_certificates(chain) else { return };
    let Some(Ok((_, leaf))) = certificates.first().map(|der| X509Certificate::from_der(der)) else { return };
    let file = chain.display();
    if leaf.is_ca() {
        warn(format!(
            "{file}: the certificate is one of an authority (CA:TRUE), which peers refuse as a server's or client's own"
        ));
    }
    let seconds = i64::try_from(now.as_millis() / 1000).unwrap_or(i64::MAX);
    let (begins, ends) = (leaf.validity().not_before, leaf.validity().not_after);
    if let Some(why) = validity(seconds, begins, ends) {
        warn(format!("{file}: {why}"));
    }
}

fn validity(now: i64, begins: ASN1Time, ends: ASN1Time) -> Option<String> {
    let (from, to) = (begins.timestamp(), ends.timestamp());
    let soon =
        i64::try_from(ENDS_SOON.as_secs()).unwrap_or(i64::MAX).min(to.saturating_sub(from) / LAST_PART);
    if now < from {
        Some(format!("the certificate is not valid before {begins}"))
    } else if now > to {
        Some(format!("the certificate has expired: it was valid until {ends}"))
    } else if to - now < soon {
        Some(format!("the certificate expires soon: it is valid until {ends}"))
    } else {
        None
    }
}
