//! One thread for each core, each with the connections that it was given.
//!
//! A call's task and the task of its HTTP/2 connection wake each other for every message. On one thread that is a push to
//! a queue; across threads it is a wake-up of another core, which costs as much as a short handshake's own work. So a
//! connection stays on the thread it was given to, and a new one goes to the thread with the fewest.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};

use super::{
    http::Http,
    listen::{Accepted, Signals},
    lookout::Lookout,
};

/// Accepted sockets that a thread has not yet looked at.
const WAITING_MAX: usize = 128;

/// The threads.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    sockets_max: usize,
    ended: mpsc::UnboundedReceiver<()>,
}

struct Lane {
    accepted: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
}

/// Tells of its thread's end, whatever that is.
struct Ends(mpsc::UnboundedSender<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        // Nobody listens where the daemon was dropped.
        let _ = self.0.send(());
    }
}

impl Lanes {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives no thread, or no event queue for it.
    pub(super) fn start(
        count: usize,
        sockets_max: usize,
        http: &Http,
        signals: &Signals,
    ) -> io::Result<Self> {
        let (ends, ended) = mpsc::unbounded_channel();
        let mut lanes = Vec::with_capacity(count);
        for number in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
            let (accepted, arriving) = mpsc::channel(WAITING_MAX);
            let open = Arc::new(AtomicUsize::new(0));
            let (http, signals, ends) = (http.clone(), signals.clone(), Ends(ends.clone()));
            thread::Builder::new().name(format!("api-{number}")).spawn(move || {
                let _ends = ends;
                runtime.block_on(lane(arriving, http, signals));
            })?;
            lanes.push(Lane { accepted, open });
        }
        Ok(Self { lanes, sockets_max, ended })
    }

    /// Gives a socket to the thread with the fewest. Beyond the most there may be it is closed.
    pub(super) async fn hand(&self, mut accepted: Accepted) {
        let open: usize = self.lanes.iter().map(|lane| lane.open.load(Ordering::Relaxed)).sum();
        if open >= self.sockets_max {
            tracing::debug!(open, "a socket too many was closed");
            return;
        }
        let alive = self.lanes.iter().filter(|lane| !lane.accepted.is_closed());
        let Some(lane) = alive.min_by_key(|lane| lane.open.load(Ordering::Relaxed)) else { return };
        accepted.count_on(&lane.open);
        if lane.accepted.send(accepted).await.is_err() {
            tracing::error!("a thread of the API has ended");
        }
    }

    /// The end of one thread; `None` when all have ended.
    pub(super) async fn ended(&mut self) -> Option<()> {
        self.ended.recv().await
    }

    /// No more sockets come: each thread ends with its last connection.
    pub(super) fn close(&mut self) {
        self.lanes.clear();
    }
}

/// Serves the sockets that come, and ends with the last of them once no more do.
async fn lane(mut arriving: mpsc::Receiver<Accepted>, http: Http, signals: Signals) {
    let lookout = Arc::new(Lookout::default());
    let looks = Arc::clone(&lookout);
    // It ends with the thread's runtime.
    tokio::spawn(async move { looks.keep().await });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            arrived = arriving.recv() => match arrived {
                Some(accepted) => {
                    let served = http.clone().serve(accepted, signals.clone(), Arc::clone(&lookout));
                    connections.spawn(served);
                }
                None => break,
            },
            Some(ended) = connections.join_next() => report(ended),
        }
    }
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(err) = ended {
        tracing::error!(%err, "the task of an HTTP/2 connection failed");
    }
}
