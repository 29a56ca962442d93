//! Lower-case hex for ids. Faster than `{:02x}`, because every response has the id of a connection,
//! and often that of a session.

use std::fmt::{self, Write};

/// Returns the two digits of a byte. The first digit is the low byte of the result.
///
/// Computes both digits in one number instead of using a table, so that the compiler can vectorize
/// whole ids.
fn pair(byte: u8) -> u16 {
    let halves = u16::from(byte >> 4) | u16::from(byte & 15) << 8;
    digits(halves)
}

/// Returns the digits of two half bytes, each in a byte of its own.
fn digits(halves: u16) -> u16 {
    const LETTERS: u16 = (b'a' - b'0' - 10) as u16;
    let above_nine = (halves + 0x0606) >> 4 & 0x0101;
    halves + 0x3030 + LETTERS * above_nine
}

/// Returns the value of two digits. The second number is not 0 if one of them is not a lower-case
/// digit.
fn byte(pair: u16) -> (u8, u16) {
    // Letters have a bit that decimal digits do not have.
    let halves = (pair & 0x0f0f) + 9 * (pair >> 6 & 0x0101);
    let other = (digits(halves & 0x1f1f) ^ pair) | halves & 0xf0f0;
    // Only the low byte is the value.
    let [byte, _] = (halves << 4 | halves >> 8).to_le_bytes();
    (byte, other)
}

/// Writes two digits for each byte.
pub fn write(bytes: &[u8], to: &mut impl Write) -> fmt::Result {
    bytes
        .iter()
        .flat_map(|&byte| pair(byte).to_le_bytes())
        .try_for_each(|digit| to.write_char(digit.into()))
}

/// Writes two digits for each byte into `to`, for as many bytes as fit.
pub fn write_into(bytes: &[u8], to: &mut [u8]) {
    for (digits, &byte) in to.as_chunks_mut().0.iter_mut().zip(bytes) {
        *digits = pair(byte).to_le_bytes();
    }
}

/// Returns two digits for each byte.
pub fn string(bytes: &[u8]) -> String {
    let mut text = vec![0; 2 * bytes.len()];
    write_into(bytes, &mut text);
    // The digits are ASCII.
    String::from_utf8(text).unwrap_or_default()
}

/// Parses hex digits as people and tools write them: in upper or lower case, with a colon between
/// all bytes or between none. `None`: the text is not hex.
pub fn read(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    let text = text.as_ref();
    let mut bytes = vec![0; text.len() / 2];
    let length = read_into(text, &mut bytes)?.len();
    bytes.truncate(length);
    Some(bytes)
}

/// Parses hex digits as [`read`] does, into `bytes`, and returns the filled part. `None`: the text
/// is not hex, or `bytes` is too small.
pub fn read_into<'b>(text: &[u8], bytes: &'b mut [u8]) -> Option<&'b [u8]> {
    let length = match read_canonical(text, bytes) {
        Some(length) => length,
        None => read_typed(text, bytes)?,
    };
    bytes.get(..length)
}

/// Parses lower-case digits without colons, as the API writes ids. Returns the number of bytes.
fn read_canonical(text: &[u8], bytes: &mut [u8]) -> Option<usize> {
    let (pairs, []) = text.as_chunks() else {
        return None;
    };
    let bytes = bytes.get_mut(..pairs.len())?;
    let mut others = 0;
    for (to, &pair) in bytes.iter_mut().zip(pairs) {
        let (byte, other) = byte(u16::from_le_bytes(pair));
        others |= other;
        *to = byte;
    }
    (others == 0).then_some(bytes.len())
}

#[cold]
fn read_typed(text: &[u8], bytes: &mut [u8]) -> Option<usize> {
    let step = if text.get(2) == Some(&b':') { 3 } else { 2 };
    if !(text.len() + step - 2).is_multiple_of(step) {
        return None;
    }
    let pieces = text.chunks(step);
    let length = pieces.len();
    let bytes = bytes.get_mut(..length)?;
    for (place, (piece, to)) in pieces.zip(bytes).enumerate() {
        let [high, low, colon @ ..] = piece else {
            return None;
        };
        let wanted: &[u8] = if step == 3 && place + 1 < length {
            b":"
        } else {
            b""
        };
        if colon != wanted {
            return None;
        }
        let pair = [high.to_ascii_lowercase(), low.to_ascii_lowercase()];
        let (value, other) = byte(u16::from_le_bytes(pair));
        if other != 0 {
            return None;
        }
        *to = value;
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_lower_case_high_half_first() {
        assert_eq!(super::string(&[0x00, 0x1f, 0xa9, 0xff]), "001fa9ff");
        assert_eq!(super::string(&[]), "");
        assert_eq!(super::read("001fa9ff"), Some(vec![0x00, 0x1f, 0xa9, 0xff]));
        assert_eq!(super::read("0"), None);
        for same in ["001FA9FF", "00:1f:a9:ff", "00:1F:a9:FF"] {
            assert_eq!(super::read(same), super::read("001fa9ff"), "{same}");
        }
        for other in [
            "00:1fa9ff",
            "001f:a9ff",
            "00:1f:a9:ff:",
            ":00",
            "00:",
            "0:0",
            "00::1f",
            "00 1f",
            "00-1f",
            "é0",
        ] {
            assert_eq!(super::read(other), None, "{other}");
        }
        assert_eq!(super::read(""), Some(vec![]));
        assert_eq!(super::read("A1"), Some(vec![0xa1]));
    }

    #[test]
    fn all_bytes_and_all_pairs_of_characters_match_the_standard() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let written = super::string(&all);
        assert_eq!(
            written,
            all.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        );
        assert_eq!(super::read(&written), Some(all));
        for pair in 0..=u16::MAX {
            let text = pair.to_le_bytes();
            let read = super::read(text);
            let expected = str::from_utf8(&text).ok();
            // `from_str_radix` also accepts a sign.
            let expected = expected.filter(|text| !text.starts_with('+'));
            assert_eq!(
                read,
                expected
                    .and_then(|text| u8::from_str_radix(text, 16).ok())
                    .map(|byte| vec![byte]),
                "{text:?}"
            );
        }
    }
}
