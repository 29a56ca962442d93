//! Why a command that calls a daemon fails, as a message and as an exit status.

use std::{error::Error as _, io, time::Duration};

use tls_sessiond_core::pem::PemError;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{address::DaemonAddress, text::escaped};
use crate::cli::{EX_CONFIG, EX_USAGE};

/// Exit status for a daemon that cannot be reached: EX_UNAVAILABLE of sysexits.h.
const EX_UNAVAILABLE: u8 = 69;
/// Exit status for a call that failed, and for the answer no.
const EX_NO: u8 = 1;

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The arguments are wrong.
    #[error("{0}")]
    Usage(String),
    /// A file that an option names cannot be used.
    #[error("{option}: {cause}")]
    File {
        option: &'static str,
        cause: PemError,
    },
    /// The daemon cannot be reached, or does not answer in time.
    #[error("cannot reach the daemon at {address}: {cause}")]
    Unreachable {
        address: DaemonAddress,
        cause: String,
    },
    /// A proxy cannot be reached, or does not answer in time.
    #[error("cannot reach the proxy at {address}: {cause}")]
    ProxyUnreachable { address: String, cause: String },
    /// The daemon answered with an error.
    #[error("{}", refusal(.0))]
    Refused(Box<Status>),
    /// The daemon has no such object, or the question has no single answer.
    #[error("{0}")]
    No(String),
    /// The daemon sent an answer that does not fit the contract.
    #[error("the answer of the daemon cannot be shown: {0}")]
    Answer(String),
    /// stdout cannot be written.
    #[error("cannot write to stdout: {0}")]
    Stdout(io::Error),
    /// The system refused something that the command needs.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl Failure {
    /// Returns the failure of a call: [`Self::Refused`] if the daemon answered, and
    /// [`Self::Unreachable`] if the transport failed before an answer.
    pub(super) fn of_call(address: &DaemonAddress, status: Status) -> Self {
        if status.source().is_none() {
            // An HTTP server that is not gRPC answers without a status.
            let is_foreign = status.get_details_error_info().is_none()
                && status.message().contains("grpc-status header missing");
            return match is_foreign {
                true => Self::Unreachable {
                    address: address.clone(),
                    cause:
                        "another server answers there, which is not gRPC; the API is at listen.api"
                            .into(),
                },
                false => Self::Refused(Box::new(status)),
            };
        }
        let mut causes = Vec::new();
        let mut next = status.source();
        while let Some(err) = next {
            causes.push(err.to_string());
            next = err.source();
        }
        // Some errors repeat that of their source.
        causes.dedup();
        Self::Unreachable {
            address: address.clone(),
            cause: escaped(&causes.join(": ")),
        }
    }

    /// Returns the failure of a daemon that did not answer within the time limit.
    pub(super) fn late(address: DaemonAddress, limit: Duration) -> Self {
        Self::Unreachable {
            address,
            cause: format!("no answer within {limit:?} (--timeout)"),
        }
    }

    /// Returns the exit status. `0`: the reader of stdout has gone away, which ends a command
    /// as it ends `head`.
    pub(super) fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => EX_USAGE,
            Self::File { .. } => EX_CONFIG,
            Self::Unreachable { .. } | Self::ProxyUnreachable { .. } => EX_UNAVAILABLE,
            Self::Stdout(err) if err.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Refused(_)
            | Self::No(_)
            | Self::Answer(_)
            | Self::Stdout(_)
            | Self::System(_) => EX_NO,
        }
    }
}

/// Returns the text of a status: its code, the stable reason, the message, and when to try again.
fn refusal(status: &Status) -> String {
    let mut text = code_name(status.code());
    let info = status.get_details_error_info();
    // Some reasons are named as their code.
    if let Some(info) = info.filter(|info| info.reason != text) {
        text += &format!(" {}", info.reason);
    }
    text += &format!(": {}", status.message());
    let retry = status.get_details_retry_info();
    if let Some(delay) = retry.and_then(|retry| retry.retry_delay) {
        text += &format!("; try again in {} s", delay.as_secs_f64());
    }
    let help = status.get_details_help();
    for link in help.map(|help| help.links).unwrap_or_default() {
        text += &format!("; {}: {}", link.description, link.url);
    }
    escaped(&text)
}

/// Returns the name of a code as gRPC writes it, `NOT_FOUND` for example.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_code_reason_and_delay() {
        let mut details = tonic_types::ErrorDetails::new();
        details
            .set_error_info(
                "CALL_LIMIT",
                "tls.sessiond.v1",
                std::collections::HashMap::new(),
            )
            .set_retry_info(Some(std::time::Duration::from_millis(250)));
        let status =
            Status::with_error_details(Code::ResourceExhausted, "too \x1b[31mmany", details);
        assert_eq!(
            refusal(&status),
            "RESOURCE_EXHAUSTED CALL_LIMIT: too \\u{1b}[31mmany; try again in 0.25 s"
        );
        assert_eq!(code_name(Code::Ok), "OK");
    }
}
