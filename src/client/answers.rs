//! Answers as they come: read where they lie, and only what this client wants to know of them.
//!
//! The tags are the contract's; the test holds them against the generated messages, field by field.

use std::time::SystemTime;

use prost::Message;
use prost_types::Timestamp;

use super::{
    fields::{Fields, Malformed, Value},
    message::{Data, Found, Version},
};
use crate::{
    hex,
    proto::{self as pb, PeerIdentity},
};

/// What one call was answered.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are sessions, and a box would be one more allocation for each"
)]
pub(super) enum Answer {
    /// A session.
    Found(Found),
    /// None, or none that this client understands; or the call was none that finds something.
    Nothing,
    /// The call failed.
    Refused,
}

/// Reads an AttachResponse, and hands each answer out with the number of its call. Says whether the daemon is about to
/// stop.
pub(super) fn read(message: &[u8], mut answer: impl FnMut(u64, Answer)) -> Result<bool, Malformed> {
    let mut draining = false;
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => {
                let (id, read) = read_answer(bytes)?;
                answer(id, read);
            }
            (2, Value::Number(number)) => draining = number != 0,
            _ => {}
        }
    }
    Ok(draining)
}

fn read_answer(answer: &[u8]) -> Result<(u64, Answer), Malformed> {
    let (mut id, mut read) = (0, Answer::Nothing);
    for field in Fields(answer) {
        match field? {
            (1, Value::Number(number)) => id = number,
            (9, Value::Bytes(response)) => {
                read = read_lookup(response)?.map_or(Answer::Nothing, Answer::Found);
            }
            (15, Value::Bytes(_)) => read = Answer::Refused,
            _ => {}
        }
    }
    Ok((id, read))
}

/// A LookupSessionResponse.
fn read_lookup(response: &[u8]) -> Result<Option<Found>, Malformed> {
    let (mut found, mut session, mut data) = (false, None, &[][..]);
    for field in Fields(response) {
        match field? {
            (1, Value::Number(number)) => found = number != 0,
            (2, Value::Bytes(bytes)) => session = Some(bytes),
            (3, Value::Bytes(bytes)) => data = bytes,
            _ => {}
        }
    }
    match session {
        Some(session) if found => read_session(session, data),
        _ => Ok(None),
    }
}

/// A Session, with its secret part.
fn read_session(session: &[u8], data: &[u8]) -> Result<Option<Found>, Malformed> {
    const TLS_1_2: u64 = pb::ProtocolVersion::Tls12 as u64;
    const TLS_1_3: u64 = pb::ProtocolVersion::Tls13 as u64;
    let (mut session_id, mut version, mut single_use) = (&[][..], None, false);
    let (mut cipher_suite, mut server_name, mut peer) = ("", "", None);
    let (mut authenticated, mut expires) = (None, None);
    for field in Fields(session) {
        match field? {
            (1, Value::Bytes(bytes)) => session_id = bytes,
            (4, Value::Number(TLS_1_2)) => version = Some(Version::Tls12),
            (4, Value::Number(TLS_1_3)) => version = Some(Version::Tls13),
            (5, Value::Bytes(bytes)) => cipher_suite = text(bytes)?,
            (6, Value::Bytes(bytes)) => server_name = text(bytes)?,
            (7, Value::Bytes(bytes)) => peer = Some(PeerIdentity::decode(bytes).map_err(|_| Malformed)?),
            (8, Value::Number(number)) => single_use = number != 0,
            (11, Value::Bytes(bytes)) => authenticated = time(bytes)?,
            (12, Value::Bytes(bytes)) => expires = time(bytes)?,
            _ => {}
        }
    }
    let known = (version, authenticated, expires, hex::read(session_id));
    let (Some(version), Some(authenticate_time), Some(expire_time), Some(session_id)) = known else {
        return Ok(None);
    };
    Ok(Some(Found {
        data: Data::copied(data),
        session_id,
        version,
        cipher_suite: cipher_suite.to_owned(),
        server_name: server_name.to_owned(),
        peer,
        single_use,
        authenticate_time,
        expire_time,
    }))
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

/// A google.protobuf.Timestamp. `None`: a time that this machine has not.
fn time(bytes: &[u8]) -> Result<Option<SystemTime>, Malformed> {
    let mut time = Timestamp::default();
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(seconds)) => time.seconds = seconds.cast_signed(),
            (2, Value::Number(nanos)) => {
                let Ok(nanos) = i32::try_from(nanos) else { return Ok(None) };
                time.nanos = nanos;
            }
            _ => {}
        }
    }
    Ok(time.try_into().ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pb::answer::Result as Answered;

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

    fn lookup(session: Option<pb::Session>, found: bool) -> Answered {
        let data = b"secret".to_vec().into();
        Answered::LookupSession(Box::new(pb::LookupSessionResponse { found, session, data, miss_reason: 1 }))
    }

    fn read_all(results: Vec<Answered>) -> Vec<(u64, Answer)> {
        let number = |(number, result)| pb::Answer { id: number, result: Some(result) };
        let answers = (7..).zip(results).map(number).collect();
        let mut all = Vec::new();
        let message = pb::AttachResponse { answers, draining: true }.encode_to_vec();
        assert_eq!(read(&message, |id, answer| all.push((id, answer))), Ok(true));
        all
    }

    #[test]
    fn every_field_of_a_found_session_is_the_contracts() {
        let all = read_all(vec![lookup(Some(session()), true)]);
        let [(7, Answer::Found(found))] = &all[..] else { panic!("{} answers", all.len()) };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, 5);
        assert_eq!(*found.data, *b"secret");
        assert_eq!(found.session_id, [0, 0xff, 0x17]);
        assert_eq!((found.version, found.single_use), (Version::Tls13, true));
        assert_eq!((&*found.cipher_suite, &*found.server_name), ("TLS_AES_128_GCM_SHA256", "a.test"));
        assert_eq!(found.peer, session().peer);
        assert_eq!((found.authenticate_time, found.expire_time), (at(1_000_000_007), at(2_000_000_011)));
        // And what is left out when it is nothing.
        let plain = pb::Session {
            version: pb::ProtocolVersion::Tls12.into(),
            id: String::new(),
            cipher_suite: String::new(),
            server_name: String::new(),
            peer: None,
            single_use: false,
            ..session()
        };
        let all = read_all(vec![lookup(Some(plain), true)]);
        let [(7, Answer::Found(found))] = &all[..] else { panic!("{} answers", all.len()) };
        assert_eq!((found.version, found.single_use), (Version::Tls12, false));
        assert!(found.session_id.is_empty() && found.cipher_suite.is_empty() && found.server_name.is_empty());
        assert_eq!(found.peer, None);
    }

    #[test]
    fn what_is_nothing_or_not_understood_is_a_miss_and_an_error_is_counted() {
        let unknown = |change: fn(&mut pb::Session)| {
            let mut session = session();
            change(&mut session);
            lookup(Some(session), true)
        };
        let all = read_all(vec![
            lookup(None, true),
            lookup(Some(session()), false),
            unknown(|session| session.version = 0),
            unknown(|session| session.version = 3),
            unknown(|session| session.id = "0g".into()),
            unknown(|session| session.authenticate_time = None),
            unknown(|session| session.expire_time = None),
            Answered::Free(pb::FreeResponse::default()),
            Answered::Error(pb::CallError::default()),
        ]);
        assert!(all.iter().map(|(id, _)| *id).eq(7..16));
        let (refused, nothing) = all.split_last().unwrap();
        assert!(matches!(refused.1, Answer::Refused));
        assert!(nothing.iter().all(|(_, answer)| matches!(answer, Answer::Nothing)));
    }

    #[test]
    fn texts_that_are_none_and_messages_that_are_cut_short_are_malformed() {
        let answers = vec![pb::Answer { id: 1, result: Some(lookup(Some(session()), true)) }];
        let message = pb::AttachResponse { answers, draining: false }.encode_to_vec();
        assert_eq!(read(&message, |_, _| ()), Ok(false));
        assert_eq!(read(&message[..message.len() - 1], |_, _| ()), Err(Malformed));
        for text in [&b"TLS_AES"[..], b"a.test", b"CN=b", b"b.test", b"spiffe"] {
            let mut message = message.clone();
            let at = message.windows(text.len()).position(|part| part == text).unwrap();
            message[at] = 0xff;
            assert_eq!(read(&message, |_, _| ()), Err(Malformed), "{text:?}");
        }
    }
}
