//! Names of servers in canonical form.

use std::{borrow::Borrow, cmp::Ordering, fmt, hash, net::IpAddr, ops::Deref, sync::Arc};

/// A DNS name or IP address in canonical form: in ASCII lower case, without a trailing dot (RFC
/// 6066 section 3), and an address in the form of RFC 5952. Empty: no name.
///
/// The daemon converts every name from a peer, a worker, a certificate or a selector to this form
/// before it compares or stores the name. Equality, order and hash are those of the text.
#[derive(Clone)]
pub struct ServerName<'t>(Text<'t>);

#[derive(Clone)]
enum Text<'t> {
    Borrowed(&'t str),
    Shared(Arc<str>),
}

impl<'t> ServerName<'t> {
    /// No name, for a peer that sent none.
    pub const NONE: Self = Self(Text::Borrowed(""));

    /// Returns the canonical form of a name. Copies a name only if it must change, and every
    /// address.
    ///
    /// Does not validate the name. A text that is neither a DNS name nor an address is compared
    /// without regard to ASCII case and trailing dots.
    pub fn new(name: &'t str) -> Self {
        let undotted = name.trim_end_matches('.');
        // An address begins with a digit or has a colon. Few names do, so few are parsed.
        let may_be_address =
            matches!(undotted.as_bytes(), [b'0'..=b'9', ..]) || undotted.contains(':');
        if let Some(address) = may_be_address
            .then(|| undotted.parse::<IpAddr>().ok())
            .flatten()
        {
            return Self(Text::Shared(address.to_string().into()));
        }
        Self(
            match undotted.bytes().any(|byte| byte.is_ascii_uppercase()) {
                true => Text::Shared(undotted.to_ascii_lowercase().into()),
                false => Text::Borrowed(undotted),
            },
        )
    }

    /// Returns the same name without borrowing.
    pub fn into_owned(self) -> ServerName<'static> {
        ServerName(Text::Shared(match self.0 {
            Text::Borrowed(name) => name.into(),
            Text::Shared(name) => name,
        }))
    }
}

impl<'t> From<&'t str> for ServerName<'t> {
    fn from(name: &'t str) -> Self {
        Self::new(name)
    }
}

impl Default for ServerName<'_> {
    fn default() -> Self {
        Self::NONE
    }
}

impl Deref for ServerName<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Text::Borrowed(name) => name,
            Text::Shared(name) => name,
        }
    }
}

/// Allowed because hash and equality are those of the text.
impl Borrow<str> for ServerName<'_> {
    fn borrow(&self) -> &str {
        self
    }
}

impl PartialEq<ServerName<'_>> for ServerName<'_> {
    fn eq(&self, other: &ServerName<'_>) -> bool {
        **self == **other
    }
}

impl Eq for ServerName<'_> {}

impl Ord for ServerName<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl PartialOrd for ServerName<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl hash::Hash for ServerName<'_> {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Display for ServerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for ServerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_server_names_have_one_form() {
        for (told, name) in [
            ("a.test", "a.test"),
            ("A.Test.", "a.test"),
            ("a.test..", "a.test"),
            ("*.B.test", "*.b.test"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("::FFFF:192.0.2.1", "::ffff:192.0.2.1"),
            ("1.example", "1.example"),
            (".", ""),
            ("", ""),
        ] {
            assert_eq!(&*ServerName::new(told), name, "{told}");
            assert_eq!(ServerName::new(told).into_owned(), ServerName::new(name));
        }
    }

    #[test]
    fn canonical_name_is_not_copied() {
        for name in ["a.test", "a.test.", "1.example", ""] {
            assert!(
                matches!(ServerName::new(name).0, Text::Borrowed(_)),
                "{name}"
            );
        }
    }
}
