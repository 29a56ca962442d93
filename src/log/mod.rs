//! The log: best effort, and never in the way of what it tells about.
//!
//! An event becomes a line on the thread that made it. The line goes into a queue that is bounded in bytes, and a thread of
//! the log's own writes it. A reader that stalls, a full disk or a closed pipe costs lines and nothing else; the lines that
//! were dropped are counted, and the log tells how many as soon as it can be written again. Lines with the target `audit`
//! have a queue of their own and pass no filter.
//!
//! * `line`: an event as text or JSON, with every value cut and escaped
//! * `queue`: lines that wait, bounded in bytes
//! * `writer`: the thread that writes them
//! * `panics`: a panic is a line as well

use std::{io, io::IsTerminal, path::Path, sync::Arc, time::Duration};

use rustix::fs::Access;

use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets, filter_fn},
    fmt,
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::config::{Audit, Filter, Level, LogFormat};

mod line;
pub mod panics;
mod queue;
mod writer;

use line::{Form, Lines};
use queue::Kind;
use writer::{Sink, Writer};

/// The target of lines about refused calls, removals and revocations.
const AUDIT: &str = "audit";

/// The log of this process.
#[derive(Clone)]
pub struct Log {
    filter: reload::Handle<Targets, Registry>,
    stderr: Arc<Writer>,
    audit: Option<Arc<Writer>>,
}

impl Log {
    /// Starts the log: from now on events are lines, panics included.
    ///
    /// # Errors
    /// The audit file cannot be opened, the system gives no thread, or this process has a log already.
    pub fn start(config: &crate::config::Log) -> io::Result<Self> {
        let form = match config.format {
            LogFormat::Text => Form::Text,
            LogFormat::Json => Form::Json,
            LogFormat::Auto if io::stderr().is_terminal() => Form::Text,
            LogFormat::Auto => Form::Json,
        };
        let stderr = Arc::new(Writer::start(Sink::Stderr, form)?);
        let audit = match &config.audit {
            Audit::Stderr => Some(Arc::clone(&stderr)),
            Audit::Off => None,
            Audit::File(path) => {
                let sink = Sink::File { path: path.clone(), file: writer::open(path)? };
                Some(Arc::new(Writer::start(sink, form)?))
            }
        };
        let (filter, handle) = reload::Layer::new(targets(&config.filter));
        let audited = audit.as_ref().map(|writer| {
            layer(writer, Kind::Audit, form).with_filter(filter_fn(|metadata| metadata.target() == AUDIT))
        });
        tracing_subscriber::registry()
            .with(layer(&stderr, Kind::Ordinary, form).with_filter(filter))
            .with(audited)
            .try_init()
            .map_err(io::Error::other)?;
        panics::tell();
        Ok(Self { filter: handle, stderr, audit })
    }

    /// Looks whether the audit file can be opened, and makes none.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(config: &crate::config::Log) -> io::Result<()> {
        let Audit::File(path) = &config.audit else { return Ok(()) };
        // A link to a file that is not there yet makes that file, as the start does.
        if path.exists() {
            return writer::open_existing(path).map(drop);
        }
        let target = path.read_link().map(|target| path.with_file_name(target));
        let path = target.as_deref().unwrap_or(path);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|err| io::Error::new(err.kind(), format!("cannot open {}: {err}", path.display())))
    }

    /// Applies another filter, and opens the audit file again: it may have been renamed by a rotation.
    ///
    /// # Errors
    /// The file cannot be opened; the filter is applied, and lines go where they went before.
    pub fn reload(&self, config: &crate::config::Log) -> io::Result<()> {
        // It fails only after the subscriber is gone, which lives as long as the process.
        drop(self.filter.reload(targets(&config.filter)));
        match (&self.audit, &config.audit) {
            (Some(writer), Audit::File(_)) => writer.reopen(),
            _ => Ok(()),
        }
    }

    /// Waits until every line is written, for at most this long for stderr and for the audit file: a reader that stalls does not
    /// hold up the end of the process.
    pub fn flush(&self, at_most: Duration) {
        self.stderr.flush(at_most);
        if let Some(audit) = self.audit.as_ref().filter(|audit| !Arc::ptr_eq(audit, &self.stderr)) {
            audit.flush(at_most);
        }
    }
}

/// Makes lines of events. It tells of no errors of its own: the library would do so on stderr, and panic where that cannot be
/// written.
fn layer<S>(writer: &Writer, kind: Kind, form: Form) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fmt::layer().event_format(Lines(form)).with_writer(writer.lines(kind)).log_internal_errors(false)
}

/// Lines of this crate at the level of the filter, those of others where it names them, and no audit lines.
fn targets(filter: &Filter) -> Targets {
    let own = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level(filter.own));
    filter
        .targets
        .iter()
        .fold(own, |targets, (name, wanted)| targets.with_target(name.as_str(), level(*wanted)))
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
