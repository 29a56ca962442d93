//! Whether a stream looks for its answers, or sleeps until they come.
//!
//! It looks for those of tasks: whatever else they have to do, their runtime does first. A thread that waits is asleep, and
//! another one may want the core.

use std::{
    pin::pin,
    task::{Context, Poll},
};

use tokio::task::yield_now;

use crate::looks::Looks;

/// How often it looks: a daemon that is awake has answered by then. One that has to be woken has not; then looking would
/// cost more of this worker than it saves.
const LOOKS: u32 = 16;

/// What one stream expects.
#[derive(Default)]
pub(super) struct Lookout {
    looks: Looks,
    /// How many times more it looks. 0: it does not.
    left: u32,
    /// How many questions pass before it looks again.
    pass: u64,
}

impl Lookout {
    /// Questions of tasks went out.
    pub(super) fn asked(&mut self) {
        match self.pass {
            0 => self.left = LOOKS,
            _ => self.pass -= 1,
        }
    }

    /// Answers came. `more`: tasks wait for others.
    pub(super) fn answered(&mut self, more: bool) {
        if self.left > 0 {
            self.pass = self.looks.ended(true);
            self.left = if more { LOOKS } else { 0 };
        }
    }

    /// There is nothing to do. The task is woken after the runtime has looked, without waiting, what has come; or it
    /// sleeps.
    pub(super) fn rest(&mut self, cx: &mut Context<'_>) {
        let Some(left) = self.left.checked_sub(1) else { return };
        self.left = left;
        if left == 0 {
            self.pass = self.looks.ended(false);
        }
        // Pending, and that is why it is asked.
        let _: Poll<()> = pin!(yield_now()).poll(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it looks until it sleeps.
    async fn looks(lookout: &mut Lookout) -> u32 {
        let mut looks = 0;
        std::future::poll_fn(|cx| {
            let before = lookout.left;
            lookout.rest(cx);
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
        let mut lookout = Lookout::default();
        assert_eq!(looks(&mut lookout).await, 0);
        lookout.asked();
        assert_eq!(looks(&mut lookout).await, LOOKS);
        lookout.answered(false);
        lookout.asked();
        assert_eq!(looks(&mut lookout).await, 0, "the last answer was late");
        lookout.asked();
        lookout.answered(true);
        assert_eq!(looks(&mut lookout).await, LOOKS, "the next may come at once");
        for _ in 0..2 {
            lookout.asked();
        }
        lookout.answered(false);
        assert_eq!(looks(&mut lookout).await, 0, "nobody waits");
    }
}
