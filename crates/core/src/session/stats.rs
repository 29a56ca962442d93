//! The counters of SSL_CTX_sess_number(3), one set for each context, and why sessions left or were missed.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use tls_sessiond_types::alert::Alert;

use super::{Miss, RemovalReason};
use crate::sync::{AtomicU64, Ordering};

/// A counter that only goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened under one context since the daemon started. A session knows the account of the context that it was
/// made under, and is told apart from others by its name.
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
    /// SSL_CTX_sess_hits: a server counts when it accepts the session, a client when the handshake ends.
    pub hits: Counter,
    /// Lookups that found nothing to resume, by reason.
    pub misses: Misses,
    /// Sessions that left the cache, by reason.
    pub removals: Removals,
    /// Handshakes that failed, by alert.
    pub failures: Failures,
}

impl Account {
    /// All counters at zero.
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
        Self { sent: codes(), received: codes(), silent: Counter::default() }
    }
}

impl Failures {
    /// One more. `None`: it ended without an alert.
    pub fn count(&self, alert: Option<Alert>) {
        match alert {
            None => self.silent.count(),
            Some(Alert { code, received: false }) => self.sent[usize::from(code)].count(),
            Some(Alert { code, received: true }) => self.received[usize::from(code)].count(),
        }
    }

    /// Those that have happened: ended without an alert, then by alerts that were sent, then by alerts that were received.
    pub fn all(&self) -> impl Iterator<Item = (Option<Alert>, u64)> {
        let by_alert = |received: bool| {
            let counters = if received { &self.received } else { &self.sent };
            (0..=u8::MAX)
                .zip(counters)
                .map(move |(code, count)| (Some(Alert { code, received }), count.get()))
        };
        let all = [(None, self.silent.get())].into_iter().chain(by_alert(false)).chain(by_alert(true));
        all.filter(|(_, count)| *count > 0)
    }
}

/// Lookups that found nothing.
#[derive(Debug, Default)]
pub struct Misses([Counter; Miss::ALL.len()]);

impl Misses {
    /// One more.
    pub fn count(&self, why: Miss) {
        self.0[why as usize].count();
    }

    /// How many for this reason.
    pub fn get(&self, why: Miss) -> u64 {
        self.0[why as usize].get()
    }

    /// SSL_CTX_sess_misses: offered, and not to be had, for whatever reason but its age.
    pub fn all_but_expired(&self) -> u64 {
        Miss::ALL.into_iter().filter(|&why| why != Miss::Expired).map(|why| self.get(why)).sum()
    }
}

/// Sessions that left: every put into a full cache counts one, so threads count apart.
#[derive(Debug, Default)]
pub struct Removals([Stripe; STRIPES]);

/// What some threads counted.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe([Counter; RemovalReason::ALL.len()]);

const STRIPES: usize = 8;

thread_local! {
    /// Which stripe is this thread's.
    static STRIPE: usize = {
        static THREADS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES
    };
}

impl Removals {
    /// One more.
    pub(crate) fn count(&self, why: RemovalReason) {
        self.0[STRIPE.with(|stripe| *stripe)].0[why as usize].count();
    }

    /// How many for this reason.
    pub fn get(&self, why: RemovalReason) -> u64 {
        self.0.iter().map(|stripe| stripe.0[why as usize].get()).sum()
    }
}
