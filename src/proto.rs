//! The contract: code generated from `proto/`, the codec that its messages go through, and the descriptors that
//! reflection serves.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; its manual is in the protos")]

use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use prost::Message;
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
/// Messages that are ready together leave in one piece, until it has so many bytes.
const PIECE: usize = 2 << 10;

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

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
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

impl<T: Message> Encoder for Half<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let length = item.encoded_len();
        buf.reserve(length);
        if length > SHORT {
            item.encode_raw(buf);
        } else {
            self.written.clear();
            item.encode_raw(&mut self.written);
            buf.put_slice(&self.written);
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(4 * PIECE, PIECE)
    }
}

impl<U: Message + Default> Decoder for Half<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = buf.copy_to_bytes(buf.remaining());
        U::decode(message).map(Some).map_err(|err| Status::internal(err.to_string()))
    }
}
