//! Encodes calls. A call is encoded once, when it is queued.

use tls_sessiond_proto::{
    self as pb,
    call::Method,
    tag::{attach_request, call, lookup_session_request as request},
    wire::{self, Writer},
};
use tls_sessiond_types::hex;

use crate::{message::Lookup, options::Options};

/// Encodes the method of a call.
pub(crate) trait EncodeCall {
    /// Returns the encoded size in bytes.
    fn size(&self) -> usize;

    /// Writes exactly [`EncodeCall::size`] bytes.
    fn write(&self, to: &mut Writer<'_>);
}

impl EncodeCall for Method {
    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn write(&self, to: &mut Writer<'_>) {
        self.encode(&mut to.take(self.size()));
    }
}

/// The encoded fields that all lookups of a worker share.
pub(crate) struct LookupPrefix {
    context: Vec<u8>,
    format: Vec<u8>,
}

impl LookupPrefix {
    pub(crate) fn of(options: &Options) -> Self {
        let field = |number, text: &str| {
            let mut field = vec![0; wire::bytes_len(text.len())];
            Writer::new(&mut field).bytes(number, text.as_bytes());
            field
        };
        Self {
            context: field(request::CONTEXT, &options.context),
            format: field(request::FORMAT, &options.format),
        }
    }
}

/// Encodes a LookupSessionRequest as the method of a Call. The fields are in the order of their
/// tags because the daemon reads them faster so.
pub(crate) struct Question<'l> {
    pub(crate) terms: &'l LookupPrefix,
    pub(crate) lookup: &'l Lookup<'l>,
}

impl Question<'_> {
    fn request_size(&self) -> usize {
        let &Lookup {
            role,
            session_id,
            server_name,
            binding,
        } = self.lookup;
        let texts = [2 * session_id.len(), server_name.len(), binding.len()].map(wire::bytes_len);
        self.terms.context.len()
            + self.terms.format.len()
            + wire::number_len(pb::Role::from(role) as u64)
            + texts.iter().sum::<usize>()
    }
}

impl EncodeCall for Question<'_> {
    fn size(&self) -> usize {
        wire::bytes_len(self.request_size())
    }

    fn write(&self, to: &mut Writer<'_>) {
        let &Lookup {
            role,
            session_id,
            server_name,
            binding,
        } = self.lookup;
        to.head(call::LOOKUP_SESSION, self.request_size());
        to.raw(&self.terms.context);
        to.number(request::ROLE, pb::Role::from(role) as u64);
        if !session_id.is_empty() {
            to.head(request::SESSION_ID, 2 * session_id.len());
            hex::write_into(session_id, to.take(2 * session_id.len()));
        }
        to.bytes(request::SERVER_NAME, server_name.as_bytes());
        to.raw(&self.terms.format);
        to.bytes(request::BINDING, binding);
    }
}

/// A Call to be appended to an encoded AttachRequest.
pub(crate) struct Call<'c, W> {
    /// The number that the answer carries. 0: no answer is wanted.
    pub(crate) id: u64,
    pub(crate) alias: &'c str,
    pub(crate) words: &'c W,
    /// The result of [`EncodeCall::size`], which the caller already has.
    pub(crate) words_size: usize,
}

impl<W: EncodeCall> Call<'_, W> {
    fn call_size(&self) -> usize {
        wire::number_len(self.id) + self.words_size + wire::bytes_len(self.alias.len())
    }

    /// Returns the encoded size in bytes, with the tag and the length before the call.
    pub(crate) fn size(&self) -> usize {
        wire::head_len(self.call_size()) + self.call_size()
    }

    /// Writes exactly [`Call::size`] bytes.
    pub(crate) fn write(&self, to: &mut Writer<'_>) {
        to.head(attach_request::CALLS, self.call_size());
        to.number(call::ID, self.id);
        self.words.write(to);
        to.bytes(call::ALIAS, self.alias.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn written(id: u64, alias: &str, words: &impl EncodeCall) -> pb::Call {
        let call = Call {
            id,
            alias,
            words,
            words_size: words.size(),
        };
        let mut bytes = vec![0; call.size()];
        let mut writer = Writer::new(&mut bytes);
        call.write(&mut writer);
        assert_eq!(writer.position(), call.size());
        let mut request = pb::AttachRequest::decode(&bytes[..]).unwrap();
        assert_eq!(request.calls.len(), 1);
        request.calls.remove(0)
    }

    #[test]
    fn every_field_of_a_lookup_is_the_contracts() {
        let mut options = Options::new("http://a:1", "openssl").unwrap();
        for (lookup, context, role) in [
            (Lookup::server(&[0xab, 0x01]), "www", pb::Role::Server),
            (Lookup::client("a.test"), "", pb::Role::Client),
            (
                Lookup {
                    server_name: &"n".repeat(255),
                    binding: &[0; 1024],
                    ..Lookup::server(&[7; 64])
                },
                "www",
                pb::Role::Server,
            ),
        ] {
            options.context = context.into();
            let question = Question {
                terms: &LookupPrefix::of(&options),
                lookup: &lookup,
            };
            let call = written(u64::MAX, "", &question);
            let expected = pb::LookupSessionRequest {
                context: context.into(),
                role: role.into(),
                session_id: hex::string(lookup.session_id),
                server_name: lookup.server_name.into(),
                format: "openssl".into(),
                binding: lookup.binding.to_vec().into(),
            };
            let mut words = vec![0; question.size()];
            question.write(&mut Writer::new(&mut words));
            let method = Method::LookupSession(expected.into());
            let mut canonical = Vec::new();
            method.encode(&mut canonical);
            assert_eq!(words, canonical, "in the order of the tags");
            assert_eq!((call.id, call.alias), (u64::MAX, String::new()));
            assert_eq!(call.method, Some(method));
        }
    }

    #[test]
    fn calls_have_their_number_and_their_alias() {
        for (id, alias) in [(0, ""), (1, ""), (0, "@7"), (300, "@1234567")] {
            let method = Method::New(Box::new(pb::NewRequest {
                server_name: "a".repeat(200),
                ..Default::default()
            }));
            let call = written(id, alias, &method);
            assert_eq!(
                (call.id, &*call.alias, call.method),
                (id, alias, Some(method))
            );
        }
    }
}
