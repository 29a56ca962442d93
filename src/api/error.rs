//! Converts errors to gRPC statuses. No other file does. Every status has an ErrorInfo with a
//! stable reason.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tls_sessiond_core::connection;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::role::Roles;
use crate::rings::NotShared;

/// `ErrorInfo.domain`.
pub const DOMAIN: &str = "tls.sessiond.v1";

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("connection_id must be 32 hex digits, as returned by New")]
    ConnectionIdMalformed,
    #[error("session_id is required: hex, 1 to 64 bytes")]
    SessionIdRequired,
    #[error("session_id must be hex, 1 to 64 bytes")]
    SessionIdMalformed,
    #[error("role must be ROLE_CLIENT or ROLE_SERVER")]
    RoleRequired,
    #[error("engine must be ENGINE_DAEMON or ENGINE_WORKER")]
    EngineUnknown,
    #[error("session_id must be empty for ROLE_CLIENT: the daemon assigns one")]
    SessionIdUnexpected,
    #[error(
        "server_name is required for ROLE_CLIENT: the name of the server that the session was made with"
    )]
    LookupTargetRequired,
    #[error("data is required: the library's encoding of the session")]
    DataRequired,
    #[error(
        "format must be 1 to 32 of the characters a-z, 0-9, `-` and `.`, and not `rustls`: the daemon reserves it"
    )]
    FormatInvalid,
    #[error("version must be PROTOCOL_VERSION_TLS_1_2 or PROTOCOL_VERSION_TLS_1_3")]
    VersionRequired,
    #[error(
        "peer must have 64 hex digits in certificate_sha256, and at most 64 names of 8 KiB in all"
    )]
    PeerInvalid,
    #[error("timeout must be more than 0")]
    TimeoutInvalid,
    #[error("authenticate_time must be a time, at most 60 s ahead of the daemon's wall clock")]
    AuthenticateTimeInvalid,
    #[error("{field} has {length} bytes; at most {max} are allowed")]
    FieldTooLong {
        field: &'static str,
        length: usize,
        max: usize,
    },
    #[error("alias must be `@` and 1 to 63 bytes, and is allowed only with `new`")]
    AliasMalformed,
    #[error("alias is in use on this stream: choose another, or Free its connection first")]
    AliasTaken,
    #[error("no connection of this stream has this alias")]
    AliasUnknown,
    #[error("the call has no method, or one that this daemon does not know")]
    MethodRequired,
    #[error("{0} calls in one message; at most {max} are allowed", max = super::limits::BATCH_MAX)]
    BatchTooLarge(usize),
    #[error("no context is named `{0}`: ListContexts lists the names")]
    ContextNotFound(String),
    #[error("shutdown is required: the flags to set, or {{}} to set none")]
    ShutdownRequired,
    #[error(
        "alert is required, with a code from 1 to 255 (RFC 8446 section 6): for close_notify use Shutdown"
    )]
    AlertInvalid,
    #[error("{field} has {length} bytes; at most {max} are allowed in one message", max = super::limits::BYTES_MAX)]
    BytesTooLong { field: &'static str, length: usize },
    #[error("invalid page_size {0}: expected 0 to 1000, where 0 means 100")]
    PageSizeInvalid(i32),
    #[error("invalid page_token: this daemon has not issued it for this list with these filters")]
    PageTokenInvalid,
    #[error("idle_timeout must be between 1 s and 24 h")]
    IdleTimeoutInvalid,
    #[error("request_id has {0} characters; at most 64 are allowed")]
    RequestIdTooLong(usize),
    #[error(
        "selector is required and must not be empty: name the sessions to revoke, or `all: true`"
    )]
    SelectorRequired,
    #[error(
        "certificate_sha256 must be the SHA-256 of the DER form: 64 hex digits, with colons between all bytes or none"
    )]
    CertificateSha256Malformed,
    #[error("before must be a time, at most 60 s ahead of the daemon's wall clock")]
    BeforeInvalid,
    #[error(
        "{0} WatchSessions streams are open, in all or of this caller, and no more are allowed"
    )]
    WatcherLimit(usize),
    #[error("{0}")]
    DriveEventUnexpected(&'static str),
    #[error("end_of_stream must be true: send it once, when the transport has ended")]
    EndOfStreamInvalid,
    #[error(
        "{waiting} bytes of plaintext wait for the handshake, and limits.plaintext_buffer is {limit}"
    )]
    PlaintextBufferFull { waiting: usize, limit: usize },
    #[error("the daemon is about to stop and takes no new streams")]
    Draining,
    #[error("reload refused; the configuration stays as it was: {0}")]
    ReloadRefused(String),
    #[error("this daemon was started without a source of its configuration: start it again")]
    ReloadUnavailable,
    #[error("{0}")]
    LogLevelInvalid(String),
    #[error("this daemon writes no log")]
    LogUnavailable,
    #[error("no ring of ticket keys is named `{0}`: ListRings lists the names")]
    RingNotFound(String),
    #[error(transparent)]
    RingAway(NotShared),
    #[error("the ring has no member of this name: GetRing lists them")]
    MemberNotFound,
    #[error("{field}: {why}")]
    MemberInvalid { field: &'static str, why: String },
    #[error("{0}")]
    MemberLimit(String),
    #[error("{0}: join again")]
    MemberFenced(String),
    #[error("{0}")]
    InstructionUnknown(String),
    #[error("{0}")]
    MemberEventUnexpected(&'static str),
    #[error(
        "this caller has no identity: its certificate has neither a URI, nor a DNS name, nor a subject"
    )]
    Unauthenticated,
    #[error("the client certificate of this connection has expired: connect again with a new one")]
    CertificateEnded,
    #[error("identity `{owner}` does not have the role {roles}{}: grant it with an [[access]] rule of the daemon",
        context.as_ref().map(|name| format!(" in context `{name}`")).unwrap_or_default())]
    PermissionDenied {
        owner: Arc<str>,
        roles: Roles,
        context: Option<String>,
    },
    #[error("this daemon has no such method: reflection lists the methods that it has")]
    MethodUnknown,
    /// A health check of a service that the daemon does not have.
    #[error("the daemon has no such service")]
    ServiceUnknown,
    /// A call with no request message or several, for a method that takes one.
    #[error("this method takes exactly one request message")]
    MessageCount,
    #[error("no role may call this method: the daemon's table of rights does not list it")]
    MethodUnlisted,
    #[error("{0} calls are being answered, and limits.calls_in_flight allows no more")]
    CallLimit(usize),
    #[error(
        "{0} calls of this caller are being answered, and limits.calls_per_owner allows no more"
    )]
    OwnerCallLimit(usize),
    #[error(
        "{0} calls of health and reflection are being answered, and the daemon answers no more at a time"
    )]
    OpenCallLimit(usize),
    #[error(
        "{0} calls of health and reflection of this caller are being answered, and it may have no more at a time"
    )]
    OwnerOpenCallLimit(usize),
    #[error(
        "{0} bytes of unfinished requests and unread answers are held, and limits.request_bytes or request_bytes_per_owner allows no more"
    )]
    RequestBytesLimit(usize),
    #[error(
        "{0} sockets are open, and limits.sockets or the system's limit of open files allows no more"
    )]
    SocketLimit(usize),
    #[error(
        "more than {0} lookups in a second found nothing, and limits.misses_per_second allows no more"
    )]
    MissLimit(u32),
    #[error(
        "the shared store did not answer: this daemon finds the session no more, and removes it from the store as soon as that answers"
    )]
    StoreAway,
    #[error(
        "the revocation is in force at this daemon, but the shared store did not take it: repeat the call, so that other daemons know of it"
    )]
    RevocationUndelivered,
    #[error(
        "the revocation is in force at this daemon, but the shared store has as many revocations as it may have: use `all: true`, or wait until others end, seven days after their time"
    )]
    RevocationLimit,
    #[error("the deadline of the call has passed")]
    DeadlineExceeded,
    #[error(transparent)]
    Connection(#[from] connection::Error),
}

/// How long a caller should wait before it retries a call with RESOURCE_EXHAUSTED.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The code, the reason, and the field at fault.
type Verdict = (Code, &'static str, Option<&'static str>);

impl Refusal {
    /// Returns the reason of its ErrorInfo.
    pub(crate) fn reason(&self) -> &'static str {
        let (_, reason, _) = self.verdict();
        reason
    }

    fn verdict(&self) -> Verdict {
        let invalid = |reason, field| (Code::InvalidArgument, reason, Some(field));
        match self {
            Self::ConnectionIdMalformed => invalid("CONNECTION_ID_MALFORMED", "connection_id"),
            Self::SessionIdRequired => invalid("SESSION_ID_REQUIRED", "session_id"),
            Self::SessionIdMalformed => invalid("SESSION_ID_MALFORMED", "session_id"),
            Self::RoleRequired => invalid("ROLE_REQUIRED", "role"),
            Self::EngineUnknown => invalid("ENGINE_UNKNOWN", "engine"),
            Self::SessionIdUnexpected => invalid("SESSION_ID_UNEXPECTED", "session_id"),
            Self::LookupTargetRequired => invalid("SERVER_NAME_REQUIRED", "server_name"),
            Self::DataRequired => invalid("DATA_REQUIRED", "data"),
            Self::FormatInvalid => invalid("FORMAT_INVALID", "format"),
            Self::VersionRequired => invalid("VERSION_REQUIRED", "version"),
            Self::PeerInvalid => invalid("PEER_INVALID", "peer"),
            Self::TimeoutInvalid => invalid("TIMEOUT_INVALID", "timeout"),
            Self::AuthenticateTimeInvalid => {
                invalid("AUTHENTICATE_TIME_INVALID", "authenticate_time")
            }
            Self::FieldTooLong { field, .. } => invalid("BYTES_TOO_LONG", field),
            Self::AliasMalformed => invalid("ALIAS_MALFORMED", "alias"),
            Self::AliasTaken => invalid("ALIAS_TAKEN", "alias"),
            Self::AliasUnknown => invalid("ALIAS_UNKNOWN", "connection_id"),
            Self::MethodRequired => invalid("METHOD_REQUIRED", "method"),
            Self::BatchTooLarge(_) => invalid("BATCH_TOO_LARGE", "calls"),
            Self::ContextNotFound(_) => (Code::NotFound, "CONTEXT_NOT_FOUND", Some("context")),
            Self::ShutdownRequired => invalid("SHUTDOWN_REQUIRED", "shutdown"),
            Self::AlertInvalid => invalid("ALERT_INVALID", "alert"),
            Self::BytesTooLong { field, .. } => invalid("BYTES_TOO_LONG", field),
            Self::PageSizeInvalid(_) => invalid("PAGE_SIZE_INVALID", "page_size"),
            Self::PageTokenInvalid => invalid("PAGE_TOKEN_INVALID", "page_token"),
            Self::IdleTimeoutInvalid => invalid("IDLE_TIMEOUT_INVALID", "idle_timeout"),
            Self::RequestIdTooLong(_) => invalid("REQUEST_ID_TOO_LONG", "request_id"),
            Self::SelectorRequired => invalid("SELECTOR_REQUIRED", "selector"),
            Self::CertificateSha256Malformed => {
                invalid("CERTIFICATE_SHA256_MALFORMED", "certificate_sha256")
            }
            Self::BeforeInvalid => invalid("BEFORE_INVALID", "before"),
            Self::WatcherLimit(_) => (Code::ResourceExhausted, "WATCHER_LIMIT", None),
            Self::DriveEventUnexpected(_) => invalid("DRIVE_EVENT_UNEXPECTED", "event"),
            Self::EndOfStreamInvalid => invalid("END_OF_STREAM_INVALID", "end_of_stream"),
            Self::PlaintextBufferFull { .. } => {
                (Code::ResourceExhausted, "PLAINTEXT_BUFFER_FULL", None)
            }
            Self::Draining => (Code::Unavailable, "DRAINING", None),
            Self::ReloadRefused(_) => (Code::FailedPrecondition, "RELOAD_REFUSED", None),
            Self::ReloadUnavailable => (Code::FailedPrecondition, "RELOAD_UNAVAILABLE", None),
            Self::LogLevelInvalid(_) => (Code::InvalidArgument, "LOG_LEVEL_INVALID", Some("level")),
            Self::LogUnavailable => (Code::FailedPrecondition, "LOG_UNAVAILABLE", None),
            Self::RingNotFound(_) => (Code::NotFound, "RING_NOT_FOUND", Some("ring")),
            Self::MemberNotFound => (Code::NotFound, "MEMBER_NOT_FOUND", Some("member")),
            Self::MemberInvalid { field, .. } => invalid("MEMBER_INVALID", field),
            Self::MemberLimit(_) => (Code::ResourceExhausted, "MEMBER_LIMIT", None),
            Self::MemberFenced(_) => (Code::Aborted, "MEMBER_FENCED", None),
            Self::InstructionUnknown(_) => invalid("INSTRUCTION_UNKNOWN", "sequence"),
            Self::MemberEventUnexpected(_) => invalid("MEMBER_EVENT_UNEXPECTED", "event"),
            Self::Unauthenticated => (Code::Unauthenticated, "UNAUTHENTICATED", None),
            Self::CertificateEnded => (Code::Unauthenticated, "CERTIFICATE_ENDED", None),
            Self::PermissionDenied { context: None, .. } => {
                (Code::PermissionDenied, "PERMISSION_DENIED", None)
            }
            Self::PermissionDenied { .. } => {
                (Code::PermissionDenied, "PERMISSION_DENIED", Some("context"))
            }
            Self::MethodUnknown => (Code::Unimplemented, "METHOD_UNKNOWN", None),
            Self::ServiceUnknown => (Code::NotFound, "SERVICE_UNKNOWN", Some("service")),
            Self::MessageCount => (Code::Unimplemented, "MESSAGE_COUNT", None),
            Self::MethodUnlisted => (Code::PermissionDenied, "PERMISSION_DENIED", None),
            Self::CallLimit(_) | Self::OpenCallLimit(_) => {
                (Code::ResourceExhausted, "CALL_LIMIT", None)
            }
            Self::OwnerCallLimit(_) | Self::OwnerOpenCallLimit(_) => {
                (Code::ResourceExhausted, "OWNER_CALL_LIMIT", None)
            }
            Self::RequestBytesLimit(_) => (Code::ResourceExhausted, "REQUEST_BYTES_LIMIT", None),
            Self::SocketLimit(_) => (Code::ResourceExhausted, "SOCKET_LIMIT", None),
            Self::MissLimit(_) => (Code::ResourceExhausted, "MISS_LIMIT", None),
            Self::RingAway(NotShared::NoRandomness(_)) => (Code::Internal, "NO_RANDOMNESS", None),
            Self::StoreAway | Self::RevocationUndelivered | Self::RingAway(_) => {
                (Code::Unavailable, "STORE_UNAVAILABLE", None)
            }
            Self::RevocationLimit => (Code::ResourceExhausted, "REVOCATION_LIMIT", None),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", None),
            Self::Connection(error) => connection_verdict(error),
        }
    }
}

fn connection_verdict(error: &connection::Error) -> Verdict {
    use connection::Error;
    let state = |reason| (Code::FailedPrecondition, reason, None);
    let invalid = |reason, field| (Code::InvalidArgument, reason, Some(field));
    match error {
        Error::NotFound(_) => (Code::NotFound, "CONNECTION_NOT_FOUND", None),
        Error::Failed(_) => state("CONNECTION_FAILED"),
        Error::HandshakeNotFinished => state("HANDSHAKE_NOT_FINISHED"),
        Error::ProtocolIsShutdown => state("PROTOCOL_IS_SHUTDOWN"),
        Error::ShutdownInInit => state("SHUTDOWN_IN_INIT"),
        Error::HandshakeRunning => state("HANDSHAKE_RUNNING"),
        Error::WrongEngine(_) => state("WRONG_ENGINE"),
        Error::Busy => state("CONNECTION_BUSY"),
        Error::Freed => (Code::Aborted, "CONNECTION_FREED", None),
        Error::ServerNameRequired => invalid("SERVER_NAME_REQUIRED", "server_name"),
        Error::ServerNameMalformed(_) => invalid("SERVER_NAME_MALFORMED", "server_name"),
        Error::WithoutCertificate(_) => state("CONTEXT_WITHOUT_CERTIFICATE"),
        Error::WithoutTrust(_) => state("CONTEXT_WITHOUT_TRUST"),
        Error::ServerNameOther(_) => invalid("SERVER_NAME_OTHER", "server_name"),
        Error::SessionOutOfScope => invalid("SESSION_OUT_OF_SCOPE", "session_id"),
        Error::TooManyConnections(_) => (Code::ResourceExhausted, "CONNECTION_LIMIT", None),
        Error::TooManyOfOwner(_) => (Code::ResourceExhausted, "OWNER_CONNECTION_LIMIT", None),
        Error::UnansweredOfOwner(_) => {
            (Code::ResourceExhausted, "OWNER_HANDSHAKE_BYTES_LIMIT", None)
        }
        Error::Unanswered(_) => (Code::ResourceExhausted, "HANDSHAKE_BYTES_LIMIT", None),
        Error::RequestIdReused => invalid("REQUEST_ID_REUSED", "request_id"),
        Error::NoRandomness => (Code::Internal, "NO_RANDOMNESS", None),
        Error::Engine(_) => (Code::Internal, "ENGINE", None),
    }
}

impl Refusal {
    /// Returns this refusal as the answer to one call of an Attach.
    pub(crate) fn call_error(&self) -> tls_sessiond_proto::CallError {
        let (code, reason, _) = self.verdict();
        tls_sessiond_proto::CallError {
            code: code.into(),
            message: excerpt(self.to_string()),
            reason: reason.into(),
            ..Default::default()
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason, field) = refusal.verdict();
        let message = excerpt(refusal.to_string());
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
        if let Some(field) = field.filter(|_| code == Code::InvalidArgument) {
            details.add_bad_request_violation(field, message.clone());
        }
        if code == Code::ResourceExhausted {
            details.set_retry_info(Some(RETRY_DELAY));
        }
        Self::with_error_details(code, message, details)
    }
}

/// The most bytes of an error message. Messages quote the request, and are sent in a header block.
/// Clients limit its size, some to 8 KiB.
const MESSAGE_MAX: usize = 400;

fn excerpt(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX)
            .rev()
            .find(|&at| message.is_char_boundary(at))
            .unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

/// The header with which tonic lists its encodings when it refuses a compressed message.
pub(crate) const ACCEPT_ENCODING: &str = "grpc-accept-encoding";
/// The message of tonic's status for a unary call without a request message.
const NO_MESSAGE: &str = "Missing request message.";

/// Returns the status with details. A status without details comes from tonic, and not from a
/// service of the daemon. It gets a reason by its code.
pub(crate) fn described(status: &Status) -> Status {
    if !status.details().is_empty() {
        return status.clone();
    }
    let (code, reason) = match status.code() {
        // tonic refuses a message over the size limit with this code.
        Code::OutOfRange => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        Code::Unimplemented if status.metadata().contains_key(ACCEPT_ENCODING) => {
            (Code::Unimplemented, "COMPRESSION_UNSUPPORTED")
        }
        Code::Unimplemented => (Code::Unimplemented, "METHOD_UNKNOWN"),
        Code::Internal if status.message() == NO_MESSAGE => return Refusal::MessageCount.into(),
        Code::Internal => (Code::Internal, "MESSAGE_MALFORMED"),
        Code::Cancelled => (Code::Cancelled, "CANCELLED"),
        other => (other, "TRANSPORT"),
    };
    Status::with_error_details(
        code,
        excerpt(status.message().to_owned()),
        ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new()),
    )
}
