//! A limited resource: how much of it is taken in all and by each identity.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::api::error::Refusal;

/// The reserve of an identity: one part in this many of its limit. It can take its reserve even if
/// others have taken everything.
///
/// Bytes and Attach streams can be held without a time limit. Without a reserve, a few identities
/// could lock out all others.
const LEAST_OF_ONE: usize = 16;

/// A limited resource, with a limit in all and a limit for one identity. The amount that an
/// identity has taken is kept by the caller, as `of_one`.
pub(crate) struct Pool {
    pub(crate) taken: AtomicUsize,
    most: AtomicUsize,
    most_of_one: AtomicUsize,
    /// Whether each identity has a reserve of one part in [`LEAST_OF_ONE`] of its limit.
    reserves: bool,
}

impl Pool {
    pub(crate) const fn new(most: usize, most_of_one: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            most: AtomicUsize::new(most),
            most_of_one: AtomicUsize::new(most_of_one),
            reserves: false,
        }
    }

    /// Creates a pool in which each identity has a reserve.
    pub(crate) const fn with_reserve(most: usize, most_of_one: usize) -> Self {
        Self {
            reserves: true,
            ..Self::new(most, most_of_one)
        }
    }

    /// Returns the amount that is taken, of all identities.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Changes the limits. Amounts that exceed a new limit stay taken.
    pub(crate) fn resize(&self, most: usize, most_of_one: usize) {
        self.most.store(most, Ordering::Relaxed);
        self.most_of_one.store(most_of_one, Ordering::Relaxed);
    }

    fn least_of_one(&self) -> usize {
        if self.reserves {
            self.most_of_one.load(Ordering::Relaxed) / LEAST_OF_ONE
        } else {
            0
        }
    }

    /// Takes `amount` for one identity, or nothing.
    ///
    /// # Errors
    /// The limit that would be exceeded.
    pub(crate) fn take(&self, of_one: &AtomicUsize, amount: usize) -> Result<(), Full> {
        let (most, most_of_one) = (
            self.most.load(Ordering::Relaxed),
            self.most_of_one.load(Ordering::Relaxed),
        );
        if !add_within(of_one, amount, most_of_one) {
            return Err(Full::OfOne(most_of_one));
        }
        if add_within(&self.taken, amount, most) {
            return Ok(());
        }
        if of_one.load(Ordering::Relaxed) <= self.least_of_one() {
            self.taken.fetch_add(amount, Ordering::Relaxed);
            return Ok(());
        }
        of_one.fetch_sub(amount, Ordering::Relaxed);
        Err(Full::OfAll(most))
    }

    /// Checks that a sixteenth of each limit is free: of the limit of the identity that holds
    /// `of_one`, and of the limit in all. An identity that holds at most half of its reserve needs
    /// only the first.
    ///
    /// # Errors
    /// The limit that has less room.
    pub(crate) fn has_room(&self, of_one: &AtomicUsize) -> Result<(), Full> {
        let (most, most_of_one) = (
            self.most.load(Ordering::Relaxed),
            self.most_of_one.load(Ordering::Relaxed),
        );
        let room = |taken: usize, most| taken <= most / 16 * 15;
        let of_one = of_one.load(Ordering::Relaxed);
        if !room(of_one, most_of_one) {
            return Err(Full::OfOne(most_of_one));
        }
        if !room(self.taken.load(Ordering::Relaxed), most) && of_one > self.least_of_one() / 2 {
            return Err(Full::OfAll(most));
        }
        Ok(())
    }

    pub(crate) fn give_back(&self, of_one: &AtomicUsize, amount: usize) {
        of_one.fetch_sub(amount, Ordering::Relaxed);
        self.taken.fetch_sub(amount, Ordering::Relaxed);
    }
}

/// A limit that is reached, with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    OfOne(usize),
    OfAll(usize),
}

impl Full {
    pub(crate) fn of_calls(self) -> Refusal {
        match self {
            Self::OfOne(most) => Refusal::OwnerCallLimit(most),
            Self::OfAll(most) => Refusal::CallLimit(most),
        }
    }

    pub(crate) fn of_bytes(self) -> Refusal {
        let (Self::OfOne(most) | Self::OfAll(most)) = self;
        Refusal::RequestBytesLimit(most)
    }
}

fn add_within(taken: &AtomicUsize, amount: usize, most: usize) -> bool {
    taken
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            taken.checked_add(amount).filter(|taken| *taken <= most)
        })
        .is_ok()
}
