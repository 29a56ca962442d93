//! Converts domain types to messages, and fields of messages to domain types.

use std::time::Duration;

use prost_types::Timestamp as PbTimestamp;
use tls_sessiond_core::{
    clock::{Now, Timestamp, WallOffset, WallTime},
    connection::{
        self, ConnectionId, EngineKind, Evidence, Removed, Shutdown, State, table::Lapse,
    },
    context::{ClosePolicy, Context, Options},
    session::{
        Miss, PeerIdentity, RemovalReason, Session, SessionId, SessionInfo, stats::HandshakeKind,
    },
};
use tls_sessiond_proto as pb;
use tls_sessiond_types::{
    Role, Version, client_hello::SESSION_ID_MAX, hex, server_name::ServerName,
};

use super::{error::Refusal, limits::BYTES_MAX};

pub(crate) fn connection_id(text: &str) -> Result<ConnectionId, Refusal> {
    ConnectionId::parse(text).ok_or(Refusal::ConnectionIdMalformed)
}

/// Parses an optional session id. Empty text means no id.
pub(crate) fn session_id(text: impl AsRef<[u8]>) -> Result<Option<SessionId>, Refusal> {
    let text = text.as_ref();
    if text.is_empty() {
        return Ok(None);
    }
    let mut bytes = [0; SESSION_ID_MAX];
    let read = hex::read_into(text, &mut bytes).and_then(SessionId::new);
    read.map(Some).ok_or(Refusal::SessionIdMalformed)
}

pub(crate) fn role(value: i32) -> Result<Role, Refusal> {
    match pb::Role::try_from(value) {
        Ok(pb::Role::Client) => Ok(Role::Client),
        Ok(pb::Role::Server) => Ok(Role::Server),
        Ok(pb::Role::Unspecified) | Err(_) => Err(Refusal::RoleRequired),
    }
}

pub(crate) fn flags(flags: pb::ShutdownFlags) -> Shutdown {
    Shutdown {
        sent: flags.sent,
        received: flags.received,
    }
}

pub(crate) fn connection(from: &connection::Connection, lapse: Lapse) -> pb::Connection {
    let flags = from.shutdown_flags();
    pb::Connection {
        id: hex::string(from.id().as_bytes()),
        context: from.context().name.to_string(),
        role: pb::Role::from(from.role()).into(),
        engine: engine(from.engine_kind()).into(),
        state: state(from.state()).into(),
        shutdown: Some(pb::ShutdownFlags {
            sent: flags.sent,
            received: flags.received,
        }),
        close_evidence: match from.evidence() {
            Evidence::None => pb::CloseEvidence::Unspecified,
            Evidence::Asserted => pb::CloseEvidence::Asserted,
            Evidence::Written => pb::CloseEvidence::Written,
        }
        .into(),
        version: version_value(from.version()),
        pinned_version: version_value(from.pinned_version()),
        cipher_suite: from.cipher_suite().into(),
        alpn: from.alpn().into(),
        server_name: from.server_name().to_string(),
        session_reused: from.session_reused(),
        session_id: from
            .session()
            .map(|session| hex::string(session.id().as_bytes()))
            .unwrap_or_default(),
        peer: from.peer().map(|peer| identity(peer)),
        create_time: Some(timestamp(lapse.offset.wall(from.created()))),
        expire_time: Some(timestamp(lapse.wall())),
        owner: from.owner().to_string(),
        peer_address: from.peer_address().into(),
    }
}

pub(crate) fn engine(from: EngineKind) -> pb::Engine {
    match from {
        EngineKind::Daemon => pb::Engine::Daemon,
        EngineKind::Worker => pb::Engine::Worker,
    }
}

pub(crate) fn state(from: State) -> pb::ConnectionState {
    match from {
        State::Before => pb::ConnectionState::Before,
        State::Handshaking => pb::ConnectionState::Handshaking,
        State::Established => pb::ConnectionState::Established,
        State::Failed => pb::ConnectionState::Failed,
    }
}

pub(crate) fn session(from: &Session, offset: WallOffset) -> pb::Session {
    facts(
        from.facts(),
        offset,
        from.open_connections(),
        from.secret().len(),
    )
}

pub(crate) fn facts(
    from: &SessionInfo,
    offset: WallOffset,
    open_connections: u32,
    data_bytes: usize,
) -> pb::Session {
    let kind = &from.kind;
    pb::Session {
        id: hex::string(from.id.as_bytes()),
        context: kind.account.name.to_string(),
        role: pb::Role::from(kind.role).into(),
        version: version_value(Some(kind.version)),
        cipher_suite: kind.cipher_suite.to_string(),
        server_name: kind.server_name.to_string(),
        peer: kind.peer.as_deref().map(identity),
        single_use: kind.single_use,
        format: kind.format.name().into(),
        create_time: Some(timestamp(offset.wall(from.created()))),
        authenticate_time: Some(timestamp(offset.wall(from.authenticated))),
        expire_time: Some(timestamp(offset.wall(from.expires()))),
        open_connections,
        data_bytes: u32::try_from(data_bytes).unwrap_or(u32::MAX),
    }
}

pub(crate) fn removal_reason(from: RemovalReason) -> pb::RemovalReason {
    match from {
        RemovalReason::Unclosed => pb::RemovalReason::Unclosed,
        RemovalReason::FatalAlert => pb::RemovalReason::FatalAlert,
        RemovalReason::Expired => pb::RemovalReason::Expired,
        RemovalReason::CacheFull => pb::RemovalReason::CacheFull,
        RemovalReason::Taken => pb::RemovalReason::Taken,
        RemovalReason::Removed => pb::RemovalReason::Removed,
        RemovalReason::Revoked => pb::RemovalReason::Revoked,
        RemovalReason::ScopeChanged => pb::RemovalReason::ScopeChanged,
    }
}

pub(crate) fn miss_reason(from: Miss) -> pb::MissReason {
    match from {
        Miss::Unknown => pb::MissReason::Unknown,
        Miss::Expired => pb::MissReason::Expired,
        Miss::Removed => pb::MissReason::Removed,
        Miss::Scope => pb::MissReason::Scope,
        Miss::Revoked => pb::MissReason::Revoked,
        Miss::CacheOff => pb::MissReason::CacheOff,
        Miss::StoreUnavailable => pb::MissReason::StoreUnavailable,
        Miss::HolderLost => pb::MissReason::HolderLost,
    }
}

pub(crate) fn context(from: &Context, uptime: Duration) -> pb::Context {
    let caches = [&from.server_cache, &from.client_cache];
    let stats = &from.stats;
    pb::Context {
        name: from.name.to_string(),
        versions: from
            .versions
            .iter()
            .map(|&version| version_value(Some(version)))
            .collect(),
        cipher_suites: from.cipher_suites.iter().map(|&name| name.into()).collect(),
        alpn: from.alpn.clone(),
        close_policy: match from.close_policy {
            ClosePolicy::Flag => pb::ClosePolicy::Flag,
            ClosePolicy::Written => pb::ClosePolicy::Written,
            ClosePolicy::ErrorsOnly => pb::ClosePolicy::ErrorsOnly,
        }
        .into(),
        session_timeout: Some(duration(from.session_timeout)),
        cache_entries_max: from.cache_entries_max as u64,
        cache_bytes_max: from.cache_bytes_max as u64,
        scope: from.scope.to_string(),
        certificate_expire_time: from.certificate_ends.map(timestamp),
        shared_sessions: from.server_cache.fleet().is_some(),
        tickets: u32::try_from(from.tickets).unwrap_or(u32::MAX),
        options: options(from.options),
        ticket_ring: from
            .sealing
            .as_ref()
            .map(|sealing| sealing.ring.to_string())
            .unwrap_or_default(),
        stats: Some(pb::SessionStats {
            sessions: caches.iter().map(|cache| cache.len() as u64).sum(),
            session_bytes: caches.iter().map(|cache| cache.bytes() as u64).sum(),
            server_sessions: from.server_cache.len() as u64,
            server_session_bytes: from.server_cache.bytes() as u64,
            refused_tickets: from.server_cache.refused_handles() as u64,
            refused_tickets_max: from.server_cache.refused_handles_max() as u64,
            accept: stats.accept.get(),
            accept_good: stats.accept_good.get(),
            connect: stats.connect.get(),
            connect_good: stats.connect_good.get(),
            hits: stats.hits.get(),
            misses: stats.misses.all_but_expired(),
            timeouts: stats.misses.get(Miss::Expired),
            cache_full: stats.removals.get(RemovalReason::CacheFull),
            unclosed: stats.removals.get(RemovalReason::Unclosed),
            uptime: Some(duration(uptime)),
            misses_by_reason: Miss::ALL
                .into_iter()
                .map(|why| (miss_reason(why), stats.misses.get(why)))
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| pb::MissCount {
                    reason: reason.into(),
                    count,
                })
                .collect(),
            removals_by_reason: RemovalReason::ALL
                .into_iter()
                .map(|why| (removal_reason(why), stats.removals.get(why)))
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| pb::RemovalCount {
                    reason: reason.into(),
                    count,
                })
                .collect(),
            handshakes: HandshakeKind::all()
                .map(|kind| (kind, stats.finished.get(kind)))
                .filter(|(_, count)| *count > 0)
                .map(|(kind, count)| pb::HandshakeCount {
                    role: pb::Role::from(kind.role).into(),
                    version: version_value(kind.version),
                    resumed: kind.resumed,
                    count,
                })
                .collect(),
            failures_by_alert: stats
                .failures
                .all()
                .map(|(alert, count)| pb::AlertCount {
                    alert: alert.map(self::alert),
                    count,
                })
                .collect(),
        }),
    }
}

/// Returns the options by their names in the configuration.
fn options(from: Options) -> Vec<String> {
    let all = [
        ("cipher-server-preference", from.cipher_server_preference),
        ("ignore-unexpected-eof", from.ignore_unexpected_eof),
        ("quiet-shutdown", from.quiet_shutdown),
        ("no-session-cache", from.no_session_cache),
    ];
    let set = all.into_iter().filter(|(_, is_set)| *is_set);
    set.map(|(name, _)| name.to_owned()).collect()
}

pub(crate) fn removed(from: Vec<Removed>) -> Vec<pb::RemovedSession> {
    from.into_iter()
        .map(|removed| pb::RemovedSession {
            session_id: hex::string(removed.id.as_bytes()),
            reason: removal_reason(removed.reason).into(),
        })
        .collect()
}

pub(crate) fn alert(from: connection::Alert) -> pb::Alert {
    pb::Alert {
        code: from.code.into(),
        name: from.name().into(),
        received: from.received,
    }
}

fn identity(from: &PeerIdentity) -> pb::PeerIdentity {
    pb::PeerIdentity {
        certificate_sha256: hex::string(&from.certificate_sha256),
        subject: from.subject.clone(),
        dns_names: from.dns_names.clone(),
        uris: from.uris.clone(),
    }
}

/// Reads the identity that a worker reports for its peer. The worker has verified the certificate,
/// and limits the session to the certificate's validity by `timeout`. So the identity itself has no
/// end.
///
/// # Errors
/// [`Refusal::PeerInvalid`] where the digest is not 32 bytes in hex, there are more than 64 names, or
/// names and subject together have more than 8 KiB.
pub(crate) fn read_identity(from: pb::PeerIdentity) -> Result<PeerIdentity, Refusal> {
    const NAMES_MAX: usize = 64;
    const BYTES_MAX: usize = 8 << 10;
    let names = from.dns_names.len() + from.uris.len();
    let bytes: usize = from
        .dns_names
        .iter()
        .chain(&from.uris)
        .chain([&from.subject])
        .map(String::len)
        .sum();
    let digest =
        hex::read(&from.certificate_sha256).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    match digest {
        Some(certificate_sha256) if names <= NAMES_MAX && bytes <= BYTES_MAX => Ok(PeerIdentity {
            certificate_sha256,
            subject: from.subject,
            dns_names: from
                .dns_names
                .iter()
                .map(|name| ServerName::new(name).to_string())
                .collect(),
            uris: from.uris,
            not_after: WallTime::MAX,
        }),
        _ => Err(Refusal::PeerInvalid),
    }
}

/// How far a caller's clock may be ahead of the daemon's wall clock.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// Reads a past time that a caller took from its own clock. A time after `latest` counts as
/// `latest`, which is now or the next millisecond. Returns `None` if the time is malformed, or more
/// than [`AHEAD_MAX`] ahead of the daemon's wall clock.
pub(crate) fn past(told: &PbTimestamp, now: Now, latest: Timestamp) -> Option<Timestamp> {
    let told = read_timestamp(told).filter(|told| told.since(now.wall()) <= AHEAD_MAX)?;
    Some(now.offset.at(told).min(latest))
}

fn read_timestamp(from: &PbTimestamp) -> Option<WallTime> {
    let seconds = u64::try_from(from.seconds).ok()?;
    let millis = u64::try_from(from.nanos)
        .ok()
        .filter(|&nanos| nanos < 1_000_000_000)?
        / 1_000_000;
    Some(WallTime::from_millis(
        seconds.checked_mul(1000)?.checked_add(millis)?,
    ))
}

pub(crate) fn version_value(version: Option<Version>) -> i32 {
    version
        .map_or(pb::ProtocolVersion::Unspecified, pb::ProtocolVersion::from)
        .into()
}

pub(crate) fn timestamp(from: WallTime) -> PbTimestamp {
    let millis = from.as_millis();
    PbTimestamp {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000).unwrap_or(0) * 1_000_000,
    }
}

pub(crate) fn duration(from: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(from.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(from.subsec_nanos()).unwrap_or(0),
    }
}

/// Checks that a field has at most `max` bytes.
pub(crate) fn within(field: &'static str, length: usize, max: usize) -> Result<(), Refusal> {
    if length > max {
        Err(Refusal::FieldTooLong { field, length, max })
    } else {
        Ok(())
    }
}

/// Checks that a field has at most [`BYTES_MAX`] bytes.
pub(crate) fn within_limit(field: &'static str, bytes: &[u8]) -> Result<(), Refusal> {
    match bytes.len() {
        length if length > BYTES_MAX => Err(Refusal::BytesTooLong { field, length }),
        _ => Ok(()),
    }
}
