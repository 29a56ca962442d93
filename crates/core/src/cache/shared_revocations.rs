//! Revocations that all daemons of a shared store know.
//!
//! A daemon writes a revocation into the store, raises the version in every bucket, and answers
//! RevokeSessions then. From that moment, the store refuses the lookups and puts of every daemon
//! that has not read the revocation.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tls_sessiond_store::script::{REVOCATIONS_MAX, REVOCATIONS_OF_ALL, Request, Revocation};
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
    contexts: Vec<String>,
    selector: Selector,
    before: Timestamp,
    stored: Revocation,
}

/// The revocations of a shared store that this daemon knows.
#[derive(Debug, Default)]
pub struct SharedRevocations(RwLock<Vec<Known>>);

impl SharedRevocations {
    /// Makes the request that adds a revocation for the contexts with these names, at every daemon.
    /// `None`: the system has no random numbers.
    pub fn add(
        fleet: &FleetStore,
        contexts: &[&str],
        selector: &Selector,
        before: WallTime,
    ) -> Option<Request> {
        let content = encode(contexts, selector);
        let keys = fleet.keys();
        // Of the same content there is one revocation: the one with the latest time.
        let id = keys.names().revocation(&content);
        let ends = before.after(LIFETIME_MAX).after(2 * CLOCKS_DIFFER_MAX);
        let bytes = [&before.as_millis().to_be_bytes()[..], &content].concat();
        let entry = Revocation {
            id,
            ends: ends.as_millis(),
            sealed: keys.seal_revocation(&id, &bytes).ok()?,
        };
        Some(Request::Revoke {
            entries: vec![entry],
            known: fleet.told(),
            most: match selector {
                Selector::All => REVOCATIONS_MAX + REVOCATIONS_OF_ALL,
                _ => REVOCATIONS_MAX,
            },
        })
    }

    /// Takes the revocations that the store has, and applies those that are new. `caches` returns
    /// those of a context.
    pub fn learn(
        &self,
        fleet: &FleetStore,
        entries: Vec<Revocation>,
        caches: impl Fn(&str) -> Vec<Arc<Cache>>,
        now: Now,
    ) {
        let mut known = self.0.write();
        known.retain(|known| known.before.after(LIFETIME_MAX) > now.at);
        for stored in entries {
            let held = known.iter().position(|known| known.id == stored.id);
            if held.is_some_and(|place| known[place].stored.ends >= stored.ends) {
                continue;
            }
            // Every daemon has the key of names, so only what no daemon has written does not open.
            let opened = fleet.keys().open_revocation(&stored.id, &stored.sealed);
            let Some((contexts, selector, before)) = opened.ok().and_then(|bytes| decode(&bytes))
            else {
                fleet.counters.unopened.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let revocation = Known {
                id: stored.id,
                contexts,
                selector,
                before: now.offset.at(before.after(CLOCKS_DIFFER_MAX)),
                stored,
            };
            for context in &revocation.contexts {
                caches(context)
                    .iter()
                    .for_each(|cache| revocation.apply(cache));
            }
            match held {
                Some(place) => known[place] = revocation,
                None => known.push(revocation),
            }
        }
    }

    /// Applies all of them to a cache of the context with this name.
    pub fn apply(&self, context: &str, cache: &Cache) {
        let known = self.0.read();
        let of_context = known
            .iter()
            .filter(|known| known.contexts.iter().any(|name| name == context));
        of_context.for_each(|known| known.apply(cache));
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
        cache.revoke(self.selector.clone(), self.before);
    }
}

const VERSION: u8 = 1;

/// Returns what a revocation revokes, without its time.
fn encode(contexts: &[&str], selector: &Selector) -> Vec<u8> {
    let (kind, text): (u8, &[u8]) = match selector {
        Selector::All => (0, &[]),
        Selector::Certificate(digest) => (1, digest),
        Selector::Uri(uri) => (2, uri.as_bytes()),
        Selector::DnsName(name) => (3, name.as_bytes()),
        Selector::ServerName(name) => (4, name.as_bytes()),
    };
    let mut out = vec![VERSION, kind];
    let mut field = |bytes: &[u8]| {
        // A URI has at most 2 KiB, and names have fewer.
        out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(bytes);
    };
    field(text);
    let mut contexts = contexts.to_vec();
    contexts.sort_unstable();
    contexts.dedup();
    contexts.iter().for_each(|name| field(name.as_bytes()));
    out
}

fn decode(bytes: &[u8]) -> Option<(Vec<String>, Selector, WallTime)> {
    let (before, rest) = bytes.split_first_chunk::<8>()?;
    let (&[VERSION, kind], mut rest) = rest.split_first_chunk::<2>()? else {
        return None;
    };
    let mut field = || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (field, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
        rest = after;
        Some(field)
    };
    let text = field()?;
    let mut contexts = Vec::new();
    while let Some(name) = field() {
        contexts.push(String::from_utf8(name.to_vec()).ok()?);
    }
    if !rest.is_empty() {
        return None;
    }
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
    Some((contexts, selector, before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revocations_are_read_as_they_were_written_and_no_other_way() {
        let before = WallTime::from_millis(1_700_000_000_123);
        for selector in [
            Selector::All,
            Selector::Certificate([7; 32]),
            Selector::Uri("spiffe://a.test/b".into()),
            Selector::DnsName(ServerName::new("a.test").into_owned()),
            Selector::ServerName(ServerName::new("b.test").into_owned()),
        ] {
            let content = encode(&["web", "mail", "web"], &selector);
            assert_eq!(
                content,
                encode(&["mail", "web"], &selector),
                "the order of names does not count"
            );
            let bytes = [&before.as_millis().to_be_bytes()[..], &content].concat();
            let contexts = vec!["mail".to_owned(), "web".to_owned()];
            assert_eq!(decode(&bytes), Some((contexts, selector, before)));
            for length in 0..bytes.len() {
                // Without its last names it is valid, and sealed values cannot be cut.
                let names = decode(&bytes[..length]).map_or(0, |(names, ..)| names.len());
                assert!(names < 2, "{length}");
            }
            let other = [&bytes[..8], &[9], &bytes[9..]].concat();
            assert_eq!(decode(&other), None, "another version");
        }
    }
}
