//! The session cache in memory against the caches that a user would take instead: DashMap, moka,
//! quick_cache, and OpenSSL's own cache (with feature `openssl`).
//!
//! `cargo bench --bench cache`. Words after `--` select rows by name, for example
//! `-- 'get, 1 thread'` or `-- ', 1M'`.
//!
//! * `contenders`: the caches, each used as a user would use it
//! * `floor`: an array and a chain, which need not search and show the time of memory alone
//! * `openssl`: OpenSSL's cache; has all `unsafe` code except the allocator's
//! * `turns`: the operations, in turns
//! * `memory`: the memory of a session, each contender in a process of its own
//! * `table`: ratios and goals
//! * `shared/`: keeps the cores awake
//!
//! All contenders have the same ids of 32 bytes and values of 200 bytes. They take turns in many
//! short rounds, and each round gives one ratio, so other load of the machine affects all of them.
//! Ten million sessions of all contenders do not fit into memory together. There each contender is
//! measured alone, one after the other.

#![expect(clippy::unwrap_used, reason = "a failure ends the run")]

mod contenders;
mod floor;
mod memory;
#[cfg(feature = "openssl")]
mod openssl;
mod table;
mod turns;

#[path = "../shared/awake.rs"]
mod awake;
#[path = "../shared/cores.rs"]
mod cores;

use contenders::{Bare, Moka, Ours, Quick, Raw};
use floor::{Array, Chain};
use table::Table;
use turns::{Begun, Section, Side, Work};

/// The capacities of the caches, in sessions.
const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// The largest size at which all contenders fit into memory together.
const TOGETHER_MAX: usize = 1_000_000;

/// Makes a contender for this number of sessions.
type Maker = fn(usize) -> Box<dyn Side>;

/// The contenders, in the order of the table's columns. Ours is the first.
const CONTENDERS: &[(&str, Maker)] = &[
    ("ours", |size| Begun::boxed(Ours::new(size))),
    ("store", |size| Begun::boxed(Bare::new(size))),
    ("DashMap", |size| Begun::boxed(Raw::new(size))),
    ("moka", |size| Begun::boxed(Moka::new(size))),
    ("quick_cache", |size| Begun::boxed(Quick::new(size))),
    ("array", |size| Begun::boxed(Array::new(size))),
    ("chain", |size| Begun::boxed(Chain::new(size))),
    #[cfg(feature = "openssl")]
    ("OpenSSL", |size| Begun::boxed(openssl::Context::new(size))),
];

/// Leaves out OpenSSL where its large sessions do not fit into memory, and the floor for all work
/// except gets.
fn takes_part(name: &str, section: &Section) -> bool {
    match name {
        "OpenSSL" => section.size <= TOGETHER_MAX,
        name if floor::NAMES.contains(&name) => section.work == Work::Get,
        _ => true,
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &words[..]
        && flag == memory::FLAG
    {
        let (_, make) = CONTENDERS.iter().find(|(held, _)| held == name).unwrap();
        return memory::tell(*make);
    }
    let mut table = Table::wanted(words);
    {
        let _awake = awake::Awake::begin();
        for size in SIZES {
            let sections: Vec<_> = Section::all(size)
                .into_iter()
                .filter(|section| table.wants(&section.to_string()))
                .collect();
            if sections.is_empty() {
                continue;
            }
            let mut rounds = vec![vec![Vec::new(); CONTENDERS.len()]; sections.len()];
            // All contenders at once, or one after the other.
            let together = if size > TOGETHER_MAX {
                1
            } else {
                CONTENDERS.len()
            };
            for (group, contenders) in CONTENDERS.chunks(together).enumerate() {
                let part = |name: &str| sections.iter().any(|section| takes_part(name, section));
                let sides: Vec<_> = contenders
                    .iter()
                    .map(|&(name, make)| part(name).then(|| (name, make(size))))
                    .collect();
                for (section, rounds) in sections.iter().zip(&mut rounds) {
                    let playing = sides.iter().enumerate().filter_map(|(place, side)| {
                        let (name, side) = side.as_ref()?;
                        takes_part(name, section).then_some((group * together + place, &**side))
                    });
                    let (places, sides): (Vec<_>, Vec<_>) = playing.unzip();
                    for (place, nanos) in places.into_iter().zip(section.run(&sides)) {
                        rounds[place] = nanos;
                    }
                }
            }
            for (section, rounds) in sections.iter().zip(rounds) {
                table.row(section, rounds);
            }
        }
    }
    table.print();
    if table.wants(memory::TITLE) {
        memory::print(
            CONTENDERS
                .iter()
                .map(|(name, _)| *name)
                .filter(|name| !floor::NAMES.contains(name)),
        );
    }
}
