//! The memory of a session besides its id and its data.

#![allow(unsafe_code, reason = "a global allocator that counts bytes")]

use std::{
    alloc::{GlobalAlloc, Layout},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use mimalloc::MiMalloc;

use crate::{
    Maker,
    contenders::{DATA, Id},
};

pub(crate) const TITLE: &str = "memory";
/// The argument that makes a process measure one contender.
pub(crate) const FLAG: &str = "--memory-of";
const SESSIONS: usize = 1_000_000;

/// The daemon's allocator. Counts the bytes that are requested, but only in a process that measures
/// memory.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to mimalloc.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(Ordering::Relaxed) {
            LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        }
        // SAFETY: the caller upholds the contract.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if COUNTS.load(Ordering::Relaxed) {
            LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        // SAFETY: the caller upholds the contract.
        unsafe { MiMalloc.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(Ordering::Relaxed) {
            LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        }
        // SAFETY: the caller upholds the contract.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if COUNTS.load(Ordering::Relaxed) {
            LIVE.fetch_add(size, Ordering::Relaxed);
            LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        // SAFETY: the caller upholds the contract.
        unsafe { MiMalloc.realloc(place, layout, size) }
    }
}

/// Runs in a process of its own. Fills one contender and prints the bytes of a session, as
/// requested from the allocator and as resident in memory.
pub(crate) fn tell(make: Maker) {
    COUNTS.store(true, Ordering::Relaxed);
    let [live, resident] = [LIVE.load(Ordering::Relaxed), resident()];
    let side = make(SESSIONS);
    side.fill(SESSIONS);
    let besides = |bytes: usize| bytes as f64 / SESSIONS as f64 - (size_of::<Id>() + DATA) as f64;
    println!(
        "{:.0} {:.0}",
        besides(LIVE.load(Ordering::Relaxed) - live),
        besides(self::resident() - resident)
    );
}

/// Returns the resident bytes of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    1024 * line
        .trim()
        .trim_end_matches("kB")
        .trim_end()
        .parse::<usize>()
        .unwrap()
}

/// Runs one process for each contender and prints a row of its result.
pub(crate) fn print(names: impl Iterator<Item = &'static str>) {
    println!(
        "\nbytes of a session besides {} of id and {DATA} of data, among {SESSIONS} sessions",
        size_of::<Id>()
    );
    println!("{:28} {:>13} {:>13}  goal", "", "requested", "resident");
    for name in names {
        let told = Command::new(std::env::current_exe().unwrap())
            .args([FLAG, name])
            .output()
            .unwrap();
        assert!(
            told.status.success(),
            "{}",
            String::from_utf8_lossy(&told.stderr)
        );
        let told = String::from_utf8(told.stdout).unwrap();
        let [asked, resident] = told.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{told}")
        };
        let goal = match name {
            "ours" if asked.parse::<f64>().unwrap() <= 120.0 => "<= 120 met",
            "ours" => "<= 120 missed",
            _ => "",
        };
        // OpenSSL allocates with the C library, which this allocator does not count.
        let asked = if name == "OpenSSL" { "" } else { asked };
        println!(
            "{}",
            format!("{name:28} {asked:>13} {resident:>13}  {goal}").trim_end()
        );
    }
}
