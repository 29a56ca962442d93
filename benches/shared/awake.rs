//! Keeps all cores busy, so that the host never takes them away.

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

/// Runs a thread of the lowest priority on each core until it is dropped.
///
/// The host of a virtual machine takes an idle core away and gives it back cold, perhaps as another
/// physical core. A process that sleeps and wakes for every message pays for that, and plain rustls
/// in memory does not. Without these threads the daemon's CPU time varied by 40 % from row to row,
/// depending on how much the machine slept.
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
                // On Linux this applies to the calling thread only.
                nice(19).unwrap();
                // Not spin_loop(): some hosts take the core away from a thread that pauses.
                while !black_box(&over).load(Ordering::Relaxed) {}
            })
        });
        Self {
            threads: threads.collect(),
            over,
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that failed has printed its panic. Another panic here could abort the
            // process.
            drop(thread.join());
        }
    }
}
