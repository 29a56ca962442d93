//! Lists sessions page by page, and finds the session that an id names.

use std::ops::ControlFlow;

use clap::Args;
use tls_sessiond_proto as pb;

use super::{
    super::{
        Console, LIST_MAX, PAGE, Selection, Verdict,
        channel::RemoteDaemon,
        failure::Failure,
        printer::note,
        screen::{Screen, Table},
        words,
    },
    OneSession, stub,
};

/// The digits of an id that a table shows. They are enough for every command.
const SHOWN_DIGITS: usize = 16;

/// Which sessions to list.
#[derive(Debug, Args)]
pub(in crate::cli) struct ListSessionsArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only those that were made under this server name.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    server_name: String,
    /// At most this many.
    #[arg(long, value_name = "NUMBER", default_value_t = LIST_MAX)]
    limit: usize,
}

pub(super) async fn list(console: &Console, args: ListSessionsArgs) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let mut found = Vec::new();
    let mut more = false;
    let request = pb::ListSessionsRequest {
        context: args.selection.context.clone().unwrap_or_default(),
        server_name: args.server_name,
        ..Default::default()
    };
    visit(&daemon, request, |session| {
        if !args.selection.has_role(session.role) {
            return ControlFlow::Continue(());
        }
        if found.len() == args.limit {
            more = true;
            return ControlFlow::Break(());
        }
        found.push(session);
        ControlFlow::Continue(())
    })
    .await?;
    console
        .printer
        .list("sessions", &found, |screen| table(screen, &found))?;
    if more {
        note(&format!(
            "only the first {} sessions are listed; see --limit",
            args.limit
        ));
    }
    Ok(Verdict::Yes)
}

/// Calls `each` with every session of a list, until it breaks. Sets size and token of the pages.
async fn visit(
    daemon: &RemoteDaemon,
    mut request: pb::ListSessionsRequest,
    mut each: impl FnMut(pb::Session) -> ControlFlow<()>,
) -> Result<(), Failure> {
    request.page_size = PAGE;
    loop {
        let page = daemon
            .call(stub(daemon).list_sessions(request.clone()))
            .await?;
        for session in page.sessions {
            if each(session).is_break() {
                return Ok(());
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(());
        }
    }
}

fn table(screen: &mut Screen, sessions: &[pb::Session]) {
    let mut table = Table::new([
        "ID",
        "CONTEXT",
        "ROLE",
        "VERSION",
        "SERVER NAME",
        "FORMAT",
        "USES",
        "OPEN",
        "EXPIRES",
    ]);
    for session in sessions {
        table.row([
            session.id.get(..SHOWN_DIGITS).unwrap_or(&session.id).into(),
            session.context.as_str().into(),
            words::word::<pb::Role>(session.role).into(),
            words::version(session.version).into(),
            words::or_dash(&session.server_name).into(),
            session.format.as_str().into(),
            if session.single_use { "once" } else { "many" }.into(),
            u64::from(session.open_connections).into(),
            words::time(session.expire_time.as_ref()).into(),
        ]);
    }
    screen.table(&table);
}

/// Returns the one session in the memory of the daemon that the arguments name. `None`: there is
/// none.
///
/// # Errors
/// [`Failure::No`]: there are several.
pub(super) async fn find(
    daemon: &RemoteDaemon,
    wanted: &OneSession,
) -> Result<Option<pb::Session>, Failure> {
    let OneSession { id, selection } = wanted;
    let request = pb::ListSessionsRequest {
        context: selection.context.clone().unwrap_or_default(),
        ..Default::default()
    };
    let mut found = Vec::new();
    visit(daemon, request, |session| {
        if id.fits(&session.id) && selection.has_role(session.role) {
            found.push(session);
        }
        ControlFlow::Continue(())
    })
    .await?;
    let line = |session: &pb::Session| {
        format!(
            "{} --context {} --role {}",
            session.id,
            session.context,
            words::word::<pb::Role>(session.role)
        )
    };
    id.only("session", found, |session| &session.id, line)
}
