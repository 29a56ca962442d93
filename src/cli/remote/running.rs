//! `reload`, `drain` and `log-level`: changes of a daemon while it runs.

use clap::Args;
use tls_sessiond_proto as pb;

use super::{
    Console, Verdict, admin,
    failure::Failure,
    screen::{Cell, Screen, Table, Tone},
    status, words,
};

pub(super) const RELOAD_EXAMPLES: &str = "\
Examples:
  tls-sessiond config check /etc/tls-sessiond.toml && tls-sessiond reload

A refused reload changes nothing: the status is 1, and the message has the key and its line.
Needs the role admin for all contexts.";

pub(super) const DRAIN_EXAMPLES: &str = "\
Examples:
  tls-sessiond drain
  tls-sessiond drain -o json | jq -r .endTime

Needs the role admin for all contexts.";

pub(super) const LOG_LEVEL_EXAMPLES: &str = "\
Examples:
  tls-sessiond log-level                                     shows the level
  tls-sessiond log-level debug
  tls-sessiond log-level info,tls_sessiond::server=debug     the level of one target

To set the level needs the role admin for all contexts.";

pub(super) async fn reload(console: &Console) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let answer = daemon
        .call(admin(&daemon).reload(pb::ReloadRequest {}))
        .await?;
    console
        .printer
        .message(&answer, |screen| reloaded(screen, &answer))?;
    Ok(Verdict::Yes)
}

fn reloaded(screen: &mut Screen, answer: &pb::ReloadResponse) {
    screen.line(Cell::toned("reloaded", Tone::Good));
    screen.line(format!("contexts: {}", answer.contexts));
    if answer.changed.is_empty() {
        screen.line("no value has changed");
    }
    for key in &answer.changed {
        screen.line(format!("changed: {key}"));
    }
    for dropped in &answer.dropped {
        screen.line(format!(
            "sessions of {} dropped because its scope changed: {}",
            dropped.context, dropped.sessions
        ));
    }
    for warning in &answer.warnings {
        screen.line(format!("warning: {warning}"));
    }
}

pub(super) async fn drain(console: &Console) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let answer = daemon
        .call(admin(&daemon).drain(pb::DrainRequest {}))
        .await?;
    console.printer.message(&answer, |screen| {
        screen.line(format!(
            "draining; the daemon ends at {} at the latest",
            words::time(answer.end_time.as_ref())
        ));
    })?;
    Ok(Verdict::Yes)
}

/// The level to set.
#[derive(Debug, Args)]
pub(in crate::cli) struct LogLevelArgs {
    /// The directives, as in `log.level`. Without them the level is shown.
    directives: Option<String>,
}

pub(super) async fn log_level(console: &Console, args: LogLevelArgs) -> Result<Verdict, Failure> {
    let Some(level) = args.directives else {
        let status = status::get(console).await?;
        console.printer.field(&status, "logLevel", |screen| {
            screen.line(words::or_dash(&status.log_level));
        })?;
        return Ok(Verdict::Yes);
    };
    let daemon = console.daemon().await?;
    let request = pb::SetLogLevelRequest {
        level: level.clone(),
    };
    let answer = daemon.call(admin(&daemon).set_log_level(request)).await?;
    console.printer.message(&answer, |screen| {
        let mut table = Table::new(["BEFORE", "NOW"]);
        table.row([answer.previous.as_str().into(), level.into()]);
        screen.table(&table);
    })?;
    Ok(Verdict::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_shows_what_changed() {
        let answer = pb::ReloadResponse {
            contexts: 2,
            changed: vec!["context[0].alpn".into()],
            dropped: vec![pb::DroppedSessions {
                context: "web".into(),
                sessions: 7,
            }],
            warnings: vec!["c.toml:3: x".into()],
        };
        let mut screen = Screen::new(false);
        reloaded(&mut screen, &answer);
        assert_eq!(
            screen.into_text(),
            "reloaded\ncontexts: 2\nchanged: context[0].alpn\n\
             sessions of web dropped because its scope changed: 7\nwarning: c.toml:3: x\n"
        );
    }
}
