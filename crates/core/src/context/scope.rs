//! The digest of everything that decides which sessions a context may resume.
//!
//! Contexts with equal scopes share a cache. A session made in one scope does not exist in another.
//! Version, cipher suite and server name are not part of the scope, because each resumption checks
//! them.

use std::fmt;

use aws_lc_rs::digest::{Context as Hasher, SHA256};
use tls_sessiond_types::hex;

/// SHA-256 over a list of fields. Each field follows its length, so that different lists have
/// different digests.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope([u8; 32]);

impl Scope {
    /// Returns the bytes of the digest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({self})")
    }
}

/// Collects the fields of a [`Scope`].
pub struct ScopeBuilder(Hasher);

impl ScopeBuilder {
    /// Begins a scope. `purpose` separates the scopes of different roles.
    pub fn new(purpose: &str) -> Self {
        Self(Hasher::new(&SHA256))
            .field("tls.sessiond.v1 scope")
            .field(purpose)
    }

    /// Adds a field.
    #[must_use]
    pub fn field(mut self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update(&(value.len() as u64).to_be_bytes());
        self.0.update(value);
        self
    }

    /// Adds a list: its length as one field, then each value as a field.
    #[must_use]
    pub fn list<T: AsRef<[u8]>>(self, values: impl ExactSizeIterator<Item = T>) -> Self {
        let counted = self.field((values.len() as u64).to_be_bytes());
        values.fold(counted, Self::field)
    }

    /// Returns the scope of the fields.
    pub fn finish(self) -> Scope {
        let mut scope = [0; 32];
        scope.copy_from_slice(self.0.finish().as_ref());
        Scope(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_together() {
        let scope = |fields: &[&str]| {
            fields
                .iter()
                .fold(ScopeBuilder::new("server"), |scope, field| {
                    scope.field(field)
                })
                .finish()
        };
        assert_eq!(scope(&["a", "b"]), scope(&["a", "b"]));
        assert_ne!(scope(&["ab"]), scope(&["a", "b"]));
        assert_ne!(scope(&["a", ""]), scope(&["a"]));
        assert_ne!(
            scope(&["a"]),
            ScopeBuilder::new("client").field("a").finish()
        );
        let list = |values: &[&str]| ScopeBuilder::new("server").list(values.iter()).finish();
        assert_ne!(list(&["a", "b"]), scope(&["a", "b"]));
        assert_ne!(list(&[]), list(&[""]));
    }
}
