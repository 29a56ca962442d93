//! Busy polling: a server thread that has just served a connection polls for I/O for a short time
//! before it blocks.
//!
//! A worker that sends one request at a time sends the next one a few microseconds after its
//! answer.

use std::sync::atomic::{AtomicU64, Ordering};

use tls_sessiond_proto::transport::PollBackoff;
use tokio::{sync::Notify, task::yield_now};

/// Number of polls without work before the thread blocks. A worker that sends one request at a time
/// has read its answer and sent the next request by then.
const LOOKS: u32 = 24;

/// Decides when one server thread busy-polls. Only that thread writes to it.
///
/// A turn is one poll of an HTTP/2 connection.
#[derive(Default)]
pub(crate) struct BusyPoll {
    /// Number of turns of all connections of the thread.
    turns: AtomicU64,
    /// The number of turns from which on the thread busy-polls again.
    looks_from: AtomicU64,
    look: Notify,
}

impl BusyPoll {
    /// Counts a turn of a connection, and starts busy polling unless it is backed off.
    pub(crate) fn turned(&self) {
        let turns = self.turns() + 1;
        self.turns.store(turns, Ordering::Relaxed);
        if turns >= self.looks_from.load(Ordering::Relaxed) {
            self.look.notify_one();
        }
    }

    fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Runs busy polling, as a task on the runtime of the thread. Never returns.
    pub(crate) async fn keep(&self) {
        let mut looks = PollBackoff::default();
        loop {
            self.look.notified().await;
            if self.turns() < self.looks_from.load(Ordering::Relaxed) {
                continue;
            }
            let pass = looks.record(self.anything().await);
            // Turns that polling found may have requested another round.
            self.looks_from
                .store(self.turns() + pass + 1, Ordering::Relaxed);
        }
    }

    /// Polls until [`LOOKS`] polls in a row find no turn. Returns whether any turn was found.
    async fn anything(&self) -> bool {
        // Tasks that are already ready run first and do not count.
        yield_now().await;
        let begun = self.turns();
        let (mut turns, mut vain) = (begun, 0);
        while vain < LOOKS {
            // The runtime polls the system for I/O, without blocking, before it resumes a yielded
            // task.
            yield_now().await;
            vain = if self.turns() == turns { vain + 1 } else { 0 };
            turns = self.turns();
        }
        turns != begun
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;

    /// Runs the test while busy polling runs on the same thread.
    async fn beside<T>(lookout: &BusyPoll, test: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = lookout.keep() => unreachable!("keep never returns"),
            tested = test => tested,
        }
    }

    /// Makes one turn with no turn after it. Returns whether the thread busy-polled.
    async fn turn(lookout: &BusyPoll) -> bool {
        let looks = lookout.turns() + 1 >= lookout.looks_from.load(Ordering::Relaxed);
        lookout.turned();
        for _ in 0..2 * LOOKS {
            yield_now().await;
        }
        assert!(
            lookout.turns() < lookout.looks_from.load(Ordering::Relaxed),
            "polling is backed off"
        );
        looks
    }

    #[tokio::test]
    async fn turns_that_nothing_follows_are_looked_after_less_and_less() {
        let lookout = BusyPoll::default();
        let test = async {
            let mut looks = Vec::new();
            for number in 0..5000 {
                if turn(&lookout).await {
                    looks.push(number);
                }
            }
            looks
        };
        let looks = beside(&lookout, test).await;
        // 1, 3, 7 ... 1023 turns are skipped in between.
        let expected: Vec<u32> = (1..=11)
            .map(|times| (1 << times) - 2)
            .chain([3070, 4094])
            .collect();
        assert_eq!(looks, expected);
    }

    #[tokio::test]
    async fn turns_that_follow_each_other_are_looked_for_to_the_last() {
        let lookout = BusyPoll::default();
        let test = async {
            // No turn follows, so the next turns are skipped.
            for _ in 0..100 {
                turn(&lookout).await;
            }
            for _ in 0..200 {
                lookout.turned();
                for _ in 0..LOOKS / 2 {
                    yield_now().await;
                }
            }
            turn(&lookout).await;
            turn(&lookout).await
        };
        assert!(
            beside(&lookout, test).await,
            "the thread polls again after the next turn"
        );
    }
}
