//! Busy polling: decides whether a stream polls for its answers or sleeps until they arrive.
//!
//! It polls only while tasks wait, because their runtime runs its other tasks first. A waiting
//! thread sleeps, and another thread may need its core.

use std::{
    pin::pin,
    task::{Context, Poll},
};

use tls_sessiond_proto::transport::PollBackoff;
use tokio::task::yield_now;

/// The number of polls. A daemon that is awake has answered by then. One that must be woken has
/// not, and further polls would cost this worker more than they save.
const LOOKS: u32 = 16;

/// The polling state of one stream.
#[derive(Default)]
pub(crate) struct BusyPoll {
    looks: PollBackoff,
    /// The remaining polls. 0: the stream sleeps.
    left: u32,
    /// The number of batches to skip before the stream polls again.
    pass: u64,
}

impl BusyPoll {
    /// Records that a batch was sent while tasks wait.
    pub(crate) fn asked(&mut self) {
        match self.pass {
            0 => self.left = LOOKS,
            _ => self.pass -= 1,
        }
    }

    /// Records that answers arrived. `more`: tasks wait for further answers.
    pub(crate) fn answered(&mut self, more: bool) {
        if self.left > 0 {
            self.pass = self.looks.record(true);
            self.left = if more { LOOKS } else { 0 };
        }
    }

    /// Called when there is nothing to do. With polls left, the task is woken once the runtime has
    /// polled for I/O without blocking. Otherwise it sleeps.
    pub(crate) fn rest(&mut self, cx: &mut Context<'_>) {
        let Some(left) = self.left.checked_sub(1) else {
            return;
        };
        self.left = left;
        if left == 0 {
            self.pass = self.looks.record(false);
        }
        // It returns Pending, and has arranged the wake-up.
        let _: Poll<()> = pin!(yield_now()).poll(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the polls until the stream sleeps.
    async fn looks(busy_poll: &mut BusyPoll) -> u32 {
        let mut looks = 0;
        std::future::poll_fn(|cx| {
            let before = busy_poll.left;
            busy_poll.rest(cx);
            match before {
                0 => Poll::Ready(()),
                _ => {
                    looks += 1;
                    Poll::Pending
                }
            }
        })
        .await;
        looks
    }

    #[tokio::test]
    async fn nothing_is_looked_for_but_answers_and_less_where_they_are_late() {
        let mut busy_poll = BusyPoll::default();
        assert_eq!(looks(&mut busy_poll).await, 0);
        busy_poll.asked();
        assert_eq!(looks(&mut busy_poll).await, LOOKS);
        busy_poll.answered(false);
        busy_poll.asked();
        assert_eq!(
            looks(&mut busy_poll).await,
            0,
            "the last answer came too late, so one batch is skipped"
        );
        busy_poll.asked();
        busy_poll.answered(true);
        assert_eq!(
            looks(&mut busy_poll).await,
            LOOKS,
            "another answer may come at once"
        );
        for _ in 0..2 {
            busy_poll.asked();
        }
        busy_poll.answered(false);
        assert_eq!(looks(&mut busy_poll).await, 0, "no task waits");
    }
}
