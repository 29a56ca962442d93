//! The screen of `top`, drawn from its state. All text of the daemon is escaped here.

use std::time::Duration;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect, Size},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Table, Wrap},
};
use tls_sessiond_core::clock::Timestamp;

use super::{
    super::{
        screen::Tone,
        status,
        text::escaped,
        words::{self, Words},
    },
    state::{RowValue, TopState, TopTable},
};
use crate::doctor::{Finding, Level};

/// The smallest terminal in which the screen is drawn.
const SMALLEST: Size = Size {
    width: 40,
    height: 8,
};
/// From this height on, the last line names the keys.
const HEIGHT_WITH_HINTS: u16 = 10;
/// The lines above the table: header, process, resumption, handshakes, finding, tables.
const HEAD_LINES: u16 = 6;
/// Space between two columns.
const GAP: u16 = 2;
/// The smallest width of the first column, which is cut before other columns are left out.
const FIRST_COLUMN_MIN: u16 = 12;

/// The last line of the screen.
const HINTS: &str = "q quit  Tab table  < > column  r reverse  p pause  ? keys";
/// What `?` shows.
const KEYS: [&str; 8] = [
    "Tab, 1 to 4   choose the table",
    "< >           choose the column by which rows are sorted",
    "r             reverse the order of the rows",
    "Up, Down      scroll by a row",
    "PgUp, PgDn    scroll by a page",
    "p             pause the screen, or continue",
    "?             show or hide these keys",
    "q, Esc, ^C    quit",
];

/// Whether states have colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Palette {
    Colored,
    Plain,
}

impl Palette {
    fn style(self, tone: Tone) -> Style {
        let color = match (self, tone) {
            (Self::Plain, _) | (_, Tone::Plain) => return Style::new(),
            (Self::Colored, Tone::Good) => Color::Green,
            (Self::Colored, Tone::Passing) => Color::Yellow,
            (Self::Colored, Tone::Bad) => Color::Red,
        };
        Style::new().fg(color)
    }
}

/// Returns for how many rows of a table a terminal of this size has room.
pub(super) fn table_rows(size: Size) -> usize {
    let heading = 1;
    let height = size.height.saturating_sub(HEAD_LINES + heading);
    usize::from(height.saturating_sub(hint_lines(size.height)))
}

fn hint_lines(height: u16) -> u16 {
    u16::from(height >= HEIGHT_WITH_HINTS)
}

/// Draws the screen as it is at `now`.
pub(super) fn draw(frame: &mut Frame<'_>, state: &TopState, now: Timestamp, palette: Palette) {
    let area = frame.area();
    if area.width < SMALLEST.width || area.height < SMALLEST.height {
        let text = Paragraph::new("the terminal is too small").wrap(Wrap { trim: true });
        frame.render_widget(text, area);
        return;
    }
    let [head, body, hints] = Layout::vertical([
        Constraint::Length(HEAD_LINES),
        Constraint::Min(0),
        Constraint::Length(hint_lines(area.height)),
    ])
    .areas(area);
    let lines = vec![
        header(state, now, palette),
        Line::from(process(state)),
        Line::from(resumption(state)),
        Line::from(handshakes(state)),
        finding(&state.poll().findings, palette),
        tables(state),
    ];
    frame.render_widget(Paragraph::new(lines), head);
    if state.shows_keys() {
        frame.render_widget(Paragraph::new(KEYS.map(Line::from).to_vec()), body);
    } else {
        table(frame, body, state);
    }
    frame.render_widget(Paragraph::new(HINTS), hints);
}

/// Returns the version, the uptime, the state and the digest, or for how long the daemon is away.
fn header(state: &TopState, now: Timestamp, palette: Palette) -> Line<'static> {
    let paused = if state.is_paused() { "paused  " } else { "" };
    if let Some((silent, why)) = state.absence(now) {
        let text = format!("no status for {}s: {}", silent.as_secs(), escaped(why));
        let style = palette.style(Tone::Bad);
        return Line::from(vec![Span::raw(paused), Span::styled(text, style)]);
    }
    let answer = &state.poll().status;
    let version = escaped(&answer.version);
    let uptime = status::uptime(answer);
    let digest = escaped(&answer.config_digest);
    Line::from(vec![
        Span::raw(format!("{paused}tls-sessiond {version}  up {uptime}  ")),
        Span::styled(
            answer.state().word(),
            palette.style(status::tone(answer.state())),
        ),
        Span::raw(format!("  digest {digest}")),
    ])
}

/// Returns the memory, the CPU time, the connections and the calls of the daemon.
fn process(state: &TopState) -> String {
    let process = state.poll().status.process.unwrap_or_default();
    let cpu = state.interval().map_or("-".into(), |interval| {
        format!("{:.0} %", interval.cpu_percent)
    });
    format!(
        "memory {}  cpu {cpu}  connections {}/{}  calls {}/{}",
        words::bytes(process.memory_bytes),
        process.connections,
        process.connections_max,
        process.calls,
        process.calls_max
    )
}

/// Returns the share of resumed handshakes, in the last interval and since the start.
fn resumption(state: &TopState) -> String {
    let start = state.poll().totals();
    let since_start = words::percent(start.resumed, start.finished());
    match state.interval() {
        None => format!("resumed {since_start} since the start"),
        Some(interval) => {
            let last = interval.totals();
            format!(
                "resumed {} in the last {}, {since_start} since the start",
                words::percent(last.resumed, last.finished()),
                tenths(interval.elapsed)
            )
        }
    }
}

/// Returns a duration in seconds with one decimal.
fn tenths(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

/// Returns the handshakes per second.
fn handshakes(state: &TopState) -> String {
    state
        .interval()
        .map_or("handshakes/s -".into(), |interval| {
            let counts = interval.totals();
            format!(
                "handshakes/s {:.1} full, {:.1} resumed, {:.1} failed",
                interval.per_second(counts.full),
                interval.per_second(counts.resumed),
                interval.per_second(counts.failed)
            )
        })
}

/// Returns the worst finding, and how many others there are. The number comes first, because the text
/// may not fit.
fn finding(findings: &[Finding], palette: Palette) -> Line<'static> {
    let Some((worst, others)) = findings.split_first() else {
        return Line::styled("no findings", palette.style(Tone::Good));
    };
    let tone = match worst.level {
        Level::Critical => Tone::Bad,
        Level::Warning => Tone::Passing,
    };
    let others = match others.len() {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    };
    let text = escaped(&worst.text);
    let line = format!("{}{others}: {}: {text}", worst.level.name(), worst.name);
    Line::styled(line, palette.style(tone))
}

/// Returns the names of the tables with their digits, and the order of the rows.
fn tables(state: &TopState) -> Line<'static> {
    let mut spans = Vec::new();
    for (place, table) in TopTable::ALL.into_iter().enumerate() {
        let title = format!("{} {}", place + 1, table.title());
        if table == state.table() {
            spans.push(Span::styled(format!("[{title}]"), Modifier::BOLD));
        } else {
            spans.push(Span::raw(format!(" {title} ")));
        }
    }
    let order = state.order();
    let first = if order.is_descending {
        "largest"
    } else {
        "smallest"
    };
    let heading = state.table().headings()[order.column];
    spans.push(Span::raw(format!("  {heading}, {first} first")));
    Line::from(spans)
}

/// Draws the table. Columns that do not fit are left out at the right.
fn table(frame: &mut Frame<'_>, area: Rect, state: &TopState) {
    let headings = state.table().headings();
    let rows = state.rows();
    let lines: Vec<Vec<Line<'_>>> = rows
        .iter()
        .map(|row| row.iter().map(value).collect())
        .collect();
    let width = |column: usize| {
        let widest = lines.iter().map(|row| row[column].width()).max();
        let widest = widest.unwrap_or_default().max(headings[column].len());
        u16::try_from(widest).unwrap_or(u16::MAX)
    };
    let mut widths = vec![width(0)];
    let mut used: u16 = 0;
    for column in 1..headings.len() {
        let with = used.saturating_add(width(column)).saturating_add(GAP);
        if with.saturating_add(FIRST_COLUMN_MIN) > area.width {
            break;
        }
        used = with;
        widths.push(width(column));
    }
    widths[0] = widths[0].min(area.width - used);

    let order = state.order();
    let header = headings.iter().enumerate().map(|(column, heading)| {
        let is_number = rows.first().is_some_and(|row| row[column].is_number());
        let line = Line::from(*heading);
        let line = if is_number {
            line.right_aligned()
        } else {
            line
        };
        if column == order.column {
            Cell::from(line).style(Modifier::REVERSED)
        } else {
            Cell::from(line)
        }
    });
    let header = Row::new(header.take(widths.len()));
    let columns = widths.len();
    let body = lines
        .into_iter()
        .skip(state.first_row())
        .map(|row| Row::new(row.into_iter().take(columns)));
    let widths = widths.into_iter().map(Constraint::Length);
    let table = Table::new(body, widths).header(header).column_spacing(GAP);
    frame.render_widget(table, area);
}

/// Returns a value, escaped. Numbers are aligned to the right.
fn value(value: &RowValue) -> Line<'static> {
    let line = Line::from(escaped(&value.text));
    if value.is_number() {
        line.right_aligned()
    } else {
        line
    }
}
