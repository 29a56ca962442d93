//! The sealed part of a session as bytes: a version, and then each field behind its length.

use std::{borrow::Cow, ops::Deref, sync::Arc};

use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
use tls_sessiond_types::{cipher_suite::iana_name, secret::wipe, server_name::ServerName};

use super::FleetStore;
use crate::{
    clock::WallTime,
    session::{Format, PeerIdentity, Secret},
};

/// The version of this form.
const VERSION: u8 = 1;

/// What the store has of a session, besides its head. Times are of the wall clock, because daemons
/// have no other time in common.
pub(crate) struct Value<'v> {
    pub(crate) id: Cow<'v, [u8]>,
    pub(crate) cipher_suite: Cow<'v, str>,
    pub(crate) server_name: ServerName<'v>,
    pub(crate) format: Format,
    pub(crate) binding: Cow<'v, [u8]>,
    pub(crate) peer: Option<Arc<PeerIdentity>>,
    pub(crate) authenticated: WallTime,
    pub(crate) created: WallTime,
    pub(crate) expires: WallTime,
    /// `None`: the value is to be encoded.
    pub(crate) secret: Option<Secret>,
}

/// A value as bytes. It is overwritten when it is dropped, all at once.
pub(super) struct Encoded(Vec<u8>);

impl Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Encoded {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Returns the number of a cipher suite, from its IANA name. 0: rustls does not have it.
pub(super) fn suite_number(name: &str) -> u16 {
    ALL_CIPHER_SUITES
        .iter()
        .map(|suite| suite.suite())
        .find(|suite| iana_name(*suite) == name)
        .map_or(0, u16::from)
}

impl Value<'_> {
    /// Returns the value as bytes, with this secret.
    pub(super) fn encode(&self, secret: &[u8]) -> Encoded {
        let peer_bytes = self.peer.as_deref().map_or(0, |peer| {
            let names = peer.dns_names.iter().chain(&peer.uris);
            64 + peer.subject.len() + names.map(|name| 4 + name.len()).sum::<usize>()
        });
        // Room for all, so that no copy of the secret is left behind.
        let room = 128
            + secret.len()
            + self.id.len()
            + self.cipher_suite.len()
            + self.server_name.len()
            + self.binding.len()
            + peer_bytes;
        let mut out = Encoded(Vec::with_capacity(room));
        self.write(secret, &mut out.0);
        out
    }

    fn write(&self, secret: &[u8], out: &mut Vec<u8>) {
        out.push(VERSION);
        field(out, &self.id);
        field(out, self.cipher_suite.as_bytes());
        field(out, self.server_name.as_bytes());
        field(out, FleetStore::format(&self.format).as_bytes());
        field(out, &self.binding);
        for at in [self.authenticated, self.created, self.expires] {
            out.extend_from_slice(&at.as_millis().to_be_bytes());
        }
        match self.peer.as_deref() {
            None => out.push(0),
            Some(peer) => {
                out.push(1);
                field(out, &peer.certificate_sha256);
                field(out, peer.subject.as_bytes());
                for names in [&peer.dns_names, &peer.uris] {
                    count(out, names.len());
                    for name in names {
                        field(out, name.as_bytes());
                    }
                }
                out.extend_from_slice(&peer.not_after.as_millis().to_be_bytes());
            }
        }
        field(out, secret);
    }

    /// Reads a value. `None`: this version does not write such a value.
    pub(super) fn decode(bytes: &[u8]) -> Option<Value<'static>> {
        let mut rest = Reader(bytes);
        if rest.take(1)? != [VERSION] {
            return None;
        }
        let id = rest.field()?.to_vec();
        let cipher_suite = rest.text()?;
        let server_name = ServerName::new(&rest.text()?).into_owned();
        let format = match rest.text()? {
            name if name == FleetStore::format(&Format::Rustls) => Format::Rustls,
            name => Format::Worker(name.into()),
        };
        let binding = rest.field()?.to_vec();
        let (authenticated, created, expires) = (rest.time()?, rest.time()?, rest.time()?);
        let peer = match rest.take(1)? {
            [0] => None,
            [1] => {
                let certificate_sha256 = rest.field()?.try_into().ok()?;
                let subject = rest.text()?;
                let (dns_names, uris) = (rest.texts()?, rest.texts()?);
                Some(Arc::new(PeerIdentity {
                    certificate_sha256,
                    subject,
                    dns_names,
                    uris,
                    not_after: rest.time()?,
                }))
            }
            _ => return None,
        };
        let secret = Some(Secret::copied(rest.field()?));
        rest.0.is_empty().then_some(Value {
            id: id.into(),
            cipher_suite: cipher_suite.into(),
            server_name,
            format,
            binding: binding.into(),
            peer,
            authenticated,
            created,
            expires,
            secret,
        })
    }
}

fn count(out: &mut Vec<u8>, count: usize) {
    // Limits on sessions keep every length far below 4 GiB.
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_be_bytes());
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    count(out, bytes.len());
    out.extend_from_slice(bytes);
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn count(&mut self) -> Option<usize> {
        let count = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        usize::try_from(count).ok()
    }

    fn field(&mut self) -> Option<&'b [u8]> {
        let count = self.count()?;
        self.take(count)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.field()?.to_vec()).ok()
    }

    fn texts(&mut self) -> Option<Vec<String>> {
        let count = self.count()?;
        // Each has a length of four bytes, so a false count reserves no more than the value has.
        if count > self.0.len() / 4 {
            return None;
        }
        (0..count).map(|_| self.text()).collect()
    }

    fn time(&mut self) -> Option<WallTime> {
        let millis = u64::from_be_bytes(self.take(8)?.try_into().ok()?);
        Some(WallTime::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(peer: Option<PeerIdentity>) -> Value<'static> {
        Value {
            id: vec![7; 32].into(),
            cipher_suite: "TLS_AES_128_GCM_SHA256".into(),
            server_name: ServerName::new("a.test").into_owned(),
            format: Format::Rustls,
            binding: vec![1, 2, 3].into(),
            peer: peer.map(Arc::new),
            authenticated: WallTime::from_millis(1_700_000_000_000),
            created: WallTime::from_millis(1_700_000_000_001),
            expires: WallTime::from_millis(1_700_000_007_200),
            secret: None,
        }
    }

    #[test]
    fn values_are_read_as_they_were_written_and_nothing_else_panics() {
        let peer = PeerIdentity {
            certificate_sha256: [9; 32],
            subject: "CN=peer".into(),
            dns_names: vec!["peer.test".into(), "other.test".into()],
            uris: vec!["spiffe://a.test/peer".into()],
            not_after: WallTime::from_millis(1_800_000_000_000),
        };
        for peer in [None, Some(peer)] {
            let written = value(peer).encode(b"the secret");
            let read = Value::decode(&written).unwrap();
            let again = read.encode(read.secret.as_ref().unwrap().as_bytes().unwrap());
            assert_eq!(*again, *written);
            assert_eq!(read.server_name, ServerName::new("a.test"));
            for length in 0..written.len() {
                assert!(Value::decode(&written[..length]).is_none(), "{length}");
            }
            let longer = [&*written, &[0]].concat();
            assert!(Value::decode(&longer).is_none());
            for bit in 0..8 * written.len() {
                let mut changed = written.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                // It may be another valid value. A false length reserves no memory.
                drop(Value::decode(&changed));
            }
        }
    }

    #[test]
    fn suites_have_their_numbers() {
        assert_eq!(suite_number("TLS_AES_128_GCM_SHA256"), 0x1301);
        assert_eq!(
            suite_number("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
            0xc02f
        );
        assert_eq!(suite_number("unknown"), 0);
    }
}
