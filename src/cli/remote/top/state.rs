//! The state of `top`: answers and keys in, rates and sorted rows out. Nothing here reads a clock, a
//! terminal or a socket.

use std::{cmp::Ordering, ops::ControlFlow, time::Duration};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tls_sessiond_core::clock::Timestamp;
use tls_sessiond_proto as pb;

use super::super::words;
use crate::doctor::{Evidence, Finding, examine};

/// One answer of GetStatus.
#[derive(Clone, Debug)]
pub(super) struct StatusPoll {
    /// The answer.
    pub(super) status: pb::GetStatusResponse,
    /// Its findings, worst first. Findings that need recent misses or failures are not among them.
    pub(super) findings: Vec<Finding>,
    /// When the answer arrived.
    at: Timestamp,
}

impl StatusPoll {
    /// Examines an answer that arrived at `at`. `clock_offset` is that of [`Evidence`].
    pub(super) fn new(
        status: pb::GetStatusResponse,
        at: Timestamp,
        clock_offset: Option<i64>,
    ) -> Self {
        let findings = examine(&Evidence {
            status: &status,
            misses: &[],
            failures: &[],
            clock_offset,
        });
        Self {
            status,
            findings,
            at,
        }
    }

    /// Returns the counters of all contexts since the daemon started.
    pub(super) fn totals(&self) -> HandshakeCounts {
        let contexts = self.status.contexts.iter();
        contexts.map(HandshakeCounts::of).sum()
    }

    /// Returns the CPU time of the daemon since it started, in seconds.
    fn cpu_seconds(&self) -> f64 {
        let process = self.status.process.as_ref();
        let time = process.and_then(|process| process.cpu_time);
        time.map_or(0.0, |time| {
            time.seconds as f64 + f64::from(time.nanos) / 1e9
        })
    }
}

/// Counters of one context, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HandshakeCounts {
    /// Finished handshakes that resumed no session.
    pub(super) full: u64,
    /// Finished handshakes that resumed a session.
    pub(super) resumed: u64,
    /// Handshakes that failed.
    pub(super) failed: u64,
    /// Sessions that were offered and could not be resumed.
    pub(super) misses: u64,
}

impl HandshakeCounts {
    fn of(context: &pb::Context) -> Self {
        let mut counts = Self::default();
        let Some(stats) = &context.stats else {
            return counts;
        };
        for handshakes in &stats.handshakes {
            let count = if handshakes.resumed {
                &mut counts.resumed
            } else {
                &mut counts.full
            };
            *count = count.saturating_add(handshakes.count);
        }
        for failures in &stats.failures_by_alert {
            counts.failed = counts.failed.saturating_add(failures.count);
        }
        counts.misses = stats.misses;
        counts
    }

    /// Returns the increase since `earlier`. A counter that shrank was reset, and has increased by its
    /// value.
    fn since(self, earlier: Self) -> Self {
        let increase = |later: u64, earlier| later.checked_sub(earlier).unwrap_or(later);
        Self {
            full: increase(self.full, earlier.full),
            resumed: increase(self.resumed, earlier.resumed),
            failed: increase(self.failed, earlier.failed),
            misses: increase(self.misses, earlier.misses),
        }
    }

    /// Returns the number of finished handshakes.
    pub(super) fn finished(self) -> u64 {
        self.full.saturating_add(self.resumed)
    }
}

impl std::iter::Sum for HandshakeCounts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, next| Self {
            full: sum.full.saturating_add(next.full),
            resumed: sum.resumed.saturating_add(next.resumed),
            failed: sum.failed.saturating_add(next.failed),
            misses: sum.misses.saturating_add(next.misses),
        })
    }
}

/// Increases between two answers.
#[derive(Clone, Debug)]
pub(super) struct PollInterval {
    /// The time between the answers. More than 0.
    pub(super) elapsed: Duration,
    /// CPU time of the daemon in per cent of one core.
    pub(super) cpu_percent: f64,
    /// Increases by name of the context. A context that only one answer has is left out.
    contexts: Vec<(String, HandshakeCounts)>,
}

impl PollInterval {
    /// Compares two answers. Returns `None` if no time passed, or if the daemon restarted between
    /// them.
    fn between(earlier: &StatusPoll, later: &StatusPoll) -> Option<Self> {
        let elapsed = later.at.since(earlier.at);
        if elapsed.is_zero() || earlier.status.start_time != later.status.start_time {
            return None;
        }
        let mut contexts = Vec::new();
        for context in &later.status.contexts {
            let mut before = earlier.status.contexts.iter();
            if let Some(before) = before.find(|held| held.name == context.name) {
                let increase = HandshakeCounts::of(context).since(HandshakeCounts::of(before));
                contexts.push((context.name.clone(), increase));
            }
        }
        let cpu = (later.cpu_seconds() - earlier.cpu_seconds()).max(0.0);
        Some(Self {
            elapsed,
            cpu_percent: 100.0 * cpu / elapsed.as_secs_f64(),
            contexts,
        })
    }

    /// Returns the increases of all contexts.
    pub(super) fn totals(&self) -> HandshakeCounts {
        self.contexts.iter().map(|(_, counts)| *counts).sum()
    }

    fn of_context(&self, name: &str) -> Option<HandshakeCounts> {
        let mut contexts = self.contexts.iter();
        contexts
            .find(|(held, _)| held == name)
            .map(|(_, counts)| *counts)
    }

    /// Returns an increase per second.
    pub(super) fn per_second(&self, increase: u64) -> f64 {
        increase as f64 / self.elapsed.as_secs_f64()
    }
}

/// A table of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopTable {
    Contexts,
    Owners,
    Connections,
    Streams,
}

impl TopTable {
    /// All tables, in the order of their digits.
    pub(super) const ALL: [Self; 4] = [
        Self::Contexts,
        Self::Owners,
        Self::Connections,
        Self::Streams,
    ];

    /// Returns its name on the screen.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Contexts => "contexts",
            Self::Owners => "owners",
            Self::Connections => "connections",
            Self::Streams => "long streams",
        }
    }

    /// Returns the headings of its columns.
    pub(super) fn headings(self) -> &'static [&'static str] {
        match self {
            Self::Contexts => &[
                "CONTEXT",
                "SESSIONS",
                "MAX/ROLE",
                "BYTES",
                "HANDSHAKES/S",
                "RESUMED",
                "MISSES/S",
            ],
            Self::Owners => &[
                "OWNER",
                "CONNECTIONS",
                "UNCLOSED",
                "FAILURES",
                "MISSES",
                "STORED",
            ],
            Self::Connections => &["CONTEXT", "STATE", "ROLE", "ENGINE", "COUNT"],
            Self::Streams => &["OWNER", "STREAMS", "LIMIT"],
        }
    }

    /// Returns the table after this one. The first follows the last.
    fn next(self) -> Self {
        match self {
            Self::Contexts => Self::Owners,
            Self::Owners => Self::Connections,
            Self::Connections => Self::Streams,
            Self::Streams => Self::Contexts,
        }
    }
}

/// The order of the rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowOrder {
    /// The place of the column that is compared.
    pub(super) column: usize,
    /// Whether the largest value comes first.
    pub(super) is_descending: bool,
}

impl RowOrder {
    /// Returns the order of a table at first: the busiest rows first.
    fn at_first(table: TopTable) -> Self {
        let column = match table {
            TopTable::Contexts | TopTable::Connections => 4,
            TopTable::Owners | TopTable::Streams => 1,
        };
        Self {
            column,
            is_descending: true,
        }
    }
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RowValue {
    /// The text, not escaped.
    pub(super) text: String,
    /// The number by which the value is compared. `None`: it is compared as text.
    number: Option<f64>,
}

impl RowValue {
    fn word(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            number: None,
        }
    }

    fn number(text: String, number: f64) -> Self {
        Self {
            text,
            number: Some(number),
        }
    }

    fn count(count: u64) -> Self {
        Self::number(count.to_string(), count as f64)
    }

    /// Returns a number that is not known yet. It is less than every other number.
    fn unknown() -> Self {
        Self::number("-".into(), f64::NEG_INFINITY)
    }

    fn rate(rate: f64) -> Self {
        Self::number(format!("{rate:.1}"), rate)
    }

    /// Returns a share, or an unknown one of nothing.
    fn share(part: u64, whole: u64) -> Self {
        match whole {
            0 => Self::unknown(),
            _ => Self::number(words::percent(part, whole), part as f64 / whole as f64),
        }
    }

    /// Returns whether the value is a number.
    pub(super) fn is_number(&self) -> bool {
        self.number.is_some()
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self.number, other.number) {
            (Some(one), Some(two)) => one.total_cmp(&two),
            _ => self.text.cmp(&other.text),
        }
    }
}

/// All that the screen shows.
#[derive(Clone, Debug)]
pub(super) struct TopState {
    poll: StatusPoll,
    interval: Option<PollInterval>,
    /// When the daemon answered last, also while the screen is paused.
    answered: Timestamp,
    /// Why the last call failed.
    failure: Option<String>,
    /// From this time without an answer on, the daemon is late.
    late_after: Duration,
    table: TopTable,
    orders: [RowOrder; TopTable::ALL.len()],
    first_row: usize,
    page: usize,
    is_paused: bool,
    shows_keys: bool,
}

impl TopState {
    /// Returns the state after the first answer, for calls with this interval between them.
    pub(super) fn new(first: StatusPoll, every: Duration) -> Self {
        Self {
            answered: first.at,
            poll: first,
            interval: None,
            failure: None,
            late_after: 2 * every + Duration::from_secs(1),
            table: TopTable::Contexts,
            orders: TopTable::ALL.map(RowOrder::at_first),
            first_row: 0,
            page: 1,
            is_paused: false,
            shows_keys: false,
        }
    }

    /// Takes an answer. While the screen is paused, the answer only shows that the daemon answers.
    pub(super) fn answer(&mut self, poll: StatusPoll) {
        self.answered = poll.at;
        self.failure = None;
        if !self.is_paused {
            self.interval = PollInterval::between(&self.poll, &poll);
            self.poll = poll;
            self.keep_rows_in_view();
        }
    }

    /// Takes the failure of a call.
    pub(super) fn fail(&mut self, failure: String) {
        self.failure = Some(failure);
    }

    /// Sets how many rows of a table the screen has room for.
    pub(super) fn set_page(&mut self, rows: usize) {
        self.page = rows.max(1);
        self.keep_rows_in_view();
    }

    /// Acts on a key. Returns [`ControlFlow::Break`] if the key ends the command.
    pub(super) fn press(&mut self, key: KeyEvent) -> ControlFlow<()> {
        if key.kind == KeyEventKind::Release {
            return ControlFlow::Continue(());
        }
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return ControlFlow::Break(());
            }
            KeyCode::Char('q') | KeyCode::Esc => return ControlFlow::Break(()),
            KeyCode::Tab => self.show(self.table.next()),
            KeyCode::Char('1') => self.show(TopTable::Contexts),
            KeyCode::Char('2') => self.show(TopTable::Owners),
            KeyCode::Char('3') => self.show(TopTable::Connections),
            KeyCode::Char('4') => self.show(TopTable::Streams),
            KeyCode::Char('>') => self.sort_by(|column, columns| (column + 1) % columns),
            KeyCode::Char('<') => self.sort_by(|column, columns| (column + columns - 1) % columns),
            KeyCode::Char('r') => {
                let order = self.order_mut();
                order.is_descending = !order.is_descending;
            }
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char('?') => self.shows_keys = !self.shows_keys,
            KeyCode::Down => self.first_row += 1,
            KeyCode::Up => self.first_row = self.first_row.saturating_sub(1),
            KeyCode::PageDown => self.first_row += self.page,
            KeyCode::PageUp => self.first_row = self.first_row.saturating_sub(self.page),
            _ => {}
        }
        self.keep_rows_in_view();
        ControlFlow::Continue(())
    }

    fn show(&mut self, table: TopTable) {
        self.table = table;
        self.first_row = 0;
        self.shows_keys = false;
    }

    fn sort_by(&mut self, choose: impl FnOnce(usize, usize) -> usize) {
        let columns = self.table.headings().len();
        let order = self.order_mut();
        order.column = choose(order.column, columns);
    }

    fn order_mut(&mut self) -> &mut RowOrder {
        &mut self.orders[self.table as usize]
    }

    /// Scrolls back if the page would end after the last row.
    fn keep_rows_in_view(&mut self) {
        let last = self.row_count().saturating_sub(self.page);
        self.first_row = self.first_row.min(last);
    }

    fn row_count(&self) -> usize {
        let status = &self.poll.status;
        match self.table {
            TopTable::Contexts => status.contexts.len(),
            TopTable::Owners => status.owners.len(),
            TopTable::Connections => status.connections.len(),
            TopTable::Streams => status.streams.len(),
        }
    }

    /// Returns the answer that is shown.
    pub(super) fn poll(&self) -> &StatusPoll {
        &self.poll
    }

    /// Returns the increases up to the answer that is shown. `None`: there is no answer to compare
    /// with.
    pub(super) fn interval(&self) -> Option<&PollInterval> {
        self.interval.as_ref()
    }

    /// Returns the table that is shown.
    pub(super) fn table(&self) -> TopTable {
        self.table
    }

    /// Returns the order of the rows of the table that is shown.
    pub(super) fn order(&self) -> RowOrder {
        self.orders[self.table as usize]
    }

    /// Returns the place of the first row that is shown.
    pub(super) fn first_row(&self) -> usize {
        self.first_row
    }

    /// Returns whether answers are not shown.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Returns whether the keys are shown in place of a table.
    pub(super) fn shows_keys(&self) -> bool {
        self.shows_keys
    }

    /// Returns for how long the daemon has not answered, and why. `None`: it answers.
    pub(super) fn absence(&self, now: Timestamp) -> Option<(Duration, &str)> {
        let silent = now.since(self.answered);
        match &self.failure {
            Some(failure) => Some((silent, failure)),
            None if silent >= self.late_after => Some((silent, "waiting for an answer")),
            None => None,
        }
    }

    /// Returns the rows of the table that is shown, in their order. Equal rows keep the order of the
    /// daemon.
    pub(super) fn rows(&self) -> Vec<Vec<RowValue>> {
        let status = &self.poll.status;
        let mut rows: Vec<_> = match self.table {
            TopTable::Contexts => {
                let contexts = status.contexts.iter();
                contexts.map(|context| self.context_row(context)).collect()
            }
            TopTable::Owners => status.owners.iter().map(owner_row).collect(),
            TopTable::Connections => status.connections.iter().map(connection_row).collect(),
            TopTable::Streams => status.streams.iter().map(stream_row).collect(),
        };
        let RowOrder {
            column,
            is_descending,
        } = self.order();
        rows.sort_by(|one, two| {
            let ascending = one[column].compare(&two[column]);
            if is_descending {
                ascending.reverse()
            } else {
                ascending
            }
        });
        rows
    }

    fn context_row(&self, context: &pb::Context) -> Vec<RowValue> {
        let interval = self.interval.as_ref();
        let increase = interval.and_then(|interval| {
            let counts = interval.of_context(&context.name)?;
            Some((interval, counts))
        });
        let rate = |counted: fn(HandshakeCounts) -> u64| {
            increase.map_or_else(RowValue::unknown, |(interval, counts)| {
                RowValue::rate(interval.per_second(counted(counts)))
            })
        };
        let stats = context.stats.as_ref();
        let bytes = stats.map_or(0, |stats| stats.session_bytes);
        vec![
            RowValue::word(&*context.name),
            RowValue::count(stats.map_or(0, |stats| stats.sessions)),
            RowValue::count(context.cache_entries_max),
            RowValue::number(words::bytes(bytes), bytes as f64),
            rate(HandshakeCounts::finished),
            increase.map_or_else(RowValue::unknown, |(_, counts)| {
                RowValue::share(counts.resumed, counts.finished())
            }),
            rate(|counts| counts.misses),
        ]
    }
}

fn owner_row(owner: &pb::OwnerUsage) -> Vec<RowValue> {
    vec![
        RowValue::word(&*owner.owner),
        RowValue::count(owner.connections),
        RowValue::count(owner.unclosed),
        RowValue::count(owner.failures),
        RowValue::count(owner.misses),
        RowValue::count(owner.stored),
    ]
}

fn connection_row(count: &pb::ConnectionCount) -> Vec<RowValue> {
    vec![
        RowValue::word(&*count.context),
        RowValue::word(words::word::<pb::ConnectionState>(count.state)),
        RowValue::word(words::word::<pb::Role>(count.role)),
        RowValue::word(words::word::<pb::Engine>(count.engine)),
        RowValue::count(count.count),
    ]
}

fn stream_row(usage: &pb::StreamUsage) -> Vec<RowValue> {
    vec![
        RowValue::word(&*usage.owner),
        RowValue::count(usage.streams.into()),
        RowValue::count(usage.limit.into()),
    ]
}
