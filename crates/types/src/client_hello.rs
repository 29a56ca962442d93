//! Reads from a ClientHello which sessions the client offers, before rustls reads it.
//!
//! rustls asks its storage for sessions during a handshake step, and does not report beforehand
//! which sessions it will ask for. So the first flight is parsed here for the TLS 1.2 session id
//! and the TLS 1.3 PSK identities. The parser decides nothing about the handshake: rustls gets the
//! same bytes, and answers those that do not parse with the right alert.
//!
//! A ClientHello that every server refuses counts as one without an offer, so that it consumes no
//! ticket. Examples are a repeated extension, an empty PSK identity, and a pre_shared_key that is
//! not the last extension (RFC 8446 section 4.2). [`FirstFlight::is_taken_by_rustls`] asks rustls
//! about the rest.

use std::collections::BTreeSet;

use rustls::{pki_types, server::Acceptor};

use crate::server_name::ServerName;

/// The longest session id of the API, in bytes.
pub const SESSION_ID_MAX: usize = 64;

/// The sessions that a ClientHello offers to resume, and the parameters that decide about them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Whether the client offers TLS 1.3 (RFC 8446 section 4.2.1).
    pub tls13: bool,
    /// The TLS 1.2 session id. `None` if the client offers a ticket, because the session id then
    /// identifies no session (RFC 5077 section 3.4).
    pub session_id: Option<Vec<u8>>,
    /// The PSK identities that may be session ids of the daemon, in the order of the client: at
    /// most [`IDENTITIES_MAX`], of 1 to [`SESSION_ID_MAX`] bytes. Empty if no TLS 1.3 server can
    /// resume a session, for example because a required extension is missing or psk_dhe_ke is not
    /// offered.
    pub identities: Vec<Vec<u8>>,
    /// The tickets that have a session in them.
    pub tickets: Tickets,
    /// The SNI, or [`ServerName::NONE`].
    pub server_name: ServerName<'static>,
    /// Whether the SNI has a trailing dot, against RFC 6066 section 3.
    pub dotted: bool,
    /// Whether TLS_FALLBACK_SCSV is among the cipher suites (RFC 7507).
    pub fallback: bool,
    /// The parameters that decide how a TLS 1.3 server answers.
    pub parameters: Parameters,
}

/// The tickets of a ClientHello that are longer than the session ids of the daemon, so that a session
/// can be sealed in them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tickets {
    /// Whether the client takes tickets in TLS 1.2: it sent session_ticket (RFC 5077 section 3.2).
    pub taken: bool,
    /// The ticket of TLS 1.2. `None`: the client offers none, or one that is shorter or longer than
    /// [`SESSION_ID_MAX`] and [`TICKET_MAX`] allow.
    pub tls12: Option<Vec<u8>>,
    /// Those of TLS 1.3, in the order of the client: at most [`TICKETS_MAX`], each of at most
    /// [`TICKET_MAX`] bytes. Empty where [`Offer::identities`] must be.
    pub tls13: Vec<Vec<u8>>,
}

/// Most tickets of one ClientHello that are opened. Clients offer one or two.
pub const TICKETS_MAX: usize = 4;
/// The longest ticket that is opened, in bytes.
pub const TICKET_MAX: usize = 16 << 10;

/// Returns whether a session can be sealed in a ticket of this many bytes.
fn is_sealed_size(length: usize) -> bool {
    (SESSION_ID_MAX + 1..=TICKET_MAX).contains(&length)
}

/// The parameters by which a TLS 1.3 server chooses a cipher suite and a group, in the order of the
/// client.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// CipherSuite values.
    pub cipher_suites: Vec<u16>,
    /// NamedGroup values of supported_groups.
    pub groups: Vec<u16>,
    /// NamedGroup values of key_share.
    pub key_shares: Vec<u16>,
    /// Names of application protocols. `None`: the ClientHello has no ALPN extension.
    pub protocols: Option<Vec<Vec<u8>>>,
    /// Whether the client announces early data. A second ClientHello must not (RFC 8446 section
    /// 4.2.10).
    pub early_data: bool,
}

/// Most PSK identities that are looked up for one ClientHello. Clients offer one or two.
pub const IDENTITIES_MAX: usize = 16;

/// The longest payload of a record, with its ciphertext expansion, in bytes (RFC 8446 sections 5.1
/// and 5.2).
const RECORD_MAX: usize = 16_384 + 256;
/// The longest handshake message that rustls accepts, in bytes.
const MESSAGE_MAX: usize = 0xffff;
/// Most bytes that a flight gathers: the longest message in records of ordinary length, or about a
/// fifth of it in records of one byte each.
pub const FLIGHT_MAX: usize = MESSAGE_MAX + RECORD_MAX;
/// The least number of bytes by which the buffer grows. Small, so that the buffer is hardly larger
/// than its content.
const ROOM: usize = 256;
/// The header of a handshake message: type and length.
const HEAD: usize = 4;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// The change_cipher_spec record of a client in middlebox compatibility mode (RFC 8446 appendix
/// D.4). Its two version bytes may differ.
const CHANGE_CIPHER_SPEC: [u8; 6] = [20, 3, 3, 0, 1, 1];

/// Gathers a flight that begins with a ClientHello until the ClientHello is complete. The bytes may
/// arrive in pieces of any size. Holds at most [`FLIGHT_MAX`] bytes, plus those of the last call.
#[derive(Default)]
pub struct FirstFlight {
    raw: Vec<u8>,
    /// Whether the flight answers a HelloRetryRequest. A change_cipher_spec may then precede the
    /// ClientHello.
    second: bool,
    /// Where in `raw` the first record of the ClientHello begins.
    begin: usize,
    /// Up to where `raw` has been cut into records.
    read: usize,
    /// How many bytes of the handshake message those records hold.
    message: usize,
    /// The first bytes of the handshake message.
    head: [u8; HEAD],
}

/// Whether the ClientHello is complete.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a flight has one offer, which is moved once"
)]
pub enum Progress {
    /// More bytes are needed.
    Partial,
    /// The ClientHello is complete. If it can never be completed, the offer is empty.
    Whole(Offer),
}

impl FirstFlight {
    /// Makes a gatherer for the flight that answers a HelloRetryRequest.
    pub fn after_retry() -> Self {
        Self {
            second: true,
            ..Self::default()
        }
    }

    /// Returns whether the flight answers a HelloRetryRequest.
    pub fn is_second(&self) -> bool {
        self.second
    }

    /// Returns whether rustls accepts the complete ClientHello, as far as that does not depend on a
    /// configuration: rustls can parse every extension, and no bytes follow the message in its
    /// records. Otherwise a lookup would waste a session.
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

    /// Adds received bytes.
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

    /// Returns how many bytes of memory the buffer takes.
    pub fn size(&self) -> usize {
        self.raw.capacity()
    }

    /// Skips a change_cipher_spec at the beginning of the flight. `None`: more bytes are needed.
    fn skip_change_cipher_spec(&mut self) -> Option<()> {
        if !self.second || self.begin > 0 || self.raw.first() != Some(&CHANGE_CIPHER_SPEC[0]) {
            return Some(());
        }
        let record = self.raw.get(..CHANGE_CIPHER_SPEC.len())?;
        // rustls refuses any other record of this type.
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
            let Some(&[_, _, _, high, low]) = rest.first_chunk() else {
                return Progress::Partial;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            // RFC 8446 section 5.1: a handshake record is never empty.
            if length == 0 || length > RECORD_MAX {
                return Progress::Whole(Offer::default());
            }
            let Some(payload) = rest.get(5..5 + length) else {
                return Progress::Partial;
            };
            let head = self.head.iter_mut().skip(self.message);
            head.zip(payload).for_each(|(place, &byte)| *place = byte);
            self.message += length;
            self.read += 5 + length;
            if let Some(offer) = self.whole_message() {
                return Progress::Whole(offer);
            }
        }
    }

    /// Returns all received bytes, for rustls.
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
        let length =
            usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
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
            // The message is spread over several records.
            None => {
                let mut message = Vec::with_capacity(self.message);
                message.extend_from_slice(first);
                records.for_each(|payload| message.extend_from_slice(payload));
                message.get(HEAD..HEAD + length).and_then(offer)
            }
        };
        Some(offered.unwrap_or_default())
    }

    /// Returns the payloads of the records of the ClientHello.
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
/// The compression_methods of a TLS 1.3 client: only null.
const NO_COMPRESSION: [u8; 1] = [0];

/// Parses the body of a ClientHello (RFC 8446 section 4.1.2). `None`: every server refuses it.
fn offer(body: &[u8]) -> Option<Offer> {
    let mut body = Reader(body);
    body.bytes(2 + 32)?;
    let session_id = body.vector8()?;
    let cipher_suites = u16s(body.vector16()?)?;
    let compression = body.vector8()?;
    let session_id = (1..=SESSION_ID_MAX)
        .contains(&session_id.len())
        .then(|| session_id.to_vec());
    let mut offer = Offer {
        session_id,
        fallback: cipher_suites.contains(&FALLBACK_SCSV),
        parameters: Parameters {
            cipher_suites,
            ..Parameters::default()
        },
        ..Offer::default()
    };
    if body.0.is_empty() {
        // A TLS 1.2 ClientHello may have no extensions.
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
            SESSION_TICKET => {
                offer.tickets.taken = true;
                if !extension.0.is_empty() {
                    offer.session_id = None;
                }
                if is_sealed_size(extension.0.len()) {
                    offer.tickets.tls12 = Some(extension.0.to_vec());
                }
            }
            SUPPORTED_VERSIONS => {
                offer.tls13 = extension
                    .vector8()?
                    .chunks_exact(2)
                    .any(|version| version == TLS13);
            }
            PSK_KEY_EXCHANGE_MODES => forward_secret = extension.vector8()?.contains(&PSK_DHE_KE),
            KEY_SHARE => offer.parameters.key_shares = key_shares(&mut extension)?,
            EARLY_DATA => offer.parameters.early_data = true,
            COMPRESS_CERTIFICATE => twice |= has_twice(&u16s(extension.vector8()?)?),
            PRE_SHARED_KEY if extensions.0.is_empty() => {
                identities(&mut extension, &mut offer)?;
            }
            PRE_SHARED_KEY => return None,
            _ => {}
        }
    }
    twice |= has_twice(&offer.parameters.key_shares);
    if !(signatures && forward_secret && compression == NO_COMPRESSION) || twice {
        offer.identities.clear();
        offer.tickets.tls13.clear();
    }
    Some(offer)
}

/// A set of numbers. The known extensions have small numbers, which take one bit each.
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

/// Returns whether a value occurs more than once.
fn has_twice(values: &[u16]) -> bool {
    let mut seen = Seen::default();
    !values.iter().all(|&value| seen.is_new(value))
}

fn u16s(bytes: &[u8]) -> Option<Vec<u16>> {
    let (pairs, []) = bytes.as_chunks() else {
        return None;
    };
    Some(pairs.iter().map(|&pair| u16::from_be_bytes(pair)).collect())
}

/// Parses the server_name extension (RFC 6066 section 3): returns the host_name, and whether it has
/// a trailing dot. An IP address counts as no name, as in rustls. `None`: the extension does not
/// parse, or there is no host_name, more than one, or one that is neither a DNS name nor an
/// address.
fn server_name(extension: &mut Reader<'_>) -> Option<(ServerName<'static>, bool)> {
    const HOST_NAME: u8 = 0;
    let mut list = Reader(extension.vector16()?);
    let mut found = None;
    // The length of a name of another type is unknown, so the list cannot be read beyond it.
    while list.0.first() == Some(&HOST_NAME) {
        list.bytes(1)?;
        let name = str::from_utf8(list.vector16()?).ok()?;
        if found.replace(name).is_some() {
            return None;
        }
    }
    let name = found?;
    match pki_types::ServerName::try_from(name).ok()? {
        pki_types::ServerName::DnsName(_) => {
            Some((ServerName::new(name).into_owned(), name.ends_with('.')))
        }
        _ => Some((ServerName::NONE, false)),
    }
}

/// Parses the key_share extension (RFC 8446 section 4.2.8): returns its groups.
fn key_shares(extension: &mut Reader<'_>) -> Option<Vec<u16>> {
    let mut list = Reader(extension.vector16()?);
    let mut groups = Vec::new();
    while !list.0.is_empty() {
        groups.push(list.u16()?);
        list.vector16()?;
    }
    Some(groups)
}

/// Parses the ALPN extension (RFC 7301 section 3.1): returns the names of the protocols.
fn protocols(extension: &mut Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(extension.vector16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.vector8()?.to_vec());
    }
    Some(protocols)
}

/// Parses the pre_shared_key extension (RFC 8446 section 4.2.11): adds the identities that may be
/// session ids of the daemon to the offer, and those that are longer.
///
/// Skips identities after the first [`IDENTITIES_MAX`] and [`TICKETS_MAX`], and those of more than
/// [`TICKET_MAX`] bytes. Adds no identity if the number of identities differs from that of the
/// binders, because TLS 1.3 servers refuse that. `None`: the extension does not parse, or an identity
/// or a binder is empty.
fn identities(extension: &mut Reader<'_>, offer: &mut Offer) -> Option<()> {
    let mut list = Reader(extension.vector16()?);
    let (mut identities, mut tickets, mut count) = (Vec::new(), Vec::new(), 0);
    while !list.0.is_empty() {
        let identity = list.vector16()?;
        list.bytes(4)?;
        count += 1;
        if identity.is_empty() {
            return None;
        }
        if identity.len() <= SESSION_ID_MAX {
            if identities.len() < IDENTITIES_MAX {
                identities.push(identity.to_vec());
            }
        } else if tickets.len() < TICKETS_MAX && is_sealed_size(identity.len()) {
            tickets.push(identity.to_vec());
        }
    }
    let (mut list, mut binders) = (Reader(extension.vector16()?), 0);
    while !list.0.is_empty() {
        binders += 1;
        if list.vector8()?.is_empty() {
            return None;
        }
    }
    if binders == count {
        offer.identities = identities;
        offer.tickets.tls13 = tickets;
    }
    Some(())
}

/// Takes values off the front of a slice. `None`: too few bytes are left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks that no bytes are left. `None`: some are.
    fn ends(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
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
