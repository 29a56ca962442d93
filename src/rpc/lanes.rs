//! One thread for each core, each with the connections that it was given.
//!
//! A call's task and the task of its HTTP/2 connection wake each other for every message. On one thread that is a push to
//! a queue; across threads it is a wake-up of another core, which costs as much as a short handshake's own work. So a
//! connection stays on the thread it was given to, and a new one goes to the thread with the fewest.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    thread,
};

use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::listen::{Accepted, Guarded, Signals};

/// Accepted sockets that a thread has not yet looked at.
const WAITING_MAX: usize = 128;

/// The threads.
pub(super) struct Lanes<E> {
    lanes: Vec<Lane>,
    ended: mpsc::Receiver<Result<(), E>>,
}

struct Lane {
    accepted: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
}

impl<E: Send + 'static> Lanes<E> {
    /// Starts the threads; each serves what `serve` makes of its sockets.
    pub(super) fn start<F>(
        count: usize,
        signals: &Signals,
        serve: impl Fn(Incoming) -> F + Clone + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = Result<(), E>>,
    {
        let (end, ended) = mpsc::channel(count);
        let mut lanes = Vec::with_capacity(count);
        for number in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (accepted, arriving) = mpsc::channel(WAITING_MAX);
            let open = Arc::new(AtomicUsize::new(0));
            let incoming = Incoming { arriving, signals: signals.clone() };
            let (serve, end) = (serve.clone(), end.clone());
            thread::Builder::new().name(format!("api-{number}")).spawn(move || {
                runtime.block_on(async {
                    let result = serve(incoming).await;
                    // Nobody listens where the daemon was dropped.
                    let _ = end.send(result).await;
                });
            })?;
            lanes.push(Lane { accepted, open });
        }
        Ok(Self { lanes, ended })
    }

    /// Gives a socket to the thread with the fewest.
    pub(super) async fn hand(&self, mut accepted: Accepted) {
        let alive = self.lanes.iter().filter(|lane| !lane.accepted.is_closed());
        let Some(lane) = alive.min_by_key(|lane| lane.open.load(Ordering::Relaxed)) else { return };
        accepted.count_on(&lane.open);
        if lane.accepted.send(accepted).await.is_err() {
            tracing::error!("a thread of the API has ended");
        }
    }

    /// The end of one thread, in the order they end; `None` when all have.
    pub(super) async fn ended(&mut self) -> Option<Result<(), E>> {
        self.ended.recv().await
    }

    /// No more sockets come: each thread ends with its last connection.
    pub(super) fn close(&mut self) {
        self.lanes.clear();
    }
}

/// The sockets of one thread.
pub(super) struct Incoming {
    arriving: mpsc::Receiver<Accepted>,
    signals: Signals,
}

impl Stream for Incoming {
    type Item = io::Result<Guarded>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.arriving.poll_recv(cx));
        Poll::Ready(accepted.map(|accepted| Guarded::adopt(accepted, &self.signals)))
    }
}
