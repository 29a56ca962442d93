//! A small DER reader: it finds truncated content, and names the cause if a library refuses a key
//! or a certificate.

use rustls::pki_types::PrivateKeyDer;

/// Returns the content of the first element and the bytes after it (X.690 section 8.1). `None`: the
/// element has another tag, or is truncated.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[held, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if length.len() > size_of::<u32>() {
                return None;
            }
            (
                length
                    .iter()
                    .fold(0, |length, &byte| length << 8 | usize::from(byte)),
                rest,
            )
        }
    };
    rest.split_at_checked(length).filter(|_| held == tag)
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// Returns the length of an RSA key's modulus, in bits (RFC 8017 appendix A.1.2, RFC 5958 section
/// 2). `None`: the key is not an RSA key.
pub(super) fn rsa_bits(key: &PrivateKeyDer<'_>) -> Option<usize> {
    let own = match key {
        PrivateKeyDer::Pkcs1(key) => key.secret_pkcs1_der(),
        PrivateKeyDer::Pkcs8(key) => {
            let (fields, _) = element(key.secret_pkcs8_der(), SEQUENCE)?;
            let (_, rest) = element(fields, INTEGER)?;
            let (_, rest) = element(rest, SEQUENCE)?;
            element(rest, OCTET_STRING)?.0
        }
        _ => return None,
    };
    let (fields, _) = element(own, SEQUENCE)?;
    let (_, rest) = element(fields, INTEGER)?;
    let (modulus, _) = element(rest, INTEGER)?;
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    let first = modulus.first()?;
    // Other keys have returned above: an ECDSA key has an OCTET STRING in place of the modulus, and
    // an Ed25519 key is not a SEQUENCE.
    Some(modulus.len() * 8 - first.leading_zeros() as usize)
}

/// Returns whether a certificate is of version 1, which is encoded by leaving the version out (RFC
/// 5280 section 4.1.2.1).
pub(super) fn is_version_1(certificate: &[u8]) -> bool {
    let body = || element(element(certificate, SEQUENCE)?.0, SEQUENCE);
    body().is_some_and(|(fields, _)| element(fields, INTEGER).is_some())
}

/// Returns whether the bytes are exactly one complete DER SEQUENCE (X.690 section 8.1.3).
pub(super) fn is_whole(der: &[u8]) -> bool {
    element(der, SEQUENCE).is_some_and(|(_, rest)| rest.is_empty())
}
