//! The answers of a stream that makes its caller a member, made by a task of their own.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::api::{access::Caller, call::StreamPlace, error::Refusal, quota::Held};

/// Takes the answers of a task. A caller that reads nothing gets only the newest instruction when it reads
/// again.
pub(super) type Tells<T> = mpsc::Sender<Result<T, Status>>;

/// The answers of one stream. Its task ends when it is dropped.
pub(crate) struct MemberStream<T> {
    told: mpsc::Receiver<Result<T, Status>>,
    _task: AbortOnDropHandle<()>,
    _place: StreamPlace,
    _held: Held,
}

impl<T: Send + 'static> MemberStream<T> {
    /// Begins the task that `serve` returns. Its error ends the stream.
    ///
    /// # Errors
    /// Too many streams of this caller are open.
    pub(super) fn begin<F>(
        by: &Arc<Caller>,
        serve: impl FnOnce(Tells<T>) -> F,
    ) -> Result<Self, Refusal>
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let held = by.holder().attached()?;
        let place = StreamPlace::hold(by);
        let (tells, told) = mpsc::channel(1);
        let serving = serve(tells.clone());
        let task = tokio::spawn(async move {
            if let Err(status) = serving.await {
                // A caller that has gone does not read it.
                drop(tells.send(Err(status)).await);
            }
        });
        Ok(Self {
            told,
            _task: AbortOnDropHandle::new(task),
            _place: place,
            _held: held,
        })
    }
}

impl<T> Stream for MemberStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.told.poll_recv(cx)
    }
}
