//! Errors of calls on a connection.

use std::sync::Arc;

use tls_sessiond_types::server_name::ServerName;

use super::{ConnectionId, EngineKind};

/// Why a call was refused. A refused call changes nothing, except that [`Self::Unanswered`] and
/// [`Self::UnansweredOfOwner`] fail the handshake.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection has this id.
    #[error(
        "no connection of this caller has the id {0}: it was freed, its stream ended, it was idle for longer than its \
         idle_timeout, or the daemon was restarted"
    )]
    NotFound(ConnectionId),
    /// A fatal error ended the connection.
    #[error("the connection has failed: {0}; call Clear or Free")]
    Failed(String),
    /// Plaintext came too early.
    #[error(
        "plaintext before the handshake is finished: send it again once the connection is established"
    )]
    HandshakeNotFinished,
    /// Plaintext came after SENT.
    #[error("plaintext after this side closed: SENT is set")]
    ProtocolIsShutdown,
    /// SSL_R_SHUTDOWN_WHILE_IN_INIT.
    #[error(
        "the handshake is not finished, so it cannot be closed: use SetShutdown to set only the flags"
    )]
    ShutdownInInit,
    /// SetSession was called during a handshake.
    #[error(
        "the session cannot change during a handshake: finish the handshake, or call Clear first"
    )]
    HandshakeRunning,
    /// The call is for connections of the other engine.
    #[error("{}", wrong_engine(*.0))]
    WrongEngine(EngineKind),
    /// A Drive stream runs the connection, or another call of it waits for the shared store.
    #[error(
        "a Drive stream or another call runs this connection: use its events, or wait for its end"
    )]
    Busy,
    /// The connection was freed while a Drive stream ran it.
    #[error("the connection was freed, or idle for longer than its idle time-out")]
    Freed,
    /// A client needs the name of its server.
    #[error(
        "a client needs server_name: the DNS name or IP address that the server's certificate must show"
    )]
    ServerNameRequired,
    /// The server name is not a name.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    ServerNameMalformed(String),
    /// The context cannot be a server.
    #[error("context `{0}` has no certificate, which a server needs: set certificate and key")]
    WithoutCertificate(Arc<str>),
    /// The context cannot be a client.
    #[error(
        "context `{0}` has no trust anchors, so no server can be verified: set ca, or install this system's certificates"
    )]
    WithoutTrust(Arc<str>),
    /// The session belongs to another scope, role or server.
    #[error("this session was made in another context or role, or with another server")]
    SessionOutOfScope,
    /// A client's session was put under another server name than that of the connection.
    #[error(
        "the sessions of this connection are for its server `{0}`: leave server_name empty, or set it to that name"
    )]
    ServerNameOther(ServerName<'static>),
    /// The table is full.
    #[error("there are {0} connections, and limits.connections allows no more")]
    TooManyConnections(usize),
    /// One owner has too many connections.
    #[error("this caller has {0} connections, and limits.connections_per_owner allows no more")]
    TooManyOfOwner(usize),
    /// The unfinished handshakes of one owner's connections hold too many bytes.
    #[error(
        "unfinished handshakes of this caller's connections may hold {0} bytes at most: they lapse after 60 s, try again then"
    )]
    UnansweredOfOwner(usize),
    /// The unfinished handshakes of all connections hold too many bytes.
    #[error(
        "unfinished handshakes may hold {0} bytes at most: they lapse after 60 s, try again then"
    )]
    Unanswered(usize),
    /// The request id was used before, for a different request.
    #[error("this request_id was used within the last minute for a different request")]
    RequestIdReused,
    /// The system has no random numbers.
    #[error("the system gave no random numbers")]
    NoRandomness,
    /// rustls refused to begin the handshake.
    #[error("the handshake could not begin: {0}")]
    Engine(#[source] rustls::Error),
}

fn wrong_engine(wanted: EngineKind) -> &'static str {
    match wanted {
        EngineKind::Daemon => {
            "the worker runs TLS for this connection: Exchange and Drive are for ENGINE_DAEMON"
        }
        EngineKind::Worker => {
            "the daemon runs TLS for this connection: PutSession and ReportAlert are for ENGINE_WORKER"
        }
    }
}
