//! Keeps cores busy with nothing, so that they are never given away.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::process::nice;

use crate::cores;

/// A thread of the lowest priority on each core, until this is dropped.
///
/// A virtual machine's host takes a core that idles and gives it back cold, on another core of its own perhaps. Who sleeps
/// and wakes for every message pays for that, and plain rustls in memory does not: without these threads the daemon's CPU
/// time moved by 40 % from row to row, depending on how much the machine slept.
pub(crate) struct Awake {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Awake {
    pub(crate) fn begin() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let threads = cores::all().into_iter().map(|core| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                cores::pin(core);
                // On Linux this is for the calling thread alone.
                nice(19).unwrap();
                // Not spin_loop(): some hosts take the core of who pauses.
                while !black_box(&over).load(Ordering::Relaxed) {}
            })
        });
        Self { threads: threads.collect(), over }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that could not get its core has said so, and this may be a panic already.
            drop(thread.join());
        }
    }
}
