//! Lookups, and sessions to put. Secrets are overwritten when they are dropped, and no type that
//! holds one implements Debug. The buffers of the transport, which also carry secrets, are not
//! overwritten.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
pub use tls_sessiond_types::{Role, Version};
use zeroize::Zeroizing;

use tls_sessiond_types::hex;

use tls_sessiond_proto::{self as pb, PeerIdentity};

/// The session that a handshake wants to resume.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'l> {
    /// The side that uses the session.
    pub role: Role,
    /// Server: the session id that the peer offers. Client: the id of one session, or empty.
    pub session_id: &'l [u8],
    /// Server: the SNI that the peer sends, or empty. Client: the name of the server; with an empty
    /// `session_id` the lookup returns the newest session with that server. A session is found only
    /// if it was put with the same name.
    pub server_name: &'l str,
    /// The binding: a session is found only if it was put with equal bytes. At most 1 KiB.
    pub binding: &'l [u8],
}

impl<'l> Lookup<'l> {
    /// Makes a lookup of the session id that a peer offers to this server.
    pub fn server(session_id: &'l [u8]) -> Self {
        Self {
            role: Role::Server,
            session_id,
            server_name: "",
            binding: &[],
        }
    }

    /// Makes a lookup of the newest session with a server.
    pub fn client(server_name: &'l str) -> Self {
        Self {
            role: Role::Client,
            session_id: &[],
            server_name,
            binding: &[],
        }
    }
}

/// A session that the worker's TLS library made.
pub struct Put {
    /// Server: the session id that a peer will offer, 1 to 64 bytes. Client: empty; the daemon
    /// chooses an id.
    pub session_id: Vec<u8>,
    /// The session in the TLS library's own encoding.
    pub data: Zeroizing<Vec<u8>>,
    /// The negotiated version.
    pub version: Version,
    /// Whether only one lookup may find the session. Set for TLS 1.3.
    pub single_use: bool,
    /// The longest lifetime. It has no effect if the context's is shorter.
    pub timeout: Option<Duration>,
    /// The IANA name, or empty.
    pub cipher_suite: String,
    /// Server: the SNI. Client: empty, or the server name of the connection.
    pub server_name: String,
    /// The binding: everything else that must agree for a resumption to be safe. At most 1 KiB. A
    /// lookup finds the session only with equal bytes.
    pub binding: Vec<u8>,
    /// The identity that the peer proved in a full handshake. After a resumption the daemon uses
    /// its record of the resumed session instead.
    pub peer: Option<PeerIdentity>,
    /// When the peers authenticated. `None`: the time of the resumed session, else the time of the
    /// connection's first session, else now. A time that is later than one of the first two is
    /// ignored.
    pub authenticate_time: Option<SystemTime>,
}

impl Put {
    /// Makes a session of this version. It is single-use if the version is TLS 1.3.
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

    pub(super) fn into_request(
        self,
        connection_id: String,
        format: String,
    ) -> pb::PutSessionRequest {
        pb::PutSessionRequest {
            connection_id,
            session_id: hex::string(&self.session_id),
            // The owner is overwritten when the message has been written or dropped.
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
