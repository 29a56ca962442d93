//! Lower-case hex, without the machinery of `{:02x}`: every answer names a connection, often its session too.

#[cfg(feature = "daemon")]
use std::fmt::{self, Write};

const DIGITS: [u8; 16] = *b"0123456789abcdef";

/// What each byte is worth as a digit.
const VALUES: [Option<u8>; 256] = {
    let mut values = [None; 256];
    let mut value = 0;
    while value < 16 {
        values[DIGITS[value as usize] as usize] = Some(value);
        value += 1;
    }
    values
};

fn pair(byte: u8) -> [u8; 2] {
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// Two digits for each byte.
#[cfg(feature = "daemon")]
pub(crate) fn write(bytes: &[u8], to: &mut impl Write) -> fmt::Result {
    bytes.iter().flat_map(|&byte| pair(byte)).try_for_each(|digit| to.write_char(digit.into()))
}

/// The same at the end of a buffer.
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
    let (pairs, []) = text.as_ref().as_chunks() else { return None };
    let mut bytes = vec![0; pairs.len()];
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = VALUES[usize::from(high)]? << 4 | VALUES[usize::from(low)]?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_lower_case_high_half_first() {
        assert_eq!(super::string(&[0x00, 0x1f, 0xa9, 0xff]), "001fa9ff");
        assert_eq!(super::string(&[]), "");
        assert_eq!(super::read("001fa9ff"), Some(vec![0x00, 0x1f, 0xa9, 0xff]));
        for malformed in ["0", "0g", "1F"] {
            assert_eq!(super::read(malformed), None, "{malformed}");
        }
    }
}
