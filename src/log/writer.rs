//! The thread that writes lines. No other thread waits for the file descriptor.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
};
use tracing_subscriber::fmt::MakeWriter;

use super::{
    journal::Journal,
    line::{Form, notice},
    queue::{Kind, Pushed, Queues},
};

/// Pause before a line that could not be written is tried again: initial and maximum.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Maximum time to wait for a descriptor that accepts nothing, before the next attempt.
const READY: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The destination of lines.
pub(super) enum Sink {
    Stderr,
    Journal(Journal),
    File { path: PathBuf, file: File },
}

/// Accepts lines without waiting, and writes them on a thread of its own.
pub(super) struct Writer(Arc<Shared>);

struct Shared {
    state: Mutex<WriterState>,
    /// Signals that there is a line to write, or a file to open again.
    filled: Condvar,
    /// Signals that all lines are written.
    emptied: Condvar,
    form: Form,
    /// Number of writes that the system refused.
    failed: AtomicU64,
}

#[derive(Default)]
struct WriterState {
    queues: Queues,
    /// Whether the thread holds a line that is not written yet.
    writing: bool,
    /// The file to write to from now on.
    reopened: Option<File>,
    path: Option<PathBuf>,
}

impl Writer {
    /// Starts the thread, which runs as long as the process.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(sink: Sink, form: Form) -> io::Result<Self> {
        let path = match &sink {
            Sink::Stderr | Sink::Journal(_) => None,
            Sink::File { path, .. } => Some(path.clone()),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(WriterState {
                path,
                ..WriterState::default()
            }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            form,
            failed: AtomicU64::new(0),
        });
        let thread = Thread {
            shared: Arc::clone(&shared),
            sink,
        };
        thread::Builder::new()
            .name("log".into())
            .spawn(move || thread.run())?;
        Ok(Self(shared))
    }

    /// Returns the form of its lines.
    pub(super) fn form(&self) -> Form {
        self.0.form
    }

    /// Returns the destination for lines of one kind, for the subscriber.
    pub(super) fn lines(&self, kind: Kind) -> LineWriter {
        LineWriter {
            shared: Arc::clone(&self.0),
            kind,
        }
    }

    /// Opens the file again by its path.
    ///
    /// # Errors
    /// The file cannot be opened. The file that was open stays in use.
    pub(super) fn reopen(&self) -> io::Result<()> {
        let Some(path) = self.0.state.lock().path.clone() else {
            return Ok(());
        };
        let file = open(&path)?;
        self.0.state.lock().reopened = Some(file);
        self.0.filled.notify_one();
        Ok(())
    }

    /// Returns the number of lines that were dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.0.state.lock().queues.dropped_ever()
    }

    /// Waits until all lines are written, for at most `at_most`.
    pub(super) fn flush(&self, at_most: Duration) {
        let mut state = self.0.state.lock();
        let pending = |state: &mut WriterState| state.writing || !state.queues.is_empty();
        self.0.emptied.wait_while_for(&mut state, pending, at_most);
    }
}

/// Opens a log file for appending. Creates it, readable by its owner alone, if it does not exist.
/// Never waits: a named pipe is refused.
///
/// # Errors
/// Errors of the system, with the path, and a path that is not a regular file.
pub(super) fn open(path: &Path) -> io::Result<File> {
    open_with(path, OpenOptions::new().create(true))
}

/// Opens an existing log file.
///
/// # Errors
/// As [`open`].
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    open_with(path, &mut OpenOptions::new())
}

fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Without NONBLOCK, open(2) of a named pipe waits for its reader.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let mut open = || {
        let file = options
            .append(true)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("it is not a regular file")),
        }
    };
    open()
        .map_err(|err| io::Error::new(err.kind(), format!("cannot open {}: {err}", path.display())))
}

/// Adds lines of one kind to the queue. Never fails and never waits for the sink.
#[derive(Clone)]
pub(super) struct LineWriter {
    shared: Arc<Shared>,
    kind: Kind,
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let pushed = self
            .shared
            .state
            .lock()
            .queues
            .push(self.kind, line.to_vec());
        if pushed == Pushed::Waits {
            self.shared.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LineWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

struct Thread {
    shared: Arc<Shared>,
    sink: Sink,
}

impl Thread {
    fn run(mut self) {
        loop {
            let line = self.next();
            self.write(line);
            if let Some(notice) = self.notice() {
                self.write(notice);
            }
        }
    }

    /// Waits for a line. Switches to the file that was opened again, if there is one.
    fn next(&mut self) -> Vec<u8> {
        let mut state = self.shared.state.lock();
        loop {
            self.sink.replace(&mut state.reopened);
            if let Some(line) = state.queues.pop() {
                state.writing = true;
                return line;
            }
            state.writing = false;
            self.shared.emptied.notify_all();
            self.shared.filled.wait(&mut state);
        }
    }

    /// Returns a notice of lost lines, if there are any. Called after a line was written, when the
    /// sink accepts lines again.
    fn notice(&self) -> Option<Vec<u8>> {
        let dropped = self
            .shared
            .state
            .lock()
            .queues
            .take_dropped()
            .unwrap_or_default();
        let failed = self.shared.failed.swap(0, Ordering::Relaxed);
        let numbers = [
            ("dropped_lines", dropped.ordinary),
            ("dropped_audit_lines", dropped.audit),
            ("failed_writes", failed),
        ];
        numbers.iter().any(|(_, number)| *number > 0).then(|| {
            notice(
                self.shared.form,
                "the log could not be written for a while",
                &numbers,
            )
        })
    }

    /// Writes a whole line, however long that takes. A line that the system refuses is tried again,
    /// because the disk may have room later. The queue is bounded in the meantime.
    fn write(&mut self, line: Vec<u8>) {
        let mut rest = line.as_slice();
        let mut retry = RETRY;
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(written) if written > 0 => {
                    rest = rest.get(written..).unwrap_or_default();
                    retry = RETRY;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.sink.wait() => {}
                Ok(_) | Err(_) => {
                    self.shared.failed.fetch_add(1, Ordering::Relaxed);
                    self.pause(retry);
                    retry = (2 * retry).min(RETRY_MAX);
                }
            }
        }
    }

    /// Waits for `at_most`, or until the file was opened again.
    fn pause(&mut self, at_most: Duration) {
        let mut state = self.shared.state.lock();
        let mut waiting = |state: &mut WriterState| state.reopened.is_none();
        self.shared
            .filled
            .wait_while_for(&mut state, &mut waiting, at_most);
        self.sink.replace(&mut state.reopened);
    }
}

impl Sink {
    /// Switches to the file that was opened again, if there is one.
    fn replace(&mut self, reopened: &mut Option<File>) {
        if let (Some(reopened), Self::File { file, .. }) = (reopened.take(), self) {
            *file = reopened;
        }
    }

    fn write(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Stderr => rustix::io::write(io::stderr(), bytes),
            Self::File { file, .. } => rustix::io::write(file, bytes),
            // All of an event, or an error.
            Self::Journal(journal) => journal.send(bytes),
        }
    }

    /// Waits until a non-blocking descriptor accepts more. Returns whether it does.
    fn wait(&self) -> bool {
        match self {
            Self::Stderr => is_ready(io::stderr().as_fd()),
            Self::File { file, .. } => is_ready(file.as_fd()),
            // Its socket blocks.
            Self::Journal(_) => false,
        }
    }
}

fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let ready = poll(&mut fds, Some(&READY));
    // A descriptor that fails now fails at the next write, which pauses before it tries again.
    ready.is_ok()
        && !fds[0]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
}
