//! `contexts`: the contexts that the caller may see, and one of them.

use clap::Subcommand;
use tls_sessiond_proto::{self as pb, context_service_client::ContextServiceClient};

use super::{
    Console, Verdict,
    failure::Failure,
    screen::{Screen, Table},
    words,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond contexts list
  tls-sessiond contexts show web
  tls-sessiond contexts list --output json | jq '.contexts[].name'";

/// A command about contexts.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ContextsCommand {
    /// List the contexts, in the order of the configuration file.
    #[command(after_long_help = EXAMPLES)]
    List,
    /// Show one context with its settings and counters.
    #[command(after_long_help = EXAMPLES)]
    Show {
        /// Name of the context.
        name: String,
    },
}

impl ContextsCommand {
    pub(super) async fn run(self, console: &Console) -> Result<Verdict, Failure> {
        match self {
            Self::List => list(console).await,
            Self::Show { name } => show(console, name).await,
        }
    }
}

async fn list(console: &Console) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let mut client = ContextServiceClient::new(daemon.channel());
    let call = client.list_contexts(pb::ListContextsRequest {});
    let answer = daemon.call(call).await?;
    console
        .printer
        .message(&answer, |screen| table(screen, &answer.contexts))?;
    Ok(Verdict::Yes)
}

/// Writes a row for each context: what its cache holds, and how many handshakes resumed.
pub(super) fn table(screen: &mut Screen, contexts: &[pb::Context]) {
    let mut table = Table::new([
        "NAME",
        "SESSIONS",
        "MAX/ROLE",
        "BYTES",
        "MAX/ROLE",
        "HANDSHAKES",
        "RESUMED",
        "MISSES",
        "UNCLOSED",
    ]);
    for context in contexts {
        let stats = context.stats.clone().unwrap_or_default();
        let handshakes = finished(&stats);
        table.row([
            context.name.as_str().into(),
            stats.sessions.into(),
            context.cache_entries_max.into(),
            words::bytes(stats.session_bytes).into(),
            words::bytes(context.cache_bytes_max).into(),
            handshakes.into(),
            words::percent(stats.hits, handshakes).into(),
            stats.misses.into(),
            stats.unclosed.into(),
        ]);
    }
    screen.table(&table);
}

/// Returns the number of finished handshakes, of both roles.
fn finished(stats: &pb::SessionStats) -> u64 {
    stats.accept_good.saturating_add(stats.connect_good)
}

async fn show(console: &Console, name: String) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let mut client = ContextServiceClient::new(daemon.channel());
    let call = client.get_context(pb::GetContextRequest { name });
    let answer = daemon.call(call).await?;
    let context = answer.context.unwrap_or_default();
    console
        .printer
        .message(&context, |screen| fields(screen, &context))?;
    Ok(Verdict::Yes)
}

fn fields(screen: &mut Screen, context: &pb::Context) {
    let stats = context.stats.clone().unwrap_or_default();
    let versions: Vec<_> = context
        .versions
        .iter()
        .map(|&version| words::version(version))
        .collect();
    screen.fields([
        ("name", context.name.as_str().into()),
        ("versions", versions.join(", ").into()),
        ("cipher suites", context.cipher_suites.join(", ").into()),
        ("alpn", words::or_dash(&context.alpn.join(", ")).into()),
        (
            "close policy",
            words::word::<pb::ClosePolicy>(context.close_policy).into(),
        ),
        (
            "session timeout",
            words::duration(context.session_timeout.as_ref()).into(),
        ),
        ("ticket ring", words::or_dash(&context.ticket_ring).into()),
        ("scope", context.scope.as_str().into()),
        (
            "certificate expires",
            words::time(context.certificate_expire_time.as_ref()).into(),
        ),
        (
            "shared sessions",
            words::yes_no(context.shared_sessions).into(),
        ),
        (
            "sessions",
            format!(
                "{} ({} per role at most)",
                stats.sessions, context.cache_entries_max
            )
            .into(),
        ),
        (
            "session bytes",
            format!(
                "{} ({} per role at most)",
                words::bytes(stats.session_bytes),
                words::bytes(context.cache_bytes_max)
            )
            .into(),
        ),
        (
            "as server",
            format!("{} begun, {} finished", stats.accept, stats.accept_good).into(),
        ),
        (
            "as client",
            format!("{} begun, {} finished", stats.connect, stats.connect_good).into(),
        ),
        (
            "resumed",
            format!(
                "{} ({})",
                stats.hits,
                words::percent(stats.hits, finished(&stats))
            )
            .into(),
        ),
        ("misses", stats.misses.into()),
        ("expired when offered", stats.timeouts.into()),
        ("evicted", stats.cache_full.into()),
        ("unclosed", stats.unclosed.into()),
        ("counted for", words::duration(stats.uptime.as_ref()).into()),
    ]);
    counts(
        screen,
        "MISSES",
        stats
            .misses_by_reason
            .iter()
            .map(|miss| (words::word::<pb::MissReason>(miss.reason), miss.count)),
    );
    counts(
        screen,
        "REMOVALS",
        stats.removals_by_reason.iter().map(|removal| {
            (
                words::word::<pb::RemovalReason>(removal.reason),
                removal.count,
            )
        }),
    );
    counts(
        screen,
        "FAILED HANDSHAKES",
        stats
            .failures_by_alert
            .iter()
            .map(|failure| (alert(failure.alert.as_ref()), failure.count)),
    );
}

/// Writes a table of counts, if there are any.
fn counts(screen: &mut Screen, title: &str, counts: impl Iterator<Item = (String, u64)>) {
    let mut table = Table::new(["REASON", "COUNT"]);
    let mut some = false;
    for (reason, count) in counts {
        some = true;
        table.row([reason.into(), count.into()]);
    }
    if some {
        screen.heading(title);
        screen.table(&table);
    }
}

/// Returns the name of an alert and which side sent it.
pub(super) fn alert(alert: Option<&pb::Alert>) -> String {
    alert.map_or("no alert".into(), |alert| {
        let side = if alert.received { "received" } else { "sent" };
        format!("{} {side}", alert.name)
    })
}
