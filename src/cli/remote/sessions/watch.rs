//! Prints the events of WatchSessions, and connects again if the stream ends.

use std::{convert::Infallible, time::Duration};

use tls_sessiond_proto::{self as pb, watch_sessions_response::Event};
use tokio::{signal::ctrl_c, time::sleep};
use tonic::{Code, Streaming};

use super::{
    super::{Console, Verdict, channel::RemoteDaemon, failure::Failure, printer::note},
    filter::{Seen, WatchArgs},
    stub,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond sessions watch
  tls-sessiond sessions watch --kind removed --reason unclosed,fatal-alert
  tls-sessiond sessions watch --server-name www.example.org --id-prefix 9c41
  tls-sessiond sessions watch -o json | jq -c .missed

JSON has one event in each line. A watcher that is too slow is told how many events were dropped.
If the daemon ends the stream, the command connects again, at first after 250 ms and later after at
most 5 s.";

/// The first and the largest delay before the command connects again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

pub(super) async fn watch(console: &Console, args: &WatchArgs) -> Result<Verdict, Failure> {
    tokio::select! {
        ended = watch_on(console, args) => ended,
        pressed = ctrl_c() => Ok(pressed.map(|()| Verdict::Yes)?),
    }
}

/// Watches until a failure that another attempt cannot mend. The first attempt must succeed.
async fn watch_on(console: &Console, args: &WatchArgs) -> Result<Verdict, Failure> {
    let mut watching = Watching::begin(console, args).await?;
    loop {
        let Err(ended) = watching.print_all(console, args).await;
        watching = begin_again(console, args, ended).await?;
    }
}

/// Waits and begins again, until the daemon accepts the watch.
async fn begin_again(
    console: &Console,
    args: &WatchArgs,
    mut failure: Failure,
) -> Result<Watching, Failure> {
    let (mut delay, longest) = BACK_OFF;
    while can_pass(&failure) {
        note(&format!(
            "the watch ended ({failure}); connecting again in {delay:?}"
        ));
        sleep(delay).await;
        delay = (2 * delay).min(longest);
        match Watching::begin(console, args).await {
            Ok(watching) => return Ok(watching),
            Err(again) => failure = again,
        }
    }
    Err(failure)
}

/// Returns whether the same call may succeed later, at this daemon or after its restart.
fn can_pass(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable { .. } => true,
        Failure::Refused(status) => matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled
        ),
        _ => false,
    }
}

/// A watch that the daemon has accepted.
struct Watching {
    daemon: RemoteDaemon,
    events: Streaming<pb::WatchSessionsResponse>,
}

impl Watching {
    async fn begin(console: &Console, args: &WatchArgs) -> Result<Self, Failure> {
        let daemon = console.daemon().await?;
        let request = pb::WatchSessionsRequest {
            context: args.context.clone(),
        };
        let events = daemon.call(stub(&daemon).watch_sessions(request)).await?;
        Ok(Self { daemon, events })
    }

    /// Prints the events until the stream ends.
    async fn print_all(
        mut self,
        console: &Console,
        args: &WatchArgs,
    ) -> Result<Infallible, Failure> {
        loop {
            let event = self.events.message().await;
            match event.map_err(|status| self.daemon.failure(status))? {
                Some(event) => print(console, args, &event)?,
                None => return Err(self.daemon.ended()),
            }
        }
    }
}

/// Prints an event that the filters fit, or how many events were dropped.
fn print(
    console: &Console,
    args: &WatchArgs,
    event: &pb::WatchSessionsResponse,
) -> Result<(), Failure> {
    match (Seen::of(event), &event.event) {
        (Some(seen), _) if args.wants(&seen) => console
            .printer
            .event(event, |screen| seen.line(event, screen)),
        (None, Some(Event::Dropped(count))) => console.printer.event(event, |screen| {
            screen.line(format!("{count} events were dropped"));
        }),
        _ => Ok(()),
    }
}
