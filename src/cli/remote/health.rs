//! `health`: one check of grpc.health.v1, for probes.

use std::time::Duration;

use clap::Args;
use tokio::time::timeout;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::{
    Console, Verdict,
    failure::Failure,
    screen::{Cell, Tone},
};

/// Time limit of the whole command, without `--timeout`. A probe must end before the next one.
const TIMEOUT: Duration = Duration::from_secs(1);

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond health                    prints `serving`, or `not serving` with status 1
  tls-sessiond health --timeout 500ms    ends within this time, also if the daemon hangs
  tls-sessiond health --service tls.sessiond.v1.SessionService

Exit status: 0 serving, 1 not serving or no such service, 2 wrong usage, 69 no answer in time.";

/// The service to check.
#[derive(Debug, Args)]
pub(in crate::cli) struct HealthArgs {
    /// Check this service. Without it, the daemon as a whole.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    service: String,
}

pub(super) async fn health(console: &Console, args: &HealthArgs) -> Result<Verdict, Failure> {
    let limit = console.options.timeout.unwrap_or(TIMEOUT);
    let answer = timeout(limit, check(console, args))
        .await
        .map_err(|_| late(console, limit))??;
    let serving = answer.status() == ServingStatus::Serving;
    let cell = match answer.status() {
        ServingStatus::Serving => Cell::toned("serving", Tone::Good),
        _ => Cell::toned("not serving", Tone::Bad),
    };
    console
        .printer
        .message(&answer, |screen| screen.line(cell))?;
    Ok(if serving { Verdict::Yes } else { Verdict::No })
}

async fn check(console: &Console, args: &HealthArgs) -> Result<HealthCheckResponse, Failure> {
    let daemon = console.daemon_within(TIMEOUT).await?;
    let request = HealthCheckRequest {
        service: args.service.clone(),
    };
    let mut client = HealthClient::new(daemon.channel());
    daemon.call(client.check(request)).await
}

fn late(console: &Console, limit: Duration) -> Failure {
    match console.address() {
        Ok(address) => Failure::late(address, limit),
        Err(failure) => failure,
    }
}
