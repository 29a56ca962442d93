//! Keeps one stream to the daemon: connects, reads answers, and connects again.

use std::{convert::Infallible, sync::Arc, time::Instant};

use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tonic::Streaming;

use super::{backoff::Backoff, batches::Batches, connector::Connector, link::Link, worker::Shared};
use crate::proto::{self as pb, worker_service_client::WorkerServiceClient};

/// The largest message of answers: the daemon cuts them at a MiB, but not within a session.
const ANSWERS_BYTES: usize = 16 << 20;

/// Ends when the last [`super::Worker`] is `gone`. Connections that are open then keep their stream.
pub(super) async fn keep(shared: Arc<Shared>, mut gone: oneshot::Receiver<Infallible>) {
    let mut backoff = Backoff::new(shared.options.back_off);
    loop {
        let attached = tokio::select! {
            _ = &mut gone => return,
            attached = timeout(shared.options.connect_timeout(), attach(&shared)) => attached,
        };
        if let Ok(Some((link, answers))) = attached {
            let begun = Instant::now();
            shared.join(&link);
            let (tell, lost) = oneshot::channel();
            let reader = Reader { shared: Arc::clone(&shared), link: Arc::clone(&link), lost: Some(tell) };
            tokio::spawn(reader.read(answers));
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

async fn attach(shared: &Shared) -> Option<(Arc<Link>, Streaming<pb::AttachResponse>)> {
    let endpoint = &shared.options.endpoint;
    let channel = match &shared.options.unix {
        None => endpoint.connect().await,
        Some(path) => endpoint.connect_with_connector(Connector(path.clone())).await,
    };
    let channel = channel.ok()?;
    let link = Arc::new(Link::new(shared.options.limits.clone(), Arc::clone(&shared.tallies)));
    let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(ANSWERS_BYTES);
    let answers = client.attach(Batches(Arc::clone(&link))).await.ok()?;
    Some((link, answers.into_inner()))
}

/// Hands out the answers of one stream. However it ends, also with its runtime, the link is closed.
struct Reader {
    shared: Arc<Shared>,
    link: Arc<Link>,
    /// Dropped when another stream is wanted.
    lost: Option<oneshot::Sender<Infallible>>,
}

impl Reader {
    async fn read(mut self, mut answers: Streaming<pb::AttachResponse>) {
        while let Ok(Some(response)) = answers.message().await {
            response.answers.into_iter().for_each(|answer| self.link.answer(answer));
            if response.draining {
                // Its connections may still tell how they end.
                self.shared.leave(&self.link);
                self.link.retire();
                self.lost = None;
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.leave(&self.link);
        self.link.close();
    }
}
