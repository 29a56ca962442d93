//! State that all SSLs of one context share: the worker, and the binding of their sessions.

use std::time::Duration;

use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    ssl::{NameType, SslRef, SslSession, SslSessionRef, SslVersion},
    x509::X509Ref,
};
use tls_sessiond_types::{hex, server_name::ServerName};

use crate::{Found, Lookup, PeerIdentity, Put, Version, Worker};

pub(super) struct SharedSessions {
    pub(super) worker: Worker,
    /// The value of SSL_CTX_set_session_id_context(3), or its equivalent on a client.
    pub(super) session_id_context: Vec<u8>,
}

impl SharedSessions {
    /// Looks up a session that a peer offers. The server name and the verify mode are compared
    /// because OpenSSL itself does not compare them for a TLS 1.2 session.
    ///
    /// `extension`: the server_name extension of the peer's ClientHello.
    pub(super) fn find(
        &self,
        ssl: &SslRef,
        extension: Option<&[u8]>,
        session_id: &[u8],
    ) -> Option<Found> {
        let server_name = &extension.and_then(host_name).unwrap_or_default();
        let binding = &self.binding(ssl);
        self.worker.lookup_blocking(Lookup {
            binding,
            server_name,
            ..Lookup::server(session_id)
        })
    }

    /// Makes the [`Put`] for a session that a handshake made. `None`: the session cannot be shared.
    ///
    /// # Errors
    /// Fails if OpenSSL cannot encode the session.
    pub(super) fn put(
        &self,
        ssl: &SslRef,
        session: &SslSessionRef,
    ) -> Result<Option<Put>, ErrorStack> {
        let version = match session.protocol_version() {
            SslVersion::TLS1_2 => Version::Tls12,
            SslVersion::TLS1_3 => Version::Tls13,
            _ => return Ok(None),
        };
        let server = ssl.is_server();
        let name = match server {
            true => {
                ServerName::new(ssl.servername(NameType::HOST_NAME).unwrap_or_default()).to_string()
            }
            false => String::new(),
        };
        // A peer cannot offer a session without an id. This is a stateless ticket, which the
        // program has allowed again.
        if server && session.id().is_empty() {
            return Ok(None);
        }
        Ok(Some(Put {
            session_id: if server {
                session.id().to_vec()
            } else {
                Vec::new()
            },
            timeout: u64::try_from(session.timeout())
                .ok()
                .filter(|&s| s > 0)
                .map(Duration::from_secs),
            cipher_suite: ssl
                .current_cipher()
                .and_then(|cipher| cipher.standard_name())
                .unwrap_or_default()
                .to_owned(),
            binding: self.binding(ssl),
            server_name: name,
            peer: ssl
                .peer_certificate()
                .map(|certificate| identity(&certificate))
                .transpose()?,
            ..Put::new(version, session.to_der()?)
        }))
    }

    /// Returns the binding: `session_id_context` and the verify mode, each with its length before
    /// it.
    pub(super) fn binding(&self, ssl: &SslRef) -> Vec<u8> {
        let mode = ssl.verify_mode().bits().to_be_bytes();
        let mut binding = Vec::new();
        for part in [self.session_id_context.as_slice(), &mode] {
            binding.extend_from_slice(&u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
            binding.extend_from_slice(part);
        }
        binding
    }
}

/// Decodes a session. `None`, which is a miss, if OpenSSL cannot decode it.
pub(super) fn decode(data: &[u8]) -> Option<SslSession> {
    SslSession::from_der(data).ok()
}

/// Returns the host name in a server_name extension (RFC 6066 section 3).
fn host_name(extension: &[u8]) -> Option<String> {
    const HOST_NAME: u8 = 0;
    let (&[_, _, kind, high, low], rest) = extension.split_first_chunk()?;
    let name = rest.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let name = std::str::from_utf8(name)
        .ok()
        .filter(|name| name.len() <= 255)?;
    (kind == HOST_NAME).then(|| ServerName::new(name).to_string())
}

fn identity(certificate: &X509Ref) -> Result<PeerIdentity, ErrorStack> {
    let digest = certificate.digest(MessageDigest::sha256())?;
    let names = certificate.subject_alt_names();
    let names = || names.iter().flatten();
    let common_name = certificate
        .subject_name()
        .entries_by_nid(Nid::COMMONNAME)
        .next();
    Ok(PeerIdentity {
        certificate_sha256: hex::string(&digest),
        subject: common_name
            .and_then(|entry| entry.data().to_string().ok())
            .map(|name| format!("CN={name}"))
            .unwrap_or_default(),
        dns_names: names()
            .filter_map(|name| name.dnsname())
            .map(str::to_owned)
            .collect(),
        uris: names()
            .filter_map(|name| name.uri())
            .map(str::to_owned)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_read_as_clients_write_them_and_nothing_else_is() {
        let name = host_name(b"\x00\x0c\x00\x00\x09A.Example").unwrap();
        assert_eq!(name, "a.example");
        for malformed in [
            &b""[..],
            b"\x00\x0c\x00\x00",
            b"\x00\x0c\x00\x00\x0aA.Example",
            b"\x00\x04\x01\x00\x01a",
        ] {
            assert_eq!(host_name(malformed), None);
        }
        assert_eq!(host_name(b"\x00\x04\x00\x00\x01\xff"), None);
    }
}
