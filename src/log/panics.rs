//! Panics. A panic ends only the task or the thread in which it happens. It is logged and counted,
//! and the part of the daemon that it ended starts again.

use std::{
    any::Any,
    future::Future,
    panic::{self, AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Returns the number of panics since the process began.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Logs every panic. The default hook would write to stderr itself, and block if stderr does.
pub(super) fn tell() {
    panic::set_hook(Box::new(|info| {
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            place = info.location().map(tracing::field::display),
            reason = reason(info.payload()),
            count,
            "a panic: this is a defect of the daemon; please report it"
        );
    }));
}

fn reason(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

/// The future panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// Polls a future until it is ready or panics, and not again after that.
pub struct Caught<F>(Pin<Box<F>>);

/// Wraps a future in [`Caught`].
pub fn caught<F: Future>(future: F) -> Caught<F> {
    Caught(Box::pin(future))
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The future is not used after it has panicked. State that it shares with others is behind
        // locks.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn panic_of_a_future_is_an_error_for_its_caller() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let mut polls = 0;
        let panics = poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls == 3 {
                panic!("planted")
            } else {
                Poll::<()>::Pending
            }
        });
        assert_eq!(caught(panics).await, Err(Panicked));
        assert_eq!(polls, 3);
    }

    #[test]
    fn reason_of_a_panic_is_its_text() {
        for (payload, text) in [
            (Box::new("static") as Box<dyn Any + Send>, "static"),
            (Box::new("made".to_owned()), "made"),
            (Box::new(7), "unknown"),
        ] {
            assert_eq!(reason(&*payload), text);
        }
    }
}
