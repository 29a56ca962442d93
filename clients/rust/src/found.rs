//! A session that a lookup returned: one allocation, read in place.
//!
//! A test compares the result with that of the generated types, field by field.

use std::time::{Duration, SystemTime};

use prost::Message;
use tls_sessiond_proto::{
    self as pb, PeerIdentity, tag,
    wire::{END, Fields, bytes, number},
};
use tls_sessiond_types::{hex, secret::SecretBuffer};

use crate::message::Version;

/// The longest session id of the contract, in bytes.
const ID_MAX: usize = 64;

/// Tags of LookupSessionResponse.
const FOUND: u32 = number(tag::lookup_session_response::FOUND);
const SESSION: u32 = bytes(tag::lookup_session_response::SESSION);
const DATA: u32 = bytes(tag::lookup_session_response::DATA);
/// Tags of Session.
const SESSION_ID: u32 = bytes(tag::session::ID);
const VERSION: u32 = number(tag::session::VERSION);
const CIPHER_SUITE: u32 = bytes(tag::session::CIPHER_SUITE);
const SERVER_NAME: u32 = bytes(tag::session::SERVER_NAME);
const PEER: u32 = bytes(tag::session::PEER);
const SINGLE_USE: u32 = number(tag::session::SINGLE_USE);
const AUTHENTICATE_TIME: u32 = bytes(tag::session::AUTHENTICATE_TIME);
const EXPIRE_TIME: u32 = bytes(tag::session::EXPIRE_TIME);
/// Tags of google.protobuf.Timestamp.
const SECONDS: u32 = number(tag::timestamp::SECONDS);
const NANOS: u32 = number(tag::timestamp::NANOS);

/// A session to resume. No other worker gets a single-use one. The memory is overwritten when it is
/// dropped.
pub struct Found {
    /// The encoded LookupSessionResponse. The decoded bytes of the session id replace its hex
    /// digits.
    response: SecretBuffer,
    data: Span,
    session_id: Span,
    cipher_suite: Span,
    server_name: Span,
    version: Version,
    single_use: bool,
    peer: Option<Box<PeerIdentity>>,
    authenticate_time: SystemTime,
    expire_time: SystemTime,
}

impl Found {
    /// Returns the session in the encoding of the TLS library that put it.
    pub fn data(&self) -> &[u8] {
        self.bytes(self.data)
    }

    /// Returns the session id, to be passed to [`crate::Worker::open`] once the session is resumed.
    pub fn session_id(&self) -> &[u8] {
        self.bytes(self.session_id)
    }

    /// Returns the protocol version that the session can be resumed with.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the IANA name, or an empty string.
    pub fn cipher_suite(&self) -> &str {
        self.text(self.cipher_suite)
    }

    /// Returns the name that the session was made under. Client: the server. Server: the SNI.
    pub fn server_name(&self) -> &str {
        self.text(self.server_name)
    }

    /// Returns the identity that the peer proved, if the daemon knows it.
    pub fn peer(&self) -> Option<&PeerIdentity> {
        self.peer.as_deref()
    }

    /// Returns whether the session is single-use: the lookup consumed it, and no other lookup finds
    /// it.
    pub fn is_single_use(&self) -> bool {
        self.single_use
    }

    /// Returns when the peers authenticated. A session that is made from a single-use one must be
    /// put with this time, in [`crate::Put::authenticate_time`].
    pub fn authenticate_time(&self) -> SystemTime {
        self.authenticate_time
    }

    /// Returns when the session expires. It must not be resumed from then on.
    pub fn expire_time(&self) -> SystemTime {
        self.expire_time
    }

    /// Decodes a LookupSessionResponse. `None`: it has no session, or one that this client cannot
    /// decode.
    pub(super) fn read(mut response: SecretBuffer) -> Option<Self> {
        let all = response.bytes();
        let place = |part: &[u8]| Span::of(part, all);
        let (mut fields, mut found, mut session, mut data) =
            (Fields(all), false, None, Span::default());
        loop {
            match fields.key()? {
                END => break,
                FOUND => found = fields.number()? != 0,
                SESSION => session = Some(fields.bytes()?),
                DATA => data = place(fields.bytes()?),
                key => fields.skip(key)?,
            }
        }
        let mut fields = Fields(session.filter(|_| found)?);
        let (mut session_id, mut version, mut single_use) = (&[][..], None, false);
        let (mut cipher_suite, mut server_name, mut peer) = ("", "", None);
        let (mut authenticated, mut expires) = (None, None);
        loop {
            match fields.key()? {
                END => break,
                SESSION_ID => session_id = fields.bytes()?,
                VERSION => version = self::version(fields.number()?),
                CIPHER_SUITE => cipher_suite = str::from_utf8(fields.bytes()?).ok()?,
                SERVER_NAME => server_name = str::from_utf8(fields.bytes()?).ok()?,
                PEER => peer = Some(Box::new(PeerIdentity::decode(fields.bytes()?).ok()?)),
                SINGLE_USE => single_use = fields.number()? != 0,
                AUTHENTICATE_TIME => authenticated = Some(time(fields.bytes()?)?),
                EXPIRE_TIME => expires = Some(time(fields.bytes()?)?),
                key => fields.skip(key)?,
            }
        }
        let mut bytes = [0; ID_MAX];
        let id = hex::read_into(session_id, &mut bytes)?;
        let session_id = Span {
            length: u32::try_from(id.len()).ok()?,
            ..place(session_id)
        };
        let (cipher_suite, server_name) = (
            place(cipher_suite.as_bytes()),
            place(server_name.as_bytes()),
        );
        response
            .bytes_mut()
            .get_mut(session_id.range())?
            .copy_from_slice(id);
        Some(Self {
            response,
            data,
            session_id,
            cipher_suite,
            server_name,
            version: version?,
            single_use,
            peer,
            authenticate_time: authenticated?,
            expire_time: expires?,
        })
    }

    fn bytes(&self, place: Span) -> &[u8] {
        self.response.bytes().get(place.range()).unwrap_or_default()
    }

    fn text(&self, place: Span) -> &str {
        // The bytes were checked when the response was decoded.
        str::from_utf8(self.bytes(place)).unwrap_or_default()
    }
}

/// A range of bytes in the response.
#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    length: u32,
}

impl Span {
    /// Returns the range of `part` in `all`.
    fn of(part: &[u8], all: &[u8]) -> Self {
        let start = part.as_ptr().addr().wrapping_sub(all.as_ptr().addr());
        // The numbers fit: a message has at most 16 MiB. An empty part may point anywhere.
        match (u32::try_from(start), u32::try_from(part.len())) {
            (Ok(start), Ok(length)) if length > 0 => Self { start, length },
            _ => Self::default(),
        }
    }

    fn range(self) -> std::ops::Range<usize> {
        let [start, length] = [self.start, self.length].map(|number| number as usize);
        start..start + length
    }
}

/// Converts the version. `None`: this client does not know it.
fn version(number: u64) -> Option<Version> {
    const TLS_1_2: u64 = pb::ProtocolVersion::Tls12 as u64;
    const TLS_1_3: u64 = pb::ProtocolVersion::Tls13 as u64;
    match number {
        TLS_1_2 => Some(Version::Tls12),
        TLS_1_3 => Some(Version::Tls13),
        _ => None,
    }
}

/// Decodes a google.protobuf.Timestamp. `None`: it is malformed, before 1970, or out of range for
/// this system.
fn time(bytes: &[u8]) -> Option<SystemTime> {
    let (mut fields, mut seconds, mut nanos) = (Fields(bytes), 0, 0);
    loop {
        match fields.key()? {
            END => return SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)),
            SECONDS => seconds = fields.number()?,
            NANOS => {
                nanos = u32::try_from(fields.number()?)
                    .ok()
                    .filter(|&nanos| nanos < 1_000_000_000)?;
            }
            key => fields.skip(key)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> pb::Session {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 5 });
        pb::Session {
            id: "00ff17".into(),
            context: "www".into(),
            role: pb::Role::Server.into(),
            version: pb::ProtocolVersion::Tls13.into(),
            cipher_suite: "TLS_AES_128_GCM_SHA256".into(),
            server_name: "a.test".into(),
            peer: Some(pb::PeerIdentity {
                certificate_sha256: "ab".into(),
                subject: "CN=b".into(),
                dns_names: vec!["b.test".into()],
                uris: vec!["spiffe://b".into()],
            }),
            single_use: true,
            format: "openssl".into(),
            create_time: time(1),
            authenticate_time: time(1_000_000_007),
            expire_time: time(2_000_000_011),
            open_connections: 3,
            data_bytes: 4,
        }
    }

    fn written(session: Option<pb::Session>, found: bool) -> Vec<u8> {
        let data = b"secret".to_vec().into();
        pb::LookupSessionResponse {
            found,
            session,
            data,
            miss_reason: 1,
        }
        .encode_to_vec()
    }

    fn read(response: &[u8]) -> Option<Found> {
        Found::read(SecretBuffer::copied(response))
    }

    #[test]
    fn every_field_of_a_found_session_is_the_contracts() {
        let found = read(&written(Some(session()), true)).unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, 5);
        assert_eq!(found.data(), b"secret");
        assert_eq!(found.session_id(), [0, 0xff, 0x17]);
        assert_eq!(
            (found.version(), found.is_single_use()),
            (Version::Tls13, true)
        );
        assert_eq!(
            (found.cipher_suite(), found.server_name()),
            ("TLS_AES_128_GCM_SHA256", "a.test")
        );
        assert_eq!(found.peer(), session().peer.as_ref());
        assert_eq!(
            (found.authenticate_time(), found.expire_time()),
            (at(1_000_000_007), at(2_000_000_011))
        );
        // Fields that are empty or have the default value are not on the wire.
        let plain = pb::Session {
            version: pb::ProtocolVersion::Tls12.into(),
            id: String::new(),
            cipher_suite: String::new(),
            server_name: String::new(),
            peer: None,
            single_use: false,
            ..session()
        };
        let found = read(&written(Some(plain), true)).unwrap();
        assert_eq!(
            (found.version(), found.is_single_use()),
            (Version::Tls12, false)
        );
        assert_eq!(
            (
                found.session_id(),
                found.cipher_suite(),
                found.server_name()
            ),
            (&[][..], "", "")
        );
        assert_eq!((found.peer(), found.data()), (None, &b"secret"[..]));
        let longest = pb::Session {
            id: "a7".repeat(ID_MAX),
            ..session()
        };
        assert_eq!(
            read(&written(Some(longest), true)).unwrap().session_id(),
            [0xa7; ID_MAX]
        );
    }

    #[test]
    fn what_is_nothing_or_not_understood_is_a_miss() {
        let changed = |change: fn(&mut pb::Session)| {
            let mut session = session();
            change(&mut session);
            written(Some(session), true)
        };
        for response in [
            written(None, true),
            written(Some(session()), false),
            changed(|session| session.version = 0),
            changed(|session| session.version = 3),
            changed(|session| session.id = "0g".into()),
            changed(|session| session.id = "a7".repeat(ID_MAX + 1)),
            changed(|session| session.authenticate_time = None),
            changed(|session| session.expire_time = None),
            changed(|session| session.expire_time.as_mut().unwrap().seconds = -1),
            changed(|session| session.expire_time.as_mut().unwrap().nanos = -1),
            changed(|session| session.expire_time.as_mut().unwrap().nanos = 1_000_000_000),
            Vec::new(),
        ] {
            assert!(read(&response).is_none());
        }
        let whole = written(Some(session()), true);
        for text in [&b"TLS_AES"[..], b"a.test", b"CN=b", b"b.test", b"spiffe"] {
            let mut response = whole.clone();
            let at = response
                .windows(text.len())
                .position(|part| part == text)
                .unwrap();
            response[at] = 0xff;
            assert!(read(&response).is_none(), "{text:?}");
        }
    }

    #[test]
    fn whatever_is_changed_in_a_response_nothing_is_read_outside_of_it() {
        let whole = written(Some(session()), true);
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut response = whole.clone();
                response[at] = value;
                for response in [&response[..], &response[..at]] {
                    if let Some(found) = read(response) {
                        let parts = [
                            found.data(),
                            found.session_id(),
                            found.cipher_suite().as_bytes(),
                        ];
                        assert!(parts.iter().all(|part| part.len() <= response.len()));
                    }
                }
            }
        }
    }
}
