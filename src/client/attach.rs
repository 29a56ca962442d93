//! Keeps one stream to the daemon: connects, reads answers, and connects again.

use std::{convert::Infallible, sync::Arc, time::Instant};

use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tonic::{IntoStreamingRequest, Streaming, client::Grpc};

use super::{
    backoff::Backoff,
    codec::{Batches, Codec, Read},
    link::Link,
    worker::Shared,
};

/// What is called.
const METHOD: &str = "/tls.sessiond.v1.WorkerService/Attach";
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

async fn attach(shared: &Shared) -> Option<(Arc<Link>, Streaming<Read>)> {
    let channel = shared.options.channel().await.ok()?;
    let link = Arc::new(Link::new(shared.options.limits.clone(), Arc::clone(&shared.tallies)));
    let mut client = Grpc::new(channel).max_decoding_message_size(ANSWERS_BYTES);
    client.ready().await.ok()?;
    let batches = Batches(Arc::clone(&link)).into_streaming_request();
    let answers = client.streaming(batches, METHOD.parse().ok()?, Codec(Arc::clone(&link))).await.ok()?;
    Some((link, answers.into_inner()))
}

/// Reads the answers of one stream, which are handed out on the way. However it ends, also with its runtime, the link
/// is closed.
struct Reader {
    shared: Arc<Shared>,
    link: Arc<Link>,
    /// Dropped when another stream is wanted.
    lost: Option<oneshot::Sender<Infallible>>,
}

impl Reader {
    async fn read(mut self, mut answers: Streaming<Read>) {
        while let Ok(Some(read)) = answers.message().await {
            if read.draining {
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
