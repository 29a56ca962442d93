//! Reads and writes fields of protobuf messages directly, where a generated message would cost more
//! than its content.
//!
//! Numbers of fields that are written are below 16, so a key is one byte. Empty and zero values are
//! left out, as in proto3.

mod fields;

pub use fields::{END, Fields, bytes, number};
use prost::encoding::{decode_varint, encoded_len_varint};

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;
/// The size of the longest field of a number: one byte for the key and ten for the varint.
pub const NUMBER_MAX: usize = 11;

/// Returns the size of the key and the length before `length` bytes.
pub fn head_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64)
}

/// Returns the size of a field of `length` bytes.
pub fn bytes_len(length: usize) -> usize {
    if length == 0 {
        0
    } else {
        head_len(length) + length
    }
}

/// Returns the size of the field of a number.
pub fn number_len(value: u64) -> usize {
    if value == 0 {
        0
    } else {
        1 + encoded_len_varint(value)
    }
}

/// Writes fields one behind the other into a buffer.
///
/// # Panics
/// Its methods panic if the buffer is too short.
pub struct Writer<'r> {
    room: &'r mut [u8],
    at: usize,
}

impl<'r> Writer<'r> {
    /// Returns a writer at the start of `room`.
    pub fn new(room: &'r mut [u8]) -> Self {
        Self { room, at: 0 }
    }

    /// Returns the number of bytes that are written.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Returns the bytes that were written from this position on.
    pub fn since(&mut self, place: usize) -> &mut [u8] {
        &mut self.room[place..self.at]
    }

    /// Returns the next `length` bytes, to be filled by the caller. They count as written.
    pub fn take(&mut self, length: usize) -> &mut [u8] {
        let start = self.at;
        self.at += length;
        &mut self.room[start..self.at]
    }

    /// Writes bytes without a key.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.take(bytes.len()).copy_from_slice(bytes);
    }

    /// Writes the key and the length before `length` bytes.
    pub fn head(&mut self, field: u8, length: usize) {
        self.byte(field << 3 | LENGTH_DELIMITED);
        self.varint(length as u64);
    }

    /// Writes a field of a string or of bytes.
    pub fn bytes(&mut self, field: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.head(field, bytes.len());
            self.raw(bytes);
        }
    }

    /// Writes a field of a number, an enum or a bool.
    pub fn number(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.byte(field << 3 | VARINT);
            self.varint(value);
        }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.byte(value.to_le_bytes()[0]);
    }

    fn byte(&mut self, byte: u8) {
        self.room[self.at] = byte;
        self.at += 1;
    }
}

/// Reads a varint.
#[inline(always)]
pub fn read_varint(from: &mut &[u8]) -> Option<u64> {
    // Nearly all varints have one byte.
    match from.split_first() {
        Some((&byte @ ..0x80, rest)) => {
            *from = rest;
            Some(byte.into())
        }
        _ => decode_varint(from).ok(),
    }
}

/// Reads a length and as many bytes.
#[inline(always)]
pub fn read_bytes<'b>(from: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = usize::try_from(read_varint(from)?).ok()?;
    let (bytes, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use prost::encoding::{bytes as prost_bytes, uint64};

    use super::*;

    fn written(length: usize, write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut room = vec![0; length];
        let mut writer = Writer::new(&mut room);
        write(&mut writer);
        assert_eq!(writer.position(), length);
        room
    }

    #[test]
    fn fields_are_what_prost_writes_and_as_long_as_they_are_said_to_be() {
        for value in [1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX] {
            let ours = written(number_len(value), |writer| writer.number(15, value));
            let mut prosts = Vec::new();
            uint64::encode(15, &value, &mut prosts);
            assert_eq!(ours, prosts);
            let mut rest = &ours[1..];
            assert_eq!((read_varint(&mut rest), rest), (Some(value), &[][..]));
            assert_eq!(read_varint(&mut &ours[1..ours.len() - 1]), None);
        }
        for length in [1, 0x7f, 0x80, 0x4000] {
            let value = vec![7; length];
            let mut ours = written(bytes_len(length), |writer| writer.bytes(1, &value));
            let mut prosts = Vec::new();
            prost_bytes::encode(1, &value, &mut prosts);
            assert_eq!(ours, prosts);
            ours.push(1);
            let mut rest = &ours[1..];
            assert_eq!((read_bytes(&mut rest), rest), (Some(&*value), &[1][..]));
            assert_eq!(read_bytes(&mut &ours[1..ours.len() - 2]), None);
        }
        assert_eq!(read_varint(&mut &[0xff; 11][..]), None);
        written(0, |writer| {
            writer.number(1, 0);
            writer.bytes(2, b"");
        });
        assert_eq!((number_len(0), bytes_len(0)), (0, 0));
    }
}
