//! Fields of protobuf messages, written by hand where a message would cost more than what it says.
//!
//! Field numbers are below 16, so a key is one byte. What is empty or 0 is left out, as proto3 has it.

use prost::encoding::encoded_len_varint;

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;

/// How long a key and a length are, before so many bytes.
pub(crate) fn head_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64)
}

/// A key and a length, before so many bytes.
pub(crate) fn head(field: u8, length: usize, to: &mut Vec<u8>) {
    to.push(field << 3 | LENGTH_DELIMITED);
    varint(length as u64, to);
}

/// How long a field of so many bytes is.
pub(crate) fn bytes_len(length: usize) -> usize {
    if length == 0 { 0 } else { head_len(length) + length }
}

/// A text or bytes.
pub(crate) fn bytes(field: u8, bytes: &[u8], to: &mut Vec<u8>) {
    if !bytes.is_empty() {
        head(field, bytes.len(), to);
        to.extend_from_slice(bytes);
    }
}

/// How long a number's field is.
pub(crate) fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

/// A number, an enum or a truth value.
pub(crate) fn number(field: u8, value: u64, to: &mut Vec<u8>) {
    if value != 0 {
        to.push(field << 3 | VARINT);
        varint(value, to);
    }
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    to.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use prost::encoding::{bytes as prost_bytes, uint64};

    use super::*;

    #[test]
    fn fields_are_what_prost_writes_and_as_long_as_they_are_said_to_be() {
        for value in [1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX] {
            let (mut ours, mut prosts) = (Vec::new(), Vec::new());
            number(15, value, &mut ours);
            uint64::encode(15, &value, &mut prosts);
            assert_eq!((ours.len(), &ours), (number_len(value), &prosts));
        }
        for length in [1, 0x7f, 0x80, 0x4000] {
            let value = vec![7; length];
            let (mut ours, mut prosts) = (Vec::new(), Vec::new());
            bytes(1, &value, &mut ours);
            prost_bytes::encode(1, &value, &mut prosts);
            assert_eq!((ours.len(), &ours), (bytes_len(length), &prosts));
        }
        let mut nothing = Vec::new();
        number(1, 0, &mut nothing);
        bytes(2, b"", &mut nothing);
        assert_eq!((nothing.len(), number_len(0), bytes_len(0)), (0, 0, 0));
    }
}
