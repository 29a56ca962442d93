//! When a thread that has nothing to do asks the system once more what has come, instead of telling it to wait.
//!
//! A question and its answer over a socket of the same host take less time than falling asleep and being woken, on another
//! core, does. So it pays to look a few times for what is about to come; each time takes about a microsecond. Where it did not come, looking was for nothing:
//! then some occasions pass before the next looks, twice as many each time.

/// Most of the occasions that pass.
const PASSED_MAX: u64 = 1023;

/// What was learnt of it.
#[derive(Default)]
pub(crate) struct Looks {
    passed: u64,
}

impl Looks {
    /// Whether anything came while one looked. How many occasions are to pass now.
    pub(crate) fn ended(&mut self, came: bool) -> u64 {
        self.passed = if came { 0 } else { (2 * self.passed + 1).min(PASSED_MAX) };
        self.passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_in_vain_is_done_ever_less_and_success_makes_up_for_it() {
        let mut looks = Looks::default();
        let in_vain: Vec<u64> = (0..12).map(|_| looks.ended(false)).collect();
        assert_eq!(in_vain, [1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1023, 1023]);
        assert_eq!((looks.ended(true), looks.ended(true), looks.ended(false)), (0, 0, 1));
    }
}
