//! The queue of a link as the requests of its stream: whatever is ready goes out as one message.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio_stream::Stream;

use super::link::Link;
use crate::proto as pb;

/// Polled by the transport when it can send; no task and no queue of its own.
pub(super) struct Batches(pub(super) Arc<Link>);

impl Stream for Batches {
    type Item = pb::AttachRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<pb::AttachRequest>> {
        self.0.poll_batch(cx).map(|calls| calls.map(|calls| pb::AttachRequest { calls }))
    }
}
