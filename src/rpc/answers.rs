//! What an Attach answers, written as it is made.
//!
//! A message of a found session is a dozen allocations, its fields are measured once for every message around them, and
//! most of them are what all sessions of a kind have. Here each field goes from where it lies into the bytes that leave.
//! Field numbers are those of `proto/`; a test holds what is written to what the generated types write.

use prost::Message;

use super::convert::{role_value, timestamp, version_value};
use crate::{
    clock::Timestamp,
    hex, proto as pb,
    session::{PeerIdentity, Session},
    wire,
};

/// The answers of one message.
#[derive(Default)]
pub(super) struct Answers {
    bytes: Vec<u8>,
    count: usize,
}

impl Answers {
    /// With room for so many bytes.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), count: 0 }
    }

    /// `draining`, and no answers.
    pub(super) fn draining() -> Self {
        let mut answers = Self::default();
        answers.number(2, 1);
        answers
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How long they are.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whatever a call answers.
    pub(super) fn push(&mut self, answer: &pb::Answer) {
        self.count += 1;
        let length = answer.encoded_len();
        self.bytes.reserve(length + HEAD);
        self.head(1, length);
        answer.encode_raw(&mut self.bytes);
    }

    /// What LookupSession answers where it has found this.
    pub(super) fn found(&mut self, id: u64, session: &Session) {
        self.count += 1;
        let data = session.secret().as_bytes().unwrap_or_default();
        self.bytes.reserve(HEAD + PUBLIC + data.len());
        let start = self.bytes.len();
        self.session(session);
        let public = self.bytes.len() - start;
        // How long it is, is told before it: it is written first, and changes places with what stands before it.
        let found = wire::number_len(1);
        let looked = found + wire::head_len(public) + public + wire::bytes_len(data.len());
        self.head(1, wire::number_len(id) + wire::head_len(looked) + looked);
        self.number(1, id);
        self.head(9, looked);
        self.number(1, 1);
        self.head(2, public);
        self.bytes[start..].rotate_left(public);
        self.bytes(3, data);
    }

    /// `Session`, without its head.
    fn session(&mut self, from: &Session) {
        let facts = from.facts();
        let kind = &facts.kind;
        self.hex(1, facts.id.as_bytes());
        self.bytes(2, kind.account.name.as_bytes());
        self.value(3, role_value(kind.role).into());
        self.value(4, version_value(Some(kind.version)));
        self.bytes(5, kind.cipher_suite.as_bytes());
        self.bytes(6, kind.server_name.as_bytes());
        if let Some(peer) = kind.peer.as_deref() {
            let start = self.bytes.len();
            self.peer(peer);
            let length = self.bytes.len() - start;
            self.head(7, length);
            self.bytes[start..].rotate_left(length);
        }
        self.number(8, kind.single_use.into());
        self.bytes(9, kind.format.name().as_bytes());
        self.timestamp(10, facts.created());
        self.timestamp(11, facts.authenticated);
        self.timestamp(12, facts.expires());
        self.number(13, from.open_connections().into());
        self.number(14, u32::try_from(from.secret().len()).unwrap_or(u32::MAX).into());
    }

    /// `PeerIdentity`, without its head.
    fn peer(&mut self, peer: &PeerIdentity) {
        self.hex(1, &peer.certificate_sha256);
        self.bytes(2, peer.subject.as_bytes());
        peer.dns_names.iter().for_each(|name| self.element(3, name));
        peer.uris.iter().for_each(|uri| self.element(4, uri));
    }

    fn timestamp(&mut self, field: u8, from: Timestamp) {
        let from = timestamp(from);
        self.head(field, 0);
        let start = self.bytes.len();
        self.number(1, from.seconds.cast_unsigned());
        self.number(2, i64::from(from.nanos).cast_unsigned());
        // Two numbers: its length is one byte.
        self.bytes[start - 1] = u8::try_from(self.bytes.len() - start).unwrap_or_default();
    }

    fn number(&mut self, field: u8, value: u64) {
        wire::number(field, value, &mut self.bytes);
    }

    /// Of an enum.
    fn value(&mut self, field: u8, value: i32) {
        self.number(field, i64::from(value).cast_unsigned());
    }

    fn bytes(&mut self, field: u8, bytes: &[u8]) {
        wire::bytes(field, bytes, &mut self.bytes);
    }

    /// One of a list, which may be empty itself.
    fn element(&mut self, field: u8, text: &str) {
        self.head(field, text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn hex(&mut self, field: u8, bytes: &[u8]) {
        self.head(field, 2 * bytes.len());
        hex::append(bytes, &mut self.bytes);
    }

    fn head(&mut self, field: u8, length: usize) {
        wire::head(field, length, &mut self.bytes);
    }
}

/// Room for what stands before an answer's own fields.
const HEAD: usize = 32;
/// Room for the public part of a session, nearly always.
const PUBLIC: usize = 192;

impl From<Answers> for pb::Answers {
    fn from(answers: Answers) -> Self {
        Self(answers.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        proto::answer::Result as Answered,
        rpc::convert,
        session::{
            Cache, Format, NewSession, Role, Secret, SessionId, Version, cache::Plan, ledger::Ledger,
            stats::Account,
        },
        store::memory::Limits,
    };

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_123);

    fn peer(names: usize) -> PeerIdentity {
        PeerIdentity {
            certificate_sha256: [7; 32],
            subject: "CN=a".repeat(names),
            dns_names: (0..names).map(|name| format!("{name}.test")).chain([String::new()]).collect(),
            uris: (0..names).map(|name| format!("spiffe://a/{name}")).collect(),
            not_after: Timestamp::from_millis(u64::MAX),
        }
    }

    fn session(new: NewSession) -> Arc<Session> {
        let limits = Limits { entries_max: 4, bytes_max: 1 << 20 };
        let plan = Plan {
            role: Role::Server,
            offering: crate::config::Offering::Shared,
            limits,
            session_bytes_max: 1 << 20,
            session_id_context: "a",
        };
        Cache::new(&plan, &Arc::new(Ledger::new(limits))).put(new, NOW).unwrap()
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
            authenticated: NOW,
            timeout: Duration::from_secs(300),
            secret: Secret::copied(secret),
        }
    }

    /// The same by the generated types.
    fn generated(id: u64, session: &Session) -> pb::Answer {
        let looked = pb::LookupSessionResponse {
            found: true,
            session: Some(convert::session(session)),
            data: session.secret().as_bytes().map(|data| data.to_vec().into()).unwrap_or_default(),
            miss_reason: 0,
        };
        pb::Answer { id, result: Some(Answered::LookupSession(looked.into())) }
    }

    #[test]
    fn found_session_is_written_as_the_generated_types_write_it() {
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
                server_name: long.as_str().into(),
                account: Arc::new(Account::new(&long)),
                peer: Some(Arc::new(peer(20))),
                ..new(&[0xff; 64], &[4; 70_000])
            }),
        ];
        for session in &sessions {
            for (id, open) in [(1, 0), (127, 1), (128, 300), (u64::MAX, 0)] {
                (0..open).for_each(|_| session.hold());
                let answer = generated(id, session);
                let mut answers = Answers::default();
                answers.found(id, session);
                answers.push(&answer);
                let same = pb::AttachResponse { answers: vec![answer.clone(), answer], draining: false };
                assert_eq!(answers.bytes, same.encode_to_vec());
            }
        }
        let draining = pb::AttachResponse { answers: Vec::new(), draining: true };
        assert_eq!(Answers::draining().bytes, draining.encode_to_vec());
    }

    /// A field that is new in the contract is to be written here as well.
    #[test]
    fn every_field_of_the_contract_is_known_here() {
        let fields = |message: &str| {
            let set = prost_types::FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
            let messages = set.file.into_iter().flat_map(|file| file.message_type);
            let found = messages.into_iter().find(|found| found.name() == message).unwrap();
            found.field.iter().map(prost_types::FieldDescriptorProto::number).max().unwrap()
        };
        let known = ["AttachResponse", "LookupSessionResponse", "Session", "PeerIdentity"].map(fields);
        assert_eq!(known, [2, 4, 14, 4]);
    }
}
