//! What many sessions have in common, held once.
//!
//! All sessions of one virtual host agree in nearly everything but id, secret and times. So a session costs what is
//! its own, and the rest is shared (OVERHEAD is held by a test).

use std::{
    borrow::{Borrow, Cow},
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use dashmap::DashSet;

use super::{Format, PeerIdentity, Role, Terms, Version, stats::Account};
use crate::sync::{AtomicUsize, Ordering};

/// All that two sessions may have in common.
#[derive(Debug)]
pub struct Kind {
    /// Whose it is.
    pub role: Role,
    /// The one version it can be resumed with.
    pub version: Version,
    /// IANA name of the cipher suite.
    pub cipher_suite: Cow<'static, str>,
    /// Client: whom it resumes with. Server: the SNI it was made under, or empty.
    pub server_name: Arc<str>,
    /// Who can read its secret part.
    pub format: Format,
    /// Whatever else its worker says must agree.
    pub binding: Box<[u8]>,
    /// Handed out at most once (RFC 8446 appendix C.4).
    pub single_use: bool,
    /// The account of the context it was made under.
    pub account: Arc<Account>,
    /// Who the peer proved to be.
    pub peer: Option<Arc<PeerIdentity>>,
}

impl Kind {
    /// Whether its sessions may be resumed on these terms.
    pub fn fits(&self, terms: &Terms<'_>) -> bool {
        self.format == *terms.format
            && same(&self.binding, terms.binding)
            && terms.versions.contains(&self.version)
            && *self.server_name == *terms.server_name
    }

    /// What a worker or a peer decides the length of, in bytes.
    pub fn size(&self) -> usize {
        let names = self.peer.as_deref().map_or(0, |peer| {
            peer.dns_names.iter().chain(&peer.uris).chain([&peer.subject]).map(String::len).sum()
        });
        self.binding.len() + self.server_name.len() + names
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.role == other.role
            && self.version == other.version
            && self.single_use == other.single_use
            && self.server_name == other.server_name
            && self.cipher_suite == other.cipher_suite
            && self.format == other.format
            && same(&self.binding, &other.binding)
            && self.account == other.account
            && self.peer == other.peer
    }
}

impl Eq for Kind {}

/// Of what there is much of: the rest has few values, and is compared.
impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.server_name.hash(state);
        self.binding.hash(state);
        if let Some(peer) = &self.peer {
            state.write(&peer.certificate_sha256);
        }
    }
}

/// Whether they are alike. An empty slice points nowhere, and some processors take long to find out that none of its no
/// bytes is read: the C library compares with masks.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && (one.is_empty() || one == other)
}

/// A server's name as sessions have it: in lower case, an address in its one form (RFC 5952).
pub fn canonical(server_name: &str) -> String {
    match server_name.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => server_name.to_ascii_lowercase(),
    }
}

/// The kinds that are in use.
pub struct Kinds {
    all: DashSet<Shared>,
    count: AtomicUsize,
    /// How many there may be before those that nobody uses are looked for.
    enough: AtomicUsize,
}

/// A kind, found by what it is.
struct Shared(Arc<Kind>);

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Shared {}

impl Hash for Shared {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Borrow<Kind> for Shared {
    fn borrow(&self) -> &Kind {
        &self.0
    }
}

const ENOUGH: usize = 64;

impl Default for Kinds {
    fn default() -> Self {
        Self { all: DashSet::new(), count: AtomicUsize::new(0), enough: AtomicUsize::new(ENOUGH) }
    }
}

impl Kinds {
    /// The one kind that is like this.
    pub fn intern(&self, kind: Kind) -> Arc<Kind> {
        if let Some(held) = self.all.get(&kind) {
            return Arc::clone(&held.0);
        }
        let kind = Arc::new(kind);
        if self.all.insert(Shared(Arc::clone(&kind)))
            && self.count.fetch_add(1, Ordering::Relaxed) >= self.enough.load(Ordering::Relaxed)
        {
            self.forget_unused();
        }
        // Of two who came at once one is not in the set: that costs memory, and nothing else.
        kind
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asked when there are twice as many as were in use the last time, so that it costs each of them a constant.
    fn forget_unused(&self) {
        self.all.retain(|held| {
            let used = Arc::strong_count(&held.0) > 1;
            if !used {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            used
        });
        self.enough.store(2 * self.len() + ENOUGH, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(binding: u32) -> Kind {
        Kind {
            role: Role::Server,
            version: Version::Tls12,
            cipher_suite: "".into(),
            server_name: "a.test".into(),
            format: Format::Rustls,
            binding: binding.to_be_bytes().into(),
            single_use: false,
            account: Arc::new(Account::new("default")),
            peer: None,
        }
    }

    #[test]
    fn like_kinds_are_one_and_unused_ones_are_forgotten() {
        let kinds = Kinds::default();
        let kept = kinds.intern(kind(1));
        for other in 2..100_000 {
            kinds.intern(kind(other));
            assert!(kinds.len() <= 2 * ENOUGH + 4, "{} kinds", kinds.len());
        }
        assert!(Arc::ptr_eq(&kept, &kinds.intern(kind(1))));
        assert_eq!(kinds.len(), kinds.all.len());
    }
}
