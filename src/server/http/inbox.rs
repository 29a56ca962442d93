//! The request body of one call. Its service reads it. The call reads ahead while the service
//! waits.
//!
//! A service is not polled while its caller leaves answers unread, and then reads no request.
//! Frames that arrive meanwhile would stay in h2, where nothing counts them and each takes far more
//! memory than its bytes. So the call reads them ahead, joins short pieces, and counts all of them
//! for the caller's identity. It releases no flow-control capacity until the service has read them.
//!
//! h2 wakes only one task for an arriving frame. So a service must read in the task of its call,
//! not in a task of its own.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tonic::codegen::StdError;

use crate::api::{
    error::Refusal,
    quota::{Held, Holder},
};

/// A piece shorter than this is copied, in bytes. Otherwise it would keep the whole read buffer of
/// HTTP/2 alive.
const COPIED: usize = 8 << 10;
/// A longer piece keeps a read buffer alive that is at most this many times as long.
const PINNED: usize = 2;

/// The state that a call and the body of its request share. `None` after the service dropped the
/// body.
pub(crate) struct Inbox(Mutex<Option<Requests>>);

struct Requests {
    stream: RecvStream,
    /// Pieces that arrived while the service did not read. Their flow-control capacity is not
    /// released.
    ahead: VecDeque<Ahead>,
    /// Memory of these pieces, in bytes.
    taken: usize,
    counted: Held,
}

/// A piece of a request that was read ahead.
enum Ahead {
    AsItCame(Bytes),
    /// Short pieces, joined.
    Joined(BytesMut),
}

impl Ahead {
    fn len(&self) -> usize {
        match self {
            Self::AsItCame(data) => data.len(),
            Self::Joined(data) => data.len(),
        }
    }
}

impl Inbox {
    /// Creates an inbox and the body for the service.
    pub(crate) fn new(stream: RecvStream, holder: &Arc<Holder>) -> (Arc<Self>, RequestBody) {
        let requests = Requests {
            stream,
            ahead: VecDeque::new(),
            taken: 0,
            counted: holder.no_bytes(),
        };
        let inbox = Arc::new(Self(Mutex::new(Some(requests))));
        (Arc::clone(&inbox), RequestBody(inbox))
    }

    /// Reads all data that has arrived, and registers the task to be woken by more.
    ///
    /// # Errors
    /// [`Refusal::RequestBytesLimit`] if the identity of the caller holds too many bytes. Data that
    /// was read stays in the inbox.
    pub(crate) fn read_ahead(&self, cx: &mut Context<'_>) -> Result<(), Refusal> {
        let mut inbox = self.0.lock();
        let Some(requests) = &mut *inbox else {
            return Ok(());
        };
        // The end and errors are reported again when the service reads.
        loop {
            match requests.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    requests.keep(data);
                    requests.counted.resize(requests.taken)?;
                }
                // A gRPC request has no trailers, so they are discarded.
                Poll::Ready(None) => {
                    let _ = requests.stream.poll_trailers(cx);
                    return Ok(());
                }
                Poll::Ready(Some(Err(_))) | Poll::Pending => return Ok(()),
            }
        }
    }
}

impl Requests {
    fn keep(&mut self, data: Bytes) {
        if data.len() >= COPIED {
            self.taken += data.len() * PINNED;
            return self.ahead.push_back(Ahead::AsItCame(data));
        }
        match self.ahead.back_mut() {
            Some(Ahead::Joined(last)) if last.len() < COPIED => {
                self.taken -= last.capacity();
                last.extend_from_slice(&data);
                self.taken += last.capacity();
            }
            _ => {
                let first = BytesMut::from(&data[..]);
                self.taken += first.capacity();
                self.ahead.push_back(Ahead::Joined(first));
            }
        }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let data = match self.ahead.pop_front() {
            None => match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => data,
                other => return other,
            },
            Some(ahead) => {
                let (taken, data) = match ahead {
                    Ahead::AsItCame(data) => (data.len() * PINNED, data),
                    Ahead::Joined(data) => (data.capacity(), data.freeze()),
                };
                self.taken -= taken;
                self.counted.shrink(self.taken);
                data
            }
        };
        Poll::Ready(Some(
            self.stream
                .flow_control()
                .release_capacity(data.len())
                .map(|()| data),
        ))
    }
}

/// The body of a request, for its service.
pub(crate) struct RequestBody(Arc<Inbox>);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let mut inbox = self.0.0.lock();
        let Some(requests) = &mut *inbox else {
            return Poll::Ready(None);
        };
        requests
            .next(cx)
            .map(|data| data.map(|data| data.map(Frame::data).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        let inbox = self.0.0.lock();
        inbox
            .as_ref()
            .is_none_or(|requests| requests.ahead.is_empty() && requests.stream.is_end_stream())
    }
}

impl Drop for RequestBody {
    /// Discards the data read ahead and all later data, and returns their capacity to the window of
    /// the connection.
    fn drop(&mut self) {
        let Some(mut requests) = self.0.0.lock().take() else {
            return;
        };
        let ahead: usize = requests.ahead.iter().map(Ahead::len).sum();
        // This cannot fail: h2 has handed out at least that many bytes of this stream.
        drop(requests.stream.flow_control().release_capacity(ahead));
    }
}
