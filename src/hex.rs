//! Lower-case hex, without the machinery of `{:02x}`: every answer names a connection, often its session too.

use std::fmt::{self, Write};

const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

/// Two digits for each byte.
pub(crate) fn write(bytes: &[u8], to: &mut impl Write) -> fmt::Result {
    bytes.iter().try_for_each(|&byte| {
        to.write_char(DIGITS[usize::from(byte >> 4)])?;
        to.write_char(DIGITS[usize::from(byte & 15)])
    })
}

/// The same as a string.
pub(crate) fn string(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    // A string takes whatever it is given.
    let _ = write(bytes, &mut text);
    text
}

/// Reads it back. `None`: it is something else.
pub(crate) fn read(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
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
