//! A future that is seldom ready, among those that have something to do at every wake-up.
//!
//! Who waits for several things asks all of them whenever one may have happened. A stream's end, its deadline and the
//! daemon's stop happen once at most; to ask for them with every message costs as much as a small message does.

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

/// Asks a future only after it was woken by it, whoever else wakes its task.
pub(super) struct Seldom<F: ?Sized> {
    bell: Arc<Bell>,
    /// The bell, as the future knows it.
    waker: Waker,
    /// Whom the bell wakes.
    task: Option<Waker>,
    future: Pin<Box<F>>,
}

/// Remembers that it was rung.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        // A task that comes into its place later sees that it was rung.
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future + ?Sized> Seldom<F> {
    pub(super) fn new(future: Pin<Box<F>>) -> Self {
        // The first time it is asked without that.
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: Mutex::default() });
        let waker = Waker::from(Arc::clone(&bell));
        Self { bell, waker, task: None, future }
    }
}

impl<F: Future + ?Sized> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            this.task = Some(cx.waker().clone());
            this.bell.task.lock().clone_from(&this.task);
        }
        if !this.bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Before it is asked: what happens meanwhile rings again.
        this.bell.rung.store(false, Ordering::Release);
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
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
        let mut seldom = Seldom::new(Box::pin(poll_fn({
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
