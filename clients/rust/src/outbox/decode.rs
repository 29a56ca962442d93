//! Decodes answers in place. The response of a lookup is copied once, into the buffer that the
//! caller reads it from.

use tls_sessiond_proto::{
    tag,
    wire::{END, Fields, bytes, number},
};
use tls_sessiond_types::secret::SecretBuffer;

/// The answer to one call.
pub(crate) enum Answer {
    /// An encoded LookupSessionResponse, which [`crate::found::Found`] reads.
    Looked(SecretBuffer),
    /// The call succeeded and was not a lookup.
    Nothing,
    /// The call failed.
    Refused,
}

/// The bytes are not a valid AttachResponse.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Tags of AttachResponse.
const ANSWERS: u32 = bytes(tag::attach_response::ANSWERS);
const DRAINING: u32 = number(tag::attach_response::DRAINING);
/// Tags of Answer.
const ID: u32 = number(tag::answer::ID);
const LOOKUP_SESSION: u32 = bytes(tag::answer::LOOKUP_SESSION);
const ERROR: u32 = bytes(tag::answer::ERROR);

/// Decodes an AttachResponse and passes each answer to `answer` with the number of its call.
/// Returns whether the daemon is draining.
pub(crate) fn read(message: &[u8], answer: impl FnMut(u64, Answer)) -> Result<bool, Malformed> {
    read_message(message, answer).ok_or(Malformed)
}

fn read_message(message: &[u8], mut answer: impl FnMut(u64, Answer)) -> Option<bool> {
    let (mut fields, mut draining) = (Fields(message), false);
    loop {
        match fields.key()? {
            END => return Some(draining),
            ANSWERS => {
                let (id, read) = read_answer(fields.bytes()?)?;
                answer(id, read);
            }
            DRAINING => draining = fields.number()? != 0,
            key => fields.skip(key)?,
        }
    }
}

fn read_answer(answer: &[u8]) -> Option<(u64, Answer)> {
    let (mut fields, mut id, mut read) = (Fields(answer), 0, Answer::Nothing);
    loop {
        match fields.key()? {
            END => return Some((id, read)),
            ID => id = fields.number()?,
            LOOKUP_SESSION => read = Answer::Looked(SecretBuffer::copied(fields.bytes()?)),
            ERROR => {
                fields.skip(ERROR)?;
                read = Answer::Refused;
            }
            key => fields.skip(key)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use tls_sessiond_proto as pb;
    use tls_sessiond_proto::answer::Result as Answered;

    fn message() -> Vec<u8> {
        let looked = pb::LookupSessionResponse {
            found: true,
            miss_reason: 7,
            ..Default::default()
        };
        let results = [
            Answered::LookupSession(looked.into()),
            Answered::Free(pb::FreeResponse::default()),
            Answered::Error(pb::CallError::default()),
        ];
        let number = |(number, result)| pb::Answer {
            id: number,
            result: Some(result),
        };
        let answers = (299..).zip(results).map(number).collect();
        pb::AttachResponse {
            answers,
            draining: true,
        }
        .encode_to_vec()
    }

    #[test]
    fn answers_come_in_order_each_with_its_number() {
        let mut all = Vec::new();
        assert_eq!(
            read(&message(), |id, answer| all.push((id, answer))),
            Ok(true)
        );
        let [
            (299, Answer::Looked(response)),
            (300, Answer::Nothing),
            (301, Answer::Refused),
        ] = &all[..]
        else {
            panic!("{} answers", all.len())
        };
        let looked = pb::LookupSessionResponse::decode(response.bytes()).unwrap();
        assert!(looked.found && looked.miss_reason == 7);
        assert_eq!(read(&[], |_, _| ()), Ok(false));
    }

    #[test]
    fn messages_that_are_cut_short_are_malformed() {
        let message = message();
        let cut = |length| read(&message[..length], |_, _| ());
        let whole = (0..=message.len())
            .filter(|&length| cut(length).is_ok())
            .count();
        assert_eq!(
            whole, 5,
            "cuts before the first field, after each of the three answers, and at the end"
        );
    }
}
