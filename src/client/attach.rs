//! Keeps one stream to the daemon: connects, lets it run, and connects again.

use std::{convert::Infallible, sync::Arc, time::Instant};

use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    address::Line,
    backoff::Backoff,
    link::Link,
    stream::{Draining, METHOD, Stream},
    worker::Shared,
};

/// Ends when the last [`super::Worker`] is `gone`. Connections that are open then keep their stream.
pub(super) async fn keep(shared: Arc<Shared>, mut gone: oneshot::Receiver<Infallible>) {
    let mut backoff = Backoff::new(shared.options.back_off);
    loop {
        let attached = tokio::select! {
            _ = &mut gone => return,
            attached = timeout(shared.options.connect_timeout(), attach(&shared)) => attached,
        };
        if let Ok(Some((link, stream))) = attached {
            let begun = Instant::now();
            shared.join(&link);
            let (tell, lost) = oneshot::channel();
            let run = Run { shared: Arc::clone(&shared), link: Arc::clone(&link), lost: Some(tell) };
            tokio::spawn(run.through(stream));
            tokio::select! {
                _ = &mut gone => {
                    shared.leave(&link);
                    link.retire();
                    return;
                }
                _ = lost => {}
            }
            // A daemon that takes streams and ends them at once is not called more and more often.
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

async fn attach(shared: &Shared) -> Option<(Arc<Link>, Stream<Line>)> {
    let address = &shared.options.address;
    let line = address.connect().await.ok()?;
    let link = Arc::new(Link::new(shared.options.limits.clone(), Arc::clone(&shared.tallies)));
    let stream = Stream::open(line, address.uri(METHOD), Arc::clone(&link)).await?;
    Some((link, stream))
}

/// One stream runs. However it ends, also with its runtime, the link is closed.
struct Run {
    shared: Arc<Shared>,
    link: Arc<Link>,
    /// Dropped when another stream is wanted.
    lost: Option<oneshot::Sender<Infallible>>,
}

impl Run {
    async fn through(mut self, mut stream: Stream<Line>) {
        while let Some(Draining) = stream.next().await {
            // Its connections may still tell how they end.
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
