//! The counters of SSL_CTX_sess_number(3) for each context, and counts of removals and misses.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use tls_sessiond_types::alert::Alert;

use super::{Miss, RemovalReason, Role, Version, histogram::Histogram};
use crate::sync::{AtomicU64, Ordering};

/// A counter that only increases.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one context since the daemon started.
///
/// A session references the account of the context that it was made under. Accounts are equal if
/// their names are.
#[derive(Debug)]
pub struct Account {
    /// The context's name.
    pub name: Arc<str>,
    /// SSL_CTX_sess_accept: handshakes begun as server.
    pub accept: Counter,
    /// SSL_CTX_sess_accept_good: handshakes finished as server.
    pub accept_good: Counter,
    /// SSL_CTX_sess_connect: handshakes begun as client.
    pub connect: Counter,
    /// SSL_CTX_sess_connect_good: handshakes finished as client.
    pub connect_good: Counter,
    /// SSL_CTX_sess_hits. A server counts when it accepts the session, a client when the handshake
    /// ends.
    pub hits: Counter,
    /// Lookups that found nothing to resume, by reason.
    pub misses: Misses,
    /// Sessions that were removed from the cache, by reason.
    pub removals: Removals,
    /// Handshakes that failed, by alert.
    pub failures: Failures,
    /// Handshakes that finished, by role, version, and whether they resumed a session.
    pub finished: Finished,
    /// How long finished handshakes of the daemon's engine took, from their first step to their
    /// last. The network and the peer are part of it.
    pub durations: Histogram,
}

impl Account {
    /// Creates an account with all counters at zero.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            accept: Counter::default(),
            accept_good: Counter::default(),
            connect: Counter::default(),
            connect_good: Counter::default(),
            hits: Counter::default(),
            misses: Misses::default(),
            removals: Removals::default(),
            failures: Failures::default(),
            finished: Finished::default(),
            durations: Histogram::default(),
        }
    }
}

impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Account {}

impl Hash for Account {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// Handshakes that failed, by the alert that ended them.
#[derive(Debug)]
pub struct Failures {
    sent: Box<[Counter]>,
    received: Box<[Counter]>,
    silent: Counter,
}

impl Default for Failures {
    fn default() -> Self {
        let codes = || (0..=u8::MAX).map(|_| Counter::default()).collect();
        Self {
            sent: codes(),
            received: codes(),
            silent: Counter::default(),
        }
    }
}

impl Failures {
    /// Adds one. `None`: the handshake ended without an alert.
    pub fn count(&self, alert: Option<Alert>) {
        match alert {
            None => self.silent.count(),
            Some(Alert {
                code,
                received: false,
            }) => self.sent[usize::from(code)].count(),
            Some(Alert {
                code,
                received: true,
            }) => self.received[usize::from(code)].count(),
        }
    }

    /// Returns the counts that are not zero: without an alert, then by sent alert, then by received
    /// alert.
    pub fn all(&self) -> impl Iterator<Item = (Option<Alert>, u64)> {
        let by_alert = |received: bool| {
            let counters = if received { &self.received } else { &self.sent };
            (0..=u8::MAX)
                .zip(counters)
                .map(move |(code, count)| (Some(Alert { code, received }), count.get()))
        };
        let all = [(None, self.silent.get())]
            .into_iter()
            .chain(by_alert(false))
            .chain(by_alert(true));
        all.filter(|(_, count)| *count > 0)
    }
}

/// The kind of a finished handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeKind {
    /// The side of the connection.
    pub role: Role,
    /// The version. `None`: the worker has resumed a session that this daemon does not know.
    pub version: Option<Version>,
    /// Whether it resumed a session.
    pub resumed: bool,
}

impl HandshakeKind {
    /// Returns all kinds, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        [Role::Server, Role::Client].into_iter().flat_map(|role| {
            let versions = [None, Some(Version::Tls12), Some(Version::Tls13)];
            versions.into_iter().flat_map(move |version| {
                [false, true].into_iter().map(move |resumed| Self {
                    role,
                    version,
                    resumed,
                })
            })
        })
    }

    fn number(self) -> usize {
        let role = usize::from(self.role == Role::Client);
        let version = match self.version {
            None => 0,
            Some(Version::Tls12) => 1,
            Some(Version::Tls13) => 2,
        };
        (role * 3 + version) * 2 + usize::from(self.resumed)
    }
}

/// Handshakes that finished, by kind.
#[derive(Debug, Default)]
pub struct Finished([Counter; 12]);

impl Finished {
    /// Adds one.
    pub(crate) fn count(&self, kind: HandshakeKind) {
        self.0[kind.number()].count();
    }

    /// Returns the count of this kind.
    pub fn get(&self, kind: HandshakeKind) -> u64 {
        self.0[kind.number()].get()
    }
}

/// Lookups that found nothing to resume, by reason.
#[derive(Debug, Default)]
pub struct Misses([Counter; Miss::ALL.len()]);

impl Misses {
    /// Adds one.
    pub fn count(&self, why: Miss) {
        self.0[why as usize].count();
    }

    /// Returns the count of this reason.
    pub fn get(&self, why: Miss) -> u64 {
        self.0[why as usize].get()
    }

    /// Returns SSL_CTX_sess_misses: sessions that were offered and not found, for all reasons but
    /// [`Miss::Expired`].
    pub fn all_but_expired(&self) -> u64 {
        Miss::ALL
            .into_iter()
            .filter(|&why| why != Miss::Expired)
            .map(|why| self.get(why))
            .sum()
    }
}

/// Sessions that were removed, by reason.
///
/// Every put into a full cache counts a removal. So threads count in separate stripes.
#[derive(Debug, Default)]
pub struct Removals([Stripe; STRIPES]);

/// The counts of some threads.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe([Counter; RemovalReason::ALL.len()]);

const STRIPES: usize = 8;

thread_local! {
    /// The index of this thread's stripe.
    static STRIPE: usize = {
        static THREADS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES
    };
}

impl Removals {
    /// Adds one.
    pub(crate) fn count(&self, why: RemovalReason) {
        self.0[STRIPE.with(|stripe| *stripe)].0[why as usize].count();
    }

    /// Returns the count of this reason.
    pub fn get(&self, why: RemovalReason) -> u64 {
        self.0
            .iter()
            .map(|stripe| stripe.0[why as usize].get())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_handshake_has_a_number_of_its_own() {
        let numbers: Vec<_> = HandshakeKind::all().map(HandshakeKind::number).collect();
        assert_eq!(numbers, (0..12).collect::<Vec<_>>());
    }
}
