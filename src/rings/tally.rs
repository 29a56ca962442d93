//! How many tickets this daemon has sealed and opened with a ring.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Epochs that are counted each: those that a ring may have.
const EPOCHS: usize = 3;

/// Tickets of one epoch, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tickets {
    pub(crate) sealed: u64,
    pub(crate) opened: u64,
}

/// The counts since the start.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counts>);

#[derive(Clone, Debug, Default)]
struct Counts {
    all: Tickets,
    by_epoch: BTreeMap<u64, Tickets>,
}

impl Tally {
    pub(super) fn sealed(&self, epoch: u64) {
        self.count(epoch, |tickets| tickets.sealed += 1);
    }

    pub(super) fn opened(&self, epoch: u64) {
        self.count(epoch, |tickets| tickets.opened += 1);
    }

    fn count(&self, epoch: u64, count: impl Fn(&mut Tickets)) {
        let mut counts = self.0.lock();
        count(&mut counts.all);
        count(counts.by_epoch.entry(epoch).or_default());
        while counts.by_epoch.len() > EPOCHS {
            counts.by_epoch.pop_first();
        }
    }

    /// Returns all tickets, and those of the latest epochs.
    pub(super) fn view(&self) -> (Tickets, Vec<(u64, Tickets)>) {
        let counts = self.0.lock();
        (counts.all, counts.by_epoch.clone().into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_counted_for_the_latest_epochs() {
        let tally = Tally::default();
        for epoch in 1..=5 {
            tally.sealed(epoch);
        }
        tally.opened(5);
        let (all, by_epoch) = tally.view();
        assert_eq!((all.sealed, all.opened), (5, 1));
        let epochs: Vec<_> = by_epoch.iter().map(|(epoch, _)| *epoch).collect();
        assert_eq!(epochs, [3, 4, 5]);
        assert_eq!(
            by_epoch[2].1,
            Tickets {
                sealed: 1,
                opened: 1
            }
        );
    }
}
