//! Lower-case hex, without the machinery of `{:02x}`: every answer names a connection, often its session too.

#[cfg(feature = "daemon")]
use std::fmt::{self, Write};

/// The digits of one byte, the first one low. Without a table, two digits in one number: whole ids are worked on at once.
fn pair(byte: u8) -> u16 {
    let halves = u16::from(byte >> 4) | u16::from(byte & 15) << 8;
    digits(halves)
}

/// The digits of two halves.
fn digits(halves: u16) -> u16 {
    const LETTERS: u16 = (b'a' - b'0' - 10) as u16;
    let above_nine = (halves + 0x0606) >> 4 & 0x0101;
    halves + 0x3030 + LETTERS * above_nine
}

/// What two digits are worth, and something else than 0 where one is none.
fn byte(pair: u16) -> (u8, u16) {
    // Letters have a bit that decimals have not.
    let halves = (pair & 0x0f0f) + 9 * (pair >> 6 & 0x0101);
    let other = (digits(halves & 0x1f1f) ^ pair) | halves & 0xf0f0;
    // Cut to what is asked for.
    let [byte, _] = (halves << 4 | halves >> 8).to_le_bytes();
    (byte, other)
}

/// Two digits for each byte.
#[cfg(feature = "daemon")]
pub(crate) fn write(bytes: &[u8], to: &mut impl Write) -> fmt::Result {
    bytes.iter().flat_map(|&byte| pair(byte).to_le_bytes()).try_for_each(|digit| to.write_char(digit.into()))
}

/// The same into room that is there; as much as it holds.
pub(crate) fn write_into(bytes: &[u8], to: &mut [u8]) {
    for (digits, &byte) in to.as_chunks_mut().0.iter_mut().zip(bytes) {
        *digits = pair(byte).to_le_bytes();
    }
}

/// The same as a string.
pub(crate) fn string(bytes: &[u8]) -> String {
    let mut text = vec![0; 2 * bytes.len()];
    write_into(bytes, &mut text);
    // They are ASCII.
    String::from_utf8(text).unwrap_or_default()
}

/// Reads it back. `None`: it is something else.
#[cfg(any(feature = "daemon", test))]
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
    let mut others = 0;
    for (to, &pair) in bytes.iter_mut().zip(pairs) {
        let (byte, other) = byte(u16::from_le_bytes(pair));
        others |= other;
        *to = byte;
    }
    (others == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_lower_case_high_half_first() {
        assert_eq!(super::string(&[0x00, 0x1f, 0xa9, 0xff]), "001fa9ff");
        assert_eq!(super::string(&[]), "");
        assert_eq!(super::read("001fa9ff"), Some(vec![0x00, 0x1f, 0xa9, 0xff]));
        assert_eq!(super::read("0"), None);
    }

    #[test]
    fn two_characters_are_a_byte_only_where_they_are_its_digits() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let written = super::string(&all);
        assert_eq!(written, all.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        assert_eq!(super::read(&written), Some(all));
        for pair in 0..=u16::MAX {
            let text = pair.to_le_bytes();
            let read = super::read(text);
            let expected =
                str::from_utf8(&text).ok().filter(|text| !text.contains(|c: char| c.is_ascii_uppercase()));
            // It would take a sign as well.
            let expected = expected.filter(|text| !text.starts_with('+'));
            assert_eq!(
                read,
                expected.and_then(|text| u8::from_str_radix(text, 16).ok()).map(|byte| vec![byte]),
                "{text:?}"
            );
        }
    }
}
