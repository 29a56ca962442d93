//! A thread that has just served somebody looks out for a moment before it sleeps.
//!
//! A worker that asks one thing at a time comes back a few microseconds after its answer.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::{sync::Notify, task::yield_now};

use crate::looks::Looks;

/// How often it looks: a worker that asks one thing at a time has read its answer by then, and asked again.
const LOOKS: u32 = 24;

/// What one thread knows of its turns. Only that thread writes it.
#[derive(Default)]
pub(super) struct Lookout {
    /// How often one of the thread's connections had a turn.
    turns: AtomicU64,
    /// The turn from which on the thread looks.
    looks_from: AtomicU64,
    look: Notify,
}

impl Lookout {
    /// A connection had its turn.
    pub(super) fn turned(&self) {
        let turns = self.turns() + 1;
        self.turns.store(turns, Ordering::Relaxed);
        if turns >= self.looks_from.load(Ordering::Relaxed) {
            self.look.notify_one();
        }
    }

    fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Looks out, on the thread and its runtime. Never ends.
    pub(super) async fn keep(&self) {
        let mut looks = Looks::default();
        loop {
            self.look.notified().await;
            if self.turns() < self.looks_from.load(Ordering::Relaxed) {
                continue;
            }
            let pass = looks.ended(self.anything().await);
            // Turns that were looked at may have asked for another look.
            self.looks_from.store(self.turns() + pass + 1, Ordering::Relaxed);
        }
    }

    /// Whether anything came before it had looked in vain for long enough.
    async fn anything(&self) -> bool {
        // What is ready already has its turn.
        yield_now().await;
        let begun = self.turns();
        let (mut turns, mut vain) = (begun, 0);
        while vain < LOOKS {
            // The runtime asks the system, without waiting, before it comes back to a task that yields.
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

    /// Beside a lookout, on its thread.
    async fn beside<T>(lookout: &Lookout, test: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = lookout.keep() => unreachable!("it never ends"),
            tested = test => tested,
        }
    }

    /// A turn, and nothing for long. Says whether the thread looked.
    async fn turn(lookout: &Lookout) -> bool {
        let looks = lookout.turns() + 1 >= lookout.looks_from.load(Ordering::Relaxed);
        lookout.turned();
        for _ in 0..2 * LOOKS {
            yield_now().await;
        }
        assert!(lookout.turns() < lookout.looks_from.load(Ordering::Relaxed), "it looks no more");
        looks
    }

    #[tokio::test]
    async fn turns_that_nothing_follows_are_looked_after_less_and_less() {
        let lookout = Lookout::default();
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
        // 1, 3, 7 ... 1023 pass in between.
        let expected: Vec<u32> = (1..=11).map(|times| (1 << times) - 2).chain([3070, 4094]).collect();
        assert_eq!(looks, expected);
    }

    #[tokio::test]
    async fn turns_that_follow_each_other_are_looked_for_to_the_last() {
        let lookout = Lookout::default();
        let test = async {
            // Nothing came: the next ones pass.
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
        assert!(beside(&lookout, test).await, "it looks after the next turn again");
    }
}
