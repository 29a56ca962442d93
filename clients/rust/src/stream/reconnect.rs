//! Keeps one stream to the daemon: connects, runs the stream, and reconnects.

use std::{convert::Infallible, sync::Arc, time::Instant};

use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{Draining, METHOD, Stream};
use crate::{breaker::backoff::Backoff, endpoint::Transport, lookup::WorkerState, outbox::Outbox};

/// Connects until the last [`crate::Worker`] is dropped. Connections that are not freed then keep
/// their stream.
pub(crate) async fn keep(shared: Arc<WorkerState>, mut gone: oneshot::Receiver<Infallible>) {
    let mut backoff = Backoff::new(shared.options.back_off);
    loop {
        let attached = tokio::select! {
            _ = &mut gone => return,
            attached = timeout(shared.options.connect_timeout(), attach(&shared)) => attached,
        };
        let attached = attached.unwrap_or_else(|_| Err("the daemon does not answer".into()));
        if let Err(why) = &attached {
            shared.set_trouble(why);
        }
        if let Ok((link, stream)) = attached {
            let begun = Instant::now();
            shared.join(&link);
            let (tell, lost) = oneshot::channel();
            let run = Run {
                shared: Arc::clone(&shared),
                link: Arc::clone(&link),
                lost: Some(tell),
            };
            tokio::spawn(run.through(stream));
            tokio::select! {
                _ = &mut gone => {
                    shared.leave(&link);
                    link.retire();
                    return;
                }
                _ = lost => {}
            }
            // Without this a daemon that accepts streams and ends them at once would reset the
            // back-off each time.
            if begun.elapsed() > shared.options.back_off.1 {
                backoff.reset();
            }
        }
        tokio::select! {
            _ = &mut gone => return,
            () = sleep(backoff.pause()) => {}
        }
    }
}

/// Returns the error in words.
async fn attach(shared: &WorkerState) -> Result<(Arc<Outbox>, Stream<Transport>), String> {
    let address = &shared.options.address;
    let line = address.connect().await.map_err(|err| err.to_string())?;
    let link = Arc::new(Outbox::new(
        shared.options.limits.clone(),
        Arc::clone(&shared.tallies),
    ));
    let stream = Stream::open(line, address.uri(METHOD), Arc::clone(&link)).await?;
    Ok((link, stream))
}

/// A running stream. When it is dropped, for any reason and also with its runtime, the outbox is
/// closed.
struct Run {
    shared: Arc<WorkerState>,
    link: Arc<Outbox>,
    /// Dropped to request another stream.
    lost: Option<oneshot::Sender<Infallible>>,
}

impl Run {
    async fn through(mut self, mut stream: Stream<Transport>) {
        while let Some(Draining) = stream.next().await {
            // The connections of this stream may still report how they end.
            self.shared.leave(&self.link);
            self.link.retire();
            self.lost = None;
        }
        drop(self);
        stream.close().await;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.shared.leave(&self.link);
        self.link.close();
    }
}
