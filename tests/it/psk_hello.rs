//! TLS 1.3 ClientHellos made by hand, with any tickets and with valid binders. No library lets its
//! user send them.

use aws_lc_rs::{digest, hmac};

use crate::client_hello::{Extension, Hello, records};

pub(crate) const AES_128: u16 = 0x1301;
pub(crate) const AES_256: u16 = 0x1302;
pub(crate) const CHACHA20: u16 = 0x1303;
pub(crate) const X25519: u16 = 29;
pub(crate) const SECP256R1: u16 = 23;
const BINDER: usize = 32;

/// A ticket of a suite with SHA-256, as a client holds it: the identity and the PSK.
#[derive(Clone)]
pub(crate) struct Ticket {
    pub(crate) identity: Vec<u8>,
    pub(crate) psk: Vec<u8>,
}

impl Ticket {
    /// Returns the ticket for the bytes that rustls stores for a server (its `ServerSessionValue`):
    /// has_sni, sni, version, suite, then the secret.
    pub(crate) fn of(identity: &[u8], stored: &[u8]) -> Self {
        let (has_sni, rest) = stored.split_first().unwrap();
        let rest = if *has_sni == 1 {
            &rest[1 + usize::from(rest[0])..]
        } else {
            rest
        };
        let [_, _, _, _, length, rest @ ..] = rest else {
            panic!("too short")
        };
        Self {
            identity: identity.to_vec(),
            psk: rest[..usize::from(*length)].to_vec(),
        }
    }

    /// Returns the binder for a transcript that ends where the binders of the ClientHello begin.
    fn binder(&self, transcript: &[u8]) -> Vec<u8> {
        let early = sign(&[0; 32], &self.psk);
        let empty = hash(&[]);
        let binder_key = expand(&early, "res binder", &empty);
        sign(&expand(&binder_key, "finished", &[]), &hash(transcript))
    }
}

/// The content of a ClientHello before encoding. Each test changes the fields that it tests.
pub(crate) struct PskHello {
    pub(crate) server_name: Option<&'static str>,
    pub(crate) suites: Vec<u16>,
    pub(crate) groups: Vec<u16>,
    pub(crate) shares: Vec<u16>,
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) modes: Vec<u8>,
    /// Extensions before the pre_shared_key, and extensions behind it.
    pub(crate) more: Vec<Extension>,
    pub(crate) behind: Vec<Extension>,
    /// Earlier messages of the handshake, as the transcript holds them.
    pub(crate) before: Vec<u8>,
}

impl PskHello {
    pub(crate) fn offering(tickets: &[&Ticket]) -> Self {
        Self {
            server_name: Some("localhost"),
            suites: vec![AES_128],
            groups: vec![X25519],
            shares: vec![X25519],
            tickets: tickets.iter().map(|&ticket| ticket.clone()).collect(),
            modes: vec![1],
            more: Vec::new(),
            behind: Vec::new(),
            before: Vec::new(),
        }
    }

    /// Returns the handshake message with its header.
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut extensions: Vec<_> = self
            .server_name
            .map(|name| Extension::ServerName(name.into()))
            .into_iter()
            .collect();
        extensions.extend(Extension::negotiable(
            &self.groups,
            &self.shares,
            &self.modes,
        ));
        extensions.extend(self.more.iter().cloned());
        if !self.tickets.is_empty() {
            let identities = self
                .tickets
                .iter()
                .map(|ticket| ticket.identity.clone())
                .collect();
            extensions.push(Extension::Identities(identities));
        }
        extensions.extend(self.behind.iter().cloned());
        let hello = Hello {
            session_id: vec![5; 32],
            suites: self.suites.clone(),
            extensions,
        };
        let mut message = hello.message();
        if self.tickets.is_empty() || !self.behind.is_empty() {
            return message;
        }
        let binders = self.tickets.len() * (1 + BINDER);
        let truncated = message.len() - 2 - binders;
        let transcript = [&self.before[..], &message[..truncated]].concat();
        for (place, ticket) in self.tickets.iter().enumerate() {
            let at = truncated + 2 + place * (1 + BINDER) + 1;
            message[at..at + BINDER].copy_from_slice(&ticket.binder(&transcript));
        }
        message
    }

    pub(crate) fn flight(&self) -> Vec<u8> {
        records(&self.message(), &[])
    }
}

/// Returns the start of the transcript of a second ClientHello: the hash of the first one (RFC 8446
/// section 4.4.1), and the HelloRetryRequest.
pub(crate) fn after_retry(first: &[u8], request: &[u8]) -> Vec<u8> {
    [&[254, 0, 0, 32][..], &hash(first), request].concat()
}

/// Returns the first handshake message of plaintext records.
pub(crate) fn first_message(records: &[u8]) -> &[u8] {
    assert_eq!(
        records[0],
        22,
        "not a handshake record: {:?}",
        &records[..records.len().min(16)]
    );
    let length = usize::from(u16::from_be_bytes([records[3], records[4]]));
    &records[5..5 + length]
}

/// Returns the index of the ticket that a ServerHello resumes, or `None` for a full handshake.
pub(crate) fn resumed(server_hello: &[u8]) -> Option<u16> {
    assert_eq!(server_hello[0], 2, "no ServerHello");
    let session_id = usize::from(server_hello[4 + 34]);
    let mut rest = &server_hello[4 + 34 + 1 + session_id + 2 + 1 + 2..];
    while let [a, b, high, low, tail @ ..] = rest {
        let (body, next) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        if (*a, *b) == (0, 41) {
            return Some(u16::from_be_bytes([body[0], body[1]]));
        }
        rest = next;
    }
    None
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

fn sign(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), bytes)
        .as_ref()
        .to_vec()
}

/// HKDF-Expand-Label for one block (RFC 8446 section 7.1).
fn expand(secret: &[u8], label: &str, context: &[u8]) -> Vec<u8> {
    let label = [b"tls13 ", label.as_bytes()].concat();
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    let info = [
        &[0, 32, length(&label)][..],
        &label,
        &[length(context)],
        context,
        &[1],
    ]
    .concat();
    sign(secret, &info)
}
