//! Reads which sessions a peer offers, before rustls does.
//!
//! rustls asks its storage for sessions in the middle of a handshake step and does not tell beforehand which it will ask
//! for. So the first flight is read here: the TLS 1.2 session id and the TLS 1.3 PSK identities. This decides nothing
//! about the handshake: what does not parse is passed on to rustls, which finds the right alert for it.
//!
//! The second ClientHello after a HelloRetryRequest repeats the offer of the first (RFC 8446 section 4.1.2), so it need
//! not be read.

use rustls::pki_types::DnsName;

/// The longest id of a session that the contract allows, in bytes.
pub const SESSION_ID_MAX: usize = 64;

/// What a ClientHello offers to resume.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Whether it offers TLS 1.3 (RFC 8446 section 4.2.1).
    pub tls13: bool,
    /// The TLS 1.2 session id. `None` where it offers a ticket, whose session id means nothing (RFC 5077 section 3.4).
    pub session_id: Option<Vec<u8>>,
    /// The PSK identities that can be ours, in their order: at most [`IDENTITIES_MAX`], of 1 to [`SESSION_ID_MAX`] bytes.
    pub identities: Vec<Vec<u8>>,
    /// The SNI in lower case, or empty.
    pub server_name: String,
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

/// Gathers the first flight, cut anywhere, until the ClientHello is whole. Takes at most [`FLIGHT_MAX`] bytes, and as many more as
/// came with the last call.
#[derive(Default)]
pub struct FirstFlight {
    raw: Vec<u8>,
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

    fn cut(&mut self) -> Progress {
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
        let mut rest = &self.raw[..self.read];
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
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;
const TLS13: [u8; 2] = [3, 4];

/// Reads the body of a ClientHello (RFC 8446 section 4.1.2). `None`: it is malformed.
fn offer(body: &[u8]) -> Option<Offer> {
    let mut body = Reader(body);
    body.bytes(2 + 32)?;
    let session_id = body.vector8()?;
    body.vector16()?;
    body.vector8()?;
    let session_id = (1..=SESSION_ID_MAX).contains(&session_id.len()).then(|| session_id.to_vec());
    let mut offer = Offer { session_id, ..Offer::default() };
    if body.0.is_empty() {
        // TLS 1.2 without extensions.
        return Some(offer);
    }
    let mut extensions = Reader(body.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut extension = Reader(extensions.vector16()?);
        match kind {
            SERVER_NAME => offer.server_name = server_name(&mut extension)?,
            SESSION_TICKET if !extension.0.is_empty() => offer.session_id = None,
            SUPPORTED_VERSIONS => {
                offer.tls13 = extension.vector8()?.chunks_exact(2).any(|version| version == TLS13);
            }
            PRE_SHARED_KEY => offer.identities = identities(&mut extension)?,
            _ => {}
        }
    }
    Some(offer)
}

/// RFC 6066 section 3. A name that is no DNS name counts as none, as it does for rustls.
fn server_name(extension: &mut Reader<'_>) -> Option<String> {
    const HOST_NAME: u8 = 0;
    let mut list = Reader(extension.vector16()?);
    while !list.0.is_empty() {
        let kind = list.bytes(1)?[0];
        let name = list.vector16()?;
        if kind == HOST_NAME {
            let name = std::str::from_utf8(name).ok().and_then(|name| DnsName::try_from(name).ok());
            return Some(name.map(|name| name.to_lowercase_owned().as_ref().to_owned()).unwrap_or_default());
        }
    }
    Some(String::new())
}

/// RFC 8446 section 4.2.11. An identity that is too long to be one of ours is somebody's ticket.
fn identities(extension: &mut Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(extension.vector16()?);
    let mut identities = Vec::new();
    while !list.0.is_empty() {
        let identity = list.vector16()?;
        list.bytes(4)?;
        if identities.len() < IDENTITIES_MAX && (1..=SESSION_ID_MAX).contains(&identity.len()) {
            identities.push(identity.to_vec());
        }
    }
    Some(identities)
}

/// Takes things off the front; `None` where they are not there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
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
