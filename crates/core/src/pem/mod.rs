//! PEM files: the one place that reads private keys, certificates and trust anchors.
//!
//! No byte of a file reaches an error. A [`PemError`] consists of the path, a text of this module,
//! and the error that the system reports for open(2) or read(2). The errors of the libraries that
//! parse the content are dropped, because some of them contain it: `rustls::pki_types::pem::Error`
//! holds a whole line as bytes. This also applies to certificate files, because a key may lie where
//! a certificate is expected.
//!
//! The parser is this crate's own for two reasons. It names the cause if a file is damaged, and it
//! zeroes every buffer that has held a key. It is stricter than that of rustls: it skips no line
//! that was meant as the beginning or the end of a block. So an indented certificate is an error,
//! and is not silently missing from a bundle.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags};
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
    },
    sign::CertifiedKey,
};
use zeroize::{Zeroize, Zeroizing};

mod der;

use der::{is_version_1, is_whole, rsa_bits};

/// The largest private key file, in bytes.
pub const KEY_FILE_MAX: usize = 1 << 20;
/// The largest certificate file, in bytes. A bundle of all public CAs has less than 1 MiB.
pub const CERTIFICATE_FILE_MAX: usize = 16 << 20;

/// Why a PEM file cannot be used. Displays the path and the cause, and never a byte of the file.
#[derive(Debug)]
pub struct PemError {
    path: PathBuf,
    cause: PemFault,
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.cause {
            PemFault::Unreadable(err) => write!(f, "cannot read {path}: {err}"),
            cause => write!(f, "{path}: {cause}"),
        }
    }
}

impl std::error::Error for PemError {}

/// Why a chain and a key cannot be used, and which of the two files is at fault.
#[derive(Debug)]
pub enum PairError {
    /// The certificate file is at fault.
    Certificate(PemError),
    /// The key file is at fault, or the key does not belong to the chain.
    Key(PemError),
}

/// The cause of a [`PemError`]. No variant holds content of the file.
///
/// BEGIN line and END line are those of RFC 7468 section 2. The texts do not quote these lines,
/// because the configuration withholds the part of an error that begins with one.
#[derive(Debug, thiserror::Error)]
enum PemFault {
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("is {0}; expected a regular file")]
    NotRegular(&'static str),
    #[error("is larger than {0} bytes")]
    TooLarge(usize),
    #[error("is empty")]
    Empty,
    #[error("is UTF-16; save it as plain ASCII text")]
    Utf16,
    #[error("begins with a byte order mark; save it as plain ASCII text without one")]
    ByteOrderMark,
    #[error("is PKCS#12, not PEM; convert it with `openssl pkcs12 -in FILE -nodes`")]
    Pkcs12,
    #[error("is DER, not PEM; convert it with `openssl {0} -inform DER -in FILE`")]
    Der(&'static str),
    #[error("is not PEM: it has no BEGIN line")]
    NotPem,
    #[error("line {0}: a line end is written as the two characters `\\n`; write real line ends")]
    EscapedLineEnds(usize),
    #[error("line {0}: the line ends are lost; the BEGIN and the END line need lines of their own")]
    LostLineEnds(usize),
    #[error("line {0}: there are blanks before a BEGIN or END line; remove them")]
    Indented(usize),
    #[error("line {0}: a BEGIN or END line is damaged")]
    Marker(usize),
    #[error("line {0}: there are bytes that are not text; save the file as plain ASCII text")]
    NotText(usize),
    #[error("line {0}: there is base64 outside of a block; a BEGIN and an END line are missing")]
    WithoutMarkers(usize),
    #[error("line {0}: this END line does not belong to a BEGIN line above it")]
    Unpaired(usize),
    #[error("is truncated: the block that begins in line {0} has no END line")]
    Truncated(usize),
    #[error("the block that begins in line {0} has no valid base64 content")]
    Base64(usize),
    #[error("the content of the block that begins in line {0} is damaged or truncated")]
    Damaged(usize),
    #[error("holds no private key; it holds {0}")]
    NoKey(&'static str),
    #[error("holds no certificate; it holds {0}")]
    NoCertificate(&'static str),
    #[error("holds {0} private keys; expected one")]
    ManyKeys(usize),
    #[error(
        "the private key is of no supported kind; expected RSA, ECDSA with P-256, P-384 or P-521, or Ed25519"
    )]
    Unsupported,
    #[error("the RSA key has {0} bits; expected 2048 to 8192")]
    RsaSize(usize),
    #[error(
        "certificate {0} of the file is an X.509 certificate of version 1; expected version 3: issue it again, with `-extfile` of `openssl x509 -req` for \
         example"
    )]
    Version1(usize),
    #[error("the block that begins in line {0} is {1}")]
    NotUsed(usize, &'static str),
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    #[error("certificate {0} of the file is not a valid X.509 certificate")]
    Certificate(usize),
}

/// Reads a certificate chain and its private key.
///
/// # Errors
/// One of the files cannot be read or parsed, or the key does not belong to the first certificate
/// of the chain.
pub fn read_pair(chain: &Path, key: &Path) -> Result<CertifiedKey, PairError> {
    let certificates = read_certificates(chain).map_err(PairError::Certificate)?;
    let private = read_key(key).map_err(PairError::Key)?;
    pair(certificates, &private).map_err(|cause| match cause {
        PemFault::Certificate(_) | PemFault::Version1(_) => PairError::Certificate(PemError {
            path: chain.to_owned(),
            cause,
        }),
        cause => PairError::Key(PemError {
            path: key.to_owned(),
            cause,
        }),
    })
}

/// Reads the certificates of a file, in their order. Skips blocks of other kinds.
///
/// # Errors
/// The file cannot be read or parsed, holds no certificate, or has a block of an unsupported kind
/// that may hold certificates.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let read = || {
        let blocks = blocks(&read(path, CERTIFICATE_FILE_MAX)?, "x509")?;
        // Skipping such a block would silently drop certificates that the file was meant to
        // provide.
        if let Some(lost) = blocks
            .iter()
            .find(|block| block.kind.may_hold_certificates())
        {
            return Err(PemFault::NotUsed(lost.line, lost.kind.name()));
        }
        let first = blocks.first().map_or("nothing", |block| block.kind.name());
        let certificates: Vec<_> = blocks
            .into_iter()
            .filter(|block| block.kind == BlockKind::Certificate)
            .map(|mut block| CertificateDer::from(std::mem::take(&mut *block.der)))
            .collect();
        if certificates.is_empty() {
            Err(PemFault::NoCertificate(first))
        } else {
            Ok(certificates)
        }
    };
    read().map_err(|cause| PemError {
        path: path.to_owned(),
        cause,
    })
}

/// Reads the certificates of a file as trust anchors.
///
/// # Errors
/// As [`read_certificates`], or one of them cannot be a trust anchor.
pub fn read_anchors(path: &Path) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for (place, certificate) in read_certificates(path)?.into_iter().enumerate() {
        // The error of rustls is dropped, because it may contain content of the file.
        roots.add(certificate).map_err(|_| PemError {
            path: path.to_owned(),
            cause: PemFault::Certificate(place + 1),
        })?;
    }
    Ok(roots)
}

/// Reads the one private key of a file. The file may also hold certificates and curve parameters.
fn read_key(path: &Path) -> Result<Zeroizing<PrivateKeyDer<'static>>, PemError> {
    let read = || {
        let blocks = blocks(&read(path, KEY_FILE_MAX)?, "pkey")?;
        let first = blocks.first().map_or("nothing", |block| block.kind.name());
        let encrypted = blocks
            .iter()
            .any(|block| block.kind == BlockKind::Encrypted);
        let mut keys: Vec<_> = blocks.into_iter().filter_map(PemBlock::into_key).collect();
        match (keys.len(), encrypted) {
            (0, true) => Err(PemFault::NoKey(BlockKind::Encrypted.name())),
            (0, false) => Err(PemFault::NoKey(first)),
            (1, _) => Ok(keys.remove(0)),
            (more, _) => Err(PemFault::ManyKeys(more)),
        }
    };
    read().map_err(|cause| PemError {
        path: path.to_owned(),
        cause,
    })
}

/// Checks that a key belongs to a chain.
fn pair(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Result<CertifiedKey, PemFault> {
    let signing = any_supported_type(key).map_err(|_| match rsa_bits(key) {
        Some(bits) if !(2048..=8192).contains(&bits) => PemFault::RsaSize(bits),
        Some(_) | None => PemFault::Unsupported,
    })?;
    let old = chain
        .iter()
        .position(|certificate| is_version_1(certificate));
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        // A key that cannot return its public half is not compared, as in `CertifiedKey::from_der`.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(certified)
        }
        Err(rustls::Error::InconsistentKeys(_)) => Err(PemFault::Mismatch),
        Err(_) => Err(old.map_or(PemFault::Certificate(1), |place| {
            PemFault::Version1(place + 1)
        })),
    }
}

/// Reads a regular file of at most `max` bytes. The buffers are zeroed when they are dropped.
fn read(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, PemFault> {
    let unreadable = |err: rustix::io::Errno| PemFault::Unreadable(err.into());
    // Checked before the file is opened, because opening a device may have an effect. Checked again
    // after it was opened, because another file may have replaced it.
    regular(rustix::fs::stat(path).map_err(unreadable)?.st_mode)?;
    // Without NONBLOCK, open(2) of a named pipe waits for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(unreadable)?;
    regular(rustix::fs::fstat(&file).map_err(unreadable)?.st_mode)?;

    let mut file = File::from(file);
    let mut held = Zeroizing::new(Vec::with_capacity(8 << 10));
    let mut part = Zeroizing::new([0_u8; 4 << 10]);
    loop {
        let count = match file.read(&mut part[..]) {
            Ok(0) => return Ok(held),
            Ok(count) => count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            Err(err) => return Err(PemFault::Unreadable(err)),
        };
        if held.len() + count > max {
            return Err(PemFault::TooLarge(max));
        }
        if held.len() + count > held.capacity() {
            // A vector that grows on its own frees its old memory without zeroing it.
            let mut larger = Zeroizing::new(Vec::with_capacity(held.capacity() * 2));
            larger.extend_from_slice(&held);
            held = larger;
        }
        held.extend_from_slice(&part[..count]);
    }
}

fn regular(mode: rustix::fs::RawMode) -> Result<(), PemFault> {
    Err(PemFault::NotRegular(match FileType::from_raw_mode(mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a folder",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "a special file",
    }))
}

/// A block between `-----BEGIN ...-----` and `-----END ...-----`.
struct PemBlock {
    kind: BlockKind,
    /// The number of its BEGIN line.
    line: usize,
    /// The content of a certificate or a private key. Empty for the other kinds.
    der: Zeroizing<Vec<u8>>,
}

impl PemBlock {
    fn into_key(mut self) -> Option<Zeroizing<PrivateKeyDer<'static>>> {
        let make: fn(Vec<u8>) -> PrivateKeyDer<'static> = match self.kind {
            BlockKind::Pkcs8 => |der| PrivatePkcs8KeyDer::from(der).into(),
            BlockKind::Pkcs1 => |der| PrivatePkcs1KeyDer::from(der).into(),
            BlockKind::Sec1 => |der| PrivateSec1KeyDer::from(der).into(),
            _ => return None,
        };
        Some(Zeroizing::new(make(std::mem::take(&mut *self.der))))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind {
    Certificate,
    TrustedCertificate,
    Pkcs7,
    Pkcs8,
    Pkcs1,
    Sec1,
    Encrypted,
    OpenSsh,
    PublicKey,
    Parameters,
    Request,
    RevocationList,
    Other,
}

impl BlockKind {
    /// Returns the kind that a label names (RFC 7468; RFC 5915 section 4; OpenSSL's PEM_read(3)).
    fn of(label: &[u8]) -> Self {
        match label {
            // The second label is an older name for the same kind (RFC 7468 section 5.1).
            b"CERTIFICATE" | b"X509 CERTIFICATE" => Self::Certificate,
            b"TRUSTED CERTIFICATE" => Self::TrustedCertificate,
            b"PKCS7" | b"CMS" => Self::Pkcs7,
            b"PRIVATE KEY" => Self::Pkcs8,
            b"RSA PRIVATE KEY" => Self::Pkcs1,
            b"EC PRIVATE KEY" => Self::Sec1,
            b"ENCRYPTED PRIVATE KEY" => Self::Encrypted,
            b"OPENSSH PRIVATE KEY" => Self::OpenSsh,
            b"PUBLIC KEY" | b"RSA PUBLIC KEY" => Self::PublicKey,
            b"EC PARAMETERS" | b"DH PARAMETERS" => Self::Parameters,
            b"CERTIFICATE REQUEST" | b"NEW CERTIFICATE REQUEST" => Self::Request,
            b"X509 CRL" => Self::RevocationList,
            _ => Self::Other,
        }
    }

    fn may_hold_certificates(self) -> bool {
        matches!(self, Self::TrustedCertificate | Self::Pkcs7 | Self::Other)
    }

    fn is_used(self) -> bool {
        matches!(
            self,
            Self::Certificate | Self::Pkcs8 | Self::Pkcs1 | Self::Sec1
        )
    }

    fn name(self) -> &'static str {
        match self {
            Self::Certificate => "a certificate",
            Self::TrustedCertificate => {
                "an OpenSSL TRUSTED CERTIFICATE; convert it with `openssl x509 -in FILE`, which drops the trust settings"
            }
            Self::Pkcs7 => "a PKCS#7 bundle; convert it with `openssl pkcs7 -print_certs -in FILE`",
            Self::Pkcs8 | Self::Pkcs1 | Self::Sec1 => "a private key",
            Self::Encrypted => "an encrypted private key; decrypt it with `openssl pkey -in FILE`",
            Self::OpenSsh => {
                "a private key in the format of OpenSSH; convert it with `ssh-keygen -p -m PKCS8 -f FILE`"
            }
            Self::PublicKey => "a public key",
            Self::Parameters => "parameters without a key",
            Self::Request => "a certificate request",
            Self::RevocationList => "a certificate revocation list",
            Self::Other => "a PEM block of another kind",
        }
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";

/// Returns the label of a line `-----BEGIN LABEL-----` or `-----END LABEL-----`. `start` is
/// [`BEGIN`] or [`END`].
fn label<'l>(line: &'l [u8], start: &[u8]) -> Option<&'l [u8]> {
    line.strip_prefix(start)?
        .strip_suffix(b"-----")
        .filter(|label| !contains(label, b"--"))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Splits a file into its blocks. `tool` is the subcommand of openssl(1) that converts what the caller expects.
fn blocks(text: &[u8], tool: &'static str) -> Result<Vec<PemBlock>, PemFault> {
    encoding(text, tool)?;
    let mut blocks = Vec::new();
    let mut open: Option<(usize, &[u8], BlockKind)> = None;
    let mut stray = None;
    // The base64 of the current block. It has room for the whole file, so that it never grows.
    let mut body = Zeroizing::new(Vec::with_capacity(text.len()));
    // A line ends in LF, CR LF or CR. Line numbers count only LF.
    let lines = text.split(|&byte| byte == b'\n').zip(1..);
    for (line, place) in lines.flat_map(|(line, place)| {
        line.split(|&byte| byte == b'\r')
            .map(move |line| (line, place))
    }) {
        let line = line.trim_ascii_end();
        match &mut open {
            None => {
                if let Some(label) = label(line, BEGIN) {
                    open = Some((place, label, BlockKind::of(label)));
                    body.clear();
                } else if contains(line, BEGIN) || cut_marker(line) {
                    return Err(damaged(line, place));
                } else if contains(line, END) {
                    return Err(PemFault::Unpaired(place));
                } else if is_body(line) {
                    // Reported only at the end, because an END line that follows gives a more
                    // precise error.
                    stray.get_or_insert(place);
                } else if let Some(fault) = lost(line, place) {
                    return Err(fault);
                }
            }
            Some((begin, opened, kind)) => {
                if let Some(label) = label(line, END) {
                    if label != *opened {
                        return Err(PemFault::Unpaired(place));
                    }
                    let mut der = Zeroizing::new(Vec::new());
                    if kind.is_used() {
                        der = decode(&body).ok_or(PemFault::Base64(*begin))?;
                        if !is_whole(&der) {
                            return Err(PemFault::Damaged(*begin));
                        }
                    }
                    blocks.push(PemBlock {
                        kind: *kind,
                        line: *begin,
                        der,
                    });
                    open = None;
                } else if line.starts_with(BEGIN) {
                    return Err(PemFault::Truncated(*begin));
                } else if contains(line, b"-----") {
                    return Err(damaged(line, place));
                } else if line.starts_with(b"Proc-Type:") && contains(line, b"ENCRYPTED") {
                    // An encrypted key in OpenSSL's traditional format (RFC 1421 section 4.6.1.1).
                    // Its content is not decoded.
                    *kind = BlockKind::Encrypted;
                } else {
                    body.extend(line.iter().filter(|byte| !byte.is_ascii_whitespace()));
                }
            }
        }
    }
    match open {
        Some((begin, ..)) => Err(PemFault::Truncated(begin)),
        None => match stray {
            Some(place) => Err(PemFault::WithoutMarkers(place)),
            None if blocks.is_empty() => Err(PemFault::NotPem),
            None => Ok(blocks),
        },
    }
}

/// Refuses files that are empty, in a binary format, or in another encoding than ASCII.
fn encoding(text: &[u8], tool: &'static str) -> Result<(), PemFault> {
    match text {
        _ if text.trim_ascii().is_empty() => Err(PemFault::Empty),
        [0xfe, 0xff, ..] | [0xff, 0xfe, ..] | [b'-', 0, ..] | [0, b'-', ..] => Err(PemFault::Utf16),
        [0xef, 0xbb, 0xbf, ..] => Err(PemFault::ByteOrderMark),
        // A DER SEQUENCE. One that begins with the INTEGER 3 is a PFX (RFC 7292 section 4).
        [0x30, 0x82, _, _, 2, 1, 3, ..] | [0x30, 0x83, _, _, _, 2, 1, 3, ..] => {
            Err(PemFault::Pkcs12)
        }
        [0x30, 0x81..=0x84, ..] | [0x30, _, 0x02, ..] => Err(PemFault::Der(tool)),
        _ => Ok(()),
    }
}

/// Returns whether a line consists of the first characters of `-----BEGIN `, and more than five of
/// them.
fn cut_marker(line: &[u8]) -> bool {
    line.len() > 5 && BEGIN.starts_with(line)
}

/// Returns whether a line between blocks looks like base64 from the body of a block, whose lines
/// have 64 or 76 characters (RFC 7468 section 2, RFC 2045 section 6.8).
fn is_body(line: &[u8]) -> bool {
    const LEAST: usize = 60;
    let line = line.trim_ascii();
    line.len() >= LEAST
        && line
            .iter()
            .all(|&byte| sextet(byte).is_some() || byte == b'=')
        && !line.iter().all(u8::is_ascii_hexdigit)
}

/// Returns the fault of a line between blocks that was meant as a BEGIN or END line, or that is not
/// text.
fn lost(line: &[u8], place: usize) -> Option<PemFault> {
    let line = line.trim_ascii();
    let upper = line.to_ascii_uppercase();
    let names = |words: &[&[u8]]| words.iter().any(|word| contains(&upper, word));
    let comment = line
        .first()
        .is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'#');
    if line
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        Some(PemFault::NotText(place))
    } else if !comment
        && names(&[b"BEGIN", b"END"])
        && names(&[b"CERTIFICATE", b"PRIVATE", b"PKCS"])
    {
        Some(PemFault::Marker(place))
    } else {
        None
    }
}

/// Returns the fault of a line that contains a part of `-----BEGIN ...-----` or `-----END
/// ...-----`.
fn damaged(line: &[u8], place: usize) -> PemFault {
    let trimmed = line.trim_ascii_start();
    if contains(line, b"\\n") || contains(line, b"\\r") {
        PemFault::EscapedLineEnds(place)
    } else if label(trimmed, BEGIN).or(label(trimmed, END)).is_some() {
        PemFault::Indented(place)
    } else if (contains(trimmed, END) && !trimmed.starts_with(END))
        || (trimmed.starts_with(BEGIN) && contains(&trimmed[BEGIN.len()..], b"-----"))
    {
        PemFault::LostLineEnds(place)
    } else {
        PemFault::Marker(place)
    }
}

/// Decodes padded base64 (RFC 4648 section 4). `None`: the text is empty or not valid.
fn decode(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    if text.is_empty() || !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3));
    for group in text[..text.len() - padding].chunks(4) {
        let mut bits = 0_u32;
        for &byte in group {
            bits = bits << 6 | u32::from(sextet(byte)?);
        }
        bits <<= 6 * (4 - group.len());
        let [_, bytes @ ..] = bits.to_be_bytes();
        out.extend_from_slice(&bytes[..group.len() - 1]);
        bits.zeroize();
    }
    Some(out)
}

fn sextet(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}
