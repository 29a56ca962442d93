//! The contract: code generated from `proto/`, the codec that its messages go through, and the descriptors that
//! reflection serves.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; its manual is in the protos")]

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::{DecodeError, Message};
use tonic::{
    Status,
    codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

tonic::include_proto!("tls.sessiond.v1");

/// All protos with their comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Messages to gRPC frames and back. tonic's own goes byte by byte through buffers that grow as they are written and
/// shrink as they are read; this one writes into a vector, and takes a message out as a whole.
pub struct Codec<T, U>(PhantomData<(T, U)>);

/// Either direction of a [`Codec`].
pub struct Half<T> {
    /// Where short messages are written.
    written: Vec<u8>,
    message: PhantomData<T>,
}

/// A longer message is not copied once more.
const SHORT: usize = 32 << 10;
/// Room that a stream begins with, in each direction. tonic keeps that of its longest message for the life of the stream.
const KEPT: usize = 1 << 10;
/// Messages that are ready together leave in one piece, until it has so many bytes.
pub(crate) const PIECE: usize = 2 << 10;

impl<T> Half<T> {
    fn new() -> Self {
        Self { written: Vec::new(), message: PhantomData }
    }
}

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// What comes in by a [`Codec`].
pub trait Incoming: Sized + Send + Sync + 'static {
    /// Reads it.
    fn read(message: Bytes) -> Result<Self, DecodeError>;
}

impl<T: Message + Default + 'static> Incoming for T {
    fn read(message: Bytes) -> Result<Self, DecodeError> {
        Self::decode(message)
    }
}

/// An [`AttachRequest`] as it came.
#[cfg(feature = "daemon")]
pub struct Calls(pub Bytes);

#[cfg(feature = "daemon")]
impl Incoming for Calls {
    fn read(message: Bytes) -> Result<Self, DecodeError> {
        Ok(Self(message))
    }
}

/// What goes out by a [`Codec`].
pub trait Outgoing: Send + Sync + 'static {
    /// What is ready together leaves in one piece, until it has so many bytes.
    const PIECE: usize = PIECE;

    /// Writes it. `short` is room to use again.
    fn write(self, to: &mut EncodeBuf<'_>, short: &mut Vec<u8>);
}

impl<T: Message + 'static> Outgoing for T {
    fn write(self, to: &mut EncodeBuf<'_>, short: &mut Vec<u8>) {
        let length = self.encoded_len();
        to.reserve(length);
        if length > SHORT {
            self.encode_raw(to);
        } else {
            short.clear();
            self.encode_raw(short);
            to.put_slice(short);
        }
    }
}

/// An [`AttachResponse`] that was written as its answers were made.
#[cfg(feature = "daemon")]
pub struct Answers(pub Vec<u8>);

#[cfg(feature = "daemon")]
impl Outgoing for Answers {
    /// Those that leave together are together already.
    const PIECE: usize = 0;
    fn write(self, to: &mut EncodeBuf<'_>, _: &mut Vec<u8>) {
        to.reserve(self.0.len());
        to.put_slice(&self.0);
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Outgoing,
    U: Incoming,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Half<T>;
    type Decoder = Half<U>;

    fn encoder(&mut self) -> Half<T> {
        Half::new()
    }

    fn decoder(&mut self) -> Half<U> {
        Half::new()
    }
}

impl<T: Outgoing> Encoder for Half<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.write(buf, &mut self.written);
        if self.written.capacity() > KEPT {
            self.written = Vec::new();
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(KEPT, T::PIECE)
    }
}

impl<U: Incoming> Decoder for Half<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = buf.copy_to_bytes(buf.remaining());
        U::read(message).map(Some).map_err(|err| Status::internal(err.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        // Only what is written waits for a piece to be full.
        BufferSettings::new(KEPT, PIECE)
    }
}
