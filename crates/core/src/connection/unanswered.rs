//! Bytes of handshakes that peers have begun and not gone on with.
//!
//! Until a handshake message is whole, what came of it is kept: in the first flight, or in the engine. A peer decides how much
//! that is and for how long, and needs no certificate for it. So these bytes are counted, for each owner of connections and in
//! all, and a connection that holds any lapses after [`UNANSWERED_TIMEOUT`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::Error;
use crate::clock::Timestamp;

/// Most bytes of all connections.
pub const UNANSWERED_MAX: usize = 64 << 20;
/// Most bytes of the connections of one owner.
pub const UNANSWERED_OF_ONE_MAX: usize = UNANSWERED_MAX / 2;
/// How long a handshake may take to go on.
pub const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(60);

/// A number of bytes that several connections add to.
#[derive(Debug)]
struct Pot {
    bytes: AtomicUsize,
    most: usize,
}

impl Pot {
    fn add(&self, bytes: usize) -> bool {
        let fits = |held: usize| held.checked_add(bytes).filter(|&sum| sum <= self.most);
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    fn subtract(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// The bytes of all connections. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct Unanswered(Arc<Pot>);

/// The bytes of one owner's connections. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct UnansweredOfOne {
    all: Arc<Pot>,
    own: Arc<Pot>,
}

/// The bytes of one connection. Dropping it gives them back.
#[derive(Debug)]
pub(super) struct Lease {
    of: UnansweredOfOne,
    bytes: usize,
    /// Since when there are any.
    since: Option<Timestamp>,
}

impl Default for Unanswered {
    fn default() -> Self {
        Self(Arc::new(Pot { bytes: AtomicUsize::new(0), most: UNANSWERED_MAX }))
    }
}

impl Unanswered {
    pub(super) fn of_one(&self) -> UnansweredOfOne {
        let own = Arc::new(Pot { bytes: AtomicUsize::new(0), most: UNANSWERED_OF_ONE_MAX });
        UnansweredOfOne { all: Arc::clone(&self.0), own }
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Acquire)
    }
}

impl UnansweredOfOne {
    pub(super) fn lease(&self) -> Lease {
        Lease { of: self.clone(), bytes: 0, since: None }
    }
}

impl Lease {
    /// Counts so many bytes from now on, in place of those before.
    ///
    /// # Errors
    /// There are too many, of this owner or in all. Nothing has changed then.
    pub(super) fn keep(&mut self, bytes: usize, now: Timestamp) -> Result<(), Error> {
        if let Some(more) = bytes.checked_sub(self.bytes) {
            if !self.of.own.add(more) {
                return Err(Error::UnansweredOfOwner(UNANSWERED_OF_ONE_MAX));
            }
            if !self.of.all.add(more) {
                self.of.own.subtract(more);
                return Err(Error::Unanswered(UNANSWERED_MAX));
            }
        } else {
            let back = self.bytes - bytes;
            self.of.own.subtract(back);
            self.of.all.subtract(back);
        }
        self.bytes = bytes;
        self.since = (bytes > 0).then(|| self.since.unwrap_or(now));
        Ok(())
    }

    /// Gives all of them back.
    pub(super) fn release(&mut self) {
        *self = self.of.lease();
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When a connection that holds bytes lapses at the latest.
    pub(super) fn ends(&self) -> Option<Timestamp> {
        self.since.map(|since| since.after(UNANSWERED_TIMEOUT))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of.own.subtract(self.bytes);
        self.of.all.subtract(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_for_each_owner_and_in_all_and_come_back() {
        const EACH: usize = 80 << 10;
        let at = Timestamp::from_millis;
        let all = Unanswered::default();
        let owners = [all.of_one(), all.of_one(), all.of_one()];
        let fill = |owner: &UnansweredOfOne| {
            let mut leases = Vec::new();
            loop {
                let mut lease = owner.lease();
                match lease.keep(EACH, at(1)) {
                    Ok(()) => leases.push(lease),
                    Err(err) => return (leases, err),
                }
            }
        };
        let (first, err) = fill(&owners[0]);
        assert!(matches!(err, Error::UnansweredOfOwner(_)));
        assert_eq!(first.len(), UNANSWERED_OF_ONE_MAX / EACH, "half is for others");
        let (second, _) = fill(&owners[1]);
        assert_eq!(second.len(), first.len());
        let (third, err) = fill(&owners[2]);
        assert!(matches!(err, Error::Unanswered(_)));
        assert_eq!(all.bytes(), (first.len() + second.len() + third.len()) * EACH);
        drop((first, third));
        let mut lease = owners[0].lease();
        lease.keep(100, at(5)).unwrap();
        lease.keep(50, at(9)).unwrap();
        assert_eq!((lease.bytes(), lease.ends()), (50, Some(at(5).after(UNANSWERED_TIMEOUT))));
        drop(second);
        assert_eq!(all.bytes(), 50);
        lease.keep(0, at(10)).unwrap();
        assert_eq!((all.bytes(), lease.ends()), (0, None));
        lease.keep(7, at(11)).unwrap();
        lease.release();
        assert_eq!((all.bytes(), lease.ends()), (0, None));
    }
}
