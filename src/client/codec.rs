//! The messages of a stream: batches go out of the queue as they were written, and answers go to who waits for them as
//! soon as they are read. Nothing is made of either in between.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, BufMut};
use tokio_stream::Stream;
use tonic::{
    Status,
    codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::{
    answers::{self, Answer},
    link::Link,
    wiped::Wiped,
};
use crate::proto::PIECE;

/// The queue of a link as the requests of its stream: whatever is ready goes out as one message. Polled by the transport
/// when it can send; no task and no queue of its own.
pub(super) struct Batches(pub(super) Arc<Link>);

impl Stream for Batches {
    type Item = Wiped;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Wiped>> {
        self.0.poll_batch(cx)
    }
}

/// A message of answers that have been handed out.
pub(super) struct Read {
    /// The daemon is about to stop.
    pub(super) draining: bool,
}

/// Of the stream of this link.
pub(super) struct Codec(pub(super) Arc<Link>);

pub(super) struct Sender(());

pub(super) struct Receiver {
    link: Arc<Link>,
    /// Those of one message, and whom to wake for them: empty in between, and kept for their room.
    answers: Vec<(u64, Answer)>,
    wake: Vec<Waker>,
}

impl tonic::codec::Codec for Codec {
    type Encode = Wiped;
    type Decode = Read;
    type Encoder = Sender;
    type Decoder = Receiver;

    fn encoder(&mut self) -> Sender {
        Sender(())
    }

    fn decoder(&mut self) -> Receiver {
        Receiver { link: Arc::clone(&self.0), answers: Vec::new(), wake: Vec::new() }
    }
}

impl Encoder for Sender {
    type Item = Wiped;
    type Error = Status;

    fn encode(&mut self, batch: Wiped, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(batch.bytes().len());
        buf.put_slice(batch.bytes());
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(4 * PIECE, PIECE)
    }
}

impl Decoder for Receiver {
    type Item = Read;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Read>, Status> {
        // It lies there in one piece.
        let message = buf.chunk();
        let length = message.len();
        let draining = answers::read(message, |id, answer| self.answers.push((id, answer)))
            .map_err(|_| Status::internal("no message of answers"))?;
        self.link.answer(self.answers.drain(..), &mut self.wake);
        buf.advance(length);
        Ok(Some(Read { draining }))
    }
}
