//! `connections`: list, show, free.

use std::ops::ControlFlow;

use clap::{Args, Subcommand};
use tls_sessiond_proto::{self as pb, connection_service_client::ConnectionServiceClient};

use super::{
    Console, LIST_MAX, MESSAGE_MAX, PAGE, Selection, Verdict, admin,
    channel::RemoteDaemon,
    failure::Failure,
    id::IdPrefix,
    printer::note,
    screen::{Cell, Screen, Table, Tone},
    words,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond connections list
  tls-sessiond connections list --state handshaking --owner uid:1000
  tls-sessiond connections show 5F0A                 the first digits of an id are enough
  tls-sessiond connections free 5f0a1b2c3d4e5f60718293a4b5c6d7e8
  tls-sessiond connections list -o json | jq -r '.connections[].id'";

/// The number of digits of a complete id.
const DIGITS: usize = 32;

/// A command about connections.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ConnectionsCommand {
    /// List the connections that the caller may see, oldest first.
    #[command(after_long_help = EXAMPLES)]
    List(ListArgs),
    /// Show one connection.
    #[command(after_long_help = EXAMPLES)]
    Show {
        /// The id, or its first digits. Upper case and colons are accepted.
        id: IdPrefix,
    },
    /// Free a connection of any owner. An open one is unclosed: its sessions are removed.
    #[command(after_long_help = EXAMPLES)]
    Free {
        /// The id, or its first digits. Upper case and colons are accepted.
        id: IdPrefix,
    },
}

/// Which connections to list.
#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only those in this state.
    #[arg(long, value_name = "STATE", value_parser = words::parser::<pb::ConnectionState>())]
    state: Option<pb::ConnectionState>,
    /// Only those of this identity: local, uid:1000, uri:spiffe://example.org/a.
    #[arg(long, value_name = "IDENTITY")]
    owner: Option<String>,
    /// At most this many.
    #[arg(long, value_name = "NUMBER", default_value_t = LIST_MAX)]
    limit: usize,
}

impl ListArgs {
    fn fits(&self, connection: &pb::Connection) -> bool {
        self.selection.has_role(connection.role)
            && self
                .state
                .is_none_or(|state| connection.state == i32::from(state))
            && self
                .owner
                .as_ref()
                .is_none_or(|owner| connection.owner == *owner)
    }
}

impl ConnectionsCommand {
    pub(super) async fn run(self, console: &Console) -> Result<Verdict, Failure> {
        match self {
            Self::List(args) => list(console, &args).await,
            Self::Show { id } => show(console, &id).await,
            Self::Free { id } => free(console, &id).await,
        }
    }
}

async fn list(console: &Console, args: &ListArgs) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let context = args.selection.context.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    let mut more = false;
    visit(&daemon, context, |connection| {
        if !args.fits(&connection) {
            return ControlFlow::Continue(());
        }
        if found.len() == args.limit {
            more = true;
            return ControlFlow::Break(());
        }
        found.push(connection);
        ControlFlow::Continue(())
    })
    .await?;
    console
        .printer
        .list("connections", &found, |screen| table(screen, &found))?;
    if more {
        note(&format!(
            "only the first {} connections are listed; see --limit",
            args.limit
        ));
    }
    Ok(Verdict::Yes)
}

/// Calls `each` with every connection of a context, or of all contexts, until it breaks.
async fn visit(
    daemon: &RemoteDaemon,
    context: &str,
    mut each: impl FnMut(pb::Connection) -> ControlFlow<()>,
) -> Result<(), Failure> {
    let client = ConnectionServiceClient::new(daemon.channel());
    let mut client = client.max_decoding_message_size(MESSAGE_MAX);
    let mut page_token = String::new();
    loop {
        let call = client.list_connections(pb::ListConnectionsRequest {
            context: context.to_owned(),
            page_size: PAGE,
            page_token,
        });
        let page = daemon.call(call).await?;
        for connection in page.connections {
            if each(connection).is_break() {
                return Ok(());
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

fn table(screen: &mut Screen, connections: &[pb::Connection]) {
    let mut table = Table::new([
        "ID",
        "CONTEXT",
        "ROLE",
        "ENGINE",
        "STATE",
        "VERSION",
        "SERVER NAME",
        "PEER",
        "OWNER",
        "CREATED",
    ]);
    for connection in connections {
        table.row([
            connection.id.as_str().into(),
            connection.context.as_str().into(),
            words::word::<pb::Role>(connection.role).into(),
            words::word::<pb::Engine>(connection.engine).into(),
            state(connection.state),
            words::version(connection.version).into(),
            words::or_dash(&connection.server_name).into(),
            words::or_dash(&connection.peer_address).into(),
            connection.owner.as_str().into(),
            words::time(connection.create_time.as_ref()).into(),
        ]);
    }
    screen.table(&table);
}

/// Returns the word of a state in its colour.
pub(super) fn state(state: i32) -> Cell {
    let tone = match pb::ConnectionState::try_from(state) {
        Ok(pb::ConnectionState::Established) => Tone::Good,
        Ok(pb::ConnectionState::Handshaking) => Tone::Passing,
        Ok(pb::ConnectionState::Failed) => Tone::Bad,
        _ => Tone::Plain,
    };
    Cell::toned(&words::word::<pb::ConnectionState>(state), tone)
}

/// Returns the complete id that the digits name.
async fn resolve(daemon: &RemoteDaemon, id: &IdPrefix) -> Result<String, Failure> {
    if id.digits().len() == DIGITS {
        return Ok(id.digits().to_owned());
    }
    let mut found = Vec::new();
    visit(daemon, "", |connection| {
        if id.fits(&connection.id) {
            found.push(connection);
        }
        ControlFlow::Continue(())
    })
    .await?;
    let line = |connection: &pb::Connection| {
        format!(
            "{} {} {}",
            connection.id,
            connection.context,
            words::word::<pb::Role>(connection.role)
        )
    };
    id.only("connection", found, |connection| &connection.id, line)?
        .map(|connection| connection.id)
        .ok_or_else(|| id.missing("connection"))
}

async fn show(console: &Console, id: &IdPrefix) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let connection_id = resolve(&daemon, id).await?;
    let mut client = ConnectionServiceClient::new(daemon.channel());
    let call = client.get_connection(pb::GetConnectionRequest { connection_id });
    let connection = daemon.call(call).await?.connection.unwrap_or_default();
    console
        .printer
        .message(&connection, |screen| fields(screen, &connection))?;
    Ok(Verdict::Yes)
}

fn fields(screen: &mut Screen, connection: &pb::Connection) {
    let flags = connection.shutdown.unwrap_or_default();
    let flags = match (flags.sent, flags.received) {
        (false, false) => "-",
        (true, false) => "sent",
        (false, true) => "received",
        (true, true) => "sent, received",
    };
    screen.fields([
        ("id", connection.id.as_str().into()),
        ("context", connection.context.as_str().into()),
        ("role", words::word::<pb::Role>(connection.role).into()),
        (
            "engine",
            words::word::<pb::Engine>(connection.engine).into(),
        ),
        ("state", state(connection.state)),
        ("shutdown", flags.into()),
        (
            "close evidence",
            words::word::<pb::CloseEvidence>(connection.close_evidence).into(),
        ),
        ("version", words::version(connection.version).into()),
        (
            "pinned version",
            words::version(connection.pinned_version).into(),
        ),
        (
            "cipher suite",
            words::or_dash(&connection.cipher_suite).into(),
        ),
        ("alpn", words::or_dash(&connection.alpn).into()),
        (
            "server name",
            words::or_dash(&connection.server_name).into(),
        ),
        ("resumed", words::yes_no(connection.session_reused).into()),
        ("session", words::or_dash(&connection.session_id).into()),
        ("peer", peer(connection.peer.as_ref())),
        (
            "peer address",
            words::or_dash(&connection.peer_address).into(),
        ),
        ("owner", connection.owner.as_str().into()),
        (
            "created",
            words::time(connection.create_time.as_ref()).into(),
        ),
        (
            "expires",
            words::time(connection.expire_time.as_ref()).into(),
        ),
    ]);
}

/// Returns the names that a peer proved, or `-`.
pub(super) fn peer(peer: Option<&pb::PeerIdentity>) -> Cell {
    let Some(peer) = peer else {
        return "-".into();
    };
    let mut names: Vec<_> = peer.uris.iter().chain(&peer.dns_names).cloned().collect();
    if !peer.subject.is_empty() {
        names.push(peer.subject.clone());
    }
    names.push(format!("sha256:{}", peer.certificate_sha256));
    names.join(", ").into()
}

async fn free(console: &Console, id: &IdPrefix) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let connection_id = resolve(&daemon, id).await?;
    let call = pb::FreeConnectionRequest {
        connection_id: connection_id.clone(),
    };
    let answer = daemon.call(admin(&daemon).free_connection(call)).await?;
    console.printer.message(&answer, |screen| {
        screen.line(format!("freed {connection_id}"));
        for session in &answer.removed_sessions {
            screen.line(format!(
                "removed session {} ({})",
                session.session_id,
                words::word::<pb::RemovalReason>(session.reason)
            ));
        }
    })?;
    Ok(Verdict::Yes)
}
