//! The pending calls: a slab of the callers that wait for answers. A slot is reused under a new
//! number.

use std::task::{Poll, Waker};

/// The low bits of a number are the index of the slot. The high bits count how often the slot was
/// used, so a late or invented number finds nothing.
const PLACE_BITS: u32 = 24;

/// The callers that wait for a `T`.
pub(crate) struct PendingCalls<T> {
    places: Vec<PendingCall<T>>,
    free: Vec<usize>,
    /// Tasks without an answer.
    tasks: usize,
}

struct PendingCall<T> {
    /// The number of the current call, or of the next one if the slot is free.
    number: u64,
    holds: Holds<T>,
}

enum Holds<T> {
    Nothing,
    /// The waker of the caller.
    Waiting(Waker, Asker),
    Answer(T),
}

/// The kind of caller that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// An async task. Its runtime does other work in the meantime.
    Task,
    /// A blocked thread. It sleeps, and other threads may use its core.
    Thread,
}

impl Asker {
    fn tasks(self) -> usize {
        match self {
            Self::Task => 1,
            Self::Thread => 0,
        }
    }
}

impl<T> Default for PendingCalls<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            tasks: 0,
        }
    }
}

impl<T> PendingCalls<T> {
    /// Takes a slot and returns its number, never 0. `None`: all slots are taken.
    pub(crate) fn take(&mut self, waker: &Waker, asker: Asker) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.places.len();
                let number = u64::try_from(index)
                    .ok()
                    .filter(|index| index >> PLACE_BITS == 0)?;
                self.places.push(PendingCall {
                    number: number | 1 << PLACE_BITS,
                    holds: Holds::Nothing,
                });
                index
            }
        };
        let place = self.places.get_mut(index)?;
        place.holds = Holds::Waiting(waker.clone(), asker);
        self.tasks += asker.tasks();
        Some(place.number)
    }

    /// Returns whether any task waits.
    pub(crate) fn has_tasks(&self) -> bool {
        self.tasks > 0
    }

    /// Returns whether a caller still waits under this number.
    pub(crate) fn waits(&self, number: u64) -> bool {
        let place = self
            .places
            .get(index(number))
            .filter(|place| place.number == number);
        place.is_some_and(|place| matches!(place.holds, Holds::Waiting(..)))
    }

    /// Stores the answer for the caller. Returns its waker if it still waits.
    pub(crate) fn answer(&mut self, number: u64, answer: T) -> Option<Waker> {
        let place = self
            .places
            .get_mut(index(number))
            .filter(|place| place.number == number)?;
        if !matches!(place.holds, Holds::Waiting(..)) {
            return None;
        }
        match std::mem::replace(&mut place.holds, Holds::Answer(answer)) {
            Holds::Waiting(waker, asker) => {
                self.tasks -= asker.tasks();
                Some(waker)
            }
            _ => None,
        }
    }

    /// Takes the answer and frees the slot.
    pub(crate) fn poll(&mut self, number: u64) -> Poll<T> {
        let place = self
            .places
            .get_mut(index(number))
            .filter(|place| place.number == number);
        // A slot that was freed stays pending: its caller does not poll again.
        let Some(place) = place.filter(|place| matches!(place.holds, Holds::Answer(_))) else {
            return Poll::Pending;
        };
        let holds = std::mem::replace(&mut place.holds, Holds::Nothing);
        self.free(number);
        match holds {
            Holds::Answer(answer) => Poll::Ready(answer),
            _ => Poll::Pending,
        }
    }

    /// Replaces the waker. Returns the previous one, which the caller must drop without the lock:
    /// dropping it may drop a task.
    pub(crate) fn renew(&mut self, number: u64, waker: &Waker) -> Option<Waker> {
        let place = self
            .places
            .get_mut(index(number))
            .filter(|place| place.number == number)?;
        match &mut place.holds {
            Holds::Waiting(before, _) if !before.will_wake(waker) => {
                Some(std::mem::replace(before, waker.clone()))
            }
            _ => None,
        }
    }

    /// Frees the slot. Returns its content, which the caller must drop without the lock, as in
    /// [`PendingCalls::renew`].
    pub(crate) fn leave(&mut self, number: u64) -> Option<impl Sized + use<T>> {
        let place = self
            .places
            .get_mut(index(number))
            .filter(|place| place.number == number)?;
        let holds = std::mem::replace(&mut place.holds, Holds::Nothing);
        if let Holds::Waiting(_, asker) = holds {
            self.tasks -= asker.tasks();
        }
        self.free(number);
        Some(holds)
    }

    /// Returns the wakers of all callers that wait.
    pub(crate) fn wakers(&self) -> Vec<Waker> {
        let waiting = self.places.iter().filter_map(|place| match &place.holds {
            Holds::Waiting(waker, _) => Some(waker.clone()),
            _ => None,
        });
        waiting.collect()
    }

    fn free(&mut self, number: u64) {
        let index = index(number);
        if let Some(place) = self.places.get_mut(index) {
            place.number = number.wrapping_add(1 << PLACE_BITS);
            self.free.push(index);
        }
    }
}

fn index(number: u64) -> usize {
    // The conversion cannot fail: an index has 24 bits.
    usize::try_from(number & ((1 << PLACE_BITS) - 1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_gets_to_who_waits_under_its_number_and_to_nobody_else() {
        let mut places = PendingCalls::default();
        let [one, other] = [(); 2].map(|()| places.take(Waker::noop(), Asker::Task).unwrap());
        assert!(one != 0 && one != other);
        assert!(places.poll(one).is_pending());
        assert!(places.answer(one, 'a').is_some() && places.has_tasks());
        assert!(places.answer(one, 'b').is_none(), "it is answered already");
        assert!(!places.waits(one) && places.waits(other));
        assert_eq!(places.poll(one), Poll::Ready('a'));
        let again = places.take(Waker::noop(), Asker::Thread).unwrap();
        assert_eq!(index(again), index(one), "the slot is reused");
        for late in [one, 0, 7, u64::MAX] {
            assert!(!places.waits(late));
            assert!(places.answer(late, 'c').is_none());
            assert!(places.leave(late).is_none());
        }
        assert_eq!(places.wakers().len(), 2);
        assert!(places.leave(other).is_some());
        assert!(places.leave(other).is_none());
        assert!(
            places.wakers().len() == 1 && !places.has_tasks(),
            "only a thread waits"
        );
        assert!(places.leave(again).is_some() && places.wakers().is_empty());
    }
}
