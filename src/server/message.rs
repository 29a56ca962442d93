//! A request body that passes only complete messages on.
//!
//! gRPC sends the length of a message before the message, and tonic allocates that many bytes once
//! it has read the length. So a peer could make the daemon allocate 4 MiB with five bytes. This
//! body holds a message back until it is complete, so tonic allocates only for bytes that have
//! arrived. The bytes held back count for the caller, and a message that stays incomplete for too
//! long ends the call.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, codegen::StdError};

use crate::api::{
    error::Refusal,
    quota::{Held, Holder},
};

/// Length of the prefix of a message in bytes: the compressed flag and the length.
const PREFIX: usize = 5;
/// How long a message may take from its first byte to its last.
const UNFINISHED: Duration = Duration::from_secs(20);
/// The buffer for a message longer than this counts as long as its stream lives, in bytes. Buffers
/// for shorter messages are part of the accounted size of a stream.
pub(crate) const LONG: usize = 72 << 10;
/// A piece shorter than this is copied, in bytes. Otherwise it would keep its whole read buffer
/// alive.
const COPIED: usize = 8 << 10;
/// Factor from held bytes to their memory. The read buffer of a longer piece is at most twice as
/// long as the piece, and so is the capacity of a joined piece.
const COUNTED_TIMES: usize = 2;

/// How many messages a method reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expects {
    One,
    Any,
}

/// A body that passes only complete messages on.
pub(crate) struct Whole<B> {
    body: B,
    expects: Expects,
    /// Number of messages whose first byte has arrived.
    begun: u64,
    /// Whether the body has no more frames.
    ended: bool,
    /// Longest message that the service reads, in bytes. The prefix of a longer one is passed on at
    /// once, so that the service refuses it.
    message_max: usize,
    /// Pieces of the incomplete message, and of complete ones that wait to be passed on.
    pieces: VecDeque<Bytes>,
    /// Bytes of `pieces` that belong to complete messages.
    whole: usize,
    /// All bytes of `pieces`.
    held: usize,
    /// Length of the last message, and how many bytes of it are missing.
    length: usize,
    missing: usize,
    /// The prefix of the last message, as far as it has arrived.
    prefix: [u8; PREFIX],
    prefix_len: usize,
    /// Whether all data is passed on as it arrives, because a message was too long.
    through: bool,
    holder: Arc<Holder>,
    /// Counts the bytes held back. `None` while there are none.
    counted: Option<Held>,
    /// Counts the longest message of a stream, if it was longer than [`LONG`]. tonic keeps a buffer
    /// of that size as long as the stream lives.
    room: Option<Held>,
    late: Option<Pin<Box<Sleep>>>,
}

impl<B> Whole<B> {
    /// Wraps a body. Bytes held back count for `holder`.
    pub(crate) fn new(body: B, expects: Expects, message_max: usize, holder: Arc<Holder>) -> Self {
        Self {
            body,
            expects,
            begun: 0,
            ended: false,
            message_max,
            pieces: VecDeque::new(),
            whole: 0,
            held: 0,
            length: 0,
            missing: 0,
            prefix: [0; PREFIX],
            prefix_len: 0,
            through: false,
            holder,
            counted: None,
            room: None,
            late: None,
        }
    }

    /// Follows the message lengths through `data`. Returns the number of bytes up to the end of
    /// the last complete message, or all of them if a message is too long for the service.
    ///
    /// # Errors
    /// * [`Refusal::MessageCount`] if more messages have begun than the method reads.
    /// * [`Refusal::RequestBytesLimit`] if there is no room for a long message.
    fn follow(&mut self, data: &[u8]) -> Result<usize, Refusal> {
        let (mut at, mut ends) = (0, 0);
        while at < data.len() {
            if self.prefix_len < PREFIX {
                if self.prefix_len == 0 {
                    self.begun += 1;
                    if self.begun > 1 && self.expects == Expects::One {
                        return Err(Refusal::MessageCount);
                    }
                }
                let piece = (PREFIX - self.prefix_len).min(data.len() - at);
                self.prefix[self.prefix_len..self.prefix_len + piece]
                    .copy_from_slice(&data[at..at + piece]);
                self.prefix_len += piece;
                at += piece;
                if self.prefix_len < PREFIX {
                    break;
                }
                let [_, length @ ..] = self.prefix;
                // A length beyond the address space is longer than any message limit.
                self.missing = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.length = self.missing;
                if self.missing > self.message_max {
                    self.through = true;
                    return Ok(data.len());
                }
            }
            let piece = self.missing.min(data.len() - at);
            self.missing -= piece;
            at += piece;
            if self.missing == 0 {
                self.keep_room()?;
                self.prefix_len = 0;
                ends = at;
            }
        }
        Ok(ends)
    }

    /// Counts the buffer for a long message that is complete.
    fn keep_room(&mut self) -> Result<(), Refusal> {
        if self.length <= LONG || self.expects == Expects::One {
            return Ok(());
        }
        let room = self.room.get_or_insert_with(|| self.holder.no_bytes());
        if room.bytes() < self.length {
            room.resize(self.length)
        } else {
            Ok(())
        }
    }

    /// Takes data that has arrived. Returns data that can be passed on at once.
    fn take(&mut self, mut data: Bytes) -> Result<Option<Bytes>, Refusal> {
        if self.through {
            return Ok(Some(data));
        }
        let ends = self.follow(&data)?;
        if self.pieces.is_empty() && ends == data.len() {
            return Ok(Some(data));
        }
        let rest = data.split_off(ends);
        if !data.is_empty() {
            self.push(data);
            self.whole = self.held;
            // A message completed in time. The next one has a time limit of its own.
            self.late = None;
        }
        if !rest.is_empty() {
            self.push(rest);
            let counted = self.counted.get_or_insert_with(|| self.holder.no_bytes());
            counted.resize(self.held * COUNTED_TIMES)?;
        }
        Ok(self.pop())
    }

    fn push(&mut self, data: Bytes) {
        self.held += data.len();
        if data.len() >= COPIED {
            self.pieces.push_back(data);
            return;
        }
        // Join short pieces, so that a message that arrives byte by byte takes little more than its
        // bytes.
        match self.pieces.pop_back() {
            Some(last) if last.len() < COPIED => {
                let mut joined = last
                    .try_into_mut()
                    .unwrap_or_else(|last| BytesMut::from(&last[..]));
                joined.extend_from_slice(&data);
                self.pieces.push_back(joined.freeze());
            }
            last => {
                self.pieces.extend(last);
                self.pieces.push_back(Bytes::copy_from_slice(&data));
            }
        }
    }

    /// Returns the next piece of complete messages.
    fn pop(&mut self) -> Option<Bytes> {
        if self.whole == 0 {
            return None;
        }
        let mut piece = self.pieces.pop_front()?;
        if piece.len() > self.whole {
            // The piece also has the beginning of the next message.
            let rest = piece.split_off(self.whole);
            self.pieces.push_front(rest);
        }
        self.whole -= piece.len();
        self.held -= piece.len();
        if self.held == 0 {
            self.pieces = VecDeque::new();
            self.counted = None;
            self.late = None;
        } else if let Some(counted) = &mut self.counted {
            counted.shrink(self.held * COUNTED_TIMES);
        }
        Some(piece)
    }
}

impl<B> Body for Whole<B>
where
    B: Body<Data = Bytes, Error: Into<StdError>> + Unpin,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.pop() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let frame = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(err))) => return Poll::Ready(Some(Err(err.into()))),
                // The rest is an incomplete message. Pass it on, so that tonic reports the error.
                Poll::Ready(None) => {
                    (this.ended, this.whole) = (true, this.held);
                    continue;
                }
                Poll::Pending => {
                    if this.held == 0 {
                        return Poll::Pending;
                    }
                    let late = this.late.get_or_insert_with(|| Box::pin(sleep(UNFINISHED)));
                    return late
                        .as_mut()
                        .poll(cx)
                        .map(|()| Some(Err(refused(Refusal::DeadlineExceeded))));
                }
            };
            match frame.into_data() {
                Ok(data) => match this.take(data) {
                    Ok(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Some(Err(refused(refusal)))),
                },
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn refused(refusal: Refusal) -> StdError {
    Box::new(Status::from(refusal))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::{
        api::quota::Accounts,
        config::{Config, Limits},
    };

    /// A body of these frames. The flag says whether it ends after them.
    struct Frames(VecDeque<Bytes>, bool);

    impl Body for Frames {
        type Data = Bytes;
        type Error = StdError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
            match (self.0.pop_front(), self.1) {
                (Some(data), _) => Poll::Ready(Some(Ok(Frame::data(data)))),
                (None, true) => Poll::Ready(None),
                (None, false) => Poll::Pending,
            }
        }
    }

    fn accounts(bytes: usize) -> Arc<Accounts> {
        let limits = Limits {
            request_bytes: bytes,
            request_bytes_per_owner: bytes,
            ..Config::defaults().limits
        };
        Arc::new(Accounts::new(&limits))
    }

    fn message(length: usize) -> Vec<u8> {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        let body = (0..length).map(|at| u8::try_from(at % 251).unwrap());
        [0].into_iter().chain(prefix).chain(body).collect()
    }

    async fn read(body: &mut Whole<Frames>) -> Option<Result<Bytes, StdError>> {
        let frame = poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => Poll::Ready(None),
            Poll::Ready(frame) => Poll::Ready(frame),
        });
        frame
            .await
            .map(|frame| frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let accounts = accounts(1 << 20);
        let holder = accounts.holder(&"one".into());
        let all: Vec<u8> = [0, 1, 4, 5, 6, 900, 1023, 1024, 5000, 0, 20_000, 3]
            .into_iter()
            .flat_map(message)
            .collect();
        for cut in [1, 2, 5, 7, 1000, 1024, 4096, 16_384, all.len()] {
            let frames = all.chunks(cut).map(Bytes::copy_from_slice).collect();
            let mut body = Whole::new(
                Frames(frames, true),
                Expects::Any,
                1 << 20,
                Arc::clone(&holder),
            );
            let mut out = Vec::new();
            while let Some(piece) = read(&mut body).await {
                out.extend_from_slice(&piece.unwrap());
            }
            assert!(out == all, "cut at {cut}");
            assert_eq!(body.held, 0);
        }
    }

    #[tokio::test]
    async fn nothing_is_handed_on_of_a_message_that_has_not_come() {
        let accounts = accounts(1 << 20);
        let holder = accounts.holder(&"one".into());
        let first = message(10);
        let announced = [0, 0, 0x40, 0, 0];
        let frames = [
            [&first[..], &announced, b"some"].concat().into(),
            Bytes::from_static(b"more"),
        ];
        let mut body = Whole::new(
            Frames(frames.into(), false),
            Expects::Any,
            4 << 20,
            Arc::clone(&holder),
        );
        assert_eq!(read(&mut body).await.unwrap().unwrap(), first);
        assert!(read(&mut body).await.is_none(), "the body waits");
        assert_eq!(body.held, 5 + 4 + 4);
        // A message longer than the limit is passed on at once, and the service refuses it.
        let frames = [Bytes::from_static(&[0, 0, 0x40, 0, 1])];
        let mut body = Whole::new(Frames(frames.into(), false), Expects::Any, 4 << 20, holder);
        assert_eq!(read(&mut body).await.unwrap().unwrap().len(), 5);
    }

    #[tokio::test]
    async fn each_message_has_its_own_count_and_time() {
        let accounts = accounts(20_000);
        let holder = accounts.holder(&"one".into());
        let sent = message(5000).repeat(100);
        let mut body = Whole::new(
            Frames(VecDeque::new(), false),
            Expects::Any,
            1 << 20,
            Arc::clone(&holder),
        );
        let (mut came, mut ends) = (0, None);
        // Only the last frame ends with a message, and the frames together far exceed the limit.
        for frame in sent.chunks(3001) {
            body.body.0.push_back(Bytes::copy_from_slice(frame));
            let before = came;
            while let Some(piece) = read(&mut body).await {
                came += piece.unwrap().len();
            }
            assert!(body.held < 5005 && came + body.held <= sent.len());
            let until = body.late.as_ref().map(|late| late.deadline());
            assert!(
                ends.is_none() || until.is_none() || (came > before) == (until > ends),
                "{came}"
            );
            ends = until;
        }
        assert_eq!((came, body.held), (sent.len(), 0));
        assert!(body.late.is_none());
        assert_eq!(
            body.holder.no_bytes().resize(20_000).ok(),
            Some(()),
            "all bytes are released"
        );
    }

    #[tokio::test]
    async fn bytes_of_unfinished_messages_have_a_limit_and_are_given_back() {
        let accounts = accounts(20_000);
        let holder = accounts.holder(&"one".into());
        let begun = || Bytes::from(message(9000)[..6000].to_vec());
        let body = |frames: Vec<Bytes>| {
            Whole::new(
                Frames(frames.into(), true),
                Expects::Any,
                1 << 20,
                Arc::clone(&holder),
            )
        };
        let mut one = body(vec![begun(), Bytes::from(message(9000)[6000..].to_vec())]);
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut one).poll_frame(cx))).await;
        assert!(first.is_ready(), "the message is complete");
        drop(one);
        let mut one = Whole::new(
            Frames([begun()].into(), false),
            Expects::Any,
            1 << 20,
            Arc::clone(&holder),
        );
        assert!(read(&mut one).await.is_none());
        let refused = read(&mut body(vec![begun()])).await.unwrap().unwrap_err();
        let status = refused
            .downcast_ref::<Status>()
            .expect("a status with details");
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
        drop(one);
        assert!(
            read(&mut body(vec![begun()])).await.unwrap().is_ok(),
            "there is room again"
        );
    }

    #[tokio::test]
    async fn second_message_of_a_method_that_reads_one_is_refused() {
        let accounts = accounts(1 << 20);
        let holder = accounts.holder(&"one".into());
        let second = [&message(9)[..], &[0]].concat();
        for frames in [vec![second.clone()], vec![message(9), vec![0]]] {
            let frames = frames.into_iter().map(Bytes::from).collect();
            let mut body = Whole::new(
                Frames(frames, true),
                Expects::One,
                1 << 20,
                Arc::clone(&holder),
            );
            let refused = loop {
                if let Err(err) = read(&mut body)
                    .await
                    .expect("the body is refused before its end")
                {
                    break err;
                }
            };
            let status = refused.downcast_ref::<Status>().unwrap();
            assert_eq!(status.code(), tonic::Code::Unimplemented, "{status:?}");
        }
    }
}
