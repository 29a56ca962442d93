//! The codec of the contract's messages.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::{DecodeError, Message};
use tonic::{
    Status,
    codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Encodes and decodes messages in gRPC frames. tonic's own codec works byte by byte on buffers
/// that grow while they are written and shrink while they are read. This one encodes into a vector,
/// and decodes a message as a whole.
pub struct Codec<T, U>(PhantomData<(T, U)>);

/// One direction of a [`Codec`].
pub struct Half<T> {
    /// A buffer into which short messages are encoded.
    written: Vec<u8>,
    message: PhantomData<T>,
}

/// The longest message that is encoded into the buffer first. A longer one is encoded directly,
/// which saves copying it.
const SHORT: usize = 32 << 10;
/// The initial size of a stream's buffer in each direction, in bytes. It is small because tonic
/// keeps the size of the longest message for the life of the stream. A larger [`Half::written`] is
/// freed after its message.
const KEPT: usize = 1 << 10;
/// Messages that are ready together are sent in one piece, until it has this many bytes.
pub const PIECE: usize = 2 << 10;

impl<T> Half<T> {
    fn new() -> Self {
        Self {
            written: Vec::new(),
            message: PhantomData,
        }
    }
}

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// A message that a [`Codec`] decodes.
pub trait Incoming: Sized + Send + Sync + 'static {
    /// Decodes the message.
    fn read(message: Bytes) -> Result<Self, DecodeError>;
}

impl<T: Message + Default + 'static> Incoming for T {
    fn read(message: Bytes) -> Result<Self, DecodeError> {
        Self::decode(message)
    }
}

/// An encoded [`AttachRequest`](crate::AttachRequest).
pub struct Calls(pub Bytes);

impl Incoming for Calls {
    fn read(message: Bytes) -> Result<Self, DecodeError> {
        Ok(Self(message))
    }
}

/// A message that a [`Codec`] encodes.
pub trait Outgoing: Send + Sync + 'static {
    /// Messages that are ready together are sent in one piece, until it has this many bytes.
    const PIECE: usize = PIECE;

    /// Encodes the message. `short` is a buffer that is reused.
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

/// An [`AttachResponse`](crate::AttachResponse) that was encoded while its answers were made.
pub struct Answers(pub Vec<u8>);

impl Outgoing for Answers {
    /// Answers that are sent together are already in one message.
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
        U::read(message)
            .map(Some)
            .map_err(|err| Status::internal(err.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        // The size of a piece is for encoding only.
        BufferSettings::new(KEPT, PIECE)
    }
}
