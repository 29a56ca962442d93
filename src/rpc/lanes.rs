//! One thread for each core, each with the connections that it was given.
//!
//! A call's task and the task of its HTTP/2 connection wake each other for every message. On one thread that is a push to
//! a queue; across threads it is a wake-up of another core, which costs as much as a short handshake's own work. So a
//! connection stays on the thread it was given to, and a new one goes to the thread with the fewest.

use std::{
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    sync::mpsc,
    task::{JoinError, JoinSet},
};

use super::{line_budget::LineBudget, listen::Accepted, lookout::Lookout};

/// Accepted sockets that a thread has not yet looked at.
const WAITING_MAX: usize = 128;
/// Sockets beyond the limit whose callers, on this host, are told so, and may ask for the daemon's health.
const BEYOND: usize = 16;
/// One of so many places is kept for callers over loopback and Unix sockets.
const LOCAL_SHARE: usize = 8;
/// One line in this time tells that the limit is reached.
const FULL: Duration = Duration::from_secs(10);
/// Before a thread begins again after a panic, so that one that cannot run takes no core.
const AGAIN: Duration = Duration::from_millis(100);

/// The threads.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    sockets_max: usize,
    ended: mpsc::UnboundedReceiver<()>,
    full: LineBudget,
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
    /// Starts the threads. `serve` has a connection from its first byte to its end.
    ///
    /// # Errors
    /// The system gives no thread, or no event queue for it.
    pub(super) fn start<F>(
        count: usize,
        sockets_max: usize,
        serve: impl Fn(Accepted, Arc<Lookout>) -> F + Clone + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ends, ended) = mpsc::unbounded_channel();
        let mut lanes = Vec::with_capacity(count);
        for number in 0..count {
            let mut runtime = Some(runtime()?);
            let (accepted, mut arriving) = mpsc::channel(WAITING_MAX);
            let open = Arc::new(AtomicUsize::new(0));
            let (serve, ends) = (serve.clone(), Ends(ends.clone()));
            thread::Builder::new().name(format!("api-{number}")).spawn(move || {
                let _ends = ends;
                // A panic in here has its line in the log. It costs the connections of this thread, whose tasks go with the
                // runtime, and no others.
                while let Some(here) = runtime.take() {
                    let ran = catch_unwind(AssertUnwindSafe(|| here.block_on(lane(&mut arriving, &serve))));
                    if ran.is_ok() {
                        break;
                    }
                    drop(catch_unwind(AssertUnwindSafe(|| drop(here))));
                    thread::sleep(AGAIN);
                    runtime = again();
                }
            })?;
            lanes.push(Lane { accepted, open });
        }
        Ok(Self { lanes, sockets_max, ended, full: LineBudget::new(1, FULL) })
    }

    /// Gives a socket to the thread with the fewest. Beyond the most there may be, a few are told so and ask for health at
    /// most; further ones are closed.
    pub(super) async fn hand(&self, mut accepted: Accepted) {
        let open: usize = self.lanes.iter().map(|lane| lane.open.load(Ordering::Relaxed)).sum();
        // Of all places some are for callers on this host, whatever comes from elsewhere.
        let sockets_max = match accepted.is_local() {
            true => self.sockets_max,
            false => self.sockets_max - self.sockets_max / LOCAL_SHARE,
        };
        if open >= sockets_max {
            if let Some(left_out) = self.full.take(Instant::now()) {
                tracing::warn!(
                    open,
                    limit = sockets_max,
                    left_out,
                    "limits.sockets is reached: new sockets are refused"
                );
            }
            // Peers from elsewhere that have proved nothing would take these places from the probes of this host.
            if !accepted.is_local() || open >= sockets_max + BEYOND {
                return;
            }
            accepted.is_beyond(sockets_max);
        }
        let alive = self.lanes.iter().filter(|lane| !lane.accepted.is_closed());
        let Some(lane) = alive.min_by_key(|lane| lane.open.load(Ordering::Relaxed)) else { return };
        accepted.count_on(&lane.open);
        if lane.accepted.send(accepted).await.is_err() {
            tracing::error!("a thread of the API has ended");
        }
    }

    /// How many threads run.
    pub(super) fn alive(&self) -> usize {
        self.lanes.iter().filter(|lane| !lane.accepted.is_closed()).count()
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

/// A runtime for a thread that begins again.
fn again() -> Option<Runtime> {
    runtime().inspect_err(|err| tracing::error!(%err, "a thread of the API cannot begin again")).ok()
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()
}

/// Serves the sockets that come, and ends with the last of them once no more do.
async fn lane<F: Future<Output = ()> + Send + 'static>(
    arriving: &mut mpsc::Receiver<Accepted>,
    serve: &impl Fn(Accepted, Arc<Lookout>) -> F,
) {
    let lookout = Arc::new(Lookout::default());
    let looks = Arc::clone(&lookout);
    // It ends with the thread's runtime.
    tokio::spawn(async move { looks.keep().await });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            arrived = arriving.recv() => match arrived {
                Some(accepted) => {
                    connections.spawn(serve(accepted, Arc::clone(&lookout)));
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

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Mutex};

    use tokio::{io::AsyncReadExt, net::TcpStream};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::{
        config::{Endpoint, UnixFile},
        rpc::listen::Listeners,
    };

    /// What a caller sees: the end of its connection.
    async fn ended(address: SocketAddr, listeners: &mut Listeners, lanes: &Lanes) {
        let (mut caller, accepted) = tokio::join!(TcpStream::connect(address), listeners.next());
        lanes.hand(accepted.unwrap()).await;
        let mut rest = Vec::new();
        // A reset is an end as well.
        drop(caller.as_mut().unwrap().read_to_end(&mut rest).await);
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn panic_of_a_thread_costs_its_connections_and_no_other() {
        let here = SocketAddr::from(([127, 0, 0, 1], 0));
        let file = UnixFile { mode: 0o600, owner: None };
        let mut listeners = Listeners::bind(&[Endpoint::Tcp(here)], file, false).unwrap();
        let [Endpoint::Tcp(address)] = listeners.endpoints()[..] else { panic!("one address") };
        let served = Arc::new(Mutex::new(0));
        let counts = Arc::clone(&served);
        let serve = move |accepted: Accepted, _| {
            let mut served = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *served += 1;
            assert_ne!(*served, 2, "planted: on the thread itself, not in a task of it");
            let third = *served == 3;
            async move {
                assert!(!third, "planted: in a task");
                drop(accepted);
            }
        };
        let mut lanes = Lanes::start(1, 10, serve).unwrap();
        for _ in 0..5 {
            ended(address, &mut listeners, &lanes).await;
        }
        assert_eq!(*served.lock().unwrap_or_else(std::sync::PoisonError::into_inner), 5);
        assert_eq!(lanes.alive(), 1);
        lanes.close();
        assert_eq!(lanes.ended().await, Some(()));
    }
}
