//! The errors of a connection whose TLS the daemon runs.

use std::io::{self, ErrorKind};

use crate::framing::Unexpected;

/// The gRPC status codes that have an [`ErrorKind`] of their own
/// (<https://grpc.io/docs/guides/status-codes>).
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// The reason why a connection failed. It is the inner error of the [`io::Error`] that the calls of
/// an engine return.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A fatal alert ended the connection. An alert of this side has been written to the socket.
    #[error("{} the fatal alert {name} ({code})", if *.received { "the peer sent" } else { "this side sent" })]
    Alert {
        /// The AlertDescription (RFC 8446 section 6).
        code: u8,
        /// Its name, or `unknown`.
        name: String,
        /// Whether the peer sent it.
        received: bool,
    },
    /// The peer's socket ended without a close_notify. The data may be truncated.
    #[error("the peer's socket ended without a close_notify")]
    Truncated,
    /// The handshake or the connection failed without an alert.
    #[error("the TLS connection failed without an alert")]
    Failed,
    /// The socket to the peer failed.
    #[error("the socket to the peer failed: {text}")]
    Socket {
        /// The kind of the socket's error.
        kind: ErrorKind,
        /// The text of the socket's error.
        text: String,
    },
    /// This side has closed the connection and can write no more.
    #[error("this side has closed the connection")]
    Closed,
    /// No connection to the daemon could be made.
    #[error("cannot reach the daemon: {text}")]
    Unreachable {
        /// The kind of the transport's error.
        kind: ErrorKind,
        /// The text of the transport's error.
        text: String,
    },
    /// The daemon refused the connection, or ended it with an error.
    #[error("the daemon ended the connection: {message} (gRPC status {code})")]
    Refused {
        /// The gRPC status code.
        code: i32,
        /// The message of the status.
        message: String,
    },
    /// The connection to the daemon broke, or the daemon sent an answer that is not accepted.
    #[error("the connection to the daemon was lost: {0}")]
    DaemonLost(String),
}

impl EngineError {
    /// Returns the kind of the [`io::Error`].
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Alert { received: true, .. } => ErrorKind::ConnectionAborted,
            Self::Alert { .. } | Self::Failed => ErrorKind::InvalidData,
            Self::Truncated => ErrorKind::UnexpectedEof,
            Self::Socket { kind, .. } | Self::Unreachable { kind, .. } => *kind,
            Self::Closed => ErrorKind::BrokenPipe,
            Self::Refused { code, .. } => match *code {
                INVALID_ARGUMENT => ErrorKind::InvalidInput,
                NOT_FOUND => ErrorKind::NotFound,
                PERMISSION_DENIED | UNAUTHENTICATED => ErrorKind::PermissionDenied,
                DEADLINE_EXCEEDED => ErrorKind::TimedOut,
                _ => ErrorKind::ConnectionAborted,
            },
            Self::DaemonLost(_) => ErrorKind::ConnectionReset,
        }
    }

    pub(super) fn socket(error: &io::Error) -> Self {
        Self::Socket {
            kind: error.kind(),
            text: error.to_string(),
        }
    }

    pub(super) fn unreachable(error: &io::Error) -> Self {
        Self::Unreachable {
            kind: error.kind(),
            text: error.to_string(),
        }
    }
}

impl From<EngineError> for io::Error {
    fn from(error: EngineError) -> Self {
        Self::new(error.kind(), error)
    }
}

impl From<h2::Error> for EngineError {
    fn from(error: h2::Error) -> Self {
        Self::DaemonLost(error.to_string())
    }
}

impl From<Unexpected> for EngineError {
    fn from(_: Unexpected) -> Self {
        Self::DaemonLost("it sent a message that is compressed or too large".into())
    }
}

impl From<prost::DecodeError> for EngineError {
    fn from(error: prost::DecodeError) -> Self {
        Self::DaemonLost(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alert_names_itself_and_its_sender() {
        let sent = EngineError::Alert {
            code: 48,
            name: "unknown_ca".into(),
            received: false,
        };
        let error = io::Error::from(sent.clone());
        assert_eq!(
            error.to_string(),
            "this side sent the fatal alert unknown_ca (48)"
        );
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        assert_eq!(inner, Some(&sent));
        let received = EngineError::Alert {
            code: 40,
            name: "handshake_failure".into(),
            received: true,
        };
        assert_eq!(
            received.to_string(),
            "the peer sent the fatal alert handshake_failure (40)"
        );
    }
}
