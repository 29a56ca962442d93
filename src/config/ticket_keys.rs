//! `[[ticket_keys]]`: rings of session ticket keys.

use std::{path::PathBuf, time::Duration};

use tls_sessiond_core::context::{ClosePolicy, ContextConfig};
use tls_sessiond_keys::ring::Settings;

use super::{ConfigError, check::Check, raw};

/// The longest durations of a ring: a ticket is valid for a week at most (RFC 8446 section 4.6.1).
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most rings.
const RINGS_MAX: usize = 64;

/// A ring of ticket keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketKeysConfig {
    /// Its name.
    pub name: String,
    /// The context that it belongs to.
    pub context: Option<String>,
    /// The times of its rotation.
    pub settings: Settings,
    /// Where it is saved. `None`: it begins anew at each start.
    pub saved: Option<SavedRing>,
}

/// Where a ring is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRing {
    /// The file.
    pub state: PathBuf,
    /// The file with the secret that seals it.
    pub credential: PathBuf,
}

/// Checks `[[ticket_keys]]`. `is_shared`: whether rings are in a store that daemons share.
pub(super) fn read(
    check: &Check<'_>,
    raw: &[raw::RawTicketKeys],
    contexts: &[ContextConfig],
    is_shared: bool,
) -> Result<Vec<TicketKeysConfig>, ConfigError> {
    if raw.len() > RINGS_MAX {
        let message = format!(
            "there are {} rings; at most {RINGS_MAX} are allowed",
            raw.len()
        );
        return Err(check.refuse("ticket_keys", message));
    }
    let mut rings: Vec<TicketKeysConfig> = Vec::with_capacity(raw.len());
    for (place, raw) in raw.iter().enumerate() {
        let ring = ring(check, place, raw, contexts)?;
        if rings.iter().any(|other| other.name == ring.name) {
            let message = format!(
                "a ring named `{}` is defined above; names must be unique",
                ring.name
            );
            return Err(check.refuse(&format!("ticket_keys[{place}].name"), message));
        }
        let same = |other: &&TicketKeysConfig| {
            let (one, two) = (&other.saved, &ring.saved);
            one.as_ref().map(|saved| &saved.state) == two.as_ref().map(|saved| &saved.state)
        };
        if ring.saved.is_some() && is_shared {
            let message =
                "not used with a shared store: the rings are in the store, sealed with its keys";
            return Err(check.refuse(&format!("ticket_keys[{place}].state"), message.into()));
        }
        if ring.saved.is_some()
            && let Some(other) = rings.iter().find(same)
        {
            let message = format!("the ring `{}` has the same file", other.name);
            return Err(check.refuse(&format!("ticket_keys[{place}].state"), message));
        }
        rings.push(ring);
    }
    Ok(rings)
}

/// Checks the rings that contexts with sealed tickets name.
pub(super) fn check_sealing(
    check: &Check<'_>,
    contexts: &[ContextConfig],
    rings: &[TicketKeysConfig],
) -> Result<(), ConfigError> {
    for (place, context) in contexts.iter().enumerate() {
        let Some(name) = &context.ticket_ring else {
            continue;
        };
        let refuse = |key: &str, message: String| {
            Err(check.refuse(&format!("context[{place}].{key}"), message))
        };
        let Some(ring) = rings.iter().find(|ring| ring.name == *name) else {
            let message = format!("unknown ring `{name}`: expected the name of a [[ticket_keys]]");
            return refuse("ticket_ring", message);
        };
        if let Some(other) = ring.context.as_ref().filter(|of| **of != context.name) {
            let message = format!(
                "the ring `{name}` belongs to context `{other}`: name another ring, or leave out its `context`"
            );
            return refuse("ticket_ring", message);
        }
    }
    Ok(())
}

fn ring(
    check: &Check<'_>,
    place: usize,
    raw: &raw::RawTicketKeys,
    contexts: &[ContextConfig],
) -> Result<TicketKeysConfig, ConfigError> {
    let key = |name: &str| format!("ticket_keys[{place}].{name}");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if raw.name.is_empty() || raw.name.len() > 64 || !raw.name.chars().all(is_plain) {
        let message = format!(
            "`{}` must have 1 to 64 of the characters a-z, A-Z, 0-9, `-`, `_` and `.`",
            raw.name
        );
        return Err(check.refuse(&key("name"), message));
    }
    let context = Some(raw.context.clone()).filter(|name| !name.is_empty());
    if let Some(name) = &context {
        let Some(context) = contexts.iter().find(|context| context.name == *name) else {
            let message = format!("unknown context `{name}`: expected the name of a [[context]]");
            return Err(check.refuse(&key("context"), message));
        };
        let keeps = context.close_policy != ClosePolicy::ErrorsOnly;
        match raw.rule.as_str() {
            "waived" => {}
            "" if keeps => {
                let message = format!(
                    "required: the close_policy of context `{name}` promises that a session whose connection was not closed is \
                     not resumed, and a ticket whose key left the daemon cannot be taken back. Write rule = \"waived\" for \
                     this ring, or close_policy = \"errors-only\" for the context"
                );
                return Err(check.refuse(&key("rule"), message));
            }
            "" => {}
            other => {
                let message = format!("`{other}` is not known; it may be `waived`");
                return Err(check.refuse(&key("rule"), message));
            }
        }
    } else if !raw.rule.is_empty() {
        let message = "used with `context` only: a ring without a context makes no promise";
        return Err(check.refuse(&key("rule"), message.into()));
    }
    let duration = |name: &str, text: &str| check.duration_within(&key(name), text, WEEK);
    let settings = Settings {
        rotate: duration("rotate", &raw.rotate)?,
        lifetime: duration("lifetime", &raw.lifetime)?,
        max_key_age: duration("max_key_age", &raw.max_key_age)?,
        members_wait: duration("members_wait", &raw.members_wait)?,
    };
    if settings.max_key_age < settings.rotate.max(settings.lifetime) {
        let message = format!(
            "`{}` is shorter than rotate or lifetime, so every rotation would fence members that are not late",
            raw.max_key_age
        );
        return Err(check.refuse(&key("max_key_age"), message));
    }
    let saved = match (raw.state.as_str(), raw.credential.as_str()) {
        ("", "") => None,
        (state, credential) if !state.is_empty() && !credential.is_empty() => Some(SavedRing {
            state: check.origin.folder().join(state),
            credential: check.origin.folder().join(credential),
        }),
        ("", _) => {
            let message = "required with `credential`: the file that the ring is saved in";
            return Err(check.refuse(&key("state"), message.into()));
        }
        _ => {
            let message = "required with `state`: the file with the secret that seals it, from a credential of the service manager";
            return Err(check.refuse(&key("credential"), message.into()));
        }
    };
    Ok(TicketKeysConfig {
        name: raw.name.clone(),
        context,
        settings,
        saved,
    })
}
