//! The wakers of the two tasks that may use one connection.

use std::{
    sync::Arc,
    task::{Wake, Waker},
};

use parking_lot::Mutex;

/// The direction that a task waits for.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    Read,
    Write,
}

impl Direction {
    fn other(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }
}

/// Wakes the tasks of both directions. Each of the socket and the Drive keeps one waker only, and
/// either task may go on with what the other waits for, as after `tokio::io::split`.
#[derive(Default)]
pub(super) struct TaskWakers(Mutex<[Option<Waker>; 2]>);

impl TaskWakers {
    /// Keeps the waker of a task that is about to wait. Must come before the task polls.
    pub(super) fn register(&self, direction: Direction, waker: &Waker) {
        let slot = &mut self.0.lock()[direction as usize];
        match slot {
            Some(held) => held.clone_from(waker),
            None => *slot = Some(waker.clone()),
        }
    }

    /// Forgets the waker of a task that does not wait.
    pub(super) fn clear(&self, direction: Direction) {
        self.0.lock()[direction as usize] = None;
    }

    /// Wakes the task of the other direction, if it waits.
    pub(super) fn wake_other(&self, direction: Direction) {
        let waker = self.0.lock()[direction.other() as usize].take();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Wake for TaskWakers {
    fn wake(self: Arc<Self>) {
        // No waker is called under the lock.
        let wakers = std::mem::take(&mut *self.0.lock());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_waiting_task_is_woken_once() {
        let counts: [Arc<Count>; 2] = Default::default();
        let woken = || {
            counts
                .each_ref()
                .map(|count| count.0.load(Ordering::Relaxed))
        };
        let [read, write] = counts
            .each_ref()
            .map(|count| Waker::from(Arc::clone(count)));
        let wakers = Arc::new(TaskWakers::default());
        let both = Waker::from(Arc::clone(&wakers));
        wakers.register(Direction::Read, &read);
        wakers.register(Direction::Write, &write);
        both.wake_by_ref();
        both.wake_by_ref();
        assert_eq!(woken(), [1, 1]);
        wakers.register(Direction::Read, &read);
        wakers.register(Direction::Write, &write);
        wakers.clear(Direction::Read);
        wakers.wake_other(Direction::Read);
        both.wake();
        assert_eq!(woken(), [1, 2]);
    }
}
