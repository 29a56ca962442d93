//! Converts the numbers of the model into the types of the daemon.

use std::sync::Arc;

use tls_sessiond_core::{
    cache::revocation::Selector,
    clock::{Now, Timestamp, WallTime},
    session::{Format, Miss, PeerIdentity, RemovalReason, ResumeCriteria, SessionId, SessionInfo},
};
use tls_sessiond_types::Version;

use super::{
    ResumeCriteria as AskedOn,
    model::{Peer, server_name},
};

/// The start of the clock, in milliseconds.
pub(super) const START: u64 = 1_700_000_000_000;

pub(super) fn id(id: u8) -> SessionId {
    SessionId::new(&[id + 1; 32]).unwrap()
}

pub(super) fn seconds(seconds: u64) -> u64 {
    seconds * 1_000
}

pub(super) fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Returns a clock reading at this time. This test never steps the wall clock.
pub(super) fn reading(millis: u64) -> Now {
    Now::from_millis(millis)
}

/// Returns the serial of a session. The test stores it as the cipher suite, which these lookups do
/// not compare.
pub(super) fn serial(session: &SessionInfo) -> u32 {
    session.kind.cipher_suite.parse().unwrap()
}

pub(super) fn peer(number: u8) -> Peer {
    [Peer::Nobody, Peer::One, Peer::Other(START + seconds(4_000))][usize::from(number)]
}

pub(super) fn identity(peer: Peer) -> Option<Arc<PeerIdentity>> {
    let not_after = match peer {
        Peer::Nobody => return None,
        Peer::One => u64::MAX,
        Peer::Other(not_after) => not_after,
    };
    Some(Arc::new(PeerIdentity {
        certificate_sha256: peer.digest(),
        subject: String::new(),
        dns_names: vec![peer.dns_name().into()],
        uris: vec![peer.uri().into()],
        not_after: WallTime::from_millis(not_after),
    }))
}

pub(super) fn selector(number: u8) -> Selector {
    let (one, other) = (peer(1), peer(2));
    match number {
        0 => Selector::All,
        1 => Selector::Certificate(one.digest()),
        2 => Selector::Certificate(other.digest()),
        3 => Selector::Uri(one.uri().into()),
        4 => Selector::DnsName(other.dns_name().into()),
        5 => Selector::ServerName(server_name(0).clone()),
        _ => Selector::ServerName(server_name(1).clone()),
    }
}

/// Returns the criteria of a lookup.
pub(super) fn terms<'a>(
    terms: AskedOn,
    name: u8,
    version: Version,
    other: &'a Format,
) -> ResumeCriteria<'a> {
    const BOTH: &[Version] = &[Version::Tls12, Version::Tls13];
    let good = ResumeCriteria {
        format: &Format::Rustls,
        binding: b"",
        versions: BOTH,
        server_name: server_name(name),
        cipher_suite: None,
    };
    match terms {
        AskedOn::Good => good,
        AskedOn::OtherFormat => ResumeCriteria {
            format: other,
            ..good
        },
        AskedOn::OtherBinding => ResumeCriteria {
            binding: b"other",
            ..good
        },
        AskedOn::OtherVersion if version == Version::Tls12 => ResumeCriteria {
            versions: &BOTH[1..],
            ..good
        },
        AskedOn::OtherVersion => ResumeCriteria {
            versions: &BOTH[..1],
            ..good
        },
    }
}

pub(super) fn version(single_use: bool) -> Version {
    if single_use {
        Version::Tls13
    } else {
        Version::Tls12
    }
}

pub(super) fn reason(miss: Miss) -> RemovalReason {
    if miss == Miss::Expired {
        RemovalReason::Expired
    } else {
        RemovalReason::Revoked
    }
}
