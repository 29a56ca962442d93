//! The calls of one message of an Attach.
//!
//! Most are lookups, and a lookup is asked for and forgotten: it is read where it lies in the message, when its turn has
//! come. What is not written as everybody writes it - fields in the order of their numbers, each once - is read by the
//! generated types, and so is whatever else a worker calls.

use std::vec;

use bytes::Bytes;
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, skip_field},
};

use super::sessions::Wanted;
use crate::{
    proto as pb,
    wire::{read_bytes, read_varint},
};

/// Most calls of one message.
pub(super) const BATCH_MAX: usize = 1000;

/// Calls that wait for their turn.
#[derive(Default)]
pub(super) struct Batch {
    message: Bytes,
    calls: Calls,
}

enum Calls {
    /// So many are left, one behind the other, from this place in the message on.
    Lying { left: usize, at: usize },
    /// The message had something else between them.
    Read(vec::IntoIter<pb::Call>),
}

impl Default for Calls {
    fn default() -> Self {
        Self::Lying { left: 0, at: 0 }
    }
}

/// The next call.
pub(super) enum Next<'b> {
    /// A lookup, and its number.
    Lookup(u64, Wanted<'b>),
    Other(pb::Call),
}

/// What a message is not read for.
pub(super) enum Unread {
    /// It has so many calls.
    TooMany(usize),
    Malformed(DecodeError),
}

impl Batch {
    /// Counts the calls of a message, which takes no memory; they are read one by one.
    pub(super) fn read(message: Bytes) -> Result<Self, Unread> {
        let lying = count(&message);
        let calls = lying.unwrap_or_else(|| count_among_others(&message));
        if calls > BATCH_MAX {
            return Err(Unread::TooMany(calls));
        }
        let calls = match lying {
            Some(left) => Calls::Lying { left, at: 0 },
            None => {
                let read = pb::AttachRequest::decode(message.clone()).map_err(Unread::Malformed)?;
                Calls::Read(read.calls.into_iter())
            }
        };
        Ok(Self { message, calls })
    }

    /// How many calls wait.
    pub(super) fn len(&self) -> usize {
        match &self.calls {
            Calls::Lying { left, .. } => *left,
            Calls::Read(calls) => calls.len(),
        }
    }

    /// The lookups that come next, as far as they lie behind each other, and as if none of them had been read.
    pub(super) fn ahead(&self) -> impl Iterator<Item = Wanted<'_>> {
        let (left, at) = match self.calls {
            Calls::Lying { left, at } => (left, at),
            Calls::Read(_) => (0, 0),
        };
        let mut rest = self.message.get(at..).unwrap_or_default();
        (0..left).map_while(move |_| {
            rest = rest.get(KEY..)?;
            lookup(read_bytes(&mut rest)?).map(|(_, wanted)| wanted)
        })
    }

    /// The next call. Nothing comes after an error.
    pub(super) fn next(&mut self) -> Option<Result<Next<'_>, DecodeError>> {
        let (left, at) = match &mut self.calls {
            Calls::Lying { left: 0, .. } => return None,
            Calls::Lying { left, at } => (left, at),
            Calls::Read(calls) => return calls.next().map(|call| Ok(Next::Other(call))),
        };
        // It was counted, so it is there.
        let mut rest = self.message.get(*at + KEY..)?;
        let call = read_bytes(&mut rest)?;
        *at = self.message.len() - rest.len();
        *left -= 1;
        if let Some((id, wanted)) = lookup(call) {
            return Some(Ok(Next::Lookup(id, wanted)));
        }
        let read = pb::Call::decode(self.message.slice_ref(call)).map_err(|err| {
            *left = 0;
            // Where in the message it is, who reads all of it says.
            pb::AttachRequest::decode(self.message.clone()).err().unwrap_or(err)
        });
        Some(read.map(Next::Other))
    }
}

/// The key of a call has one byte.
const KEY: usize = 1;

/// How many calls an `AttachRequest` has. `None`: it has something else as well, or is none.
fn count(message: &[u8]) -> Option<usize> {
    let (mut rest, mut count) = (message, 0);
    while let Some((&0x0a, after)) = rest.split_first() {
        rest = after;
        read_bytes(&mut rest)?;
        count += 1;
    }
    rest.is_empty().then_some(count)
}

/// How many calls the generated types would read before they come to the end, or to what is malformed.
fn count_among_others(message: &[u8]) -> usize {
    const CALLS: u32 = 1;
    let (mut rest, mut count) = (message, 0);
    while !rest.is_empty() {
        let Ok((field, wire)) = decode_key(&mut rest) else { break };
        if skip_field(wire, field, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
        count += usize::from(field == CALLS);
    }
    count
}

/// A `Call` that has nothing but its number and a LookupSessionRequest.
fn lookup(call: &[u8]) -> Option<(u64, Wanted<'_>)> {
    let mut rest = call;
    let mut id = 0;
    if let Some((&0x08, after)) = rest.split_first() {
        rest = after;
        id = read_varint(&mut rest)?;
    }
    let (&0x4a, after) = rest.split_first()? else { return None };
    rest = after;
    let mut fields = read_bytes(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    let mut wanted = Wanted::default();
    let mut last = 0;
    while let Some((&key, after)) = fields.split_first() {
        if key <= last {
            return None;
        }
        last = key;
        fields = after;
        match key {
            0x0a => wanted.context = text(&mut fields)?,
            0x10 => wanted.role = number(&mut fields)?,
            0x1a => wanted.session_id = read_bytes(&mut fields).filter(|id| id.is_ascii())?,
            0x22 => wanted.server_name = text(&mut fields)?,
            0x2a => wanted.format = text(&mut fields)?,
            0x32 => wanted.binding = read_bytes(&mut fields)?,
            _ => return None,
        }
    }
    Some((id, wanted))
}

/// An enum, as the generated types read it: of more bits the lower half.
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
    use crate::proto::call::Method;

    fn lookup_call(id: u64, request: &pb::LookupSessionRequest) -> pb::Call {
        pb::Call { id, method: Some(Method::LookupSession(request.clone().into())), alias: String::new() }
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

    /// The calls as the generated types have them, and how many were read without them. What is seen ahead is what comes.
    fn read(message: &[u8]) -> Result<(Vec<pb::Call>, usize), String> {
        let mut batch = Batch::read(message.to_vec().into()).map_err(|unread| match unread {
            Unread::TooMany(count) => format!("{count} calls"),
            Unread::Malformed(err) => err.to_string(),
        })?;
        let (mut calls, mut lookups) = (Vec::new(), 0);
        loop {
            let ahead: Vec<_> = batch.ahead().map(|wanted| wanted.session_id.to_vec()).collect();
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
        pb::AttachRequest::decode(message).map(|read| read.calls).map_err(|err| err.to_string())
    }

    #[test]
    fn calls_are_what_the_generated_types_read() {
        let free = pb::FreeRequest { connection_id: "0".repeat(32), allow_missing: true };
        let calls = vec![
            lookup_call(u64::MAX, &full()),
            pb::Call { id: 7, method: Some(Method::Free(free)), alias: String::new() },
            lookup_call(0, &pb::LookupSessionRequest { role: 2, ..Default::default() }),
            pb::Call { alias: "@1".into(), ..lookup_call(1, &full()) },
            pb::Call::default(),
            lookup_call(300, &pb::LookupSessionRequest::default()),
        ];
        let message = pb::AttachRequest { calls: calls.clone() }.encode_to_vec();
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
            pb::LookupSessionRequest { context: "mail".into(), ..Default::default() }.encode_to_vec(),
        );
        let mut call = vec![0x4a];
        prost::encoding::encode_varint(request.len() as u64, &mut call);
        call.extend(request);
        call.extend([0x08, 9]);
        let mut message = vec![0x0a];
        prost::encoding::encode_varint(call.len() as u64, &mut message);
        message.extend(call);
        let wanted = pb::LookupSessionRequest { context: "mail".into(), ..full() };
        assert_eq!(read(&message), Ok((vec![lookup_call(9, &wanted)], 0)));
    }

    #[test]
    fn calls_too_many_are_counted() {
        let empty = |count| pb::AttachRequest { calls: vec![pb::Call::default(); count] }.encode_to_vec();
        assert_eq!(read(&empty(BATCH_MAX)).map(|(calls, _)| calls.len()), Ok(BATCH_MAX));
        assert_eq!(read(&empty(BATCH_MAX + 1)), Err("1001 calls".into()));
        // Unknown fields, keys and lengths of more bytes than they need, and a malformed end.
        let written = |call: &[u8], count: usize, end: &[u8]| [&call.repeat(count), end].concat();
        for call in [&[0x0a, 0][..], &[0x0a, 0x80, 0], &[0x8a, 0, 0], &[0x10, 7, 0x0a, 0]] {
            for end in [&[][..], &[0x10, 1], &[0x0a], &[0xff; 11]] {
                assert_eq!(
                    read(&written(call, BATCH_MAX + 1, end)),
                    Err("1001 calls".into()),
                    "{call:?} {end:?}"
                );
            }
            assert_eq!(read(&written(call, 3, &[])).map(|(calls, _)| calls.len()), Ok(3));
        }
    }
}
