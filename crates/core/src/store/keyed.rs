//! Hashes of keys that callers choose.
//!
//! foldhash has two seeds: a shared one of 48 bytes, which its multiplications mix into the input,
//! and one of 8 bytes for each hasher. `FixedState` takes the shared seed from constants in the
//! source. Input that equals such a constant makes a product zero. The rest of the input and the
//! hasher's own seed then have no effect: 2^128 ids of 32 bytes have one hash. So the shared seed
//! is random as well (decision 36).

use std::{
    hash::{BuildHasher, RandomState},
    sync::OnceLock,
};

use foldhash::{SharedSeed, quality::SeedableRandomState};

/// Hashes keys with seeds that no caller knows.
pub type Keyed = SeedableRandomState;

/// Returns a hasher with a seed of its own and the random shared seed of this process.
pub fn keyed() -> Keyed {
    static SHARED: OnceLock<SharedSeed> = OnceLock::new();
    let random = RandomState::new();
    let shared = SHARED.get_or_init(|| SharedSeed::from_u64(random.hash_one(0_u64)));
    Keyed::with_seed(random.hash_one(1_u64), shared)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::Hasher};

    use foldhash::quality::FixedState;

    use super::*;

    /// Returns an id whose first half is the first word of foldhash's constant shared seed, twice.
    fn id(number: u64) -> [u8; 32] {
        let constant = 0xc0ac_29b7_c97c_50dd_u64;
        let words = [constant, constant, number, !number];
        let mut id = [0; 32];
        for (place, word) in id.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        id
    }

    fn hash(state: &impl BuildHasher, number: u64) -> u64 {
        let mut hasher = state.build_hasher();
        hasher.write(&id(number));
        hasher.finish()
    }

    fn hashes(state: &impl BuildHasher) -> usize {
        (0..1_000)
            .map(|number| hash(state, number))
            .collect::<HashSet<_>>()
            .len()
    }

    #[test]
    fn ids_chosen_against_foldhash_constants_do_not_collide() {
        assert_eq!(
            hashes(&FixedState::with_seed(RandomState::new().hash_one(0))),
            1,
            "the attack itself"
        );
        assert_eq!(hashes(&keyed()), 1_000);
        assert_ne!(
            hash(&keyed(), 1),
            hash(&keyed(), 1),
            "each hasher has its own seed"
        );
    }
}
