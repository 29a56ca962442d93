//! `top`: the state of the daemon as a live screen.
//!
//! * `state`: answers and keys in, rates and sorted rows out
//! * `view`: the screen, drawn from the state
//! * `terminal`: raw mode and the alternate screen, and the way back

use std::{
    convert::Infallible,
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use crossterm::event::{Event, EventStream};
use tls_sessiond_core::clock::Clock;
use tls_sessiond_proto as pb;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{interval, sleep},
};
use tokio_stream::StreamExt;

use super::{
    Console, Verdict, admin, channel::RemoteDaemon, failure::Failure, printer::OutputFormat,
};
use crate::config;

mod state;
mod terminal;
#[cfg(test)]
mod tests;
mod view;

use state::{StatusPoll, TopState};
use terminal::LiveTerminal;
use view::Palette;

pub(super) const EXAMPLES: &str = "\
Examples:
  tls-sessiond top
  tls-sessiond top --interval 500ms
  tls-sessiond top --address unix:///run/tls-sessiond/api.sock

Keys: Tab or 1 to 4 choose the table, < and > the column by which rows are sorted, r reverses the order,
p pauses, ? shows all keys, and q, Esc or Ctrl-C quits.
If the daemon does not answer, the first line says so, and the command connects again by itself.
Rates are those between the last two answers. A script uses tls-sessiond status -o json instead.";

/// The shortest interval between two calls.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
/// How often the screen is drawn without an event, for the seconds since the last answer.
const REDRAW: Duration = Duration::from_secs(1);

/// How often `top` calls the daemon.
#[derive(Debug, Args)]
pub(in crate::cli) struct TopArgs {
    /// Time between two calls: 500ms, 5s. At least 500ms.
    #[arg(long, value_name = "DURATION", value_parser = poll_interval, default_value = "2s")]
    interval: Duration,
}

/// Parses a duration of the configuration that is at least [`INTERVAL_MIN`].
fn poll_interval(text: &str) -> Result<Duration, String> {
    let interval = config::duration(text).map_err(|err| err.to_string())?;
    if interval < INTERVAL_MIN {
        return Err(format!("expected at least {INTERVAL_MIN:?}"));
    }
    Ok(interval)
}

/// Shows the screen until a key or a signal ends it.
///
/// # Errors
/// There is no terminal, the first call fails, or the terminal fails. Later failures of calls are
/// shown on the screen.
pub(super) async fn top(console: &Console, args: TopArgs) -> Result<Verdict, Failure> {
    if console.options.output != OutputFormat::Table {
        let text = "top has no form json or yaml; use tls-sessiond status -o json";
        return Err(Failure::Usage(text.into()));
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let text = "top needs a terminal on stdin and stdout; use tls-sessiond status -o json";
        return Err(Failure::Usage(text.into()));
    }
    let palette = if console.printer.is_colored() {
        Palette::Colored
    } else {
        Palette::Plain
    };
    let mut source = StatusSource {
        console,
        daemon: None,
    };
    let state = TopState::new(source.poll().await?, args.interval);
    // Before raw mode begins: a signal must not end the process in between.
    let signals = EndSignals::listen()?;
    let terminal = LiveTerminal::enter(palette)?;
    // One answer at a time: the next call waits until the screen has taken the last answer.
    let (answers, received) = mpsc::channel(1);
    tokio::select! {
        shown = show(terminal, state, palette, received, signals) => shown.map(|()| Verdict::Yes),
        never = source.poll_always(args.interval, answers) => match never {},
    }
}

/// The result of a call.
type Answer = Result<StatusPoll, Failure>;

/// Calls a daemon, and connects again after a failure.
struct StatusSource<'c> {
    console: &'c Console,
    /// The connection. `None`: there is none, or its last call failed.
    daemon: Option<RemoteDaemon>,
}

impl StatusSource<'_> {
    async fn poll(&mut self) -> Answer {
        let daemon = match self.daemon.take() {
            Some(daemon) => daemon,
            None => self.console.daemon().await?,
        };
        let asked = Clock::System.now().wall().as_secs();
        let call = async { admin(&daemon).get_status(pb::GetStatusRequest {}).await };
        let status = daemon.call(call).await?;
        self.daemon = Some(daemon);
        let here = i64::try_from(asked).unwrap_or(i64::MAX);
        let offset = status.time.as_ref().map(|time| time.seconds - here);
        Ok(StatusPoll::new(status, Clock::System.now().at, offset))
    }

    /// Calls the daemon with a pause before each call.
    async fn poll_always(&mut self, pause: Duration, answers: mpsc::Sender<Answer>) -> Infallible {
        loop {
            sleep(pause).await;
            let answer = self.poll().await;
            if answers.send(answer).await.is_err() {
                // The screen has ended, and this future with it.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Draws the screen after each key, answer and change of the terminal's size.
async fn show(
    mut terminal: LiveTerminal,
    mut state: TopState,
    palette: Palette,
    mut answers: mpsc::Receiver<Answer>,
    mut signals: EndSignals,
) -> Result<(), Failure> {
    let mut events = EventStream::new();
    let mut redraw = interval(REDRAW);
    loop {
        state.set_page(view::table_rows(terminal.size()?));
        terminal.draw(|frame| view::draw(frame, &state, Clock::System.now().at, palette))?;
        tokio::select! {
            () = signals.received() => return Ok(()),
            event = events.next() => match event {
                None => return Ok(()),
                Some(Ok(Event::Key(key))) if state.press(key).is_break() => return Ok(()),
                Some(event) => drop(event?),
            },
            Some(answer) = answers.recv() => match answer {
                Ok(poll) => state.answer(poll),
                Err(failure) => state.fail(failure.to_string()),
            },
            _ = redraw.tick() => {}
        }
    }
}

/// The signals that end the screen as `q` does. Ctrl-C is a key in raw mode.
struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// Replaces the default actions of the signals.
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of the signals.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
