//! Reads which sessions a peer offers, before rustls does.
//!
//! rustls asks its storage for sessions in the middle of a handshake step and does not tell beforehand which it will ask
//! for. So the first flight is read here: the TLS 1.2 session id and the TLS 1.3 PSK identities. This decides nothing
//! about the handshake: what does not parse is passed on to rustls, which finds the right alert for it.
//!
//! A ClientHello that every server refuses offers nothing here, so that it spends no ticket: one with an extension twice, with
//! an empty PSK identity, or with a pre_shared_key that is not the last extension (RFC 8446 section 4.2). rustls itself has the last
//! word on that: [`FirstFlight::is_taken_by_rustls`].

use std::collections::BTreeSet;

use rustls::{pki_types, server::Acceptor};

use crate::server_name::ServerName;

/// The longest id of a session that the contract allows, in bytes.
pub const SESSION_ID_MAX: usize = 64;

/// What a ClientHello offers to resume.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Whether it offers TLS 1.3 (RFC 8446 section 4.2.1).
    pub tls13: bool,
    /// The TLS 1.2 session id. `None` where it offers a ticket, whose session id means nothing (RFC 5077 section 3.4).
    pub session_id: Option<Vec<u8>>,
    /// The PSK identities that can be ours, in their order: at most [`IDENTITIES_MAX`], of 1 to [`SESSION_ID_MAX`] bytes. None
    /// where a TLS 1.3 server resumes nothing: an extension is missing that it needs, or psk_dhe_ke is not offered.
    pub identities: Vec<Vec<u8>>,
    /// The SNI, or [`ServerName::NONE`].
    pub server_name: ServerName<'static>,
    /// Whether the SNI was sent with a trailing dot, against RFC 6066 section 3.
    pub dotted: bool,
    /// Whether TLS_FALLBACK_SCSV is among the cipher suites (RFC 7507).
    pub fallback: bool,
    /// What decides how a TLS 1.3 server answers.
    pub parameters: Parameters,
}

/// The parts of a ClientHello by which a TLS 1.3 server chooses a cipher suite and a group, in the order of the client.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// CipherSuite values.
    pub cipher_suites: Vec<u16>,
    /// NamedGroup values of supported_groups.
    pub groups: Vec<u16>,
    /// NamedGroup values of key_share.
    pub key_shares: Vec<u16>,
    /// Names of application protocols. `None`: the extension is not there.
    pub protocols: Option<Vec<Vec<u8>>>,
    /// Whether early data is announced, which a second ClientHello must not do (RFC 8446 section 4.2.10).
    pub early_data: bool,
}

/// How many PSK identities are looked up for one ClientHello. Clients offer one or two.
pub const IDENTITIES_MAX: usize = 16;

/// RFC 8446 section 5.1 and 5.2: what one record may hold, its ciphertext expansion included.
const RECORD_MAX: usize = 16_384 + 256;
/// The longest handshake message that rustls takes.
const MESSAGE_MAX: usize = 0xffff;
/// Most bytes that are gathered: the longest message in records of ordinary length, or a fifth of it in records of a byte each.
pub const FLIGHT_MAX: usize = MESSAGE_MAX + RECORD_MAX;
/// Room is made for at least so many bytes at a time, so that it is little more than what came.
const ROOM: usize = 256;
/// Kind and length.
const HEAD: usize = 4;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// The change_cipher_spec record of a client in middlebox compatibility mode (RFC 8446 appendix D.4), its version apart.
const CHANGE_CIPHER_SPEC: [u8; 6] = [20, 3, 3, 0, 1, 1];

/// Gathers a flight that begins with a ClientHello, cut anywhere, until the ClientHello is whole. Takes at most [`FLIGHT_MAX`] bytes, and as many more as
/// came with the last call.
#[derive(Default)]
pub struct FirstFlight {
    raw: Vec<u8>,
    /// It answers a HelloRetryRequest: a change_cipher_spec may stand before the ClientHello.
    second: bool,
    /// The first record of the ClientHello begins here.
    begin: usize,
    /// Up to here `raw` has been cut into records.
    read: usize,
    /// Bytes of the message in those records.
    message: usize,
    /// The first of them.
    head: [u8; HEAD],
}

/// Whether the ClientHello is whole.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Partial,
    /// It is, or it never will be: then it offers nothing.
    Whole(Offer),
}

impl FirstFlight {
    /// Gathers the flight that answers a HelloRetryRequest.
    pub fn after_retry() -> Self {
        Self { second: true, ..Self::default() }
    }

    /// Whether it answers a HelloRetryRequest.
    pub fn is_second(&self) -> bool {
        self.second
    }

    /// Whether rustls takes the ClientHello, which is whole, as far as that does not depend on a configuration: it parses each
    /// extension to its end, and nothing follows the message in its records. A session is worth a lookup only then.
    pub fn is_taken_by_rustls(&self) -> bool {
        let mut acceptor = Acceptor::default();
        let mut records = &self.raw[self.begin..];
        while !records.is_empty() {
            match acceptor.read_tls(&mut records) {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(_)) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    /// Takes the bytes that came.
    pub fn push(&mut self, bytes: &[u8]) -> Progress {
        if self.raw.capacity() - self.raw.len() < bytes.len() {
            self.raw.reserve_exact(bytes.len().max(ROOM));
        }
        self.raw.extend_from_slice(bytes);
        match self.cut() {
            Progress::Partial if self.raw.len() > FLIGHT_MAX => Progress::Whole(Offer::default()),
            progress => progress,
        }
    }

    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        self.raw.capacity()
    }

    /// Moves behind a change_cipher_spec that stands first. `None`: more bytes are needed.
    fn skip_change_cipher_spec(&mut self) -> Option<()> {
        if !self.second || self.begin > 0 || self.raw.first() != Some(&CHANGE_CIPHER_SPEC[0]) {
            return Some(());
        }
        let record = self.raw.get(..CHANGE_CIPHER_SPEC.len())?;
        // What is something else is for rustls to refuse.
        if record[3..] == CHANGE_CIPHER_SPEC[3..] {
            (self.begin, self.read) = (record.len(), record.len());
        }
        Some(())
    }

    fn cut(&mut self) -> Progress {
        if self.skip_change_cipher_spec().is_none() {
            return Progress::Partial;
        }
        loop {
            let rest = &self.raw[self.read..];
            if rest.first().is_some_and(|&kind| kind != HANDSHAKE) {
                return Progress::Whole(Offer::default());
            }
            let Some(&[_, _, _, high, low]) = rest.first_chunk() else { return Progress::Partial };
            let length = usize::from(u16::from_be_bytes([high, low]));
            // RFC 8446 section 5.1: a handshake record is never empty.
            if length == 0 || length > RECORD_MAX {
                return Progress::Whole(Offer::default());
            }
            let Some(payload) = rest.get(5..5 + length) else { return Progress::Partial };
            let head = self.head.iter_mut().skip(self.message);
            head.zip(payload).for_each(|(place, &byte)| *place = byte);
            self.message += length;
            self.read += 5 + length;
            if let Some(offer) = self.whole_message() {
                return Progress::Whole(offer);
            }
        }
    }

    /// Everything that came, for rustls.
    pub fn into_bytes(self) -> Vec<u8> {
        self.raw
    }

    fn whole_message(&self) -> Option<Offer> {
        let [kind, high, middle, low] = self.head;
        if kind != CLIENT_HELLO {
            return Some(Offer::default());
        }
        if self.message < HEAD {
            return None;
        }
        let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
        if length > MESSAGE_MAX {
            return Some(Offer::default());
        }
        if self.message < HEAD + length {
            return None;
        }
        let mut records = self.records();
        let first = records.next().unwrap_or_default();
        let offered = match first.get(HEAD..HEAD + length) {
            Some(body) => offer(body),
            // In several records.
            None => {
                let mut message = Vec::with_capacity(self.message);
                message.extend_from_slice(first);
                records.for_each(|payload| message.extend_from_slice(payload));
                message.get(HEAD..HEAD + length).and_then(offer)
            }
        };
        Some(offered.unwrap_or_default())
    }

    /// The payloads of the records that have been cut.
    fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.raw[self.begin..self.read];
        std::iter::from_fn(move || {
            let &[_, _, _, high, low] = rest.first_chunk()?;
            let length = usize::from(u16::from_be_bytes([high, low]));
            let payload = rest.get(5..5 + length)?;
            rest = &rest[5 + length..];
            Some(payload)
        })
    }
}

const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const COMPRESS_CERTIFICATE: u16 = 27;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;
const PSK_KEY_EXCHANGE_MODES: u16 = 45;
const KEY_SHARE: u16 = 51;
const TLS13: [u8; 2] = [3, 4];
const PSK_DHE_KE: u8 = 1;
const FALLBACK_SCSV: u16 = 0x5600;
/// compression_methods of a TLS 1.3 client: null alone.
const NO_COMPRESSION: [u8; 1] = [0];

/// Reads the body of a ClientHello (RFC 8446 section 4.1.2). `None`: every server refuses it.
fn offer(body: &[u8]) -> Option<Offer> {
    let mut body = Reader(body);
    body.bytes(2 + 32)?;
    let session_id = body.vector8()?;
    let cipher_suites = u16s(body.vector16()?)?;
    let compression = body.vector8()?;
    let session_id = (1..=SESSION_ID_MAX).contains(&session_id.len()).then(|| session_id.to_vec());
    let mut offer = Offer {
        session_id,
        fallback: cipher_suites.contains(&FALLBACK_SCSV),
        parameters: Parameters { cipher_suites, ..Parameters::default() },
        ..Offer::default()
    };
    if body.0.is_empty() {
        // TLS 1.2 without extensions.
        return Some(offer);
    }
    let mut extensions = Reader(body.vector16()?);
    body.ends()?;
    let mut seen = Seen::default();
    let (mut signatures, mut forward_secret, mut twice) = (false, false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut extension = Reader(extensions.vector16()?);
        if !seen.is_new(kind) {
            return None;
        }
        match kind {
            SERVER_NAME => (offer.server_name, offer.dotted) = server_name(&mut extension)?,
            SUPPORTED_GROUPS => offer.parameters.groups = u16s(extension.vector16()?)?,
            SIGNATURE_ALGORITHMS => signatures = true,
            ALPN => offer.parameters.protocols = Some(protocols(&mut extension)?),
            SESSION_TICKET if !extension.0.is_empty() => offer.session_id = None,
            SUPPORTED_VERSIONS => {
                offer.tls13 = extension.vector8()?.chunks_exact(2).any(|version| version == TLS13);
            }
            PSK_KEY_EXCHANGE_MODES => forward_secret = extension.vector8()?.contains(&PSK_DHE_KE),
            KEY_SHARE => offer.parameters.key_shares = key_shares(&mut extension)?,
            EARLY_DATA => offer.parameters.early_data = true,
            COMPRESS_CERTIFICATE => twice |= has_twice(&u16s(extension.vector8()?)?),
            PRE_SHARED_KEY if extensions.0.is_empty() => offer.identities = identities(&mut extension)?,
            PRE_SHARED_KEY => return None,
            _ => {}
        }
    }
    twice |= has_twice(&offer.parameters.key_shares);
    if !(signatures && forward_secret && compression == NO_COMPRESSION) || twice {
        offer.identities.clear();
    }
    Some(offer)
}

/// Extensions that were there already. The known ones have small numbers.
#[derive(Default)]
struct Seen {
    small: u64,
    others: BTreeSet<u16>,
}

impl Seen {
    fn is_new(&mut self, kind: u16) -> bool {
        match 1u64.checked_shl(kind.into()) {
            Some(bit) => {
                let new = self.small & bit == 0;
                self.small |= bit;
                new
            }
            None => self.others.insert(kind),
        }
    }
}

/// Whether a value stands there more than once.
fn has_twice(values: &[u16]) -> bool {
    let mut seen = Seen::default();
    !values.iter().all(|&value| seen.is_new(value))
}

fn u16s(bytes: &[u8]) -> Option<Vec<u16>> {
    let (pairs, []) = bytes.as_chunks() else { return None };
    Some(pairs.iter().map(|&pair| u16::from_be_bytes(pair)).collect())
}

/// RFC 6066 section 3: the one host_name, and whether it has a trailing dot. An address counts as no name, as it does for rustls;
/// what is no name at all is refused.
fn server_name(extension: &mut Reader<'_>) -> Option<(ServerName<'static>, bool)> {
    const HOST_NAME: u8 = 0;
    let mut list = Reader(extension.vector16()?);
    let mut found = None;
    // What follows a name of another type cannot be read.
    while list.0.first() == Some(&HOST_NAME) {
        list.bytes(1)?;
        let name = str::from_utf8(list.vector16()?).ok()?;
        if found.replace(name).is_some() {
            return None;
        }
    }
    let name = found?;
    match pki_types::ServerName::try_from(name).ok()? {
        pki_types::ServerName::DnsName(_) => Some((ServerName::new(name).into_owned(), name.ends_with('.'))),
        _ => Some((ServerName::NONE, false)),
    }
}

/// RFC 8446 section 4.2.8.
fn key_shares(extension: &mut Reader<'_>) -> Option<Vec<u16>> {
    let mut list = Reader(extension.vector16()?);
    let mut groups = Vec::new();
    while !list.0.is_empty() {
        groups.push(list.u16()?);
        list.vector16()?;
    }
    Some(groups)
}

/// RFC 7301 section 3.1.
fn protocols(extension: &mut Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(extension.vector16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.vector8()?.to_vec());
    }
    Some(protocols)
}

/// RFC 8446 section 4.2.11. An identity that is too long to be one of ours is somebody's ticket. Each has a binder, or TLS 1.3 is
/// refused.
fn identities(extension: &mut Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(extension.vector16()?);
    let (mut identities, mut count) = (Vec::new(), 0);
    while !list.0.is_empty() {
        let identity = list.vector16()?;
        list.bytes(4)?;
        count += 1;
        if identity.is_empty() {
            return None;
        }
        if identities.len() < IDENTITIES_MAX && identity.len() <= SESSION_ID_MAX {
            identities.push(identity.to_vec());
        }
    }
    let (mut list, mut binders) = (Reader(extension.vector16()?), 0);
    while !list.0.is_empty() {
        binders += 1;
        if list.vector8()?.is_empty() {
            return None;
        }
    }
    if binders != count {
        identities.clear();
    }
    Some(identities)
}

/// Takes things off the front; `None` where they are not there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// `None`: something is left.
    fn ends(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.bytes(1)?[0];
        self.bytes(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.bytes(usize::from(length))
    }
}
