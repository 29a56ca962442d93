//! Decodes the calls of one message of an Attach.
//!
//! Most calls are lookups. A lookup is decoded in place, without a copy, when its turn comes. This
//! fast path takes only the usual encoding: fields in the order of their numbers, each at most
//! once. The generated types decode lookups in any other encoding, and all other calls.

use std::vec;

use bytes::Bytes;
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, skip_field},
};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::{
    tag::{attach_request, call, lookup_session_request as request},
    wire::{read_bytes, read_varint},
};

use crate::api::limits::BATCH_MAX;
use crate::api::sessions::lookup::LookupRef;

/// The calls of a message that are not yet read.
#[derive(Default)]
pub(crate) struct BatchReader {
    message: Bytes,
    calls: RemainingCalls,
}

enum RemainingCalls {
    /// The message has nothing but calls. `left` calls remain, one after the other, from offset
    /// `at` on.
    Lying { left: usize, at: usize },
    /// The message has other fields too, so the generated types have decoded all of it.
    Read(vec::IntoIter<pb::Call>),
}

impl Default for RemainingCalls {
    fn default() -> Self {
        Self::Lying { left: 0, at: 0 }
    }
}

/// The next call.
pub(crate) enum Next<'b> {
    /// The id of a call, and its lookup.
    Lookup(u64, LookupRef<'b>),
    Other(pb::Call),
}

/// Why a message is refused.
pub(crate) enum Unread {
    /// It has more than [`BATCH_MAX`] calls: this many.
    TooMany(usize),
    Malformed(DecodeError),
}

impl BatchReader {
    /// Counts the calls of a message without allocating. [`Self::next`] decodes them one by one.
    ///
    /// # Errors
    /// The message has more than [`BATCH_MAX`] calls. Or it has other fields than calls, and is
    /// malformed.
    pub(crate) fn read(message: Bytes) -> Result<Self, Unread> {
        let lying = count(&message);
        let calls = lying.unwrap_or_else(|| count_among_others(&message));
        if calls > BATCH_MAX {
            return Err(Unread::TooMany(calls));
        }
        let calls = match lying {
            Some(left) => RemainingCalls::Lying { left, at: 0 },
            None => {
                let read = pb::AttachRequest::decode(message.clone()).map_err(Unread::Malformed)?;
                RemainingCalls::Read(read.calls.into_iter())
            }
        };
        Ok(Self { message, calls })
    }

    /// Returns the number of calls that are not yet read.
    pub(crate) fn len(&self) -> usize {
        match &self.calls {
            RemainingCalls::Lying { left, .. } => *left,
            RemainingCalls::Read(calls) => calls.len(),
        }
    }

    /// Returns the next lookups, up to the first call that the fast path does not decode. Consumes
    /// none of them.
    pub(crate) fn ahead(&self) -> impl Iterator<Item = LookupRef<'_>> {
        let (left, at) = match self.calls {
            RemainingCalls::Lying { left, at } => (left, at),
            RemainingCalls::Read(_) => (0, 0),
        };
        let mut rest = self.message.get(at..).unwrap_or_default();
        (0..left).map_while(move |_| {
            rest = rest.get(KEY..)?;
            lookup(read_bytes(&mut rest)?).map(|(_, wanted)| wanted)
        })
    }

    /// Reads the next call. After an error there are no more calls.
    pub(crate) fn next(&mut self) -> Option<Result<Next<'_>, DecodeError>> {
        let (left, at) = match &mut self.calls {
            RemainingCalls::Lying { left: 0, .. } => return None,
            RemainingCalls::Lying { left, at } => (left, at),
            RemainingCalls::Read(calls) => return calls.next().map(|call| Ok(Next::Other(call))),
        };
        // `count` has seen this call, so the message has it.
        let mut rest = self.message.get(*at + KEY..)?;
        let call = read_bytes(&mut rest)?;
        *at = self.message.len() - rest.len();
        *left -= 1;
        if let Some((id, wanted)) = lookup(call) {
            return Some(Ok(Next::Lookup(id, wanted)));
        }
        let read = pb::Call::decode(self.message.slice_ref(call)).map_err(|err| {
            *left = 0;
            // Decoding the whole message gives an error that says where in the message the fault
            // is.
            pb::AttachRequest::decode(self.message.clone())
                .err()
                .unwrap_or(err)
        });
        Some(read.map(Next::Other))
    }
}

/// The length of the key before each call, in bytes.
const KEY: usize = 1;

/// Returns the key of a string, of bytes or of a message. Fields below 16 have keys of one byte.
const fn bytes_key(field: u8) -> u8 {
    assert!(field < 16);
    field << 3 | 2
}

/// Returns the key of a number or an enum.
const fn number_key(field: u8) -> u8 {
    assert!(field < 16);
    field << 3
}

const CALLS: u8 = bytes_key(attach_request::CALLS);
const ID: u8 = number_key(call::ID);
const LOOKUP_SESSION: u8 = bytes_key(call::LOOKUP_SESSION);
const CONTEXT: u8 = bytes_key(request::CONTEXT);
const ROLE: u8 = number_key(request::ROLE);
const SESSION_ID: u8 = bytes_key(request::SESSION_ID);
const SERVER_NAME: u8 = bytes_key(request::SERVER_NAME);
const FORMAT: u8 = bytes_key(request::FORMAT);
const BINDING: u8 = bytes_key(request::BINDING);

/// Counts the calls of an `AttachRequest`. Returns `None` if it has other fields too, or is
/// malformed.
fn count(message: &[u8]) -> Option<usize> {
    let (mut rest, mut count) = (message, 0);
    while let Some((&CALLS, after)) = rest.split_first() {
        rest = after;
        read_bytes(&mut rest)?;
        count += 1;
    }
    rest.is_empty().then_some(count)
}

/// Counts the calls that the generated types would read before the end, or before a malformed
/// field.
fn count_among_others(message: &[u8]) -> usize {
    let (mut rest, mut count) = (message, 0);
    while !rest.is_empty() {
        let Ok((field, wire)) = decode_key(&mut rest) else {
            break;
        };
        if skip_field(wire, field, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
        count += usize::from(field == u32::from(attach_request::CALLS));
    }
    count
}

/// Decodes a `Call` that has nothing but its id and a `LookupSessionRequest`. Returns `None` for
/// any other call, and where a field is out of order, repeated or malformed.
fn lookup(call: &[u8]) -> Option<(u64, LookupRef<'_>)> {
    let mut rest = call;
    let mut id = 0;
    if let Some((&ID, after)) = rest.split_first() {
        rest = after;
        id = read_varint(&mut rest)?;
    }
    let (&LOOKUP_SESSION, after) = rest.split_first()? else {
        return None;
    };
    rest = after;
    let mut fields = read_bytes(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    let mut wanted = LookupRef::default();
    let mut last = 0;
    while let Some((&key, after)) = fields.split_first() {
        if key <= last {
            return None;
        }
        last = key;
        fields = after;
        match key {
            CONTEXT => wanted.context = text(&mut fields)?,
            ROLE => wanted.role = number(&mut fields)?,
            SESSION_ID => wanted.session_id = read_bytes(&mut fields).filter(|id| id.is_ascii())?,
            SERVER_NAME => wanted.server_name = text(&mut fields)?,
            FORMAT => wanted.format = text(&mut fields)?,
            BINDING => wanted.binding = read_bytes(&mut fields)?,
            _ => return None,
        }
    }
    Some((id, wanted))
}

/// Reads an enum as the generated types do: the lower 32 bits of the number.
fn number(from: &mut &[u8]) -> Option<i32> {
    let [a, b, c, d, ..] = read_varint(from)?.to_le_bytes();
    Some(i32::from_le_bytes([a, b, c, d]))
}

fn text<'b>(from: &mut &'b [u8]) -> Option<&'b str> {
    str::from_utf8(read_bytes(from)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tls_sessiond_proto::call::Method;

    fn lookup_call(id: u64, request: &pb::LookupSessionRequest) -> pb::Call {
        pb::Call {
            id,
            method: Some(Method::LookupSession(request.clone().into())),
            alias: String::new(),
        }
    }

    fn full() -> pb::LookupSessionRequest {
        pb::LookupSessionRequest {
            context: "web".into(),
            role: -1,
            session_id: "0f".repeat(32),
            server_name: "\u{e4}.test".into(),
            format: "openssl".into(),
            binding: vec![0xff; 300].into(),
        }
    }

    /// Returns the calls as the generated types have them, and how many of them the fast path
    /// decoded. Checks that the first lookup of `ahead` is the next call.
    fn read(message: &[u8]) -> Result<(Vec<pb::Call>, usize), String> {
        let mut batch =
            BatchReader::read(message.to_vec().into()).map_err(|unread| match unread {
                Unread::TooMany(count) => format!("{count} calls"),
                Unread::Malformed(err) => err.to_string(),
            })?;
        let (mut calls, mut lookups) = (Vec::new(), 0);
        loop {
            let ahead: Vec<_> = batch
                .ahead()
                .map(|wanted| wanted.session_id.to_vec())
                .collect();
            assert!(ahead.len() <= batch.len());
            let Some(next) = batch.next() else { break };
            let comes = match &next {
                Ok(Next::Lookup(_, wanted)) => Some(wanted.session_id.to_vec()),
                Ok(Next::Other(_)) | Err(_) => None,
            };
            assert_eq!(ahead.first(), comes.as_ref());
            calls.push(match next.map_err(|err| err.to_string())? {
                Next::Other(call) => call,
                Next::Lookup(id, wanted) => {
                    lookups += 1;
                    let request = pb::LookupSessionRequest {
                        context: wanted.context.into(),
                        role: wanted.role,
                        session_id: str::from_utf8(wanted.session_id).unwrap().into(),
                        server_name: wanted.server_name.into(),
                        format: wanted.format.into(),
                        binding: wanted.binding.to_vec().into(),
                    };
                    lookup_call(id, &request)
                }
            });
        }
        assert_eq!(batch.len(), 0);
        Ok((calls, lookups))
    }

    fn generated(message: &[u8]) -> Result<Vec<pb::Call>, String> {
        pb::AttachRequest::decode(message)
            .map(|read| read.calls)
            .map_err(|err| err.to_string())
    }

    #[test]
    fn calls_are_what_the_generated_types_read() {
        let free = pb::FreeRequest {
            connection_id: "0".repeat(32),
            allow_missing: true,
        };
        let calls = vec![
            lookup_call(u64::MAX, &full()),
            pb::Call {
                id: 7,
                method: Some(Method::Free(free)),
                alias: String::new(),
            },
            lookup_call(
                0,
                &pb::LookupSessionRequest {
                    role: 2,
                    ..Default::default()
                },
            ),
            pb::Call {
                alias: "@1".into(),
                ..lookup_call(1, &full())
            },
            pb::Call::default(),
            lookup_call(300, &pb::LookupSessionRequest::default()),
        ];
        let message = pb::AttachRequest {
            calls: calls.clone(),
        }
        .encode_to_vec();
        assert_eq!(read(&message), Ok((calls, 3)));
        assert_eq!(read(&[]), Ok((Vec::new(), 0)));
    }

    #[test]
    fn whatever_is_changed_in_a_message_it_is_read_or_refused_as_the_generated_types_do() {
        let calls = vec![lookup_call(5, &full()), lookup_call(300, &full())];
        let message = pb::AttachRequest { calls }.encode_to_vec();
        let same = |message: &[u8]| {
            let read = read(message).map(|(calls, _)| calls);
            assert_eq!(read, generated(message), "{message:?}");
        };
        for place in 0..message.len() {
            same(&message[..place]);
            for value in [0, 1, 0x0a, 0x0b, 0x12, 0x1a, 0x4a, 0x7f, 0x80, 0xff] {
                let mut changed = message.clone();
                changed[place] = value;
                same(&changed);
                changed = message.clone();
                changed.insert(place, value);
                same(&changed);
            }
        }
    }

    #[test]
    fn fields_that_come_twice_or_in_another_order_count_as_they_always_do() {
        let mut request = full().encode_to_vec();
        request.extend(
            pb::LookupSessionRequest {
                context: "mail".into(),
                ..Default::default()
            }
            .encode_to_vec(),
        );
        let mut call = vec![0x4a];
        prost::encoding::encode_varint(request.len() as u64, &mut call);
        call.extend(request);
        call.extend([0x08, 9]);
        let mut message = vec![0x0a];
        prost::encoding::encode_varint(call.len() as u64, &mut message);
        message.extend(call);
        let wanted = pb::LookupSessionRequest {
            context: "mail".into(),
            ..full()
        };
        assert_eq!(read(&message), Ok((vec![lookup_call(9, &wanted)], 0)));
    }

    #[test]
    fn calls_too_many_are_counted() {
        let empty = |count| {
            pb::AttachRequest {
                calls: vec![pb::Call::default(); count],
            }
            .encode_to_vec()
        };
        assert_eq!(
            read(&empty(BATCH_MAX)).map(|(calls, _)| calls.len()),
            Ok(BATCH_MAX)
        );
        assert_eq!(read(&empty(BATCH_MAX + 1)), Err("1001 calls".into()));
        // Unknown fields, keys and lengths of more bytes than they need, and a malformed end.
        let written = |call: &[u8], count: usize, end: &[u8]| [&call.repeat(count), end].concat();
        for call in [
            &[0x0a, 0][..],
            &[0x0a, 0x80, 0],
            &[0x8a, 0, 0],
            &[0x10, 7, 0x0a, 0],
        ] {
            for end in [&[][..], &[0x10, 1], &[0x0a], &[0xff; 11]] {
                assert_eq!(
                    read(&written(call, BATCH_MAX + 1, end)),
                    Err("1001 calls".into()),
                    "{call:?} {end:?}"
                );
            }
            assert_eq!(
                read(&written(call, 3, &[])).map(|(calls, _)| calls.len()),
                Ok(3)
            );
        }
    }
}
