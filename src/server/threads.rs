//! The server threads: one for each core, each with connections of its own.
//!
//! The task of a call and the task of its HTTP/2 connection wake each other for every message. On
//! one thread, such a wake-up is a push to a queue. Across threads it wakes another core, which
//! costs as much as the work of a short handshake. So a connection stays on its thread, and a new
//! one goes to the thread with the fewest connections.

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
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
};

use super::{busy_poll::BusyPoll, listen::Accepted};
use crate::api::quota::line_budget::LineBudget;

/// Most accepted sockets in the queue of one thread.
const WAITING_MAX: usize = 128;
/// Most local sockets beyond the limit. Their callers get an error that names the limit, and may
/// call health and reflection.
const BEYOND: usize = 16;
/// How many of those are for callers with the daemon's own user, or root: probes and administrators. Other
/// users of the socket would take all of them.
const BEYOND_OWN: usize = 4;
/// The share of all sockets that is reserved for callers over loopback and Unix sockets: one in
/// this many.
const LOCAL_SHARE: usize = 8;
/// Shortest interval between two log lines about the limit of sockets.
const FULL: Duration = Duration::from_secs(10);
/// Delay before a thread restarts after a panic. Without it, a thread that always panics would use
/// a whole core.
const AGAIN: Duration = Duration::from_millis(100);

/// The server threads.
pub(crate) struct ServerThreads {
    lanes: Vec<ServerThread>,
    sockets_max: usize,
    ended: mpsc::UnboundedReceiver<()>,
    full: LineBudget,
}

struct ServerThread {
    arrivals: mpsc::Sender<Arrival>,
    open: Arc<AtomicUsize>,
}

/// What arrives at a thread.
enum Arrival {
    Socket(Accepted),
    /// The question whether the thread works. It answers as soon as it comes to it.
    Question(oneshot::Sender<()>),
}

/// Asks the server threads whether they work.
#[derive(Debug)]
pub struct Pulse(Vec<mpsc::WeakSender<Arrival>>);

impl Pulse {
    /// Returns once every thread has answered. A thread that has ended, or that takes no more sockets
    /// because the daemon stops, need not answer.
    pub async fn beat(&self) {
        for thread in &self.0 {
            let Some(thread) = thread.upgrade() else {
                continue;
            };
            let (answers, answered) = oneshot::channel();
            if thread.send(Arrival::Question(answers)).await.is_ok() {
                // The sender is dropped if the thread has panicked and starts again.
                drop(answered.await);
            }
        }
    }
}

/// Reports the end of its thread when dropped, also after a panic.
struct Ends(mpsc::UnboundedSender<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        // The receiver is closed if the daemon was dropped.
        let _ = self.0.send(());
    }
}

impl ServerThreads {
    /// Starts the threads. `serve` serves one connection, from its first byte to its end.
    ///
    /// # Errors
    /// The system refuses to create a thread or its event queue.
    pub(crate) fn start<F>(
        count: usize,
        sockets_max: usize,
        serve: impl Fn(Accepted, Arc<BusyPoll>) -> F + Clone + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ends, ended) = mpsc::unbounded_channel();
        let mut lanes = Vec::with_capacity(count);
        for number in 0..count {
            let mut runtime = Some(runtime()?);
            let (arrivals, mut arriving) = mpsc::channel(WAITING_MAX);
            let open = Arc::new(AtomicUsize::new(0));
            let (serve, ends) = (serve.clone(), Ends(ends.clone()));
            thread::Builder::new()
                .name(format!("api-{number}"))
                .spawn(move || {
                    let _ends = ends;
                    // A panic here is logged. It ends the connections of this thread, because their
                    // tasks are dropped with the runtime. Other threads are not affected.
                    while let Some(here) = runtime.take() {
                        let ran = catch_unwind(AssertUnwindSafe(|| {
                            here.block_on(lane(&mut arriving, &serve));
                        }));
                        if ran.is_ok() {
                            break;
                        }
                        drop(catch_unwind(AssertUnwindSafe(|| drop(here))));
                        thread::sleep(AGAIN);
                        runtime = again();
                    }
                })?;
            lanes.push(ServerThread { arrivals, open });
        }
        Ok(Self {
            lanes,
            sockets_max,
            ended,
            full: LineBudget::new(1, FULL),
        })
    }

    /// Passes a socket to the thread with the fewest connections. Beyond the limit of sockets, up
    /// to [`BEYOND`] local ones are served an error and may call health and reflection. All others
    /// are closed.
    pub(crate) async fn hand(&self, mut accepted: Accepted) {
        let open: usize = self
            .lanes
            .iter()
            .map(|lane| lane.open.load(Ordering::Relaxed))
            .sum();
        // Remote callers cannot use the places that are reserved for callers on this host.
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
            // Remote peers without a proved identity would take these places from health probes of
            // this host.
            let beyond = match accepted.is_own() {
                true => BEYOND,
                false => BEYOND - BEYOND_OWN,
            };
            if !accepted.is_local() || open >= sockets_max + beyond {
                return;
            }
            accepted.is_beyond(sockets_max);
        }
        let alive = self.lanes.iter().filter(|lane| !lane.arrivals.is_closed());
        let Some(lane) = alive.min_by_key(|lane| lane.open.load(Ordering::Relaxed)) else {
            return;
        };
        accepted.count_on(&lane.open);
        if lane.arrivals.send(Arrival::Socket(accepted)).await.is_err() {
            tracing::error!("a server thread of the API has ended");
        }
    }

    /// Returns a way to ask the threads whether they work. It does not keep them from ending.
    pub(crate) fn pulse(&self) -> Pulse {
        let weak = |lane: &ServerThread| lane.arrivals.downgrade();
        Pulse(self.lanes.iter().map(weak).collect())
    }

    /// Returns how many threads run.
    pub(crate) fn alive(&self) -> usize {
        self.lanes
            .iter()
            .filter(|lane| !lane.arrivals.is_closed())
            .count()
    }

    /// Waits for the end of one thread. Returns `None` when all have ended.
    pub(crate) async fn ended(&mut self) -> Option<()> {
        self.ended.recv().await
    }

    /// Closes the queues of sockets. Each thread then ends with its last connection.
    pub(crate) fn close(&mut self) {
        self.lanes.clear();
    }
}

/// Creates the runtime of a thread that restarts.
fn again() -> Option<Runtime> {
    runtime()
        .inspect_err(|err| tracing::error!(%err, "cannot restart a server thread of the API"))
        .ok()
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
}

/// Serves the arriving sockets. Ends when the queue is closed and the last connection has ended.
async fn lane<F: Future<Output = ()> + Send + 'static>(
    arriving: &mut mpsc::Receiver<Arrival>,
    serve: &impl Fn(Accepted, Arc<BusyPoll>) -> F,
) {
    let lookout = Arc::new(BusyPoll::default());
    let looks = Arc::clone(&lookout);
    // This task ends with the runtime of the thread.
    tokio::spawn(async move { looks.keep().await });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            arrived = arriving.recv() => match arrived {
                Some(Arrival::Socket(accepted)) => {
                    connections.spawn(serve(accepted, Arc::clone(&lookout)));
                }
                // The daemon may have stopped to ask.
                Some(Arrival::Question(answers)) => drop(answers.send(())),
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

    use tokio::{
        io::AsyncReadExt,
        net::TcpStream,
        time::{Duration, timeout},
    };
    use tokio_stream::StreamExt;

    use super::*;
    use crate::{
        config::{Endpoint, UnixFile},
        server::listen::Listeners,
    };

    /// Connects, and checks that the connection ends without data.
    async fn ended(address: SocketAddr, listeners: &mut Listeners, lanes: &ServerThreads) {
        let (mut caller, accepted) = tokio::join!(TcpStream::connect(address), listeners.next());
        lanes.hand(accepted.unwrap()).await;
        let mut rest = Vec::new();
        // A reset counts as an end.
        drop(caller.as_mut().unwrap().read_to_end(&mut rest).await);
        assert!(rest.is_empty());
    }

    /// Listens on a port of its own.
    fn bind() -> (SocketAddr, Listeners) {
        let here = SocketAddr::from(([127, 0, 0, 1], 0));
        let file = UnixFile {
            mode: 0o600,
            owner: None,
        };
        let listeners = Listeners::bind(&[Endpoint::Tcp(here)], file, false).unwrap();
        let [Endpoint::Tcp(address)] = listeners.endpoints()[..] else {
            panic!("one address")
        };
        (address, listeners)
    }

    // Invariant 24.
    #[tokio::test]
    async fn panic_of_a_thread_costs_its_connections_and_no_other() {
        let (address, mut listeners) = bind();
        let served = Arc::new(Mutex::new(0));
        let counts = Arc::clone(&served);
        let serve = move |accepted: Accepted, _| {
            let mut served = counts
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            *served += 1;
            assert_ne!(
                *served, 2,
                "planted: on the thread itself, not in a task of it"
            );
            let third = *served == 3;
            async move {
                assert!(!third, "planted: in a task");
                drop(accepted);
            }
        };
        let mut lanes = ServerThreads::start(1, 10, serve).unwrap();
        for _ in 0..5 {
            ended(address, &mut listeners, &lanes).await;
        }
        assert_eq!(
            *served
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
            5
        );
        assert_eq!(lanes.alive(), 1);
        lanes.close();
        assert_eq!(lanes.ended().await, Some(()));
    }

    #[tokio::test]
    async fn thread_that_hangs_has_no_pulse() {
        let (address, mut listeners) = bind();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let hangs = Arc::new(tokio::sync::Notify::new());
        let begins = Arc::clone(&hangs);
        let serve = move |accepted: Accepted, _| {
            let (held, begins) = (Arc::clone(&held), Arc::clone(&begins));
            async move {
                begins.notify_one();
                // Planted: it blocks its thread.
                let held = held
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                drop((held.recv(), accepted));
            }
        };
        let mut lanes = ServerThreads::start(1, 10, serve).unwrap();
        let pulse = lanes.pulse();
        pulse.beat().await;
        let (caller, accepted) = tokio::join!(TcpStream::connect(address), listeners.next());
        let _caller = caller.unwrap();
        lanes.hand(accepted.unwrap()).await;
        hangs.notified().await;
        let silent = timeout(Duration::from_millis(200), pulse.beat()).await;
        silent.expect_err("the thread hangs");
        release.send(()).unwrap();
        pulse.beat().await;
        lanes.close();
        assert_eq!(lanes.ended().await, Some(()));
        pulse.beat().await;
    }
}
