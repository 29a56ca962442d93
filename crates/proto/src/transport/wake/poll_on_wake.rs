//! A future that is polled only after its own waker fired.
//!
//! A task that waits on several futures polls all of them at every wake-up. The end of a stream,
//! its deadline and the stop of the daemon happen at most once. Polling them with every message
//! would cost as much as a small message.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

/// Polls the inner future at first, and then only after that future has woken its task. Other
/// wake-ups of the task do not poll it.
pub struct PollOnWake<F: ?Sized> {
    flag: Arc<WakeFlag>,
    /// The wake flag as a waker, for the inner future.
    waker: Waker,
    /// The waker of the task that the wake flag wakes.
    task: Option<Waker>,
    future: Pin<Box<F>>,
}

/// A wake flag. Records a wake-up by the inner future, and wakes the task.
#[derive(Default)]
struct WakeFlag {
    ready: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.store(true, Ordering::Release);
        // A task that is registered after this reads `ready` in the same poll.
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future + ?Sized> PollOnWake<F> {
    /// Wraps a future. The first poll reaches it.
    pub fn new(future: Pin<Box<F>>) -> Self {
        // The flag begins set, so that the first poll reaches the future.
        let flag = Arc::new(WakeFlag {
            ready: AtomicBool::new(true),
            task: Mutex::default(),
        });
        let waker = Waker::from(Arc::clone(&flag));
        Self {
            flag,
            waker,
            task: None,
            future,
        }
    }
}

impl<F: Future + ?Sized> Future for PollOnWake<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this
            .task
            .as_ref()
            .is_some_and(|task| task.will_wake(cx.waker()))
        {
            this.task = Some(cx.waker().clone());
            this.flag.task.lock().clone_from(&this.task);
        }
        if !this.flag.ready.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Reset the flag before polling, so that a wake-up during the poll sets it again.
        this.flag.ready.store(false, Ordering::Release);
        this.future
            .as_mut()
            .poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize};

    use tokio::sync::oneshot;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn future_is_asked_once_and_again_when_it_has_woken_whoever_asked_last() {
        let (tells, mut told) = oneshot::channel::<u32>();
        let asked = Arc::new(AtomicUsize::new(0));
        let mut seldom = PollOnWake::new(Box::pin(poll_fn({
            let asked = Arc::clone(&asked);
            move |cx| {
                asked.fetch_add(1, Ordering::SeqCst);
                Pin::new(&mut told).poll(cx)
            }
        })));
        let tasks = [Arc::new(Count::default()), Arc::new(Count::default())];
        let [first, last] = tasks.clone().map(Waker::from);
        let mut poll = |waker: &Waker| Pin::new(&mut seldom).poll(&mut Context::from_waker(waker));
        for _ in 0..3 {
            assert!(poll(&first).is_pending() && poll(&last).is_pending());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tells.send(7).unwrap();
        assert_eq!(tasks.map(|task| task.0.load(Ordering::SeqCst)), [0, 1]);
        assert_eq!(poll(&last), Poll::Ready(Ok(7)));
    }
}
