//! The operations of the contenders: the same for all, one after the other, in short turns.

use std::{
    fmt,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::{
    contenders::{Contender, DATA, Data, Id, Uses},
    cores,
};

/// The operations of one turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// Gets of random sessions that were put.
    Get,
    /// Takes of single-use sessions that were put before the clock started, in another order.
    Take,
    /// Puts of new sessions into a full cache.
    Put,
    /// Nine gets and a put, in a full cache.
    Mixed,
}

/// A row: one kind of work, a number of threads, and a size of the cache.
pub(crate) struct Section {
    pub(crate) work: Work,
    pub(crate) threads: usize,
    pub(crate) size: usize,
}

/// Operations of one thread in a turn. They take a few milliseconds.
const TURN: usize = 20_000;
const ROUNDS: usize = 15;
const DATA_OF_ALL: Data = [7; DATA];

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let work = match self.work {
            Work::Get => "get",
            Work::Take => "take",
            Work::Put => "put",
            Work::Mixed => "mixed",
        };
        let threads = if self.threads == 1 {
            "1 thread"
        } else {
            "2 threads"
        };
        let size = match self.size {
            size @ ..1_000_000 => format!("{}k", size / 1_000),
            size => format!("{}M", size / 1_000_000),
        };
        write!(f, "{work}, {threads}, {size}")
    }
}

impl Section {
    /// Returns all rows of one size. Takes come before puts, because they need free room and puts
    /// fill the caches.
    pub(crate) fn all(size: usize) -> Vec<Self> {
        let works = [Work::Get, Work::Take, Work::Put, Work::Mixed];
        works
            .into_iter()
            .flat_map(|work| {
                [1, 2].map(|threads| Self {
                    work,
                    threads,
                    size,
                })
            })
            .collect()
    }

    /// Measures nanoseconds of one operation. Returns one number of each round for each contender.
    pub(crate) fn run(&self, sides: &[&dyn Side]) -> Vec<Vec<f64>> {
        let full = matches!(self.work, Work::Put | Work::Mixed);
        let wanted = if full {
            self.size
        } else {
            before_takes(self.size)
        };
        sides.iter().for_each(|side| side.fill(wanted));
        let barrier = Barrier::new(self.threads);
        let cores = cores::all();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|thread| {
                    let (barrier, core) = (&barrier, cores[thread % cores.len()]);
                    scope.spawn(move || {
                        cores::pin(core);
                        let mut took = vec![Vec::new(); sides.len()];
                        for round in 0..ROUNDS {
                            // Each round begins with another contender.
                            for place in (0..sides.len()).map(|place| (place + round) % sides.len())
                            {
                                let seed = ((round * self.threads + thread) as u64) << 8
                                    | self.work as u64;
                                took[place].push(sides[place].turn(self, seed, barrier));
                            }
                        }
                        took
                    })
                })
                .collect();
            let mut all = threads.into_iter().map(|thread| thread.join().unwrap());
            let mut slowest = all.next().unwrap();
            for other in all {
                for (held, other) in slowest
                    .iter_mut()
                    .flatten()
                    .zip(other.into_iter().flatten())
                {
                    *held = held.max(other);
                }
            }
            slowest
        })
    }
}

/// Returns the number of sessions before takes. A tenth of the room stays free for single-use
/// sessions.
fn before_takes(size: usize) -> usize {
    size - size / 10
}

/// Returns the id with this number. Ids look random and are the same for all contenders and runs.
fn id(number: u64) -> Id {
    let mut id = [0; 32];
    for (place, part) in id.chunks_exact_mut(8).enumerate() {
        part.copy_from_slice(&mix(number * 4 + place as u64).to_le_bytes());
    }
    id
}

/// Returns the number that an id was made from. For any other id the result is far too large.
pub(crate) fn number(id: &Id) -> u64 {
    let [first, ..] = id.as_chunks::<8>().0 else {
        return u64::MAX;
    };
    unmix(u64::from_le_bytes(*first)) / 4
}

/// One step of splitmix64.
fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Inverts [`mix`].
fn unmix(mixed: u64) -> u64 {
    let number = mixed ^ (mixed >> 31) ^ (mixed >> 62);
    let number = number.wrapping_mul(0x3196_42B2_D24D_8EC3);
    let number = number ^ (number >> 27) ^ (number >> 54);
    let number = number.wrapping_mul(0x96DE_1B17_3F11_9089);
    let number = number ^ (number >> 30) ^ (number >> 60);
    number.wrapping_mul(0xF1DE_83E1_9937_733D).wrapping_sub(1)
}

/// A contender and the sessions that it was given.
pub(crate) struct Begun<C> {
    contender: C,
    /// The number of sessions that were put to fill it. They have the numbers from 0.
    filled: AtomicU64,
    /// The next number that is not used yet.
    fresh: AtomicU64,
}

/// The first number of the sessions that are put during the turns.
const FRESH: u64 = 1 << 40;

/// A contender of any type.
pub(crate) trait Side: Sync {
    /// Puts sessions until it was given this number of them.
    fn fill(&self, wanted: usize);
    /// Does one thread's part of a turn. Returns nanoseconds of one operation.
    fn turn(&self, section: &Section, seed: u64, barrier: &Barrier) -> f64;
}

impl<C: Contender + 'static> Begun<C> {
    pub(crate) fn boxed(contender: C) -> Box<dyn Side> {
        Box::new(Self {
            contender,
            filled: AtomicU64::new(0),
            fresh: AtomicU64::new(FRESH),
        })
    }
}

impl<C: Contender> Side for Begun<C> {
    fn fill(&self, wanted: usize) {
        let mut hand = self.contender.hand();
        for number in self.filled.load(Ordering::Relaxed)..wanted as u64 {
            self.contender
                .put(&mut hand, &C::key(&id(number)), &DATA_OF_ALL, Uses::Many);
            self.filled.store(number + 1, Ordering::Relaxed);
        }
        self.contender.settle();
    }

    fn turn(&self, section: &Section, seed: u64, barrier: &Barrier) -> f64 {
        let cache = &self.contender;
        let hand = &mut cache.hand();
        let filled = self.filled.load(Ordering::Relaxed);
        let held = |turn: usize| C::key(&id(mix(seed << 24 | turn as u64) % filled));
        let fresh = |_| C::key(&id(self.fresh.fetch_add(1, Ordering::Relaxed)));
        match section.work {
            Work::Get => {
                let keys: Vec<_> = (0..TURN).map(held).collect();
                let mut found = 0;
                let nanos = timed(barrier, || {
                    found = keys.iter().filter(|key| cache.get(hand, key)).count();
                    cache.settle();
                });
                assert!(found > TURN * 3 / 4, "{found} found");
                nanos
            }
            Work::Put => {
                let keys: Vec<_> = (0..TURN).map(fresh).collect();
                let nanos = timed(barrier, || {
                    keys.iter()
                        .for_each(|key| cache.put(hand, key, &DATA_OF_ALL, Uses::Many));
                    cache.settle();
                });
                cache.trim(&keys);
                nanos
            }
            Work::Mixed => {
                let puts: Vec<_> = (0..TURN / 10).map(fresh).collect();
                let gets: Vec<_> = (0..TURN - puts.len()).map(held).collect();
                let nanos = timed(barrier, || {
                    for (put, gets) in puts.iter().zip(gets.chunks_exact(9)) {
                        gets.iter().for_each(|get| _ = cache.get(hand, get));
                        cache.put(hand, put, &DATA_OF_ALL, Uses::Many);
                    }
                    cache.settle();
                });
                cache.trim(&puts);
                nanos
            }
            Work::Take => {
                // At most as many at a time as there is room for.
                let room = (section.size - before_takes(section.size)) / section.threads;
                let at_once = TURN.min(room / 2);
                let (mut nanos, mut taken, mut all) = (0, 0, 0);
                barrier.wait();
                while all < TURN {
                    let mut keys: Vec<_> = (0..at_once).map(fresh).collect();
                    keys.iter()
                        .for_each(|key| cache.put(hand, key, &DATA_OF_ALL, Uses::Once));
                    cache.settle();
                    (1..at_once).for_each(|place| {
                        let other = mix(seed << 24 | place as u64) % (place as u64 + 1);
                        keys.swap(place, usize::try_from(other).unwrap());
                    });
                    let begun = Instant::now();
                    taken += keys.iter().filter(|key| cache.take(hand, key)).count();
                    cache.settle();
                    nanos += begun.elapsed().as_nanos();
                    all += at_once;
                }
                barrier.wait();
                // quick_cache limits each of its shards, and some are full before others.
                assert!(taken > all * 3 / 4, "{taken} of {all} taken");
                nanos as f64 / all as f64
            }
        }
    }
}

/// Measures nanoseconds of one of [`TURN`] operations. All threads begin together, and none goes on
/// before all are done.
fn timed(barrier: &Barrier, work: impl FnOnce()) -> f64 {
    barrier.wait();
    let begun = Instant::now();
    work();
    let nanos = begun.elapsed().as_nanos();
    barrier.wait();
    nanos as f64 / TURN as f64
}
