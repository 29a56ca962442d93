//! Reads the fields of an encoded message in place. It copies nothing; a caller that keeps a field
//! copies it.

use crate::wire::{read_bytes, read_varint};

/// A reader of fields. The caller reads a key and then its value, or calls [`Fields::skip`]. `None`
/// of any method: the message is malformed.
pub struct Fields<'m>(pub &'m [u8]);

/// The key that stands for the end of the message. No field has it.
pub const END: u32 = 0;

/// Returns the key of a number, an enum or a bool.
pub const fn number(field: u8) -> u32 {
    (field as u32) << 3
}

/// Returns the key of a string, of bytes or of a message.
pub const fn bytes(field: u8) -> u32 {
    (field as u32) << 3 | 2
}

impl<'m> Fields<'m> {
    /// Reads the next key, or [`END`].
    #[inline(always)]
    pub fn key(&mut self) -> Option<u32> {
        if self.0.is_empty() {
            return Some(END);
        }
        u32::try_from(read_varint(&mut self.0)?)
            .ok()
            .filter(|key| key >> 3 > 0)
    }

    /// Reads the value of a number, an enum or a bool.
    #[inline(always)]
    pub fn number(&mut self) -> Option<u64> {
        read_varint(&mut self.0)
    }

    /// Reads the value of a string, of bytes or of a message.
    #[inline(always)]
    pub fn bytes(&mut self) -> Option<&'m [u8]> {
        read_bytes(&mut self.0)
    }

    /// Skips the value of the field with this key.
    #[inline(always)]
    pub fn skip(&mut self, key: u32) -> Option<()> {
        match key & 7 {
            0 => self.number().map(drop),
            2 => self.bytes().map(drop),
            // No field of the contract has a fixed size of four or eight bytes, but an unknown one
            // may.
            1 => self.pass(8),
            5 => self.pass(4),
            // Groups, which proto3 does not have, and invalid wire types.
            _ => None,
        }
    }

    fn pass(&mut self, length: usize) -> Option<()> {
        self.0 = self.0.get(length..)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the keys of a message and skips the values.
    fn keys(message: &[u8]) -> Option<Vec<u32>> {
        let mut fields = Fields(message);
        let mut keys = Vec::new();
        loop {
            match fields.key()? {
                END => return Some(keys),
                key => {
                    fields.skip(key)?;
                    keys.push(key);
                }
            }
        }
    }

    #[test]
    fn fields_are_read_in_order_and_what_is_cut_short_is_no_message() {
        // 1: 300, 2: "ab", 3: four bytes, 4: eight bytes, 100: 1
        let message = b"\x08\xac\x02\x12\x02ab\x1d1234\x2112345678\xa0\x06\x01";
        let mut fields = Fields(message);
        assert_eq!(
            (fields.key(), fields.number()),
            (Some(number(1)), Some(300))
        );
        assert_eq!(
            (fields.key(), fields.bytes()),
            (Some(bytes(2)), Some(&b"ab"[..]))
        );
        assert_eq!(
            keys(message),
            Some(vec![
                number(1),
                bytes(2),
                3 << 3 | 5,
                4 << 3 | 1,
                number(100)
            ])
        );
        let whole = [0, 3, 7, 12, 21, 24];
        for end in 0..=message.len() {
            assert_eq!(
                keys(&message[..end]).is_some(),
                whole.contains(&end),
                "{end}"
            );
        }
        for malformed in [
            &b"\x0b"[..],
            b"\x0c",
            b"\x00\x00",
            b"\x02\x00",
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(keys(malformed), None);
        }
    }
}
