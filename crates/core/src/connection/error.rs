//! Why calls on a connection are refused.

use std::sync::Arc;

use tls_sessiond_types::server_name::ServerName;

use super::{ConnectionId, EngineKind};

/// Why a call was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection has this id.
    #[error("no connection has the id {0}: it was freed, or lay unused for longer than its idle time-out")]
    NotFound(ConnectionId),
    /// A fatal error ended it.
    #[error("the connection has failed: {0}; only Clear and Free help")]
    Failed(String),
    /// Plaintext came too early.
    #[error("plaintext before the handshake is done: send it again once the connection is established")]
    HandshakeNotFinished,
    /// Plaintext came after SENT.
    #[error("plaintext after this side closed: SENT is set")]
    ProtocolIsShutdown,
    /// SSL_R_SHUTDOWN_WHILE_IN_INIT.
    #[error("no handshake is done that could be closed: use SetShutdown to set the flags alone")]
    ShutdownInInit,
    /// SetSession in the middle of a handshake.
    #[error("a handshake is running with the session that it began with: finish it, or Clear first")]
    HandshakeRunning,
    /// The call is for connections of the other engine.
    #[error("{}", wrong_engine(*.0))]
    WrongEngine(EngineKind),
    /// A Drive runs it.
    #[error("a Drive stream runs this connection: use its events, or end it first")]
    Busy,
    /// It was freed while a Drive ran it.
    #[error("the connection was freed, or lay unused for longer than its idle time-out")]
    Freed,
    /// A client needs to know whom it speaks with.
    #[error("a client needs server_name: the DNS name or IP address that the server's certificate must show")]
    ServerNameRequired,
    /// It is no name.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    ServerNameMalformed(String),
    /// The context cannot be a server.
    #[error("context `{0}` has no certificate, which a server needs: set certificate and key")]
    WithoutCertificate(Arc<str>),
    /// The context cannot be a client.
    #[error(
        "context `{0}` trusts nobody, so no server can be verified: set ca, or install this system's certificates"
    )]
    WithoutTrust(Arc<str>),
    /// The session was made elsewhere.
    #[error("this session was made in another context or role, or with another server")]
    SessionOutOfScope,
    /// A client's session was put under another name than the connection's.
    #[error(
        "this connection speaks with `{0}`, and so do its sessions: leave server_name empty, or say that"
    )]
    ServerNameOther(ServerName<'static>),
    /// The table is full.
    #[error("{0} connections are open, and limits.connections allows no more")]
    TooManyConnections(usize),
    /// One owner has too many.
    #[error("this caller has {0} connections open, and limits.connections_per_owner allows no more")]
    TooManyOfOwner(usize),
    /// Peers have begun too many handshakes of one owner.
    #[error(
        "unfinished handshakes of this caller's connections hold {0} bytes, and no more are kept: they end after 60 s"
    )]
    UnansweredOfOwner(usize),
    /// Peers have begun too many handshakes.
    #[error("unfinished handshakes hold {0} bytes, and no more are kept: they end after 60 s")]
    Unanswered(usize),
    /// The request id was used.
    #[error("this request_id was used within the last minute for a request that differs")]
    RequestIdReused,
    /// The system has no random numbers.
    #[error("the system gave no random numbers")]
    NoRandomness,
    /// rustls would not start.
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
