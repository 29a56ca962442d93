//! One connection to the store, opened again after a failure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use parking_lot::Mutex;
use redis::{Cmd, RedisError, aio::MultiplexedConnection};
use tls_sessiond_core::{
    clock::Clock,
    fleet::{Failure, FleetStore},
};
use tls_sessiond_store::script::{Answer, Request};
use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};

use super::{
    command::{self, By},
    target::{OpenError, Target},
};

/// How long the opening of a connection may take.
const OPEN_MAX: Duration = Duration::from_secs(1);
/// The shortest and the longest time between two attempts to open the connection, before jitter.
///
/// After a restart of the store, every daemon must have noticed it before others look up again: see
/// [`QUARANTINE`](tls_sessiond_store::keeper::QUARANTINE).
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// Calls without an answer in a row after which the connection is given up. A connection that was
/// cut without a sign would be used forever.
const SILENT_MAX: u32 = 8;
/// The time between two lines of the log about the same trouble.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What all connections of a daemon to its store have in common.
pub(super) struct Common {
    pub(super) fleet: Arc<FleetStore>,
    pub(super) target: ArcSwap<Target>,
    pub(super) clock: Clock,
    /// When the log was last told that a connection could not be opened.
    told: Mutex<Option<Instant>>,
    /// The last error with which the store refused a request.
    refusal: Mutex<Option<(Instant, String)>>,
}

impl Common {
    pub(super) fn new(fleet: Arc<FleetStore>, target: Target, clock: Clock) -> Self {
        Self {
            fleet,
            target: ArcSwap::from_pointee(target),
            clock,
            told: Mutex::default(),
            refusal: Mutex::default(),
        }
    }

    /// Returns the last error with which the store refused a request since the last call.
    pub(super) fn take_refusal(&self) -> Option<String> {
        self.refusal.lock().take().map(|(_, refusal)| refusal)
    }

    fn refused(&self, err: &RedisError) {
        *self.refusal.lock() = Some((Instant::now(), err.to_string()));
    }

    /// Returns the last error with which the store refused a request since this time.
    pub(super) fn refusal_since(&self, at: Instant) -> Option<String> {
        let refusal = self.refusal.lock();
        let recent = refusal.as_ref().filter(|(refused, _)| *refused >= at);
        recent.map(|(_, refusal)| refusal.clone())
    }

    /// Opens a connection, and asks which process answers. A store that is another process than
    /// before has lost what it had.
    pub(super) async fn open(&self) -> Result<MultiplexedConnection, OpenError> {
        let target = self.target.load_full();
        let opened = timeout(OPEN_MAX, async {
            let mut connection = target.open().await?;
            let server = identity(&mut connection)
                .await
                .map_err(|err| target.refused(&err))?;
            Ok((connection, server))
        });
        let (connection, server) = opened.await.unwrap_or_else(|_| {
            let why = if target.is_tls() {
                "no answer within a second: does this port speak TLS?"
            } else {
                "no answer within a second"
            };
            Err(OpenError::Unreachable {
                address: target.address(),
                error: std::io::Error::other(why),
            })
        })?;
        if self.fleet.connected(&server, self.clock.now().at) {
            tracing::warn!(
                store = target.address(),
                "the store was restarted, or its data was replaced: what this daemon held open there is not resumed any more"
            );
        }
        Ok(connection)
    }

    /// Logs that a connection could not be opened, once a minute.
    fn tell(&self, err: &OpenError) {
        let mut told = self.told.lock();
        if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(
                %err,
                "the shared store is away: handshakes go on without resumption"
            );
        }
    }
}

/// Returns what tells one process of the store, and one history of its data, from another.
async fn identity(connection: &mut MultiplexedConnection) -> Result<String, RedisError> {
    let mut all = String::new();
    for (section, wanted) in [("server", "run_id:"), ("replication", "master_replid:")] {
        let text: String = redis::cmd("INFO")
            .arg(section)
            .query_async(connection)
            .await?;
        let line = text.lines().find(|line| line.starts_with(wanted));
        all += line.unwrap_or_default();
    }
    Ok(all)
}

enum State {
    /// No connection. It may be opened from this time on.
    Closed { from: Instant, wait: Duration },
    /// A task opens the connection.
    Opening,
    Open {
        connection: MultiplexedConnection,
        number: u64,
    },
}

/// A connection, opened when it is first used.
pub(super) struct Link {
    common: Arc<Common>,
    state: Mutex<State>,
    changed: Notify,
    silent: AtomicU32,
}

impl Link {
    pub(super) fn new(common: Arc<Common>) -> Arc<Self> {
        Arc::new(Self {
            common,
            state: Mutex::new(State::Closed {
                from: Instant::now(),
                wait: BACKOFF_MIN,
            }),
            changed: Notify::new(),
            silent: AtomicU32::new(0),
        })
    }

    /// Returns the state of this daemon in the store.
    pub(super) fn fleet(&self) -> &Arc<FleetStore> {
        &self.common.fleet
    }

    /// Sends a request, and waits for the answer until the deadline.
    pub(super) async fn ask(
        self: &Arc<Self>,
        request: &Request,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let layout = self.common.fleet.layout();
        let process = Some(self.common.fleet.processes());
        let command = command::command(request, layout, By::Hash);
        match self.send_to(process, &command, deadline).await {
            Ok(value) => command::answer(value),
            Err(Unsent::Refused(err)) if command::is_unknown_script(&err) => {
                let command = command::command(request, layout, By::Text);
                let sent = self.send_to(process, &command, deadline).await;
                command::answer(sent.map_err(|err| err.failure())?)
            }
            Err(err) => Err(err.failure()),
        }
    }

    /// Sends a request, and returns the error as it is.
    pub(super) async fn ask_or_tell(
        self: &Arc<Self>,
        request: &Request,
        by: By,
        deadline: Instant,
    ) -> Result<Answer, Unsent> {
        let command = command::command(request, self.common.fleet.layout(), by);
        let value = self.send(&command, deadline).await?;
        command::answer(value).map_err(|_| Unsent::Unreadable)
    }

    /// Sends a command, and waits for the answer until the deadline.
    pub(super) async fn send(
        self: &Arc<Self>,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<redis::Value, Unsent> {
        self.send_to(None, command, deadline).await
    }

    /// Sends a command to the store, unless another process than `process` answers now.
    async fn send_to(
        self: &Arc<Self>,
        process: Option<u64>,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<redis::Value, Unsent> {
        let (mut connection, number) = match self.open_connection() {
            Some(open) => open,
            None => timeout_at(deadline, self.connection())
                .await
                .unwrap_or(Err(Unsent::Closed))?,
        };
        if process.is_some_and(|process| process != self.common.fleet.processes()) {
            return Err(Unsent::Closed);
        }
        let sent = timeout_at(deadline, connection.send_packed_command(command)).await;
        match sent {
            Ok(Ok(redis::Value::ServerError(err))) => {
                self.silent.store(0, Ordering::Relaxed);
                let err = RedisError::from(err);
                if !command::is_unknown_script(&err) {
                    self.common.refused(&err);
                }
                Err(Unsent::Refused(err))
            }
            Ok(Ok(value)) => {
                self.silent.store(0, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(err)) => {
                if err.is_connection_dropped() || err.is_unrecoverable_error() {
                    self.close(number);
                } else if !command::is_unknown_script(&err) {
                    self.common.refused(&err);
                }
                Err(Unsent::Refused(err))
            }
            Err(_) => {
                if self.silent.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT_MAX {
                    self.close(number);
                }
                Err(Unsent::Late)
            }
        }
    }

    /// Returns the connection, and its number, if it is open.
    fn open_connection(&self) -> Option<(MultiplexedConnection, u64)> {
        match &*self.state.lock() {
            State::Open { connection, number } => Some((connection.clone(), *number)),
            State::Closed { .. } | State::Opening => None,
        }
    }

    /// Returns the connection, and its number. Opens it if it is time to.
    async fn connection(self: &Arc<Self>) -> Result<(MultiplexedConnection, u64), Unsent> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                match &*state {
                    State::Open { connection, number } => {
                        return Ok((connection.clone(), *number));
                    }
                    State::Closed { from, .. } if *from > Instant::now() => {
                        return Err(Unsent::Closed);
                    }
                    State::Closed { wait, .. } => {
                        let wait = *wait;
                        *state = State::Opening;
                        // A task, because the call that waits may be cancelled.
                        tokio::spawn(
                            Opening {
                                link: Arc::clone(self),
                                wait,
                                is_done: false,
                            }
                            .run(),
                        );
                    }
                    State::Opening => {}
                }
            }
            changed.await;
            if matches!(&*self.state.lock(), State::Closed { .. }) {
                return Err(Unsent::Closed);
            }
        }
    }

    /// Gives up the connection with this number.
    fn close(&self, number: u64) {
        let mut state = self.state.lock();
        if matches!(&*state, State::Open { number: open, .. } if *open == number) {
            *state = closed(BACKOFF_MIN);
            self.silent.store(0, Ordering::Relaxed);
        }
    }
}

/// Returns the state after a failure: closed for a time around `wait`.
fn closed(wait: Duration) -> State {
    let mut byte = [0];
    // Without random numbers there is no jitter.
    let _ = rand::fill(&mut byte);
    let jitter = wait.mul_f32(f32::from(byte[0]) / 256.0);
    State::Closed {
        from: Instant::now() + wait / 2 + jitter,
        wait: (wait * 2).min(BACKOFF_MAX),
    }
}

/// The opening of a connection. If its task ends early, the link is closed again.
struct Opening {
    link: Arc<Link>,
    wait: Duration,
    is_done: bool,
}

impl Opening {
    async fn run(mut self) {
        let opened = self.link.common.open().await;
        let next = match opened {
            Ok(connection) => {
                static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
                State::Open {
                    connection,
                    number: NUMBERS.fetch_add(1, Ordering::Relaxed),
                }
            }
            Err(err) => {
                self.link.common.tell(&err);
                closed(self.wait)
            }
        };
        self.finish(next);
    }

    fn finish(&mut self, next: State) {
        self.is_done = true;
        *self.link.state.lock() = next;
        self.link.changed.notify_waiters();
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.is_done {
            let wait = self.wait;
            self.finish(closed(wait));
        }
    }
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unsent {
    /// There is no connection.
    #[error("there is no connection")]
    Closed,
    /// The answer did not come in time.
    #[error("no answer in time")]
    Late,
    /// The store or the connection refused it.
    #[error("{0}")]
    Refused(RedisError),
    /// The answer is one that the script cannot give.
    #[error("it gave an answer that the script cannot give")]
    Unreadable,
}

impl Unsent {
    /// Returns the code with which the store refused it.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(err) => err.code(),
            Self::Closed | Self::Late | Self::Unreadable => None,
        }
    }

    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Closed => Failure::NotRun,
            Self::Late | Self::Unreadable => Failure::NoAnswer,
            Self::Refused(err) => command::failure(err),
        }
    }
}
