//! Limits on the bytes of handshakes that peers have begun and not continued.
//!
//! Until a handshake message is complete, its bytes are held in the first flight or in the engine.
//! The peer decides how many bytes that are and for how long, and needs no certificate to do so.
//! Therefore these bytes are counted, for each owner of connections and in total. A connection that
//! holds such bytes lapses after [`UNANSWERED_TIMEOUT`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::Error;
use crate::clock::Timestamp;

/// Most bytes of all connections together: 64 MiB.
pub const UNANSWERED_MAX: usize = 64 << 20;
/// Most bytes of the connections of one owner together: half of [`UNANSWERED_MAX`].
pub const UNANSWERED_OF_ONE_MAX: usize = UNANSWERED_MAX / 2;
/// How long a connection may hold bytes of an unfinished handshake: 60 s.
pub const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(60);

/// A limited number of bytes that several connections share.
#[derive(Debug)]
struct Pot {
    bytes: AtomicUsize,
    most: usize,
}

impl Pot {
    fn add(&self, bytes: usize) -> bool {
        let fits = |held: usize| held.checked_add(bytes).filter(|&sum| sum <= self.most);
        self.bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .is_ok()
    }

    fn subtract(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Counts the bytes of all connections. Clones share the count.
#[derive(Clone, Debug)]
pub(super) struct Unanswered(Arc<Pot>);

/// Counts the bytes of one owner's connections. Clones share the count.
#[derive(Clone, Debug)]
pub(super) struct UnansweredOfOne {
    all: Arc<Pot>,
    own: Arc<Pot>,
}

/// Counts the bytes of one connection. Dropping the lease subtracts them.
#[derive(Debug)]
pub(super) struct Lease {
    of: UnansweredOfOne,
    bytes: usize,
    /// Since when the connection has held bytes.
    since: Option<Timestamp>,
}

impl Default for Unanswered {
    fn default() -> Self {
        Self(Arc::new(Pot {
            bytes: AtomicUsize::new(0),
            most: UNANSWERED_MAX,
        }))
    }
}

impl Unanswered {
    pub(super) fn of_one(&self) -> UnansweredOfOne {
        let own = Arc::new(Pot {
            bytes: AtomicUsize::new(0),
            most: UNANSWERED_OF_ONE_MAX,
        });
        UnansweredOfOne {
            all: Arc::clone(&self.0),
            own,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Acquire)
    }
}

impl UnansweredOfOne {
    pub(super) fn lease(&self) -> Lease {
        Lease {
            of: self.clone(),
            bytes: 0,
            since: None,
        }
    }
}

impl Lease {
    /// Replaces the count of this connection by `bytes`.
    ///
    /// # Errors
    /// This would exceed the limit of the owner or of all connections. The count has not changed.
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

    /// Sets the count of this connection to zero.
    pub(super) fn release(&mut self) {
        *self = self.of.lease();
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the latest time at which the connection lapses. `None`: it holds no bytes.
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
    fn bytes_are_limited_per_owner_and_in_total_and_returned() {
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
        assert_eq!(
            first.len(),
            UNANSWERED_OF_ONE_MAX / EACH,
            "half is left for other owners"
        );
        let (second, _) = fill(&owners[1]);
        assert_eq!(second.len(), first.len());
        let (third, err) = fill(&owners[2]);
        assert!(matches!(err, Error::Unanswered(_)));
        assert_eq!(
            all.bytes(),
            (first.len() + second.len() + third.len()) * EACH
        );
        drop((first, third));
        let mut lease = owners[0].lease();
        lease.keep(100, at(5)).unwrap();
        lease.keep(50, at(9)).unwrap();
        assert_eq!(
            (lease.bytes(), lease.ends()),
            (50, Some(at(5).after(UNANSWERED_TIMEOUT)))
        );
        drop(second);
        assert_eq!(all.bytes(), 50);
        lease.keep(0, at(10)).unwrap();
        assert_eq!((all.bytes(), lease.ends()), (0, None));
        lease.keep(7, at(11)).unwrap();
        lease.release();
        assert_eq!((all.bytes(), lease.ends()), (0, None));
    }
}
