//! The request of one call: read by its service, and read ahead while the service has to wait.
//!
//! A service whose answers the caller does not read is not polled, and reads nothing. What came meanwhile would lie in HTTP/2
//! where nothing counts it, frame by frame, each far larger than its bytes. So the call reads it ahead, joins short pieces, counts
//! all of it for the caller's identity, and widens no window until the service has it.
//!
//! HTTP/2 wakes one task for what comes. So a service reads in the task of its call, and in none of its own.

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

use crate::rpc::{
    accounts::{Held, Holder},
    status::Refusal,
};

/// A piece shorter than this is copied: it would keep the buffer alive that HTTP/2 has read it into.
const COPIED: usize = 8 << 10;
/// A longer one keeps a buffer alive that is twice as long at most.
const PINNED: usize = 2;

/// What a call and the body of its request share. None when the service has dropped the body.
pub(super) struct Inbox(Mutex<Option<Requests>>);

struct Requests {
    stream: RecvStream,
    /// What came while the service did not read. No window was widened for it.
    ahead: VecDeque<Ahead>,
    /// What that takes, in bytes.
    taken: usize,
    counted: Held,
}

/// A piece of a request that was read ahead.
enum Ahead {
    AsItCame(Bytes),
    /// Pieces that were short.
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
    /// An inbox, and the body for the service.
    pub(super) fn new(stream: RecvStream, holder: &Arc<Holder>) -> (Arc<Self>, RequestBody) {
        let requests = Requests { stream, ahead: VecDeque::new(), taken: 0, counted: holder.no_bytes() };
        let inbox = Arc::new(Self(Mutex::new(Some(requests))));
        (Arc::clone(&inbox), RequestBody(inbox))
    }

    /// Reads what has come, and lets the task be woken by more.
    ///
    /// # Errors
    /// [`Refusal::RequestBytesLimit`]: the identity of the caller holds too much. What had come before stays.
    pub(super) fn read_ahead(&self, cx: &mut Context<'_>) -> Result<(), Refusal> {
        let mut inbox = self.0.lock();
        let Some(requests) = &mut *inbox else { return Ok(()) };
        // The end and errors come again when the service reads.
        loop {
            match requests.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    requests.keep(data);
                    requests.counted.resize(requests.taken)?;
                }
                // gRPC has no trailers of a request: they are not kept.
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
        Poll::Ready(Some(self.stream.flow_control().release_capacity(data.len()).map(|()| data)))
    }
}

/// The body of a request, as its service reads it.
pub(in crate::rpc) struct RequestBody(Arc<Inbox>);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let mut inbox = self.0.0.lock();
        let Some(requests) = &mut *inbox else { return Poll::Ready(None) };
        requests.next(cx).map(|data| data.map(|data| data.map(Frame::data).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        let inbox = self.0.0.lock();
        inbox.as_ref().is_none_or(|requests| requests.ahead.is_empty() && requests.stream.is_end_stream())
    }
}

impl Drop for RequestBody {
    /// What has come ahead, and what comes from now on, is of no use: the connection's window has it back.
    fn drop(&mut self) {
        let Some(mut requests) = self.0.0.lock().take() else { return };
        let ahead: usize = requests.ahead.iter().map(Ahead::len).sum();
        // It is no more than what HTTP/2 has handed out of this stream.
        drop(requests.stream.flow_control().release_capacity(ahead));
    }
}
