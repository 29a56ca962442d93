//! One running list at a time for each caller. A list is expensive, so several lists of one caller
//! wait for each other and delay no other caller.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The running and waiting lists of each caller. Callers without a list have no entry.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<Arc<str>, ListQueue>>);

/// The lists of one caller, in the order of their requests.
#[derive(Default)]
struct ListQueue {
    running: Arc<AsyncMutex<()>>,
    /// Number of lists, the running one included.
    lists: usize,
}

/// The right to run a list. Dropping it lets the next list of the caller run.
pub(crate) struct Turn<'t> {
    _running: OwnedMutexGuard<()>,
    _place: QueuedList<'t>,
}

/// Counts a list in the queue of its caller. Dropping it ends the count, also if the call is
/// cancelled while the list waits.
struct QueuedList<'t> {
    turns: &'t Turns,
    owner: Arc<str>,
}

impl Turns {
    /// Waits until no other list of this caller runs. The wait ends with the call, which has a
    /// deadline or the time limit of admission.
    pub(crate) async fn wait(&self, owner: &Arc<str>) -> Turn<'_> {
        let running = {
            let mut queues = self.0.lock();
            let queue = queues.entry(Arc::clone(owner)).or_default();
            queue.lists += 1;
            Arc::clone(&queue.running)
        };
        let place = QueuedList {
            turns: self,
            owner: Arc::clone(owner),
        };
        Turn {
            _running: running.lock_owned().await,
            _place: place,
        }
    }
}

impl Drop for QueuedList<'_> {
    fn drop(&mut self) {
        let mut queues = self.turns.0.lock();
        if let Some(queue) = queues.get_mut(&self.owner) {
            queue.lists -= 1;
            if queue.lists == 0 {
                queues.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    #[test]
    fn second_list_of_a_caller_waits_and_that_of_another_does_not() {
        let turns = Turns::default();
        let [one, other]: [Arc<str>; 2] = ["uid:1".into(), "uid:2".into()];
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(turns.wait(&one));
        let mut second = Box::pin(turns.wait(&one));
        let cancelled = Box::pin(turns.wait(&one));
        let Poll::Ready(running) = first.as_mut().poll(&mut cx) else {
            panic!("it must not wait")
        };
        assert!(second.as_mut().poll(&mut cx).is_pending());
        let Poll::Ready(others) = pin!(turns.wait(&other)).poll(&mut cx) else {
            panic!("another caller waits")
        };
        drop(cancelled);
        drop(running);
        let Poll::Ready(next) = second.as_mut().poll(&mut cx) else {
            panic!("no list runs any more")
        };
        assert_eq!(turns.0.lock().len(), 2);
        drop((next, others));
        assert!(
            turns.0.lock().is_empty(),
            "callers without a list have no entry"
        );
    }
}
