//! Revocations that all daemons of a shared store know.
//!
//! A daemon writes a revocation into the store, raises the version in every bucket, and answers
//! RevokeSessions then. From that moment, the store refuses the lookups and puts of every daemon
//! that has not read the revocation.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::rand;
use tls_sessiond_store::script::{Request, Revocation};
use tls_sessiond_types::server_name::ServerName;

use super::{Cache, revocation::Selector};
use crate::{
    clock::{Now, Timestamp, WallTime},
    fleet::FleetStore,
    session::LIFETIME_MAX,
    sync::RwLock,
};

/// How much a revocation is extended for the sessions of a shared store: daemons whose clocks differ
/// by less revoke the same sessions.
pub const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(60);

/// A revocation, as this daemon has read it.
#[derive(Debug)]
struct Known {
    id: [u8; 16],
    scopes: Vec<[u8; 32]>,
    selector: Selector,
    before: Timestamp,
    stored: Revocation,
}

/// The revocations of a shared store that this daemon knows.
#[derive(Debug, Default)]
pub struct SharedRevocations(RwLock<Vec<Known>>);

impl SharedRevocations {
    /// Makes the request that adds a revocation for the caches with these scopes. `None`: the system
    /// has no random numbers.
    pub fn add(
        fleet: &FleetStore,
        caches: &[Arc<Cache>],
        selector: &Selector,
        before: WallTime,
        now: Now,
    ) -> Option<Request> {
        let mut id = [0; 16];
        rand::fill(&mut id).ok()?;
        let ends = now.wall().after(LIFETIME_MAX).after(2 * CLOCKS_DIFFER_MAX);
        let scopes = caches.iter().map(|cache| &*cache.scope);
        let sealed = fleet.seal_revocation(&id, &encode(scopes, selector, before))?;
        let entry = Revocation {
            id,
            ends: ends.as_millis(),
            sealed,
        };
        Some(Request::Revoke {
            entries: vec![entry],
            known: fleet.revision(),
        })
    }

    /// Takes the revocations that the store has, and applies those that are new to the caches that
    /// they name.
    pub fn learn<'c>(
        &self,
        fleet: &FleetStore,
        entries: Vec<Revocation>,
        caches: impl Iterator<Item = &'c Arc<Cache>> + Clone,
        now: Now,
    ) {
        let mut known = self.0.write();
        known.retain(|known| known.before.after(LIFETIME_MAX) > now.at);
        for stored in entries {
            if known.iter().any(|known| known.id == stored.id) {
                continue;
            }
            // One that does not open was sealed with a key that this daemon does not have: neither
            // has it the sessions that the other daemon has sealed.
            let Some((scopes, selector, before)) = fleet
                .open_revocation(&stored.id, &stored.sealed)
                .and_then(|bytes| decode(&bytes))
            else {
                continue;
            };
            let revocation = Known {
                id: stored.id,
                scopes,
                selector,
                before: now.offset.at(before.after(CLOCKS_DIFFER_MAX)),
                stored,
            };
            caches.clone().for_each(|cache| revocation.apply(cache));
            known.push(revocation);
        }
    }

    /// Applies all of them to a new cache.
    pub(super) fn apply(&self, cache: &Cache) {
        self.0.read().iter().for_each(|known| known.apply(cache));
    }

    /// Returns all of them as the store had them, for a store that has lost some.
    pub fn stored(&self) -> Vec<Revocation> {
        let known = self.0.read();
        known.iter().map(|known| known.stored.clone()).collect()
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Known {
    fn apply(&self, cache: &Cache) {
        if cache.fleet().is_some() && self.scopes.iter().any(|scope| *scope == *cache.scope) {
            cache.revoke(self.selector.clone(), self.before);
        }
    }
}

const VERSION: u8 = 1;

fn encode<'s>(
    scopes: impl Iterator<Item = &'s [u8]> + Clone,
    selector: &Selector,
    before: WallTime,
) -> Vec<u8> {
    let (kind, text): (u8, &[u8]) = match selector {
        Selector::All => (0, &[]),
        Selector::Certificate(digest) => (1, digest),
        Selector::Uri(uri) => (2, uri.as_bytes()),
        Selector::DnsName(name) => (3, name.as_bytes()),
        Selector::ServerName(name) => (4, name.as_bytes()),
    };
    let mut out = vec![VERSION, kind];
    out.extend_from_slice(&before.as_millis().to_be_bytes());
    // A URI has at most 2 KiB.
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(text);
    scopes.for_each(|scope| out.extend_from_slice(scope));
    out
}

fn decode(bytes: &[u8]) -> Option<(Vec<[u8; 32]>, Selector, WallTime)> {
    let (&[VERSION, kind], rest) = bytes.split_first_chunk::<2>()? else {
        return None;
    };
    let (before, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    let (scopes, []) = rest.as_chunks::<32>() else {
        return None;
    };
    let name = |text| Some(ServerName::new(std::str::from_utf8(text).ok()?).into_owned());
    let selector = match kind {
        0 => Selector::All,
        1 => Selector::Certificate(text.try_into().ok()?),
        2 => Selector::Uri(std::str::from_utf8(text).ok()?.into()),
        3 => Selector::DnsName(name(text)?),
        4 => Selector::ServerName(name(text)?),
        _ => return None,
    };
    let before = WallTime::from_millis(u64::from_be_bytes(*before));
    Some((scopes.to_vec(), selector, before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revocations_are_read_as_they_were_written_and_no_other_way() {
        let scopes = [[1; 32], [2; 32]];
        let before = WallTime::from_millis(1_700_000_000_123);
        for selector in [
            Selector::All,
            Selector::Certificate([7; 32]),
            Selector::Uri("spiffe://a.test/b".into()),
            Selector::DnsName(ServerName::new("a.test").into_owned()),
            Selector::ServerName(ServerName::new("b.test").into_owned()),
        ] {
            let bytes = encode(scopes.iter().map(|scope| &scope[..]), &selector, before);
            assert_eq!(decode(&bytes), Some((scopes.to_vec(), selector, before)));
            for length in 0..bytes.len() {
                let cut = decode(&bytes[..length]);
                // Without its last scopes it is valid, and sealed values cannot be cut.
                assert!(
                    cut.is_none() || (bytes.len() - length).is_multiple_of(32),
                    "{length}"
                );
            }
            let other = [&[9], &bytes[1..]].concat();
            assert_eq!(decode(&other), None, "another version");
        }
    }
}
