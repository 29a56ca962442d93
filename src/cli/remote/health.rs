//! `health`: one check of grpc.health.v1, or of the probe of a proxy, for probes.

use std::time::Duration;

use clap::Args;
use tokio::time::timeout;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use serde_json::json;

use super::{
    Console, Verdict,
    failure::Failure,
    http::LocalServer,
    screen::{Cell, Tone},
};
use crate::config::DEFAULT_PROXY_ADMIN;

/// Time limit of the whole command, without `--timeout`. A probe must end before the next one.
const TIMEOUT: Duration = Duration::from_secs(1);

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond health                    prints `serving`, or `not serving` with status 1
  tls-sessiond health --timeout 500ms    ends within this time, also if the daemon hangs
  tls-sessiond health --service tls.sessiond.v1.SessionService
  tls-sessiond health --proxy            asks `tls-sessiond proxy` at http://127.0.0.1:9552 (listen.proxy_admin)

A proxy serves without the daemon that has its sessions: its clients make full handshakes, and the line says so.
Exit status: 0 serving, 1 not serving or no such service, 2 wrong usage, 69 no answer in time.";

/// The longest answer of a proxy in bytes.
const ANSWER_MAX: usize = 64 << 10;

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
    /// Ask a proxy on this host instead, at its listen.proxy_admin. Without ADDRESS,
    /// http://127.0.0.1:9552.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, conflicts_with = "service")]
    proxy: Option<Option<String>>,
}

impl HealthArgs {
    /// Returns whether a proxy is asked, and no daemon.
    pub(in crate::cli) fn asks_a_proxy(&self) -> bool {
        self.proxy.is_some()
    }
}

pub(super) async fn health(console: &Console, args: &HealthArgs) -> Result<Verdict, Failure> {
    let limit = console.options.timeout.unwrap_or(TIMEOUT);
    if let Some(address) = &args.proxy {
        return proxy_health(console, address.as_deref(), limit).await;
    }
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

/// Asks the probe `/readyz` of a proxy.
async fn proxy_health(
    console: &Console,
    address: Option<&str>,
    limit: Duration,
) -> Result<Verdict, Failure> {
    let default = format!("http://{DEFAULT_PROXY_ADMIN}");
    let text = address.unwrap_or(&default);
    let proxy = LocalServer::parse(text).ok_or_else(|| {
        Failure::Usage(format!(
            "invalid --proxy {text:?}: expected http://127.0.0.1:PORT, or another address of loopback"
        ))
    })?;
    let unreachable = |cause: String| Failure::ProxyUnreachable {
        address: proxy.to_string(),
        cause,
    };
    let answer = timeout(limit, proxy.get("/readyz", ANSWER_MAX)).await;
    let (status, answer) = answer
        .map_err(|_| unreachable(format!("no answer within {limit:?} (--timeout)")))?
        .map_err(&unreachable)?;
    let answer = String::from_utf8_lossy(&answer);
    let answer = answer.trim_end();
    let (word, tone, detail) = match (status, answer.strip_prefix("ready")) {
        (200, Some(detail)) => ("serving", Tone::Good, detail),
        (503, None) if answer.starts_with("not ready") => ("not serving", Tone::Bad, ""),
        _ => {
            let why = "another server answers there, which is not `tls-sessiond proxy`";
            return Err(unreachable(why.into()));
        }
    };
    let value = json!({
        "status": word.to_uppercase().replace(' ', "_"),
        "detail": detail.trim_start_matches("; "),
    });
    let line = Cell::toned(&format!("{word}{detail}"), tone);
    console.printer.value(&value, |screen| screen.line(line))?;
    Ok(match tone {
        Tone::Good => Verdict::Yes,
        _ => Verdict::No,
    })
}

fn late(console: &Console, limit: Duration) -> Failure {
    match console.address() {
        Ok(address) => Failure::late(address, limit),
        Err(failure) => failure,
    }
}
