//! Lower-case hex, without the machinery of `{:02x}`: every answer names a connection, often its session too.

#[cfg(feature = "daemon")]
use std::fmt::{self, Write};

/// The digits of one byte. Without a table: whole ids are worked on at once.
fn pair(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|half| half + if half < 10 { b'0' } else { b'a' - 10 })
}

/// What a digit is worth; more than 15 where it is none.
fn value(digit: u8) -> u8 {
    let number = digit.wrapping_sub(b'0');
    let letter = digit.wrapping_sub(b'a');
    if number < 10 {
        number
    } else if letter < 6 {
        letter + 10
    } else {
        0xff
    }
}

/// Two digits for each byte.
#[cfg(feature = "daemon")]
pub(crate) fn write(bytes: &[u8], to: &mut impl Write) -> fmt::Result {
    bytes.iter().flat_map(|&byte| pair(byte)).try_for_each(|digit| to.write_char(digit.into()))
}

/// The same at the end of what is there.
pub(crate) fn append(bytes: &[u8], to: &mut Vec<u8>) {
    let before = to.len();
    to.resize(before + 2 * bytes.len(), 0);
    for (digits, &byte) in to[before..].as_chunks_mut().0.iter_mut().zip(bytes) {
        *digits = pair(byte);
    }
}

/// The same as a string.
pub(crate) fn string(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(2 * bytes.len());
    append(bytes, &mut text);
    // They are ASCII.
    String::from_utf8(text).unwrap_or_default()
}

/// Reads it back. `None`: it is something else.
pub(crate) fn read(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    let text = text.as_ref();
    let mut bytes = vec![0; text.len() / 2];
    read_into(text, &mut bytes)?;
    Some(bytes)
}

/// The same into room that is there, and what it filled. `None` also where there is too little.
pub(crate) fn read_into<'b>(text: &[u8], bytes: &'b mut [u8]) -> Option<&'b [u8]> {
    let (pairs, []) = text.as_chunks() else { return None };
    let bytes = bytes.get_mut(..pairs.len())?;
    let mut worst = 0;
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = (value(high), value(low));
        worst |= high | low;
        *byte = high << 4 | low & 15;
    }
    (worst < 16).then_some(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_lower_case_high_half_first() {
        assert_eq!(super::string(&[0x00, 0x1f, 0xa9, 0xff]), "001fa9ff");
        assert_eq!(super::string(&[]), "");
        assert_eq!(super::read("001fa9ff"), Some(vec![0x00, 0x1f, 0xa9, 0xff]));
        for malformed in ["0", "0g", "1F", "/0", ":0", "`0", "\u{e4}"] {
            assert_eq!(super::read(malformed), None, "{malformed}");
        }
    }
}
