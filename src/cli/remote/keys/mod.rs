//! `keys`: rings of session ticket keys.
//!
//! * `status`: rings and their members
//! * `rotate`: a rotation now, and the end of a membership
//! * `agent`: gives the keys of a ring to a server

use clap::Subcommand;
use tls_sessiond_proto::ticket_key_service_client::TicketKeyServiceClient;
use tonic::transport::Channel;

use super::{Console, Verdict, channel::RemoteDaemon, failure::Failure};

mod agent;
mod rotate;
mod status;

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond keys status
  tls-sessiond keys status web
  tls-sessiond keys rotate web
  tls-sessiond keys fence web web-7/nginx
  tls-sessiond keys agent --ring web --nginx /run/keys/web --pid-file /run/nginx.pid

docs/ticket-keys.md explains rings, members and rotations.";

/// A command about ticket keys.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum KeysCommand {
    /// Show the rings and their members: phase, epochs, ages, and which member a rotation waits for.
    #[command(after_long_help = status::EXAMPLES)]
    Status(status::RingStatusArgs),
    /// Rotate the keys of a ring now, or replace all of them at once (--emergency).
    #[command(after_long_help = rotate::ROTATE_EXAMPLES)]
    Rotate(rotate::RotateArgs),
    /// End a membership, so that the ring no longer waits for a server that does not return.
    #[command(after_long_help = rotate::FENCE_EXAMPLES)]
    Fence(rotate::FenceArgs),
    /// Give the keys of a ring to one server on this host, until SIGTERM: nginx, HAProxy, Envoy, files,
    /// or a command.
    #[command(after_long_help = agent::EXAMPLES)]
    Agent(Box<agent::AgentArgs>),
}

impl KeysCommand {
    pub(super) async fn run(self, console: &Console) -> Result<Verdict, Failure> {
        match self {
            Self::Status(args) => status::status(console, args).await,
            Self::Rotate(args) => rotate::rotate(console, args).await,
            Self::Fence(args) => rotate::fence(console, args).await,
            Self::Agent(args) => agent::agent(console, *args).await,
        }
    }
}

/// Returns the stub of TicketKeyService.
fn stub(daemon: &RemoteDaemon) -> TicketKeyServiceClient<Channel> {
    TicketKeyServiceClient::new(daemon.channel())
}
