//! Who waits for answers: places that are used again and again, each time under another number.

use std::task::{Poll, Waker};

/// A number's low bits say which place it is, the others how often that was taken. So one that comes late, or that
/// nobody gave out, finds nothing.
const PLACE_BITS: u32 = 24;

/// Places of those who wait for a `T`.
pub(super) struct Places<T> {
    places: Vec<Place<T>>,
    free: Vec<usize>,
    /// Tasks that have no answer.
    tasks: usize,
}

struct Place<T> {
    /// The number that it has now, or will have next.
    number: u64,
    holds: Holds<T>,
}

enum Holds<T> {
    Nothing,
    /// Who is to be woken.
    Waiting(Waker, Asker),
    Answer(T),
}

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// Its runtime does what else there is to do.
    Task,
    /// It sleeps, and its core is for other threads.
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

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), tasks: 0 }
    }
}

impl<T> Places<T> {
    /// The number of a place, never 0. `None`: all are taken.
    pub(super) fn take(&mut self, waker: &Waker, asker: Asker) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.places.len();
                let number = u64::try_from(index).ok().filter(|index| index >> PLACE_BITS == 0)?;
                self.places.push(Place { number: number | 1 << PLACE_BITS, holds: Holds::Nothing });
                index
            }
        };
        let place = self.places.get_mut(index)?;
        place.holds = Holds::Waiting(waker.clone(), asker);
        self.tasks += asker.tasks();
        Some(place.number)
    }

    /// Whether any task waits.
    pub(super) fn has_tasks(&self) -> bool {
        self.tasks > 0
    }

    /// Whether somebody still waits under this number.
    pub(super) fn waits(&self, number: u64) -> bool {
        let place = self.places.get(index(number)).filter(|place| place.number == number);
        place.is_some_and(|place| matches!(place.holds, Holds::Waiting(..)))
    }

    /// Leaves the answer for who waits for it. Answers whom to wake, if anybody waits.
    pub(super) fn answer(&mut self, number: u64, answer: T) -> Option<Waker> {
        let place = self.places.get_mut(index(number)).filter(|place| place.number == number)?;
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

    /// The answer, which gives the place back.
    pub(super) fn poll(&mut self, number: u64) -> Poll<T> {
        let place = self.places.get_mut(index(number)).filter(|place| place.number == number);
        // A place that was given back is not asked again.
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

    /// From now on `waker` is woken. What was before is dropped by the caller: it may be the end of a task.
    pub(super) fn renew(&mut self, number: u64, waker: &Waker) -> Option<Waker> {
        let place = self.places.get_mut(index(number)).filter(|place| place.number == number)?;
        match &mut place.holds {
            Holds::Waiting(before, _) if !before.will_wake(waker) => {
                Some(std::mem::replace(before, waker.clone()))
            }
            _ => None,
        }
    }

    /// Gives the place back. What it held is dropped by the caller, as above.
    pub(super) fn leave(&mut self, number: u64) -> Option<impl Sized + use<T>> {
        let place = self.places.get_mut(index(number)).filter(|place| place.number == number)?;
        let holds = std::mem::replace(&mut place.holds, Holds::Nothing);
        if let Holds::Waiting(_, asker) = holds {
            self.tasks -= asker.tasks();
        }
        self.free(number);
        Some(holds)
    }

    /// All who wait, to be woken.
    pub(super) fn wakers(&self) -> Vec<Waker> {
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
    // Never cut: it has 24 bits.
    usize::try_from(number & ((1 << PLACE_BITS) - 1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_gets_to_who_waits_under_its_number_and_to_nobody_else() {
        let mut places = Places::default();
        let [one, other] = [(); 2].map(|()| places.take(Waker::noop(), Asker::Task).unwrap());
        assert!(one != 0 && one != other);
        assert!(places.poll(one).is_pending());
        assert!(places.answer(one, 'a').is_some() && places.has_tasks());
        assert!(places.answer(one, 'b').is_none(), "it has one");
        assert!(!places.waits(one) && places.waits(other));
        assert_eq!(places.poll(one), Poll::Ready('a'));
        let again = places.take(Waker::noop(), Asker::Thread).unwrap();
        assert_eq!(index(again), index(one), "the place is used again");
        for late in [one, 0, 7, u64::MAX] {
            assert!(!places.waits(late));
            assert!(places.answer(late, 'c').is_none());
            assert!(places.leave(late).is_none());
        }
        assert_eq!(places.wakers().len(), 2);
        assert!(places.leave(other).is_some());
        assert!(places.leave(other).is_none());
        assert!(places.wakers().len() == 1 && !places.has_tasks(), "a thread is left");
        assert!(places.leave(again).is_some() && places.wakers().is_empty());
    }
}
