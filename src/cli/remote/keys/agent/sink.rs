//! A server that takes keys.

use std::time::Duration;

use tls_sessiond_proto::TicketKeyStyle;

use super::{
    envoy::Envoy, files::PlainFiles, haproxy::Haproxy, nginx::Nginx, order::KeyOrder,
    program::Program,
};

/// Why a server does not run an instruction: one line for an operator, without a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotRun(pub(super) String);

/// A server.
pub(super) enum Sink {
    Nginx(Nginx),
    Files(PlainFiles),
    Haproxy(Haproxy),
    Envoy(Box<Envoy>),
    Program(Program),
}

impl Sink {
    /// Returns the word for the kind of server.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nginx(_) => "nginx",
            Self::Files(_) => "files",
            Self::Haproxy(_) => "haproxy",
            Self::Envoy(_) => "envoy",
            Self::Program(_) => "command",
        }
    }

    /// Returns how the server takes its keys.
    pub(super) fn style(&self, is_single: bool) -> TicketKeyStyle {
        match self {
            Self::Haproxy(_) => TicketKeyStyle::Push,
            _ if is_single => TicketKeyStyle::Single,
            _ => TicketKeyStyle::List,
        }
    }

    /// Returns how often the agent looks whether the server still runs its keys, where it can look
    /// without a reload.
    pub(super) fn looks_every(&self) -> Option<Duration> {
        match self {
            Self::Haproxy(_) => Some(Duration::from_secs(5)),
            _ => None,
        }
    }

    /// Returns whether the server is given the same keys again: the agent sees what it runs, or a server
    /// without files may have lost them. Others would reload for nothing.
    pub(super) fn gives_again(&self) -> bool {
        matches!(self, Self::Haproxy(_) | Self::Program(_))
    }

    /// Returns whether the server reads files when it starts.
    pub(super) fn has_files(&self) -> bool {
        !matches!(self, Self::Program(_))
    }

    /// Writes the files that the server reads when it starts.
    ///
    /// # Errors
    /// A file cannot be written, or would be on a disk.
    pub(super) fn write(&mut self, order: &KeyOrder) -> Result<(), NotRun> {
        match self {
            Self::Nginx(nginx) => nginx.files.write(order),
            Self::Files(files) => files.files.write(order),
            Self::Haproxy(haproxy) => haproxy.write(order),
            Self::Envoy(envoy) => envoy.write(order),
            Self::Program(_) => Ok(()),
        }
    }

    /// Gives the keys to the server that runs, after [`Self::write`], and waits until it uses them.
    ///
    /// # Errors
    /// The server does not use them, as far as the agent can see.
    pub(super) async fn give(&mut self, order: &KeyOrder) -> Result<(), NotRun> {
        let done = match self {
            Self::Nginx(nginx) => nginx.reload().await,
            Self::Files(files) => files.after().await,
            Self::Haproxy(haproxy) => haproxy.push(order).await,
            Self::Envoy(envoy) => envoy.shows(order).await,
            Self::Program(program) => program.give(order).await,
        };
        match done {
            // A program or a server may quote its input.
            Err(NotRun(why)) if order.is_told_by(&why) => Err(NotRun(
                "the server's words are withheld, because they have a part of a key".into(),
            )),
            done => done,
        }
    }
}
