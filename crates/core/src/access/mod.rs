//! Access rules: `[[access]]`.

use std::{fmt, str::FromStr};

use tls_sessiond_types::server_name::ServerName;

mod distinguished_name;

pub use distinguished_name::{DistinguishedName, NameError};

/// One access rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The callers that the rule is about.
    pub identity: IdentityPattern,
    /// The contexts that the rule is about; `*` stands for all.
    pub contexts: Vec<String>,
    /// The roles that these callers have in these contexts.
    pub roles: Vec<AccessRole>,
}

/// The rights of an identity in a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessRole {
    /// Creates and drives connections. Puts and looks up sessions, including their secrets.
    Worker,
    /// Reads connections and sessions without secrets, and watches their events.
    Observer,
    /// Has the rights of an observer. Removes and revokes sessions.
    Admin,
    /// Gets ticket keys, and opens and seals tickets.
    Keys,
}

/// The callers that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityPattern {
    /// Callers over loopback or a Unix socket.
    Local,
    /// Callers over a Unix socket with this user.
    Uid(u32),
    /// Callers over a Unix socket with this primary group.
    Gid(u32),
    /// Callers whose client certificate has this URI, for example a SPIFFE id.
    Uri(Text),
    /// Callers whose client certificate has this DNS name, in lower case.
    Dns(Text),
    /// Callers whose client certificate has this subject, attribute by attribute.
    Subject(DistinguishedName),
}

/// A text, or a pattern with one `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// Exactly this text.
    Exactly(String),
    /// `spiffe://example.org/ns/web/*`: this prefix, followed by at least one character.
    Below(String),
    /// `*.workers.example.org`: this suffix, after exactly one label.
    OneLabel(String),
}

impl Text {
    /// Returns whether the pattern matches `text`.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exactly(wanted) => text == wanted,
            Self::Below(prefix) => text
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| !rest.is_empty()),
            Self::OneLabel(suffix) => text
                .strip_suffix(suffix.as_str())
                .is_some_and(|label| !label.is_empty() && !label.contains('.')),
        }
    }
}

/// Why a text is not an identity pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl FromStr for IdentityPattern {
    type Err = PatternError;

    /// Parses `local`, `uid:N`, `gid:N`, `spiffe://...`, `uri:...`, `dns:...` or `subject:...`.
    ///
    /// # Errors
    /// The error says why the text is not an identity.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let number = |digits: &str| {
            digits
                .parse()
                .map_err(|_| PatternError(format!("`{text}`: invalid number `{digits}`")))
        };
        if text == "local" {
            return Ok(Self::Local);
        }
        if text.starts_with("spiffe://") {
            return Ok(Self::Uri(below(text)?));
        }
        match text.split_once(':') {
            Some(("uid", digits)) => Ok(Self::Uid(number(digits)?)),
            Some(("gid", digits)) => Ok(Self::Gid(number(digits)?)),
            Some(("uri", uri)) if !uri.is_empty() => Ok(Self::Uri(below(uri)?)),
            Some(("dns", name)) if !name.is_empty() => Ok(Self::Dns(one_label(name)?)),
            Some(("subject", subject)) if !subject.is_empty() => {
                Ok(Self::Subject(self::subject(text, subject)?))
            }
            _ => Err(PatternError(format!(
                "invalid identity `{text}`: expected local, uid:N, gid:N, spiffe://DOMAIN/PATH, uri:URI, dns:NAME, subject:NAME"
            ))),
        }
    }
}

fn subject(text: &str, subject: &str) -> Result<DistinguishedName, PatternError> {
    DistinguishedName::parse(subject).map_err(|err| {
        PatternError(format!(
            "`{text}`: {err}. Expected the form of RFC 4514, as `openssl x509 -noout -subject -nameopt RFC2253 -in \
             FILE` prints it after `subject=`; a TOML text in single quotes keeps its backslashes"
        ))
    })
}

fn below(text: &str) -> Result<Text, PatternError> {
    match text.split_once('*') {
        None => Ok(Text::Exactly(text.to_owned())),
        Some((prefix, "")) if prefix.ends_with('/') => Ok(Text::Below(prefix.to_owned())),
        Some(_) => Err(PatternError(format!(
            "`{text}`: a `*` is allowed only at the end, after a `/`"
        ))),
    }
}

fn one_label(text: &str) -> Result<Text, PatternError> {
    let text = ServerName::new(text).to_string();
    match text.split_once('*') {
        None if text.is_empty() => Err(PatternError(
            "a DNS name must have at least one label".into(),
        )),
        None => Ok(Text::Exactly(text)),
        Some(("", suffix)) if suffix.starts_with('.') && !suffix.contains('*') => {
            Ok(Text::OneLabel(suffix.to_owned()))
        }
        Some(_) => Err(PatternError(format!(
            "`{text}`: a `*` is allowed only as the first label, as in *.workers.example.org"
        ))),
    }
}

impl fmt::Display for AccessRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Observer => "observer",
            Self::Admin => "admin",
            Self::Keys => "keys",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_patterns_match_exactly() {
        for (pattern, same, other) in [
            (
                "spiffe://example.org/ns/web/*",
                "spiffe://example.org/ns/web/a/b",
                "spiffe://example.org/ns/web/",
            ),
            (
                "spiffe://example.org/ns/web/*",
                "spiffe://example.org/ns/web/a",
                "spiffe://example.org/ns/webs/a",
            ),
            (
                "spiffe://example.org/a",
                "spiffe://example.org/a",
                "spiffe://example.org/a/b",
            ),
            ("uri:https://a.test/", "https://a.test/", "https://a.test/x"),
        ] {
            let IdentityPattern::Uri(text) = pattern.parse::<IdentityPattern>().unwrap() else {
                panic!()
            };
            assert!(text.matches(same) && !text.matches(other), "{pattern}");
        }
        for (pattern, same, other) in [
            ("dns:*.Workers.test", "a.workers.test", "a.b.workers.test"),
            ("dns:*.workers.test", "b.workers.test", ".workers.test"),
            ("dns:a.test", "a.test", "b.a.test"),
        ] {
            let IdentityPattern::Dns(text) = pattern.parse::<IdentityPattern>().unwrap() else {
                panic!()
            };
            assert!(text.matches(same) && !text.matches(other), "{pattern}");
        }
    }

    #[test]
    fn invalid_identity_patterns_are_refused() {
        for text in [
            "",
            "*",
            "uid:",
            "uid:x",
            "gid:-1",
            "dns:",
            "dns:.",
            "dns:a.*",
            "dns:*",
            "dns:*.*.test",
            "spiffe://a/*/b",
            "spiffe://a*",
            "uri:",
            "subject:",
            "subject:job",
            "subject:O=Admins, CN=job",
            "subject:/CN=job",
            "subject:CN = job",
            "root",
            "Local",
        ] {
            assert!(text.parse::<IdentityPattern>().is_err(), "{text}");
        }
    }
}
