//! The fields of a message where they lie, without a copy: what of an answer is kept is copied once, by who keeps it.

use prost::encoding::{WireType, decode_key, decode_varint};

/// Bytes that are no message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// One field after the other, each with its tag. Nothing comes after an error.
pub(super) struct Fields<'m>(pub(super) &'m [u8]);

/// What a field holds, as it is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'m> {
    /// A number, an enum or a truth value.
    Number(u64),
    /// A text, bytes or a message.
    Bytes(&'m [u8]),
    /// Four or eight bytes, which no message of the contract has.
    Fixed,
}

impl<'m> Fields<'m> {
    fn read(&mut self) -> Result<(u32, Value<'m>), Malformed> {
        let (tag, wire_type) = decode_key(&mut self.0).map_err(|_| Malformed)?;
        let value = match wire_type {
            WireType::Varint => Value::Number(decode_varint(&mut self.0).map_err(|_| Malformed)?),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut self.0).map_err(|_| Malformed)?;
                Value::Bytes(self.cut(usize::try_from(length).map_err(|_| Malformed)?)?)
            }
            WireType::ThirtyTwoBit => self.cut(4).map(|_| Value::Fixed)?,
            WireType::SixtyFourBit => self.cut(8).map(|_| Value::Fixed)?,
            // proto3 has none.
            WireType::StartGroup | WireType::EndGroup => return Err(Malformed),
        };
        Ok((tag, value))
    }

    fn cut(&mut self, length: usize) -> Result<&'m [u8], Malformed> {
        let (cut, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(cut)
    }
}

impl<'m> Iterator for Fields<'m> {
    type Item = Result<(u32, Value<'m>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_and_what_is_cut_short_is_malformed() {
        // 1: 300, 2: "ab", 3: four bytes, 4: eight bytes
        let message = b"\x08\xac\x02\x12\x02ab\x1d1234\x2112345678";
        let fields: Result<Vec<_>, _> = Fields(message).collect();
        let expected =
            vec![(1, Value::Number(300)), (2, Value::Bytes(b"ab")), (3, Value::Fixed), (4, Value::Fixed)];
        assert_eq!(fields, Ok(expected));
        let whole = [0, 3, 7, 12];
        for end in (0..message.len()).filter(|end| !whole.contains(end)) {
            assert_eq!(Fields(&message[..end]).last(), Some(Err(Malformed)), "{end}");
        }
        for malformed in [&b"\x0b"[..], b"\x0c", b"\x00\x00", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"]
        {
            assert_eq!(Fields(malformed).last(), Some(Err(Malformed)));
        }
    }
}
