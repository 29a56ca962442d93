//! Tickets that were opened with `single_use`, until they would have expired.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use tls_sessiond_keys::ticket::Handle;

/// Most tickets that are remembered for one ring: 32 MiB.
const SPENT_MAX: usize = 512 << 10;

/// The handles of spent tickets.
#[derive(Debug, Default)]
pub(super) struct Spent {
    handles: HashSet<Handle>,
    /// In the order of their time.
    order: VecDeque<(Duration, Handle)>,
}

/// What has become of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spending {
    /// It was good, and is spent now.
    Spent,
    /// It was spent before.
    Before,
    /// There is no room to remember it, so it must not be opened.
    Full,
}

impl Spent {
    /// Spends a ticket that expires `lifetime` from now at the latest.
    pub(super) fn spend(&mut self, handle: Handle, now: Duration, lifetime: Duration) -> Spending {
        while let Some((until, _)) = self.order.front()
            && *until <= now
        {
            if let Some((_, gone)) = self.order.pop_front() {
                self.handles.remove(&gone);
            }
        }
        if self.handles.contains(&handle) {
            return Spending::Before;
        }
        if self.handles.len() >= SPENT_MAX {
            return Spending::Full;
        }
        self.handles.insert(handle);
        self.order.push_back((now + lifetime, handle));
        Spending::Spent
    }

    /// Returns whether a ticket is spent.
    pub(super) fn has(&self, handle: &Handle) -> bool {
        self.handles.contains(handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn handle(number: usize) -> Handle {
        let mut handle = [0; 16];
        handle[..8].copy_from_slice(&number.to_be_bytes());
        handle
    }

    #[test]
    fn ticket_is_spent_once_until_it_expires() {
        let mut spent = Spent::default();
        assert_eq!(spent.spend(handle(1), SECOND, SECOND), Spending::Spent);
        assert_eq!(spent.spend(handle(1), SECOND, SECOND), Spending::Before);
        assert!(spent.has(&handle(1)) && !spent.has(&handle(2)));
        // It no longer opens by then, so it need not be remembered.
        assert_eq!(spent.spend(handle(2), 2 * SECOND, SECOND), Spending::Spent);
        assert!(!spent.has(&handle(1)));
    }

    #[test]
    fn full_list_opens_no_more_tickets() {
        let mut spent = Spent::default();
        for number in 0..SPENT_MAX {
            spent.spend(handle(number), SECOND, SECOND);
        }
        let more = handle(SPENT_MAX);
        assert_eq!(spent.spend(more, SECOND, SECOND), Spending::Full);
        assert_eq!(spent.spend(more, 2 * SECOND, SECOND), Spending::Spent);
    }
}
