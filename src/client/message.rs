//! What a worker asks and tells. Secrets are wiped when they are dropped, and nothing that holds one
//! has Debug; the buffers of the transport, which carries them, are not ours to wipe.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
pub use tls_sessiond_types::{Role, Version};
use zeroize::Zeroizing;

use tls_sessiond_types::hex;

use crate::{proto as pb, proto::PeerIdentity};

/// Which session a handshake wants to resume.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'l> {
    /// Whose session it is.
    pub role: Role,
    /// Server: what the peer offers. Client: one session by its id, or empty.
    pub session_id: &'l [u8],
    /// Server: the SNI that the peer sends, or empty. Client: whom it speaks with; without an id the newest session
    /// answers. Always compared with the name that the session was made under.
    pub server_name: &'l str,
    /// As it was put: whatever else must agree, at most 1 KiB.
    pub binding: &'l [u8],
}

impl<'l> Lookup<'l> {
    /// What a peer offers to this server.
    pub fn server(session_id: &'l [u8]) -> Self {
        Self { role: Role::Server, session_id, server_name: "", binding: &[] }
    }

    /// Any session with a server, the newest first.
    pub fn client(server_name: &'l str) -> Self {
        Self { role: Role::Client, session_id: &[], server_name, binding: &[] }
    }
}

/// A session that the worker's library made.
pub struct Put {
    /// Server: what a peer will offer, 1 to 64 bytes. Client: empty, the daemon gives it an id.
    pub session_id: Vec<u8>,
    /// The library's own encoding.
    pub data: Zeroizing<Vec<u8>>,
    /// The version that the handshake agreed on.
    pub version: Version,
    /// To be handed out once: for TLS 1.3.
    pub single_use: bool,
    /// How long it may live, if that is less than the context says.
    pub timeout: Option<Duration>,
    /// IANA name, or empty.
    pub cipher_suite: String,
    /// Server: the SNI. Client: the connection's, or empty.
    pub server_name: String,
    /// Whatever else must agree for a resumption to be safe, at most 1 KiB. Compared as a whole.
    pub binding: Vec<u8>,
    /// The identity that the peer proved in a full handshake. After a resumption the daemon's record of the resumed session counts.
    pub peer: Option<PeerIdentity>,
    /// When the peers authenticated. None: when those of the resumed session did, or of the connection's first session, or
    /// now. A later time than one of the first two counts for nothing.
    pub authenticate_time: Option<SystemTime>,
}

impl Put {
    /// A session of this version, single-use where that is TLS 1.3.
    pub fn new(version: Version, data: Vec<u8>) -> Self {
        Self {
            session_id: Vec::new(),
            data: Zeroizing::new(data),
            version,
            single_use: version == Version::Tls13,
            timeout: None,
            cipher_suite: String::new(),
            server_name: String::new(),
            binding: Vec::new(),
            peer: None,
            authenticate_time: None,
        }
    }

    pub(super) fn into_request(self, connection_id: String, format: String) -> pb::PutSessionRequest {
        pb::PutSessionRequest {
            connection_id,
            session_id: hex::string(&self.session_id),
            // Wiped when the message has been written or dropped.
            data: Bytes::from_owner(self.data),
            format,
            timeout: self.timeout.and_then(|timeout| timeout.try_into().ok()),
            single_use: self.single_use,
            version: pb::ProtocolVersion::from(self.version).into(),
            cipher_suite: self.cipher_suite,
            server_name: self.server_name,
            binding: self.binding.into(),
            peer: self.peer,
            authenticate_time: self.authenticate_time.map(Into::into),
        }
    }
}

impl From<Role> for pb::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Client => Self::Client,
            Role::Server => Self::Server,
        }
    }
}

impl From<Version> for pb::ProtocolVersion {
    fn from(version: Version) -> Self {
        match version {
            Version::Tls12 => Self::Tls12,
            Version::Tls13 => Self::Tls13,
        }
    }
}
