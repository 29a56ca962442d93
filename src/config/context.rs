//! Settings that connections inherit: `[[context]]`.

use std::path::PathBuf;

use tls_sessiond_core::{
    cache::Offering,
    context::{ClientAuth, ClosePolicy, ContextConfig, IDLE_TIMEOUT_MAX, Options, ScopeBy, Trust},
    session::LIFETIME_MAX,
};
use tls_sessiond_types::Version;

use super::{ConfigError, check::Check, raw};

/// Checks one context. `table` names its table in errors. Opens no file.
pub(super) fn context(
    check: &Check<'_>,
    table: &str,
    raw: &raw::RawContext,
) -> Result<ContextConfig, ConfigError> {
    let key = |name: &str| format!("{table}.{name}");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    for (field, name) in [
        ("name", &raw.name),
        ("session_id_context", &raw.session_id_context),
    ] {
        if name.len() > 64 || !name.chars().all(plain) || (field == "name" && name.is_empty()) {
            let least = if field == "name" { 1 } else { 0 };
            let message = format!(
                "invalid name `{name}`: expected {least} to 64 characters of a-z, A-Z, 0-9, `-`, `_` and `.`"
            );
            return Err(check.refuse(&key(field), message));
        }
    }
    let relative = |path: &PathBuf| check.origin.folder().join(path);
    let (chains, keys) = (raw.certificate.paths(), raw.key.paths());
    if chains.len() != keys.len() {
        let message = format!(
            "{} certificates, but {} keys: each certificate needs its key",
            chains.len(),
            keys.len()
        );
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
        return Err(check.refuse(
            &key("versions"),
            "there must be at least one of \"1.2\" and \"1.3\"".into(),
        ));
    }
    for (at, protocol) in raw.alpn.iter().enumerate() {
        // RFC 7301 section 3.1: a name has 1 to 255 bytes.
        if !(1..=255).contains(&protocol.len()) {
            let message = "a protocol name must have 1 to 255 bytes".into();
            return Err(check.refuse(&key(&format!("alpn[{at}]")), message));
        }
    }
    let mut options = Options::default();
    for (at, text) in raw.options.iter().enumerate() {
        let set: fn(&mut Options) = check.word(
            &key(&format!("options[{at}]")),
            text,
            &[
                (
                    "cipher-server-preference",
                    (|o| o.cipher_server_preference = true) as fn(&mut Options),
                ),
                ("ignore-unexpected-eof", |o| o.ignore_unexpected_eof = true),
                ("quiet-shutdown", |o| o.quiet_shutdown = true),
                ("no-session-cache", |o| o.no_session_cache = true),
            ],
        )?;
        set(&mut options);
    }
    // Each ticket costs a signature of the key schedule and an entry; OpenSSL's own clients keep
    // two.
    if raw.tickets > 16 {
        return Err(check.refuse(&key("tickets"), format!("{} is more than 16", raw.tickets)));
    }
    let is_sealed = check.word(
        &key("ticket_kind"),
        &raw.ticket_kind,
        &[("stateful", false), ("sealed", true)],
    )?;
    if is_sealed == raw.ticket_ring.is_empty() {
        let message = match is_sealed {
            true => "required with ticket_kind = \"sealed\": the name of a [[ticket_keys]]",
            false => "used with ticket_kind = \"sealed\" only",
        };
        return Err(check.refuse(&key("ticket_ring"), message.into()));
    }
    Ok(ContextConfig {
        name: raw.name.clone(),
        certificates: chains
            .iter()
            .zip(keys)
            .map(|(c, k)| (relative(c), relative(k)))
            .collect(),
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
            &[
                ("none", ClientAuth::None),
                ("request", ClientAuth::Request),
                ("require", ClientAuth::Require),
            ],
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
        scope_by: check.word(
            &key("scope_by"),
            &raw.scope_by,
            &[
                ("certificate", ScopeBy::Certificate),
                ("names", ScopeBy::Names),
            ],
        )?,
        offering: check.word(
            &key("client_sessions"),
            &raw.client_sessions,
            &[
                ("shared", Offering::Shared),
                ("explicit", Offering::Explicit),
            ],
        )?,
        tickets: raw.tickets,
        ticket_ring: is_sealed.then(|| raw.ticket_ring.clone()),
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
            LIFETIME_MAX,
        )?,
        session_bytes_max: check.size(&key("session_bytes_max"), &raw.session_bytes_max)?,
        cache_entries_max: check.at_least_one(&key("cache_entries_max"), raw.cache_entries_max)?,
        cache_bytes_max: check.size(&key("cache_bytes_max"), &raw.cache_bytes_max)?,
        idle_timeout: check.duration_within(
            &key("idle_timeout"),
            &raw.idle_timeout,
            IDLE_TIMEOUT_MAX,
        )?,
    })
}
