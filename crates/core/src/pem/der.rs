//! As much of DER as tells what is wrong with a key or a certificate that the libraries refuse. Nothing is decided by it.

use rustls::pki_types::PrivateKeyDer;

/// The content of the element that a DER text begins with, if it has this tag, and what follows it (X.690 section 8.1).
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[held, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if length.len() > size_of::<u32>() {
                return None;
            }
            (length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
        }
    };
    rest.split_at_checked(length).filter(|_| held == tag)
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// The length of an RSA key's modulus, in bits (RFC 8017 appendix A.1.2, RFC 5958 section 2). `None`: it is another key.
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
    // An ECDSA key has an OCTET STRING there, and an Ed25519 key no SEQUENCE.
    Some(modulus.len() * 8 - first.leading_zeros() as usize)
}

/// Whether a certificate has no version, which is the first one (RFC 5280 section 4.1.2.1).
pub(super) fn is_version_1(certificate: &[u8]) -> bool {
    let body = || element(element(certificate, SEQUENCE)?.0, SEQUENCE);
    body().is_some_and(|(fields, _)| element(fields, INTEGER).is_some())
}

/// Returns whether this is exactly one complete SEQUENCE of DER (X.690 section 8.1.3).
pub(super) fn is_whole(der: &[u8]) -> bool {
    element(der, SEQUENCE).is_some_and(|(_, rest)| rest.is_empty())
}
