//! One run of the daemon: signals, configuration, log, greeting, reloads, stop.
//!
//! Signals are taken before anything is read, and every file is read on a thread of its own: a file that hangs, on a
//! network file system for example, delays a start or a reload, but never a stop.

use std::{
    io,
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
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{Options, process, say};
use crate::{
    config::{Config, ConfigError, Endpoint},
    daemon::{Daemon, Error, Prepared, Reload, Reloaded},
    log::{Log, panics::caught},
};

/// How long files may take to read before the log tells that they do, and before another SIGHUP begins a reload of its own.
const SLOW: Duration = Duration::from_secs(10);
/// How long the end of the process waits for lines of the log that are not written yet; and after a second signal.
const FLUSH: Duration = Duration::from_secs(1);
const FLUSH_AT_ONCE: Duration = Duration::from_millis(50);
/// Reloads that wait for files at a time.
const HANGING_MAX: usize = 8;

pub(super) fn serve(options: &Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(caught(run(options.clone())));
    // A thread that still reads a file ends with the process.
    runtime.shutdown_background();
    ended.unwrap_or(Err(Error::Panicked))
}

async fn run(options: Options) -> Result<(), Error> {
    let mut signals = Signals::take()?;
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
    serve_prepared(prepared, signals, &log.0, options).await
}

/// A log whose lines are written before it goes, also where an error or a panic ends the process.
struct Flushed(Log);

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
) -> Result<(), Error> {
    let Signals { terminate, interrupt, hangup, _file_size } = signals;
    let daemon = Daemon::listen(prepared, Clock::System)?;
    let text = greeting(daemon.config(), &daemon.endpoints());
    // Whatever stands behind stdout may take nothing, and the daemon serves all the same.
    drop(aside(move || say(io::stdout(), &text))?);
    let reloading = tokio::spawn(reload_at(hangup, daemon.reload(), options, log.clone()));
    let ended = daemon.run(stop(terminate, interrupt, log.clone())).await;
    reloading.abort();
    ended
}

fn start_log(config: &Config) -> Result<Log, Error> {
    Log::start(&config.log).map_err(|err| config.audit_error(err).into())
}

/// Runs on a thread of its own; its end does not wait for it.
fn aside<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> io::Result<oneshot::Receiver<T>> {
    let (tells, told) = oneshot::channel();
    thread::Builder::new().name("files".into()).spawn(move || {
        // The receiver may be gone, when the daemon has stopped meanwhile.
        drop(tells.send(act()));
    })?;
    Ok(told)
}

/// The signals that this process takes. From [`Signals::take`] on none of them ends it by itself; one that comes before it
/// is waited for is kept.
struct Signals {
    /// write(2) beyond the limit of a file's size is an error then, and does not end the process. Nothing waits for it.
    _file_size: Signal,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn take() -> io::Result<Self> {
        Ok(Self {
            _file_size: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Reloads at every SIGHUP. An error is told, and the daemon goes on as it was.
async fn reload_at(mut hangup: Signal, reload: Reload, options: Options, log: Log) {
    let latest = Arc::new(AtomicUsize::new(0));
    let mut asked = hangup.recv().await;
    while asked.is_some() {
        if Arc::strong_count(&latest) > HANGING_MAX {
            let why = format!("{HANGING_MAX} earlier ones still wait for files of the configuration");
            tracing::error!("reload refused: {why}");
            reload.refused(&why);
            asked = hangup.recv().await;
            continue;
        }
        let attempt = Attempt::next(&latest);
        // A panic has its line in the log, and the next signal is waited for.
        let reloading = caught(reload_once(attempt, reload.clone(), options.clone(), log.clone()));
        tokio::select! {
            _ = reloading => asked = hangup.recv().await,
            // A file that hangs holds up its own reload, and no later one.
            next = next_after(SLOW, &mut hangup) => asked = next,
        }
    }
}

/// The next signal, if this has waited for a while.
async fn next_after(wait: Duration, hangup: &mut Signal) -> Option<()> {
    sleep(wait).await;
    hangup.recv().await
}

/// One attempt at a reload. It is void once another has begun.
struct Attempt {
    number: usize,
    latest: Arc<AtomicUsize>,
}

impl Attempt {
    fn next(latest: &Arc<AtomicUsize>) -> Self {
        Self { number: latest.fetch_add(1, Ordering::SeqCst) + 1, latest: Arc::clone(latest) }
    }

    fn is_latest(&self) -> bool {
        self.latest.load(Ordering::SeqCst) == self.number
    }
}

async fn reload_once(attempt: Attempt, reload: Reload, options: Options, log: Log) {
    let refused = reload.clone();
    let reloading = aside(move || {
        let config = options.load();
        // One that is void says nothing: another one has taken its place.
        if !attempt.is_latest() {
            return Ok(None);
        }
        let config = config.inspect_err(|err| reload.refused(&err.to_string()))?;
        let Some(reloaded) = reload.apply_while(&config, || attempt.is_latest())? else { return Ok(None) };
        tell_warnings(&reload.warnings(&config));
        if let Err(err) = log.reload(&config.log) {
            tracing::error!(%err, "the audit file is not opened again; audit lines go where they went before");
        }
        Ok::<_, ConfigError>(Some(reloaded))
    });
    match reloading {
        Ok(reloading) => tell(patiently(reloading).await, &refused),
        Err(err) => {
            tracing::error!(%err, "reload refused: the system gives no thread");
            refused.refused(&format!("the system gives no thread: {err}"));
        }
    }
}

/// One line for each warning about a configuration.
fn tell_warnings(warnings: &[ConfigError]) {
    for warning in warnings {
        tracing::warn!(%warning, "the configuration is valid, and may not be meant");
    }
}

fn tell(reloaded: Result<Result<Option<Reloaded>, ConfigError>, oneshot::error::RecvError>, reload: &Reload) {
    let refused = match reloaded {
        Ok(Ok(None)) => return,
        Ok(Ok(Some(Reloaded { contexts, removed, dropped }))) => {
            for (context, sessions) in &dropped {
                tracing::warn!(
                    %context,
                    sessions,
                    "the reload changed what decides who may resume: sessions of this context were dropped"
                );
            }
            let dropped: u64 = dropped.values().sum();
            tracing::info!(contexts, removed, dropped, "configuration reloaded");
            return;
        }
        Ok(Err(err)) => err.to_string(),
        Err(_) => {
            let defect = "a defect of the daemon: the log has the panic";
            reload.refused(defect);
            defect.into()
        }
    };
    tracing::error!(err = refused, "reload refused; the configuration stays as it was");
}

/// Waits for files that are read, and tells where that takes long.
async fn patiently<T>(mut reading: oneshot::Receiver<T>) -> Result<T, oneshot::error::RecvError> {
    if let Ok(read) = timeout(SLOW, &mut reading).await {
        return read;
    }
    tracing::warn!(
        seconds = SLOW.as_secs(),
        "a reload waits for a file of the configuration; the daemon serves with the configuration that it has"
    );
    reading.await
}

/// Ready at the first SIGTERM or SIGINT. A second one ends the process at once, with status 128 and its number.
async fn stop(mut terminate: Signal, mut interrupt: Signal, log: Log) {
    next(&mut terminate, &mut interrupt).await;
    tokio::spawn(async move {
        let signal = next(&mut terminate, &mut interrupt).await;
        tracing::warn!("second signal: the process ends at once");
        log.flush(FLUSH_AT_ONCE);
        std::process::exit(128 + signal.as_raw_value());
    });
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate(),
        _ = interrupt.recv() => SignalKind::interrupt(),
    }
}

/// Where it listens, and what to type first.
fn greeting(config: &Config, endpoints: &[Endpoint]) -> String {
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
                format!("grpcurl -plaintext -unix -authority localhost {} list", path.display())
            }
        };
        first.get_or_insert(call);
    }
    for context in config.contexts.iter().filter(|context| context.self_made) {
        text += &format!(
            "context `{}` has a certificate for localhost that was made now and ends with this process\n",
            context.name
        );
    }
    text + &first.map(|call| format!("try: {call}\n")).unwrap_or_default()
}
