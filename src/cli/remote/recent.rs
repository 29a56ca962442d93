//! `misses` and `failures`: recent lookups and handshakes that did not succeed.

use clap::Args;
use tls_sessiond_proto as pb;

use super::{
    Console, Verdict, admin, contexts,
    failure::Failure,
    screen::{Screen, Table},
    words,
};

pub(super) const MISSES_EXAMPLES: &str = "\
Examples:
  tls-sessiond misses
  tls-sessiond misses --context web --reason removed
  tls-sessiond misses --limit 10 -o json

The daemon keeps the last 256, and at most 100 of one second.";

pub(super) const FAILURES_EXAMPLES: &str = "\
Examples:
  tls-sessiond failures
  tls-sessiond failures --context web --limit 10
  tls-sessiond failures -o json | jq -r '.failures[].reason'

The daemon keeps the last 256, and at most 100 of one second.";

/// Which misses to show.
#[derive(Debug, Args)]
pub(in crate::cli) struct MissesArgs {
    /// Only those of this context.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    context: String,
    /// Only those for this reason.
    #[arg(long, value_name = "REASON", value_parser = words::parser::<pb::MissReason>())]
    reason: Option<pb::MissReason>,
    /// At most this many. 0: all that the daemon keeps.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    limit: u32,
}

/// Which failures to show.
#[derive(Debug, Args)]
pub(in crate::cli) struct FailuresArgs {
    /// Only those of this context.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    context: String,
    /// At most this many. 0: all that the daemon keeps.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    limit: u32,
}

pub(super) async fn misses(console: &Console, args: MissesArgs) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let request = pb::ListMissesRequest {
        context: args.context,
        reason: args.reason.unwrap_or_default().into(),
        page_size: args.limit,
    };
    let answer = daemon.call(admin(&daemon).list_misses(request)).await?;
    console.printer.list("misses", &answer.misses, |screen| {
        misses_table(screen, &answer.misses);
    })?;
    Ok(Verdict::Yes)
}

fn misses_table(screen: &mut Screen, misses: &[pb::RecentMiss]) {
    let mut table = Table::new([
        "TIME",
        "REASON",
        "CONTEXT",
        "ROLE",
        "ID PREFIX",
        "SERVER NAME",
        "OWNER",
        "FOUND IN",
    ]);
    for miss in misses {
        table.row([
            words::precise_time(miss.time.as_ref()).into(),
            words::word::<pb::MissReason>(miss.reason).into(),
            miss.context.as_str().into(),
            words::word::<pb::Role>(miss.role).into(),
            words::or_dash(&miss.session_id_prefix).into(),
            words::or_dash(&miss.server_name).into(),
            miss.owner.as_str().into(),
            words::or_dash(&miss.other_context).into(),
        ]);
    }
    screen.table(&table);
}

pub(super) async fn failures(console: &Console, args: FailuresArgs) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let request = pb::ListFailuresRequest {
        context: args.context,
        page_size: args.limit,
    };
    let answer = daemon.call(admin(&daemon).list_failures(request)).await?;
    console
        .printer
        .list("failures", &answer.failures, |screen| {
            failures_table(screen, &answer.failures);
        })?;
    Ok(Verdict::Yes)
}

fn failures_table(screen: &mut Screen, failures: &[pb::RecentFailure]) {
    let mut table = Table::new([
        "TIME",
        "ALERT",
        "CONTEXT",
        "ROLE",
        "ENGINE",
        "SERVER NAME",
        "PEER",
        "OWNER",
        "REASON",
    ]);
    for failure in failures {
        table.row([
            words::precise_time(failure.time.as_ref()).into(),
            contexts::alert(failure.alert.as_ref()).into(),
            failure.context.as_str().into(),
            words::word::<pb::Role>(failure.role).into(),
            words::word::<pb::Engine>(failure.engine).into(),
            words::or_dash(&failure.server_name).into(),
            words::or_dash(&failure.peer_address).into(),
            failure.owner.as_str().into(),
            failure.reason.as_str().into(),
        ]);
    }
    screen.table(&table);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_show_alert_and_escaped_names() {
        let failure = pb::RecentFailure {
            alert: Some(pb::Alert {
                code: 48,
                name: "unknown_ca".into(),
                received: true,
            }),
            server_name: "a\x1b]0;title\x07".into(),
            ..Default::default()
        };
        let mut screen = Screen::new(true);
        failures_table(&mut screen, &[failure]);
        let text = screen.into_text();
        assert!(text.contains("unknown_ca received"), "{text}");
        assert!(text.contains("a\\u{1b}]0;title\\u{7}"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }
}
