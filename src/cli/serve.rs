//! One run of the daemon: signals, configuration, log, greeting, reloads, stop.
//!
//! Signal handlers are installed before any file is read, and every file is read on a thread of its
//! own. So a file that hangs, for example on a network file system, delays a start or a reload, but
//! never a stop.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tls_sessiond_core::clock::Clock;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{Options, process, say};
use crate::{
    api::admin::operator::{AskedReload, Operator, ReloadAnswer},
    config::{AdminDoor, Config, ConfigError, Endpoint},
    daemon::{Daemon, Error, Prepared, Reload, Reloaded},
    log::{Log, panics::caught},
    server::Pulse,
    supervisor::Supervisor,
};

/// Time that files may take to read before the log says so, and before the next SIGHUP starts a
/// reload of its own.
pub(super) const SLOW: Duration = Duration::from_secs(10);
/// Time that the end of the process waits for unwritten lines of the log, normally and after a
/// second signal.
pub(super) const FLUSH: Duration = Duration::from_secs(1);
pub(super) const FLUSH_AT_ONCE: Duration = Duration::from_millis(50);
/// Time of a stop besides the drain: sockets that do not close, the shared store, the collector, the log.
pub(super) const END: Duration = Duration::from_secs(15);
/// Maximum number of reloads that wait for files at a time.
const HANGING_MAX: usize = 8;

pub(super) fn serve(options: &Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(caught(run(options.clone())));
    // A thread that still reads a file ends with the process.
    runtime.shutdown_background();
    ended.unwrap_or(Err(Error::Panicked))
}

async fn run(options: Options) -> Result<(), Error> {
    let mut signals = Signals::take()?;
    let supervisor = Supervisor::of_environment();
    supervisor.status("reading the configuration");
    let mut reading = aside(move || {
        let prepared = options.load().map_err(Error::from).and_then(|config| {
            let log = Flushed(start_log(&config)?);
            let open_files = process::raise_open_files();
            process::keep_memory_private();
            let prepared = Prepared::read(config)?.with_open_files(open_files);
            tell_warnings(&prepared.warnings());
            Ok((prepared, log))
        });
        prepared.map(|(prepared, log)| (prepared, log, options))
    })?;
    let (prepared, log, options) = tokio::select! {
        read = &mut reading => read.map_err(|_| Error::Panicked)??,
        _ = next(&mut signals.terminate, &mut signals.interrupt) => return Ok(()),
    };
    let served = serve_prepared(prepared, signals, &log.0, options, &supervisor).await;
    supervisor.flush(FLUSH);
    served
}

/// A log that is flushed when it is dropped, also if an error or a panic ends the process.
pub(super) struct Flushed(pub(super) Log);

impl Drop for Flushed {
    fn drop(&mut self) {
        self.0.flush(FLUSH);
    }
}

async fn serve_prepared(
    prepared: Prepared,
    signals: Signals,
    log: &Log,
    options: Options,
    supervisor: &Supervisor,
) -> Result<(), Error> {
    let Signals {
        terminate,
        interrupt,
        hangup,
        _file_size,
    } = signals;
    let mut daemon = Daemon::listen(prepared, Clock::System)?;
    let (mut terminate, mut interrupt) = (terminate, interrupt);
    if daemon.config().store.is_some() {
        supervisor.status("waiting for the shared store");
    }
    tokio::select! {
        ready = daemon.ready() => ready?,
        _ = next(&mut terminate, &mut interrupt) => return Ok(()),
    }
    let text = greeting(daemon.config(), &daemon.endpoints(), daemon.admin());
    // Writing to stdout may block forever; the daemon serves all the same.
    drop(aside(move || say(io::stdout(), &text))?);
    daemon.operator().give_log(log.clone());
    let asks = ReloadAsks {
        hangup,
        asked: daemon.operator().asked_reloads(),
    };
    let told = supervisor.clone();
    let reload = reload_at(asks, daemon.reload(), options, log.clone(), told);
    let reloading = tokio::spawn(reload);
    let operator = Arc::clone(daemon.operator());
    let told = supervisor.clone();
    let status = format!("serving; contexts: {}", daemon.config().contexts.len());
    daemon.when_started(move |pulse| {
        told.ready(&status);
        if let Some(every) = told.watches() {
            tokio::spawn(attest(told, every, pulse));
        }
    });
    let stopped = stop(
        terminate,
        interrupt,
        operator,
        log.clone(),
        supervisor.clone(),
    );
    let ended = daemon.run(stopped).await;
    reloading.abort();
    ended
}

/// Tells the service manager that the daemon lives, as often as it wants to hear it, while every server
/// thread answers. Ends with the process.
async fn attest(supervisor: Supervisor, every: Duration, pulse: Pulse) {
    loop {
        pulse.beat().await;
        supervisor.alive();
        sleep(every).await;
    }
}

pub(super) fn start_log(config: &Config) -> Result<Log, Error> {
    Log::start(&config.log).map_err(|err| config.audit_error(err).into())
}

/// Runs `act` on a thread of its own. The end of the process does not wait for the thread.
pub(super) fn aside<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (tells, told) = oneshot::channel();
    thread::Builder::new().name("files".into()).spawn(move || {
        // The receiver is dropped if the daemon has stopped in the meantime.
        drop(tells.send(act()));
    })?;
    Ok(told)
}

/// The signals that this process handles. From [`Signals::take`] on, none of them ends the process
/// by itself. A signal that arrives before it is waited for is kept.
pub(super) struct Signals {
    /// Makes write(2) beyond the limit of a file's size an error instead of the end of the process.
    /// Nothing waits for this signal.
    _file_size: Signal,
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
    pub(super) hangup: Signal,
}

impl Signals {
    pub(super) fn take() -> io::Result<Self> {
        Ok(Self {
            _file_size: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// The reloads that are asked for: by SIGHUP, and by callers of AdminService.
struct ReloadAsks {
    hangup: Signal,
    asked: Option<mpsc::Receiver<AskedReload>>,
}

/// One reload that is asked for.
enum ReloadAsk {
    Signal,
    Call(AskedReload),
}

impl ReloadAsk {
    /// Returns whether the caller has gone, and nothing need be done.
    fn is_void(&self) -> bool {
        matches!(self, Self::Call(tells) if tells.is_closed())
    }

    /// Answers the caller, if one waits.
    fn answer(self, answer: ReloadAnswer) {
        if let Self::Call(tells) = self {
            // The caller may have gone.
            drop(tells.send(answer));
        }
    }
}

impl ReloadAsks {
    /// Returns the next one. `None`: there are no more.
    pub(super) async fn next(&mut self) -> Option<ReloadAsk> {
        let Self { hangup, asked } = self;
        let call = async {
            match asked {
                Some(asked) => asked.recv().await,
                None => None,
            }
        };
        tokio::select! {
            signal = hangup.recv() => signal.map(|()| ReloadAsk::Signal),
            Some(call) = call => Some(ReloadAsk::Call(call)),
        }
    }
}

/// Reloads whenever it is asked for. An error is logged, and the configuration stays as it was.
async fn reload_at(
    mut asks: ReloadAsks,
    reload: Reload,
    options: Options,
    log: Log,
    supervisor: Supervisor,
) {
    let latest = Arc::new(AtomicUsize::new(0));
    let mut next = asks.next().await;
    while let Some(ask) = next {
        if Arc::strong_count(&latest) > HANGING_MAX {
            let why =
                format!("{HANGING_MAX} earlier reloads still wait for files of the configuration");
            tracing::error!("reload refused: {why}");
            reload.refused(&why);
            supervisor.reloading();
            supervisor.ready(&format!("reload refused: {why}"));
            ask.answer(Err(why));
            next = asks.next().await;
            continue;
        }
        if ask.is_void() {
            next = asks.next().await;
            continue;
        }
        supervisor.reloading();
        let attempt = Attempt::next(&latest);
        // A panic is already logged, and the next signal is waited for. The task goes on when a
        // later reload begins: it answers its caller.
        let mut reloading = tokio::spawn(caught(reload_once(
            attempt,
            ask,
            reload.clone(),
            options.clone(),
            log.clone(),
            supervisor.clone(),
        )));
        tokio::select! {
            _ = &mut reloading => next = asks.next().await,
            // A file that hangs holds up its own reload only.
            later = next_after(SLOW, &mut asks) => next = later,
        }
    }
}

/// Returns the next reload that is asked for after `wait`.
async fn next_after(wait: Duration, asks: &mut ReloadAsks) -> Option<ReloadAsk> {
    sleep(wait).await;
    asks.next().await
}

/// One attempt at a reload. It is void once another attempt has begun.
struct Attempt {
    number: usize,
    latest: Arc<AtomicUsize>,
}

impl Attempt {
    fn next(latest: &Arc<AtomicUsize>) -> Self {
        Self {
            number: latest.fetch_add(1, Ordering::SeqCst) + 1,
            latest: Arc::clone(latest),
        }
    }

    fn is_latest(&self) -> bool {
        self.latest.load(Ordering::SeqCst) == self.number
    }
}

async fn reload_once(
    attempt: Attempt,
    ask: ReloadAsk,
    reload: Reload,
    options: Options,
    log: Log,
    supervisor: Supervisor,
) {
    let refused = reload.clone();
    let reloading = aside(move || {
        let config = options.load();
        // A void attempt logs nothing: another one has replaced it.
        if !attempt.is_latest() {
            return Ok(None);
        }
        let config = config.inspect_err(|err| reload.refused(&err.to_string()))?;
        let Some(reloaded) = reload.apply_while(&config, || attempt.is_latest())? else {
            return Ok(None);
        };
        let warnings = reload.warnings(&config);
        tell_warnings(&warnings);
        if let Err(err) = log.reload(&config.log) {
            tracing::error!(%err, "cannot open the audit file again; audit lines still go to the file that was open");
        }
        Ok::<_, ConfigError>(Some((reloaded, warnings)))
    });
    let answer = match reloading {
        Ok(reloading) => {
            let done = patiently(reloading).await;
            let is_replaced = matches!(done, Ok(Ok(None)));
            let answer = tell(done, &refused);
            if is_replaced {
                // The reload that has replaced this one tells the service manager.
                ask.answer(answer);
                return;
            }
            answer
        }
        Err(err) => {
            tracing::error!(%err, "reload refused: cannot start a thread");
            let why = format!("cannot start a thread: {err}");
            refused.refused(&why);
            Err(why)
        }
    };
    supervisor.ready(&match &answer {
        Ok(applied) => format!("serving; contexts: {}", applied.contexts),
        Err(why) => format!("reload refused: {why}"),
    });
    ask.answer(answer);
}

/// Logs one line for each warning about a configuration.
pub(super) fn tell_warnings(warnings: &[ConfigError]) {
    for warning in warnings {
        tracing::warn!(%warning, "the configuration is valid, but may not be what was intended");
    }
}

/// What a reload that was carried out comes to: `None` if another one has replaced it.
type ReloadDone = Option<(Reloaded, Vec<ConfigError>)>;

/// Logs the outcome of a reload. Returns it for the caller that has asked.
fn tell(
    reloaded: Result<Result<ReloadDone, ConfigError>, oneshot::error::RecvError>,
    reload: &Reload,
) -> ReloadAnswer {
    let refused = match reloaded {
        Ok(Ok(None)) => return Err("a later reload has replaced this one".into()),
        Ok(Ok(Some((reloaded, warnings)))) => {
            for (context, sessions) in &reloaded.dropped {
                tracing::warn!(
                    %context,
                    sessions,
                    "the reload changed the scope of this context: its sessions were removed"
                );
            }
            let dropped: u64 = reloaded.dropped.values().sum();
            let (contexts, removed) = (reloaded.contexts, reloaded.removed);
            tracing::info!(contexts, removed, dropped, "configuration reloaded");
            return Ok(reloaded.answer(&warnings));
        }
        Ok(Err(err)) => err.to_string(),
        Err(_) => {
            let defect = "a defect of the daemon: the reload panicked, see the log";
            reload.refused(defect);
            defect.into()
        }
    };
    tracing::error!(
        err = refused,
        "reload refused; the configuration stays as it was"
    );
    Err(refused)
}

/// Waits for files to be read, and logs if that takes long.
pub(super) async fn patiently<T>(
    mut reading: oneshot::Receiver<T>,
) -> Result<T, oneshot::error::RecvError> {
    if let Ok(read) = timeout(SLOW, &mut reading).await {
        return read;
    }
    tracing::warn!(
        seconds = SLOW.as_secs(),
        "a reload waits for a file of the configuration; the daemon serves with the configuration that it runs"
    );
    reading.await
}

/// Returns at the first SIGTERM or SIGINT, or when a caller asks for a drain. From then on, a signal
/// ends the process at once, with status 128 and its number.
async fn stop(
    mut terminate: Signal,
    mut interrupt: Signal,
    operator: Arc<Operator>,
    log: Log,
    supervisor: Supervisor,
) {
    tokio::select! {
        _ = next(&mut terminate, &mut interrupt) => {}
        () = operator.stop_asked() => {}
    }
    let drain = operator.running().drain;
    supervisor.stopping(drain.delay + drain.timeout + END);
    tokio::spawn(async move {
        let signal = next(&mut terminate, &mut interrupt).await;
        tracing::warn!("second signal: the process ends at once");
        log.flush(FLUSH_AT_ONCE);
        std::process::exit(128 + signal.as_raw_value());
    });
}

pub(super) async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate(),
        _ = interrupt.recv() => SignalKind::interrupt(),
    }
}

/// Returns the greeting: the addresses that the daemon listens on, and a first command to try.
fn greeting(config: &Config, endpoints: &[Endpoint], admin: Option<SocketAddr>) -> String {
    let mut text = format!("tls-sessiond {}\n", env!("CARGO_PKG_VERSION"));
    let mut first = None;
    for endpoint in endpoints {
        let call = match endpoint {
            Endpoint::Tcp(address) => {
                text += &format!("listening on tcp://{address}\n");
                format!("grpcurl -plaintext {address} list")
            }
            Endpoint::Tls(address) => {
                text += &format!("listening on tls://{address}\n");
                continue;
            }
            Endpoint::Systemd => continue,
            Endpoint::Unix { path, .. } => {
                text += &format!("listening on unix://{}\n", path.display());
                format!(
                    "grpcurl -plaintext -unix -authority localhost {} list",
                    path.display()
                )
            }
        };
        first.get_or_insert(call);
    }
    if let (Some(address), Some(endpoint)) = (admin, config.admin) {
        text += &match endpoint.door {
            AdminDoor::Local => format!("status page at http://{address}/\n"),
            AdminDoor::Public => format!("metrics at http://{address}/metrics\n"),
            AdminDoor::MutualTls => format!("metrics at https://{address}/metrics\n"),
        };
    }
    for context in config.contexts.iter().filter(|context| context.self_made) {
        text += &format!(
            "context `{}` uses a certificate for localhost, made at this start and valid until this process ends\n",
            context.name
        );
    }
    text + &first
        .map(|call| format!("try: {call}\n"))
        .unwrap_or_default()
}
