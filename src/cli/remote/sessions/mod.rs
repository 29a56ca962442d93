//! `sessions`: list, show, explain, remove, revoke, watch.
//!
//! * `list`: the pages of a list, and the session that an id names
//! * `explain`: what is known about one id, and its removal
//! * `revoke`: all sessions of a peer or a server name
//! * `watch`, `filter`: events as they happen

use clap::{Args, Subcommand};
use tls_sessiond_proto::{self as pb, session_service_client::SessionServiceClient};
use tonic::transport::Channel;

use super::{
    Console, MESSAGE_MAX, Selection, Verdict, channel::RemoteDaemon, connections::peer,
    failure::Failure, id::IdPrefix, screen::Screen, words,
};

mod explain;
mod filter;
mod list;
mod revoke;
mod watch;

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond sessions list --server-name www.example.org
  tls-sessiond sessions show 9C41                    the first digits of an id are enough
  tls-sessiond sessions explain 9c41f0 --context web --role server
  tls-sessiond sessions remove 9c41f0
  tls-sessiond sessions revoke --uri spiffe://example.org/ns/web/one
  tls-sessiond sessions watch --kind removed,missed --context web";

/// A command about sessions.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SessionsCommand {
    /// List the sessions in the memory of the daemon, in tables with the first 16 digits of their
    /// ids. Those of a shared store are not listed.
    #[command(after_long_help = EXAMPLES)]
    List(list::ListSessionsArgs),
    /// Show one session of the memory of the daemon.
    #[command(after_long_help = EXAMPLES)]
    Show(OneSession),
    /// Explain why an id is resumed or not, also after its session was removed.
    #[command(after_long_help = explain::EXAMPLES)]
    Explain(OneSession),
    /// Remove one session. Connections that use it continue, and it is never resumed again.
    #[command(after_long_help = EXAMPLES)]
    Remove(OneSession),
    /// Revoke all matching sessions: those stored now, those stored later with an older
    /// authentication, and those already handed out.
    #[command(after_long_help = revoke::EXAMPLES)]
    Revoke(revoke::RevokeArgs),
    /// Print what happens to sessions, as it happens, until Ctrl-C.
    #[command(after_long_help = watch::EXAMPLES)]
    Watch(filter::WatchArgs),
}

/// One session.
#[derive(Debug, Args)]
pub(in crate::cli) struct OneSession {
    /// The id, or its first digits. Upper case and colons are accepted.
    id: IdPrefix,
    #[command(flatten)]
    selection: Selection,
}

impl SessionsCommand {
    pub(super) async fn run(self, console: &Console) -> Result<Verdict, Failure> {
        match self {
            Self::List(args) => list::list(console, args).await,
            Self::Show(session) => show(console, &session).await,
            Self::Explain(session) => explain::explain(console, &session).await,
            Self::Remove(session) => explain::remove(console, &session).await,
            Self::Revoke(args) => revoke::revoke(console, args).await,
            Self::Watch(args) => watch::watch(console, &args).await,
        }
    }
}

/// Returns the stub of SessionService.
fn stub(daemon: &RemoteDaemon) -> SessionServiceClient<Channel> {
    SessionServiceClient::new(daemon.channel()).max_decoding_message_size(MESSAGE_MAX)
}

async fn show(console: &Console, wanted: &OneSession) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let session = list::find(&daemon, wanted)
        .await?
        .ok_or_else(|| wanted.id.missing("session"))?;
    console
        .printer
        .message(&session, |screen| fields(screen, &session))?;
    Ok(Verdict::Yes)
}

/// Writes the fields of a session.
fn fields(screen: &mut Screen, session: &pb::Session) {
    screen.fields([
        ("id", session.id.as_str().into()),
        ("context", session.context.as_str().into()),
        ("role", words::word::<pb::Role>(session.role).into()),
        ("version", words::version(session.version).into()),
        ("cipher suite", words::or_dash(&session.cipher_suite).into()),
        ("server name", words::or_dash(&session.server_name).into()),
        ("peer", peer(session.peer.as_ref())),
        ("single use", words::yes_no(session.single_use).into()),
        ("format", session.format.as_str().into()),
        ("created", words::time(session.create_time.as_ref()).into()),
        (
            "authenticated",
            words::time(session.authenticate_time.as_ref()).into(),
        ),
        ("expires", words::time(session.expire_time.as_ref()).into()),
        (
            "open connections",
            u64::from(session.open_connections).into(),
        ),
        ("size", words::bytes(session.data_bytes.into()).into()),
    ]);
}
