//! `doctor`: what is wrong with the daemon, in words, and what to do.

use clap::{Args, ValueEnum};
use serde_json::json;
use tls_sessiond_core::clock::Clock;
use tls_sessiond_proto as pb;

use super::{
    Console, Verdict, admin,
    failure::Failure,
    screen::{Cell, Screen, Tone},
};
use crate::doctor::{Evidence, Finding, Level, examine};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond doctor
  tls-sessiond doctor --fail-on critical
  tls-sessiond doctor -o json | jq -r '.findings[].name'

The status is 0 whatever is found, unless --fail-on says otherwise. docs/operations.md explains every finding.
Findings are about the contexts in which the caller has the role observer or admin.";

/// When the findings make the command fail.
#[derive(Debug, Args)]
pub(in crate::cli) struct DoctorArgs {
    /// Exit with status 1 if there is a finding of this level, or of a worse one.
    #[arg(long, value_name = "LEVEL")]
    fail_on: Option<FailOn>,
}

/// The level of findings that makes the command fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Critical,
    Warning,
}

pub(super) async fn doctor(console: &Console, args: DoctorArgs) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let mut client = admin(&daemon);
    let asked = Clock::System.now().wall().as_secs();
    let status = daemon
        .call(client.get_status(pb::GetStatusRequest {}))
        .await?;
    let misses = client.list_misses(pb::ListMissesRequest::default());
    let misses = daemon.call(misses).await?.misses;
    let failures = client.list_failures(pb::ListFailuresRequest::default());
    let failures = daemon.call(failures).await?.failures;
    let here = i64::try_from(asked).unwrap_or(i64::MAX);
    let findings = examine(&Evidence {
        status: &status,
        misses: &misses,
        failures: &failures,
        clock_offset: status.time.as_ref().map(|time| time.seconds - here),
    });
    console.printer.value(&value(&findings), |screen| {
        screen_of(screen, &findings);
    })?;
    let is_bad = |finding: &Finding| match args.fail_on {
        None => false,
        Some(FailOn::Critical) => finding.level == Level::Critical,
        Some(FailOn::Warning) => true,
    };
    Ok(match findings.iter().any(is_bad) {
        true => Verdict::No,
        false => Verdict::Yes,
    })
}

fn value(findings: &[Finding]) -> serde_json::Value {
    let all = findings.iter().map(|finding| {
        json!({
            "level": finding.level.name(),
            "name": finding.name,
            "text": finding.text,
            "remedy": finding.remedy,
        })
    });
    json!({"findings": all.collect::<Vec<_>>()})
}

fn screen_of(screen: &mut Screen, findings: &[Finding]) {
    if findings.is_empty() {
        screen.line(Cell::toned("All is well.", Tone::Good));
    }
    for (place, finding) in findings.iter().enumerate() {
        if place > 0 {
            screen.line("");
        }
        let tone = match finding.level {
            Level::Critical => Tone::Bad,
            Level::Warning => Tone::Passing,
        };
        let head = format!("{}: {}", finding.level.name(), finding.name);
        screen.line(Cell::toned(&head, tone));
        screen.line(finding.text.as_str());
        screen.line(finding.remedy);
    }
}
