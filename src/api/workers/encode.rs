//! Encodes the answers of an Attach directly into bytes.
//!
//! With the generated types, a found session would cost a dozen allocations, and its fields would
//! be measured once for every message around them. Most of these fields are the same for all
//! sessions with common attributes. Here each field is copied from the session straight into the
//! output.
//!
//! A test compares the output with that of the generated types.

use prost::Message;
use tls_sessiond_core::{
    clock::{WallOffset, WallTime},
    session::{PeerIdentity, Session},
};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::{
    tag::{answer, attach_response, lookup_session_response, peer_identity, session, timestamp},
    wire::{self, Writer},
};
use tls_sessiond_types::hex;

use crate::api::convert::version_value;

/// The encoded answers of one `AttachResponse`.
#[derive(Default)]
pub(crate) struct BatchWriter {
    bytes: Vec<u8>,
    count: usize,
}

impl BatchWriter {
    /// Returns an empty message with capacity for `bytes` bytes.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            count: 0,
        }
    }

    /// Returns a message with `draining` set and no answers.
    pub(crate) fn draining() -> Self {
        let mut answers = Self::default();
        answers.write(wire::NUMBER_MAX, |to| {
            to.number(attach_response::DRAINING, 1);
        });
        answers
    }

    /// Returns the number of answers.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Returns the encoded length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends an answer of the generated type.
    pub(crate) fn push(&mut self, answer: &pb::Answer) {
        self.count += 1;
        let length = answer.encoded_len();
        self.write(wire::head_len(length) + length, |to| {
            to.head(attach_response::ANSWERS, length);
            answer.encode_raw(&mut to.take(length));
        });
    }

    /// Appends the answer of a LookupSession that found this session.
    pub(crate) fn found(&mut self, id: u64, found: &Session, offset: WallOffset) {
        self.count += 1;
        let data = found.secret().as_bytes().unwrap_or_default();
        self.write(HEADS + session_max(found) + data.len(), |to| {
            session(found, offset, to);
            let public = to.position();
            // The length of the session comes before the session. So the session is written first,
            // and then rotated behind its head.
            let looked =
                wire::number_len(1) + wire::head_len(public) + public + wire::bytes_len(data.len());
            to.head(
                attach_response::ANSWERS,
                wire::number_len(id) + wire::head_len(looked) + looked,
            );
            to.number(answer::ID, id);
            to.head(answer::LOOKUP_SESSION, looked);
            to.number(lookup_session_response::FOUND, 1);
            to.head(lookup_session_response::SESSION, public);
            to.since(0).rotate_left(public);
            to.bytes(lookup_session_response::DATA, data);
        });
    }

    /// Appends the output of `write`, which writes at most `most` bytes.
    fn write(&mut self, most: usize, write: impl FnOnce(&mut Writer<'_>)) {
        let start = self.bytes.len();
        self.bytes.resize(start + most, 0);
        let mut writer = Writer::new(&mut self.bytes[start..]);
        write(&mut writer);
        let end = start + writer.position();
        self.bytes.truncate(end);
    }
}

/// Upper bound, in bytes, of all heads and numbers around a session and its data.
const HEADS: usize = 7 * wire::NUMBER_MAX;

/// Writes the message `Session`, without its head.
fn session(from: &Session, offset: WallOffset, to: &mut Writer<'_>) {
    let facts = from.facts();
    let kind = &facts.kind;
    digits(session::ID, facts.id.as_bytes(), to);
    to.bytes(session::CONTEXT, kind.account.name.as_bytes());
    to.number(session::ROLE, value(pb::Role::from(kind.role).into()));
    to.number(session::VERSION, value(version_value(Some(kind.version))));
    to.bytes(session::CIPHER_SUITE, kind.cipher_suite.as_bytes());
    to.bytes(session::SERVER_NAME, kind.server_name.as_bytes());
    if let Some(from) = kind.peer.as_deref() {
        let start = to.position();
        peer(from, to);
        let length = to.position() - start;
        to.head(session::PEER, length);
        to.since(start).rotate_left(length);
    }
    to.number(session::SINGLE_USE, kind.single_use.into());
    to.bytes(session::FORMAT, kind.format.name().as_bytes());
    timestamp(session::CREATE_TIME, offset.wall(facts.created()), to);
    timestamp(
        session::AUTHENTICATE_TIME,
        offset.wall(facts.authenticated),
        to,
    );
    timestamp(session::EXPIRE_TIME, offset.wall(facts.expires()), to);
    to.number(session::OPEN_CONNECTIONS, from.open_connections().into());
    to.number(
        session::DATA_BYTES,
        u32::try_from(from.secret().len())
            .unwrap_or(u32::MAX)
            .into(),
    );
}

/// Returns an upper bound of the bytes that [`session`] writes.
fn session_max(from: &Session) -> usize {
    let kind = from.kind();
    let peer = kind.peer.as_deref().map_or(0, |peer| {
        let names = peer
            .dns_names
            .iter()
            .chain(&peer.uris)
            .chain([&peer.subject]);
        // 64 digits of the digest with their head, and the head of the whole message.
        names
            .map(|name| wire::NUMBER_MAX + name.len())
            .sum::<usize>()
            + 64
            + 2 * wire::NUMBER_MAX
    });
    let texts = kind.account.name.len() + kind.cipher_suite.len() + kind.server_name.len();
    // Fourteen fields; three of them are timestamps with two fields each.
    20 * wire::NUMBER_MAX + 2 * from.id().as_bytes().len() + texts + kind.format.name().len() + peer
}

/// Writes the message `PeerIdentity`, without its head.
fn peer(from: &PeerIdentity, to: &mut Writer<'_>) {
    digits(
        peer_identity::CERTIFICATE_SHA256,
        &from.certificate_sha256,
        to,
    );
    to.bytes(peer_identity::SUBJECT, from.subject.as_bytes());
    for (field, names) in [
        (peer_identity::DNS_NAMES, &from.dns_names),
        (peer_identity::URIS, &from.uris),
    ] {
        // Proto3 encodes an empty element of a repeated field, so `Writer::bytes` does not fit
        // here.
        for name in names {
            to.head(field, name.len());
            to.raw(name.as_bytes());
        }
    }
}

/// Writes bytes as hex digits. `from` is never empty, so the field is always present.
fn digits(field: u8, from: &[u8], to: &mut Writer<'_>) {
    to.head(field, 2 * from.len());
    hex::write_into(from, to.take(2 * from.len()));
}

fn timestamp(field: u8, from: WallTime, to: &mut Writer<'_>) {
    to.head(field, 0);
    let start = to.position();
    to.number(timestamp::SECONDS, from.as_secs());
    to.number(timestamp::NANOS, from.as_millis() % 1000 * 1_000_000);
    // Two numbers take less than 128 bytes, so the length is one byte.
    let length = to.position() - start;
    to.since(start - 1)[0] = u8::try_from(length).unwrap_or_default();
}

/// Converts the value of an enum to the number on the wire.
fn value(from: i32) -> u64 {
    i64::from(from).cast_unsigned()
}

impl From<BatchWriter> for pb::codec::Answers {
    fn from(answers: BatchWriter) -> Self {
        Self(answers.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::api::convert;
    use tls_sessiond_core::{
        cache::{Cache, Plan, shared::SharedState},
        clock::{Clock, ManualClock, Now, Step, Timestamp},
        session::{Format, NewSession, Secret, SessionId, stats::Account},
        store::memory::Limits,
    };
    use tls_sessiond_proto::answer::Result as Answered;
    use tls_sessiond_types::{Role, Version, server_name::ServerName};

    const NOW: Now = Now::from_millis(1_700_000_000_123);

    fn peer(names: usize) -> PeerIdentity {
        PeerIdentity {
            certificate_sha256: [7; 32],
            subject: "CN=a".repeat(names),
            dns_names: (0..names)
                .map(|name| format!("{name}.test"))
                .chain([String::new()])
                .collect(),
            uris: (0..names)
                .map(|name| format!("spiffe://a/{name}"))
                .collect(),
            not_after: WallTime::MAX,
        }
    }

    fn session(new: NewSession) -> Arc<Session> {
        let limits = Limits {
            entries_max: 4,
            bytes_max: 1 << 20,
        };
        let plan = Plan {
            role: Role::Server,
            offering: tls_sessiond_core::cache::Offering::Shared,
            limits,
            session_bytes_max: 1 << 20,
        };
        Cache::new(&plan, &Arc::new(SharedState::new(limits)))
            .put(new, NOW)
            .unwrap()
    }

    fn new(id: &[u8], secret: &[u8]) -> NewSession {
        NewSession {
            id: SessionId::new(id),
            version: Version::Tls12,
            cipher_suite: "".into(),
            server_name: "".into(),
            format: Format::Worker("openssl".into()),
            binding: [].into(),
            single_use: false,
            account: Arc::new(Account::new("default")),
            peer: None,
            authenticated: NOW.at,
            timeout: Duration::from_secs(300),
            secret: Secret::copied(secret),
        }
    }

    /// Builds the same answer with the generated types.
    fn generated(id: u64, session: &Session, offset: WallOffset) -> pb::Answer {
        let looked = pb::LookupSessionResponse {
            found: true,
            session: Some(convert::session(session, offset)),
            data: session
                .secret()
                .as_bytes()
                .map(|data| data.to_vec().into())
                .unwrap_or_default(),
            miss_reason: 0,
        };
        pb::Answer {
            id,
            result: Some(Answered::LookupSession(looked.into())),
        }
    }

    #[test]
    fn found_session_is_written_as_the_generated_types_write_it() {
        let manual = ManualClock::starting(NOW.wall());
        manual.set_wall(Step::Back(Duration::from_millis(1_234_567)));
        let offset = Clock::Manual(manual).offset();
        let long = "n".repeat(200);
        let sessions = [
            session(new(&[1], &[2])),
            session(NewSession {
                version: Version::Tls13,
                cipher_suite: "TLS_AES_128_GCM_SHA256".into(),
                server_name: "a.test".into(),
                single_use: true,
                authenticated: Timestamp::from_millis(1_699_999_999_000),
                peer: Some(Arc::new(peer(0))),
                ..new(&[0x1f; 32], &[3; 200])
            }),
            session(NewSession {
                server_name: ServerName::new(&long).into_owned(),
                account: Arc::new(Account::new(&long)),
                peer: Some(Arc::new(peer(20))),
                ..new(&[0xff; 64], &[4; 70_000])
            }),
        ];
        for session in &sessions {
            for (id, open) in [(1, 0), (127, 1), (128, 300), (u64::MAX, 0)] {
                (0..open).for_each(|_| session.hold());
                let answer = generated(id, session, offset);
                let mut answers = BatchWriter::default();
                answers.found(id, session, offset);
                answers.push(&answer);
                let same = pb::AttachResponse {
                    answers: vec![answer.clone(), answer],
                    draining: false,
                };
                assert_eq!(answers.bytes, same.encode_to_vec());
            }
        }
        let draining = pb::AttachResponse {
            answers: Vec::new(),
            draining: true,
        };
        assert_eq!(BatchWriter::draining().bytes, draining.encode_to_vec());
    }

    /// Fails when the contract gets a field that this file does not write.
    #[test]
    fn every_field_of_the_contract_is_known_here() {
        let fields = |message: &str| {
            let set = prost_types::FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
            let messages = set.file.into_iter().flat_map(|file| file.message_type);
            let found = messages
                .into_iter()
                .find(|found| found.name() == message)
                .unwrap();
            found
                .field
                .iter()
                .map(prost_types::FieldDescriptorProto::number)
                .max()
                .unwrap()
        };
        let known = [
            "AttachResponse",
            "LookupSessionResponse",
            "Session",
            "PeerIdentity",
        ]
        .map(fields);
        assert_eq!(known, [2, 4, 14, 4]);
    }
}
