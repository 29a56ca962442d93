//! A wake set: a set of wakers, one for each part of a task. A waker records that its part is
//! ready, and wakes the task only if the task is not running. A running part often makes another
//! one ready, and the task checks for this before it parks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Wake, Waker},
};

use parking_lot::Mutex;

/// A set of parts, one bit each.
pub type Parts = u8;

/// The bit that says that the task is running.
const WORKS: Parts = 1 << 7;

/// The parts of a task that are ready, and the waker of the task.
pub struct WakeSet {
    state: AtomicU8,
    task: Mutex<Option<Waker>>,
}

/// The wake flag of one part, from which its waker is made.
struct PartWaker {
    wakes: Arc<WakeSet>,
    part: Parts,
}

impl WakeSet {
    /// Makes a wake set in which `parts` are ready. No part may use the highest bit.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU8::new(parts),
            task: Mutex::default(),
        })
    }

    /// Returns the waker of a part.
    pub fn waker(self: &Arc<Self>, part: Parts) -> Waker {
        Waker::from(Arc::new(PartWaker {
            wakes: Arc::clone(self),
            part,
        }))
    }

    /// Marks the task as running and stores its waker.
    pub fn begin(&self, cx: &Context<'_>) {
        let mut task = self.task.lock();
        let before = match &*task {
            Some(before) if before.will_wake(cx.waker()) => None,
            _ => task.replace(cx.waker().clone()),
        };
        drop(task);
        // Dropping a waker may drop a task, and that must not happen while the lock is held.
        drop(before);
        self.state.fetch_or(WORKS, Ordering::AcqRel);
    }

    /// Takes the parts that became ready since the last call.
    pub fn take_ready(&self) -> Parts {
        self.state.fetch_and(WORKS, Ordering::AcqRel) & !WORKS
    }

    /// Parks the task unless a part is ready. Returns whether it is parked.
    pub fn park(&self) -> bool {
        self.state
            .compare_exchange(WORKS, 0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Parks the task although `parts` are ready, and wakes it for them.
    pub fn yield_with(&self, parts: Parts) {
        self.state.fetch_or(parts, Ordering::AcqRel);
        // A waker that ran before this store did not wake the task. One that runs after it wakes
        // the task only if no part was ready.
        if self.state.fetch_and(!WORKS, Ordering::AcqRel) != WORKS {
            self.wake();
        }
    }

    fn wake(&self) {
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Wake for PartWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Only the first waker of a parked task wakes it.
        if self.wakes.state.fetch_or(self.part, Ordering::AcqRel) == 0 {
            self.wakes.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const ONE: Parts = 1;
    const OTHER: Parts = 2;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn task_is_woken_once_while_it_rests_and_looks_again_before_it_does() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let woken = || count.0.load(Ordering::SeqCst);
        let wakes = WakeSet::new(ONE);
        let [one, other] = [ONE, OTHER].map(|part| wakes.waker(part));

        wakes.begin(&Context::from_waker(&task));
        assert_eq!(wakes.take_ready(), ONE);
        other.wake_by_ref();
        assert!(!wakes.park());
        assert_eq!(wakes.take_ready(), OTHER);
        assert!(wakes.park());
        assert_eq!(woken(), 0);

        [&one, &other, &one]
            .into_iter()
            .for_each(Waker::wake_by_ref);
        assert_eq!(woken(), 1);
        wakes.begin(&Context::from_waker(&task));
        assert_eq!(wakes.take_ready(), ONE | OTHER);
        one.wake_by_ref();
        wakes.yield_with(OTHER);
        assert_eq!(woken(), 2);
        one.wake_by_ref();
        assert_eq!(woken(), 2, "the task was already woken");
        wakes.begin(&Context::from_waker(&task));
        assert_eq!(wakes.take_ready(), ONE | OTHER);
    }

    #[test]
    fn no_ring_of_another_thread_is_lost_however_the_task_stops() {
        const RINGS: usize = 20_000;
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let wakes = WakeSet::new(0);
        let rung = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(AtomicUsize::new(0));
        wakes.begin(&Context::from_waker(&task));
        assert!(wakes.park());
        let ringer = std::thread::spawn({
            let (bell, rung, seen) = (wakes.waker(ONE), Arc::clone(&rung), Arc::clone(&seen));
            move || {
                for number in 1..=RINGS {
                    rung.store(number, Ordering::SeqCst);
                    bell.wake_by_ref();
                    while seen.load(Ordering::SeqCst) < number {
                        std::thread::yield_now();
                    }
                }
            }
        });
        let (mut woken, mut turn) = (0, 0);
        while seen.load(Ordering::SeqCst) < RINGS {
            let begun = std::time::Instant::now();
            while count.0.load(Ordering::SeqCst) == woken {
                std::thread::yield_now();
                assert!(begun.elapsed().as_secs() < 10, "a wake-up was lost");
            }
            woken = count.0.load(Ordering::SeqCst);
            wakes.begin(&Context::from_waker(&task));
            loop {
                if wakes.take_ready() == ONE {
                    seen.store(rung.load(Ordering::SeqCst), Ordering::SeqCst);
                }
                turn += 1;
                if turn % 2 == 0 {
                    wakes.yield_with(0);
                    break;
                }
                if wakes.park() {
                    break;
                }
            }
        }
        ringer.join().unwrap();
    }

    #[test]
    fn last_task_is_the_one_that_is_woken() {
        let counts = [(); 2].map(|()| Arc::new(Count::default()));
        let wakes = WakeSet::new(0);
        for count in &counts {
            wakes.begin(&Context::from_waker(&Waker::from(Arc::clone(count))));
            assert!(wakes.park());
        }
        wakes.waker(ONE).wake();
        assert_eq!(counts.map(|count| count.0.load(Ordering::SeqCst)), [0, 1]);
    }
}
