//! The log: best effort, and it never delays the work that it reports.
//!
//! An event becomes a line on the thread that made it. The line goes into a queue that is bounded
//! in bytes, and a thread of the log writes it. A stalled reader, a full disk or a closed pipe
//! loses lines and has no other effect. The log counts the dropped lines, and reports the count as
//! soon as it can write again. Lines with the target `audit` have a queue of their own and pass no
//! filter.
//!
//! * `line`: an event as text, JSON or fields of the journal, with every value cut and escaped
//! * `journal`: the journal of systemd
//! * `queue`: lines that wait, bounded in bytes
//! * `writer`: the thread that writes lines
//! * `panics`: logs panics

use std::{fmt, io, io::IsTerminal, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustix::fs::Access;

use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets, filter_fn},
    fmt as events,
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::config::{Audit, Filter, Level, LogFormat};

mod journal;
mod line;
pub mod panics;
mod queue;
mod writer;

use journal::Journal;
use line::{Form, Lines};
use queue::Kind;
use writer::{Sink, Writer};

/// The target of lines about refused calls, removals and revocations.
const AUDIT: &str = "audit";

/// The log of this process.
#[derive(Clone)]
pub struct Log {
    filter: reload::Handle<Targets, Registry>,
    /// The filter in force.
    level: Arc<Mutex<Filter>>,
    stderr: Arc<Writer>,
    audit: Option<Arc<Writer>>,
}

impl Log {
    /// Starts the log. From then on events and panics become lines.
    ///
    /// # Errors
    /// The audit file cannot be opened, a thread cannot be started, or this process has a log
    /// already.
    pub fn start(config: &crate::config::LogConfig) -> io::Result<Self> {
        let form = match config.format {
            LogFormat::Text => Form::Text,
            LogFormat::Json => Form::Json,
            LogFormat::Auto if io::stderr().is_terminal() => Form::Text,
            LogFormat::Auto => Form::Json,
        };
        let is_auto = matches!(config.format, LogFormat::Auto);
        let stderr = match is_auto.then(Journal::of_stderr).flatten() {
            Some(journal) => Writer::start(Sink::Journal(journal), Form::Journal)?,
            None => Writer::start(Sink::Stderr, form)?,
        };
        let stderr = Arc::new(stderr);
        let audit = match &config.audit {
            Audit::Stderr => Some(Arc::clone(&stderr)),
            Audit::Off => None,
            Audit::File(path) => {
                let sink = Sink::File {
                    path: path.clone(),
                    file: writer::open(path)?,
                };
                Some(Arc::new(Writer::start(sink, form)?))
            }
        };
        let (filter, handle) = reload::Layer::new(targets(&config.filter));
        let audited = audit.as_ref().map(|writer| {
            layer(writer, Kind::Audit).with_filter(filter_fn(|metadata| metadata.target() == AUDIT))
        });
        tracing_subscriber::registry()
            .with(layer(&stderr, Kind::Ordinary).with_filter(filter))
            .with(audited)
            .try_init()
            .map_err(io::Error::other)?;
        panics::tell();
        Ok(Self {
            filter: handle,
            level: Arc::new(Mutex::new(config.filter.clone())),
            stderr,
            audit,
        })
    }

    /// Checks whether the audit file can be opened. Creates no file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn check(config: &crate::config::LogConfig) -> io::Result<()> {
        let Audit::File(path) = &config.audit else {
            return Ok(());
        };
        // For a link to a file that does not exist, the start creates the file that it points to.
        if path.exists() {
            return writer::open_existing(path).map(drop);
        }
        let target = path.read_link().map(|target| path.with_file_name(target));
        let path = target.as_deref().unwrap_or(path);
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|err| {
            io::Error::new(err.kind(), format!("cannot open {}: {err}", path.display()))
        })
    }

    /// Applies another filter.
    pub fn set_level(&self, filter: &Filter) {
        let mut level = self.level.lock();
        // Fails only without the subscriber, which lives as long as the process.
        drop(self.filter.reload(targets(filter)));
        *level = filter.clone();
    }

    /// Returns the directives of the filter in force, as `log.level` has them.
    pub fn level(&self) -> String {
        self.level.lock().to_string()
    }

    /// Returns the number of lines that were dropped since the start.
    pub fn dropped(&self) -> u64 {
        let audit = self.audit.as_ref();
        let audit = audit.filter(|audit| !Arc::ptr_eq(audit, &self.stderr));
        self.stderr.dropped() + audit.map_or(0, |audit| audit.dropped())
    }

    /// Applies another filter, and opens the audit file again, because a rotation may have renamed
    /// it.
    ///
    /// # Errors
    /// The file cannot be opened. The filter is applied then, and lines go to the file that was
    /// open.
    pub fn reload(&self, config: &crate::config::LogConfig) -> io::Result<()> {
        self.set_level(&config.filter);
        match (&self.audit, &config.audit) {
            (Some(writer), Audit::File(_)) => writer.reopen(),
            _ => Ok(()),
        }
    }

    /// Waits until all lines are written, at most `at_most` each for stderr and for the audit file.
    /// A stalled reader does not hold up the end of the process.
    pub fn flush(&self, at_most: Duration) {
        self.stderr.flush(at_most);
        if let Some(audit) = self
            .audit
            .as_ref()
            .filter(|audit| !Arc::ptr_eq(audit, &self.stderr))
        {
            audit.flush(at_most);
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

/// Formats events as lines. It reports no errors of its own: the library would do so on stderr, and
/// panic if that cannot be written.
fn layer<S>(writer: &Writer, kind: Kind) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    events::layer()
        .event_format(Lines(writer.form()))
        .with_writer(writer.lines(kind))
        .log_internal_errors(false)
}

/// Selects lines of this crate at the filter's level, lines of other crates that the filter names,
/// and no audit lines.
fn targets(filter: &Filter) -> Targets {
    let own = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level(filter.own));
    filter
        .targets
        .iter()
        .fold(own, |targets, (name, wanted)| {
            targets.with_target(name.as_str(), level(*wanted))
        })
        .with_target(AUDIT, LevelFilter::OFF)
}

fn level(level: Level) -> LevelFilter {
    match level {
        Level::Off => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}
