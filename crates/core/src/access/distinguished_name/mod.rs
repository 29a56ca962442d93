//! Distinguished names: subjects of certificates, as RFC 4514 writes them and as DER encodes them.
//!
//! Two names are equal if they have the same RDNs in the same order, and each RDN has the same
//! attributes in any order. Two attributes are equal if their types are the same OID and their
//! decoded values are the same characters, whatever string type each was encoded with. Nothing is
//! folded: neither case nor spaces (decision 32).

use std::fmt::{self, Write};

/// A sequence of RDNs in the order of DER, which is the reverse of RFC 4514's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DistinguishedName(Vec<Rdn>);

/// A set of attributes, sorted, so that sets compare as lists.
type Rdn = Vec<Attribute>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute {
    oid: Oid,
    value: Value,
}

/// The content of an OBJECT IDENTIFIER in DER, well-formed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Oid(Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    /// The characters of a string.
    Text(String),
    /// Any other value: tag, shortest length and content.
    Encoded(Vec<u8>),
}

/// Why a text is not a distinguished name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no `=` where an attribute must begin.
    #[error("`{0}` is not an attribute: expected TYPE=VALUE")]
    Attribute(String),
    /// The type before the `=` is neither a known name nor an OID.
    #[error(
        "unknown attribute type `{0}`: expected a short name as OpenSSL prints it, or an OID in digits and dots"
    )]
    Type(String),
    /// `uid` means uniqueIdentifier in OpenSSL, and userId in RFC 4514.
    #[error(
        "`uid` has two meanings: write `UID` for userId, `{UNIQUE_IDENTIFIER}` for uniqueIdentifier"
    )]
    Uid,
    /// A character that must be escaped.
    #[error("`{0}` in a value must be escaped with a backslash")]
    Unescaped(char),
    /// A space at the beginning or at the end of a value.
    #[error("a space at the beginning or at the end of a value must be escaped with a backslash")]
    Space,
    /// A backslash before a character that cannot be escaped.
    #[error("a backslash must stand before one of ,+\"\\<>;=# and space, or before two hex digits")]
    Escape,
    /// Escaped bytes that are not UTF-8.
    #[error("the escaped bytes of a value are not UTF-8")]
    Utf8,
    /// A value after `#` that is not the hex of one BER value.
    #[error(
        "`{0}` is not a BER value: expected `#` and the hex digits of tag, definite length and content"
    )]
    Ber(String),
}

const UNIQUE_IDENTIFIER: &str = "0.9.2342.19200300.100.1.44";

/// Short names of the attribute types that subjects have, as OpenSSL 3 prints them. Other types are
/// written as OIDs. `uid` is left out, see [`NameError::Uid`].
const TYPES: [(&str, &str); 61] = [
    ("CN", "2.5.4.3"),
    ("SN", "2.5.4.4"),
    ("serialNumber", "2.5.4.5"),
    ("C", "2.5.4.6"),
    ("L", "2.5.4.7"),
    ("ST", "2.5.4.8"),
    ("street", "2.5.4.9"),
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("title", "2.5.4.12"),
    ("description", "2.5.4.13"),
    ("searchGuide", "2.5.4.14"),
    ("businessCategory", "2.5.4.15"),
    ("postalAddress", "2.5.4.16"),
    ("postalCode", "2.5.4.17"),
    ("postOfficeBox", "2.5.4.18"),
    ("physicalDeliveryOfficeName", "2.5.4.19"),
    ("telephoneNumber", "2.5.4.20"),
    ("telexNumber", "2.5.4.21"),
    ("teletexTerminalIdentifier", "2.5.4.22"),
    ("facsimileTelephoneNumber", "2.5.4.23"),
    ("x121Address", "2.5.4.24"),
    ("internationaliSDNNumber", "2.5.4.25"),
    ("registeredAddress", "2.5.4.26"),
    ("destinationIndicator", "2.5.4.27"),
    ("preferredDeliveryMethod", "2.5.4.28"),
    ("presentationAddress", "2.5.4.29"),
    ("supportedApplicationContext", "2.5.4.30"),
    ("member", "2.5.4.31"),
    ("owner", "2.5.4.32"),
    ("roleOccupant", "2.5.4.33"),
    ("seeAlso", "2.5.4.34"),
    ("name", "2.5.4.41"),
    ("GN", "2.5.4.42"),
    ("initials", "2.5.4.43"),
    ("generationQualifier", "2.5.4.44"),
    ("x500UniqueIdentifier", "2.5.4.45"),
    ("dnQualifier", "2.5.4.46"),
    ("distinguishedName", "2.5.4.49"),
    ("uniqueMember", "2.5.4.50"),
    ("houseIdentifier", "2.5.4.51"),
    ("dmdName", "2.5.4.54"),
    ("pseudonym", "2.5.4.65"),
    ("role", "2.5.4.72"),
    ("organizationIdentifier", "2.5.4.97"),
    ("c3", "2.5.4.98"),
    ("n3", "2.5.4.99"),
    ("UID", "0.9.2342.19200300.100.1.1"),
    ("mail", "0.9.2342.19200300.100.1.3"),
    ("host", "0.9.2342.19200300.100.1.9"),
    ("DC", "0.9.2342.19200300.100.1.25"),
    ("emailAddress", "1.2.840.113549.1.9.1"),
    ("unstructuredName", "1.2.840.113549.1.9.2"),
    ("challengePassword", "1.2.840.113549.1.9.7"),
    ("unstructuredAddress", "1.2.840.113549.1.9.8"),
    ("INN", "1.2.643.3.131.1.1"),
    ("OGRN", "1.2.643.100.1"),
    ("SNILS", "1.2.643.100.3"),
    ("jurisdictionL", "1.3.6.1.4.1.311.60.2.1.1"),
    ("jurisdictionST", "1.3.6.1.4.1.311.60.2.1.2"),
    ("jurisdictionC", "1.3.6.1.4.1.311.60.2.1.3"),
];

impl DistinguishedName {
    /// Parses the string form of RFC 4514. Types are OIDs, or the short names that OpenSSL prints,
    /// in its spelling.
    ///
    /// `Self::parse(text)?.to_string()` is the canonical spelling: equal names have the same one.
    ///
    /// # Errors
    /// The error names the rule of RFC 4514 section 3 that the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let (mut rdns, mut rdn, mut rest) = (Vec::new(), Rdn::new(), text);
        loop {
            let (attribute, after) = attribute(rest)?;
            rdn.push(attribute);
            let ends = !after.starts_with('+');
            if ends {
                rdn.sort();
                rdns.push(std::mem::take(&mut rdn));
            }
            match after.get(1..) {
                Some(more) => rest = more,
                None => break,
            }
        }
        rdns.reverse();
        Ok(Self(rdns))
    }

    /// Parses a Name in DER (RFC 5280 section 4.1.2.4). Returns `None` if it is malformed.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (SEQUENCE, mut rest, []) = tlv(der)? else {
            return None;
        };
        let mut rdns = Vec::new();
        while !rest.is_empty() {
            let (SET, mut set, after) = tlv(rest)? else {
                return None;
            };
            let mut rdn = Rdn::new();
            while !set.is_empty() {
                let (SEQUENCE, pair, more) = tlv(set)? else {
                    return None;
                };
                let (OBJECT_IDENTIFIER, oid, value) = tlv(pair)? else {
                    return None;
                };
                rdn.push(Attribute {
                    oid: Oid::from_der(oid)?,
                    value: Value::from_ber(value)?,
                });
                set = more;
            }
            if rdn.is_empty() {
                return None;
            }
            rdn.sort();
            rdns.push(rdn);
            rest = after;
        }
        Some(Self(rdns))
    }

    /// Returns whether the name has no RDN.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Writes the name as `openssl x509 -nameopt RFC2253` prints it, with two differences:
///
/// * Within an RDN, attributes are in the order of their OIDs.
/// * An attribute without a short name is written as a UTF8String.
impl fmt::Display for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, rdn) in self.0.iter().rev().enumerate() {
            if place > 0 {
                f.write_char(',')?;
            }
            for (place, attribute) in rdn.iter().enumerate() {
                if place > 0 {
                    f.write_char('+')?;
                }
                attribute.fmt(f)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let oid = self.oid.to_string();
        let name = TYPES
            .iter()
            .find(|(_, known)| *known == oid)
            .map(|(name, _)| *name);
        write!(f, "{}=", name.unwrap_or(&oid))?;
        match (&self.value, name) {
            (Value::Text(text), Some(_)) => write_escaped(text, f),
            (Value::Text(text), None) => write_hex(&encoded(UTF8_STRING, text.as_bytes()), f),
            (Value::Encoded(ber), _) => write_hex(ber, f),
        }
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, arc) in arcs(&self.0).enumerate() {
            match (place, arc) {
                // The first two arcs are one number (X.690 section 8.19.4).
                (0, arc) => {
                    let first = (arc / 40).min(2);
                    write!(f, "{first}.{}", arc - 40 * first)?;
                }
                (_, arc) => write!(f, ".{arc}")?,
            }
        }
        Ok(())
    }
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_char('#')?;
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
}

/// Parses hex digits of either case. Returns `None` for any other text.
fn read_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let (pairs, []) = digits.as_chunks() else {
        return None;
    };
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

/// Escapes a value by RFC 4514 section 2.4. Control characters and non-ASCII bytes are written in
/// hex, as OpenSSL does.
fn write_escaped(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let last = text.len().saturating_sub(1);
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => write!(f, "\\{}", char::from(byte))?,
            b' ' if place == 0 || place == last => f.write_str("\\ ")?,
            b'#' if place == 0 => f.write_str("\\#")?,
            b' '..=b'~' => f.write_char(char::from(byte))?,
            _ => write!(f, "\\{byte:02X}")?,
        }
    }
    Ok(())
}

/// Parses one attribute. Returns it and the rest of the text, from the separator on.
fn attribute(text: &str) -> Result<(Attribute, &str), NameError> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| NameError::Attribute(text.to_owned()))?;
    let oid = match TYPES.iter().find(|(known, _)| *known == name) {
        Some((_, dotted)) => Oid::parse(dotted),
        None if name == "uid" => return Err(NameError::Uid),
        None => Oid::parse(name),
    };
    let oid = oid.ok_or_else(|| NameError::Type(name.to_owned()))?;
    let (value, rest) = match value.strip_prefix('#') {
        Some(_) => {
            let (digits, rest) = value.split_at(value.find([',', '+']).unwrap_or(value.len()));
            let ber = read_hex(&digits.as_bytes()[1..]);
            let value = ber.and_then(|ber| Value::from_ber(&ber));
            (
                value.ok_or_else(|| NameError::Ber(digits.to_owned()))?,
                rest,
            )
        }
        None => string(value)?,
    };
    Ok((Attribute { oid, value }, rest))
}

/// Parses a string with escapes. Returns it and the rest of the text, from the separator on.
fn string(text: &str) -> Result<(Value, &str), NameError> {
    let mut decoded = Vec::new();
    let (mut at, mut last_is_bare_space) = (0, false);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        let bare_space = byte == b' ';
        match byte {
            b',' | b'+' => break,
            b'"' | b'<' | b'>' | b';' | 0 => return Err(NameError::Unescaped(char::from(byte))),
            b' ' if at == 0 => return Err(NameError::Space),
            b'\\' => match bytes.get(at + 1) {
                Some(
                    &escaped @ (b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' | b'=' | b'#'
                    | b' '),
                ) => {
                    decoded.push(escaped);
                    at += 2;
                }
                _ => {
                    let pair = bytes.get(at + 1..at + 3).ok_or(NameError::Escape)?;
                    decoded.extend(read_hex(pair).ok_or(NameError::Escape)?);
                    at += 3;
                }
            },
            byte => {
                decoded.push(byte);
                at += 1;
            }
        }
        last_is_bare_space = bare_space;
    }
    if last_is_bare_space {
        return Err(NameError::Space);
    }
    let decoded = String::from_utf8(decoded).map_err(|_| NameError::Utf8)?;
    Ok((Value::Text(decoded), &text[at..]))
}

const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const NUMERIC_STRING: u8 = 0x12;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const VISIBLE_STRING: u8 = 0x1a;
const UNIVERSAL_STRING: u8 = 0x1c;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

impl Oid {
    /// Parses numbers and dots (RFC 4512 section 1.4). Returns `None` for any other text, and for a
    /// number of more than 128 bits.
    fn parse(text: &str) -> Option<Self> {
        let number = |digits: &str| match digits.as_bytes() {
            [b'0'] => Some(0),
            [b'1'..=b'9', ..] if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse::<u128>().ok()
            }
            _ => None,
        };
        let mut numbers = text.split('.');
        let (first, second) = (number(numbers.next()?)?, number(numbers.next()?)?);
        if first > 2 || (first < 2 && second >= 40) {
            return None;
        }
        let mut content = Vec::new();
        push_arc((40 * first).checked_add(second)?, &mut content);
        for digits in numbers {
            push_arc(number(digits)?, &mut content);
        }
        Some(Self(content))
    }

    /// Returns `None` if a number is cut off, is padded, or has more than 128 bits.
    fn from_der(content: &[u8]) -> Option<Self> {
        let mut rest = content;
        while !rest.is_empty() {
            let length = 1 + rest.iter().position(|byte| byte & 0x80 == 0)?;
            let (arc, after) = rest.split_at(length);
            let fits = length < 19 || (length == 19 && arc[0] & 0x7f < 4);
            if arc[0] == 0x80 || !fits {
                return None;
            }
            rest = after;
        }
        (!content.is_empty()).then(|| Self(content.to_vec()))
    }
}

/// Appends a number in base 128, the highest digit first. All digits but the last have the highest
/// bit set (X.690 section 8.19.2).
fn push_arc(mut arc: u128, to: &mut Vec<u8>) {
    let from = to.len();
    loop {
        let [low, ..] = arc.to_le_bytes();
        to.push(if to.len() == from {
            low & 0x7f
        } else {
            low | 0x80
        });
        arc >>= 7;
        if arc == 0 {
            break;
        }
    }
    to[from..].reverse();
}

/// Returns the numbers of a well-formed OID.
fn arcs(content: &[u8]) -> impl Iterator<Item = u128> {
    content.split_inclusive(|byte| byte & 0x80 == 0).map(|arc| {
        arc.iter()
            .fold(0, |number, byte| number << 7 | u128::from(byte & 0x7f))
    })
}

impl Value {
    /// Parses exactly one BER value. A string whose content does not match its type stays encoded.
    fn from_ber(ber: &[u8]) -> Option<Self> {
        let (tag, content, []) = tlv(ber)? else {
            return None;
        };
        Some(match text(tag, content) {
            Some(text) => Self::Text(text),
            None => Self::Encoded(encoded(tag, content)),
        })
    }
}

/// Decodes the characters of a string type. T61 is read as Latin-1, as OpenSSL does.
fn text(tag: u8, content: &[u8]) -> Option<String> {
    match tag {
        UTF8_STRING => String::from_utf8(content.to_vec()).ok(),
        NUMERIC_STRING | PRINTABLE_STRING | IA5_STRING | VISIBLE_STRING => content
            .is_ascii()
            .then(|| content.iter().copied().map(char::from).collect()),
        TELETEX_STRING => Some(content.iter().copied().map(char::from).collect()),
        BMP_STRING => {
            let (units, []) = content.as_chunks() else {
                return None;
            };
            units
                .iter()
                .map(|unit| char::from_u32(u16::from_be_bytes(*unit).into()))
                .collect()
        }
        UNIVERSAL_STRING => {
            let (units, []) = content.as_chunks() else {
                return None;
            };
            units
                .iter()
                .map(|unit| char::from_u32(u32::from_be_bytes(*unit)))
                .collect()
        }
        _ => None,
    }
}

/// Splits tag, content and rest. Returns `None` if the tag has more than one byte, the length is
/// indefinite, or bytes are missing.
fn tlv(ber: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = ber.split_first_chunk()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (
                bytes
                    .iter()
                    .fold(0, |length, byte| length << 8 | usize::from(*byte)),
                rest,
            )
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Encodes a value with the shortest length.
fn encoded(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let zeros = length
        .iter()
        .take_while(|byte| **byte == 0)
        .count()
        .min(length.len() - 1);
    let mut ber = vec![tag];
    match &length[zeros..] {
        [short @ 0..=0x7f] => ber.push(*short),
        long => {
            // At most eight bytes.
            ber.push(long.iter().fold(0x80, |count, _| count + 1));
            ber.extend(long);
        }
    }
    ber.extend(content);
    ber
}

#[cfg(test)]
mod tests;
