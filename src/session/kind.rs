//! What many sessions have in common, held once.
//!
//! All sessions of one virtual host agree in nearly everything but id, secret and times. So a session costs what is
//! its own, and the rest is shared (OVERHEAD is held by a test).

use std::{
    borrow::{Borrow, Cow},
    collections::HashSet,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    net::IpAddr,
    sync::Arc,
};

use foldhash::quality::FixedState;

use super::{Format, PeerIdentity, Role, SessionId, Terms, Version, stats::Account};
use crate::sync::RwLock;

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
pub fn canonical(server_name: &str) -> Cow<'_, str> {
    // An address has a digit in front or a colon; few names have.
    let may_be = matches!(server_name.as_bytes(), [b'0'..=b'9', ..]) || server_name.contains(':');
    match may_be.then(|| server_name.parse::<IpAddr>().ok()).flatten() {
        Some(address) => address.to_string().into(),
        None if server_name.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            server_name.to_ascii_lowercase().into()
        }
        None => server_name.into(),
    }
}

/// The kinds that are in use.
///
/// There is one set for each part of the sessions, so that one kind may be here several times: each session counts as a user
/// of its kind when it comes and when it goes, and threads that all count at one place wait for each other.
pub struct Kinds {
    parts: Box<[Part]>,
}

/// A lock and what is behind it, apart from its neighbours.
#[repr(align(128))]
struct Part(RwLock<Set>);

struct Set {
    all: HashSet<Shared, FixedState>,
    /// How many there may be before those that nobody uses are looked for.
    enough: usize,
}

/// A kind, found by what it is.
#[derive(PartialEq, Eq, Hash)]
struct Shared(Arc<Kind>);

impl Borrow<Kind> for Shared {
    fn borrow(&self) -> &Kind {
        &self.0
    }
}

const PARTS: usize = 32;
const ENOUGH: usize = 8;

impl Default for Kinds {
    fn default() -> Self {
        // Names and bindings are chosen by others: keyed at random.
        let hasher = FixedState::with_seed(RandomState::new().hash_one(0));
        let empty = || Set { all: HashSet::with_hasher(hasher.clone()), enough: ENOUGH };
        Self { parts: (0..PARTS).map(|_| Part(RwLock::new(empty()))).collect() }
    }
}

impl Kinds {
    /// The kind that is like this, for the session with this id.
    pub fn intern(&self, kind: Kind, id: &SessionId) -> Arc<Kind> {
        // Libraries make random ids; where they put something before that, it is the end that differs.
        let last = id.as_bytes().last().copied().unwrap_or_default();
        let part = &self.parts[usize::from(last) % PARTS].0;
        if let Some(held) = part.read().all.get(&kind) {
            return Arc::clone(&held.0);
        }
        let mut set = part.write();
        if let Some(held) = set.all.get(&kind) {
            return Arc::clone(&held.0);
        }
        if set.all.len() >= set.enough {
            // There are twice as many as were in use the last time, so it costs each of them a constant.
            set.all.retain(|held| Arc::strong_count(&held.0) > 1);
            set.enough = 2 * set.all.len() + ENOUGH;
        }
        let kind = Arc::new(kind);
        set.all.insert(Shared(Arc::clone(&kind)));
        kind
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.0.read().all.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
    fn like_kinds_are_one_for_each_part_and_unused_ones_are_forgotten() {
        let kinds = Kinds::default();
        let id = |last: u8| SessionId::new(&[7, last]).unwrap();
        let kept = kinds.intern(kind(1), &id(1));
        for other in 2..100_000_u32 {
            let [last, ..] = other.to_le_bytes();
            kinds.intern(kind(other), &id(last));
            assert!(kinds.len() <= PARTS * ENOUGH + 3, "{} kinds", kinds.len());
        }
        assert!(Arc::ptr_eq(&kept, &kinds.intern(kind(1), &id(1))));
        assert!(!Arc::ptr_eq(&kept, &kinds.intern(kind(1), &id(2))), "it is counted elsewhere");
    }
}
