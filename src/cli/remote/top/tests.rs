//! Rates, order, keys and the drawn screen, without a daemon and without a terminal.

use std::{ops::ControlFlow, time::Duration};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend, style::Color};
use tls_sessiond_core::clock::Timestamp;
use tls_sessiond_proto as pb;

use super::{
    poll_interval,
    state::{StatusPoll, TopState, TopTable},
    view::{self, Palette},
};

const EVERY: Duration = Duration::from_secs(2);

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + 1000 * seconds)
}

/// Returns a context with these numbers of full, resumed and failed handshakes, and of misses.
fn context(name: &str, [full, resumed, failed, misses]: [u64; 4]) -> pb::Context {
    let handshakes = [(false, full), (true, resumed)].map(|(resumed, count)| pb::HandshakeCount {
        resumed,
        count,
        ..Default::default()
    });
    pb::Context {
        name: name.into(),
        cache_entries_max: 1000,
        stats: Some(pb::SessionStats {
            sessions: full,
            session_bytes: 1024 * full,
            handshakes: handshakes.to_vec(),
            failures_by_alert: vec![pb::AlertCount {
                count: failed,
                ..Default::default()
            }],
            misses,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn owner(name: &str, connections: u64) -> pb::OwnerUsage {
    pb::OwnerUsage {
        owner: name.into(),
        connections,
        ..Default::default()
    }
}

fn status(contexts: &[pb::Context], cpu_seconds: i64) -> pb::GetStatusResponse {
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    pb::GetStatusResponse {
        version: "0.1.0".into(),
        start_time: time(10),
        time: time(130),
        state: pb::DaemonState::Serving.into(),
        config_digest: "0123456789abcdef".into(),
        contexts: contexts.to_vec(),
        owners: vec![owner("b", 5), owner("a", 5), owner("c", 7)],
        process: Some(pb::ProcessUsage {
            memory_bytes: 3 << 20,
            cpu_time: Some(prost_types::Duration {
                seconds: cpu_seconds,
                nanos: 500_000_000,
            }),
            calls: 1,
            calls_max: 20,
            connections: 2,
            connections_max: 1000,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn poll(status: pb::GetStatusResponse, seconds: u64) -> StatusPoll {
    StatusPoll::new(status, at(seconds), None)
}

/// Returns the state after two answers of the same daemon, 2 s apart.
fn after(first: &[pb::Context], second: &[pb::Context]) -> TopState {
    let mut state = TopState::new(poll(status(first, 1), 0), EVERY);
    state.answer(poll(status(second, 2), 2));
    state
}

fn press(state: &mut TopState, keys: &str) {
    for key in keys.chars() {
        let pressed = state.press(KeyEvent::from(KeyCode::Char(key)));
        assert_eq!(pressed, ControlFlow::Continue(()), "{key}");
    }
}

/// Returns the column of the shown table, in the order of the rows.
fn column(state: &TopState, column: usize) -> Vec<String> {
    let rows = state.rows().into_iter();
    rows.map(|row| row[column].text.clone()).collect()
}

fn screen(state: &TopState, width: u16, height: u16, palette: Palette) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| view::draw(frame, state, at(2), palette))
        .unwrap();
    terminal
}

/// Returns the lines of the screen without blanks at their ends.
fn lines(state: &TopState, width: u16, height: u16) -> Vec<String> {
    let terminal = screen(state, width, height, Palette::Plain);
    let buffer = terminal.backend().buffer();
    let cells: Vec<_> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    cells
        .chunks(width.into())
        .map(|line| line.concat().trim_end().to_owned())
        .collect()
}

#[test]
fn rates_are_those_between_two_answers() {
    let state = after(
        &[context("a", [10, 10, 1, 4]), context("b", [0, 0, 0, 0])],
        &[context("a", [14, 22, 2, 9]), context("b", [4, 0, 0, 0])],
    );
    let shown = lines(&state, 100, 12);
    assert_eq!(
        shown[..9],
        [
            "tls-sessiond 0.1.0  up 2m  serving  digest 0123456789abcdef",
            "memory 3 MiB  cpu 50 %  connections 2/1000  calls 1/20",
            "resumed 60 % in the last 2.0s, 55 % since the start",
            "handshakes/s 4.0 full, 6.0 resumed, 0.5 failed",
            "no findings",
            "[1 contexts] 2 owners  3 connections  4 long streams   HANDSHAKES/S, largest first",
            "CONTEXT  SESSIONS  MAX/ROLE   BYTES  HANDSHAKES/S  RESUMED  MISSES/S",
            "a              14      1000  14 KiB           8.0     75 %       2.5",
            "b               4      1000   4 KiB           2.0      0 %       0.0",
        ]
    );
    assert!(shown[11].starts_with("q quit"), "{shown:?}");
}

#[test]
fn first_answer_has_no_rates() {
    let state = TopState::new(poll(status(&[context("a", [1, 1, 0, 0])], 1), 0), EVERY);
    let shown = lines(&state, 100, 12);
    assert_eq!(shown[2], "resumed 50 % since the start");
    assert_eq!(shown[3], "handshakes/s -");
    assert!(shown[1].contains("cpu -"), "{shown:?}");
    assert_eq!(column(&state, 4), ["-"]);
}

#[test]
fn counter_that_shrinks_has_increased_by_its_value() {
    let state = after(
        &[context("a", [100, 100, 9, 50])],
        &[context("a", [2, 100, 9, 0]), context("new", [50, 0, 0, 0])],
    );
    let totals = state.interval().unwrap().totals();
    assert_eq!((totals.full, totals.resumed, totals.misses), (2, 0, 0));
    // A context that was added by the reload has no rate before its second answer.
    assert_eq!(column(&state, 0), ["a", "new"]);
    assert_eq!(column(&state, 4), ["1.0", "-"]);
}

#[test]
fn restart_has_no_rates() {
    let mut state = after(&[], &[]);
    let mut restarted = status(&[], 9);
    restarted.start_time = restarted.time;
    state.answer(poll(restarted.clone(), 4));
    assert!(state.interval().is_none());
    state.answer(poll(restarted, 6));
    assert_eq!(state.interval().unwrap().elapsed, EVERY);
}

#[test]
fn rows_are_sorted_by_the_chosen_column() {
    let mut state = after(&[], &[]);
    press(&mut state, "2");
    assert_eq!(state.table(), TopTable::Owners);
    // Equal rows keep the order of the daemon.
    assert_eq!(column(&state, 0), ["c", "b", "a"]);
    press(&mut state, "r");
    assert_eq!(column(&state, 0), ["b", "a", "c"]);
    press(&mut state, "<");
    assert_eq!(column(&state, 0), ["a", "b", "c"]);
    press(&mut state, "<");
    assert_eq!(state.order().column, 5);
    press(&mut state, ">");
    press(&mut state, "r");
    assert_eq!(column(&state, 0), ["c", "b", "a"]);
    // Each table has its own order.
    press(&mut state, "1");
    assert!(state.order().is_descending && state.order().column == 4);
    press(&mut state, "2");
    assert_eq!(state.order().column, 0);
}

#[test]
fn numbers_are_compared_as_numbers() {
    let mut state = after(
        &[],
        &[context("a", [9, 0, 0, 0]), context("b", [10, 0, 0, 0])],
    );
    press(&mut state, "<<<");
    assert_eq!(column(&state, 1), ["10", "9"]);
    press(&mut state, ">>");
    assert_eq!(column(&state, 3), ["10 KiB", "9 KiB"]);
}

#[test]
fn keys_choose_tables_and_quit() {
    let mut state = after(&[], &[]);
    for table in [
        TopTable::Owners,
        TopTable::Connections,
        TopTable::Streams,
        TopTable::Contexts,
    ] {
        assert!(state.press(KeyEvent::from(KeyCode::Tab)).is_continue());
        assert_eq!(state.table(), table);
    }
    press(&mut state, "?c");
    assert!(lines(&state, 80, 20).contains(&"q, Esc, ^C    quit".into()));
    press(&mut state, "?");
    assert!(!state.shows_keys());
    for key in [
        KeyEvent::from(KeyCode::Char('q')),
        KeyEvent::from(KeyCode::Esc),
        KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL),
    ] {
        assert!(state.press(key).is_break());
    }
}

#[test]
fn paused_screen_keeps_its_numbers() {
    let mut state = after(&[], &[]);
    press(&mut state, "p");
    state.answer(poll(status(&[context("a", [0; 4])], 9), 4));
    assert!(column(&state, 0).is_empty());
    assert!(lines(&state, 80, 20)[0].starts_with("paused  tls-sessiond"));
    // The daemon answers, although its answer is not shown.
    assert!(state.absence(at(5)).is_none());
    press(&mut state, "p");
    state.answer(poll(status(&[context("a", [0; 4])], 9), 6));
    assert_eq!(state.interval().unwrap().elapsed, 2 * EVERY);
    assert_eq!(column(&state, 0), ["a"]);
}

#[test]
fn daemon_that_is_away_is_named_with_seconds() {
    let mut state = TopState::new(poll(status(&[], 1), 0), EVERY);
    assert!(state.absence(at(4)).is_none());
    assert!(state.absence(at(5)).is_some());
    state.fail("cannot reach\x1b it".into());
    let shown = lines(&state, 80, 20);
    assert_eq!(shown[0], "no status for 2s: cannot reach\\u{1b} it");
    state.answer(poll(status(&[], 1), 2));
    assert!(lines(&state, 80, 20)[0].starts_with("tls-sessiond"));
}

#[test]
fn worst_finding_and_the_number_of_others_are_shown() {
    let mut answer = status(&[], 1);
    answer.state = pb::DaemonState::Draining.into();
    answer.log_lines_dropped = 1;
    let state = TopState::new(poll(answer, 0), EVERY);
    let shown = &lines(&state, 80, 20)[4];
    assert!(
        shown.starts_with("critical (and 1 more): draining: The daemon drains"),
        "{shown}"
    );
}

#[test]
fn text_of_the_daemon_is_escaped() {
    let mut answer = status(&[context("a\x1b[2J\u{202e}", [0; 4])], 1);
    answer.version = "0\n1".into();
    let state = TopState::new(poll(answer, 0), EVERY);
    let shown = lines(&state, 100, 20);
    assert!(shown[7].starts_with("a\\u{1b}[2J\\u{202e}"), "{shown:?}");
    assert!(shown[0].starts_with("tls-sessiond 0\\n1"), "{shown:?}");
}

#[test]
fn small_terminals_are_drawn_or_refused() {
    let mut state = after(&[], &[context("a".repeat(99).as_str(), [0; 4])]);
    for (width, height) in [(39, 8), (40, 7), (30, 5)] {
        let text = lines(&state, width, height).concat();
        assert_eq!(text, "the terminal is too small");
    }
    assert_eq!(lines(&state, 10, 3), ["the", "terminal", "is too"]);
    assert_eq!(lines(&state, 1, 1), ["t"]);
    // Columns that do not fit are left out, and the first one is cut.
    state.set_page(view::table_rows((40, 8).into()));
    let shown = lines(&state, 40, 8);
    assert_eq!(shown[6], "CONTEXT        SESSIONS  MAX/ROLE  BYTES");
    assert_eq!(shown[7], "aaaaaaaaaaaaa         0      1000    0 B");
    for height in 8..20 {
        for width in [40, 41, 60, 300] {
            lines(&state, width, height);
        }
    }
}

#[test]
fn long_tables_scroll() {
    let contexts: Vec<_> = (10..30)
        .map(|number| context(&number.to_string(), [0; 4]))
        .collect();
    let mut state = after(&contexts, &contexts);
    state.set_page(view::table_rows((80, 12).into()));
    let mut first = |key| {
        assert!(state.press(KeyEvent::from(key)).is_continue());
        lines(&state, 80, 12)[7][..2].to_owned()
    };
    assert_eq!(first(KeyCode::Up), "10");
    assert_eq!(first(KeyCode::Down), "11");
    assert_eq!(first(KeyCode::PageDown), "15");
    for _ in 0..9 {
        first(KeyCode::PageDown);
    }
    // The last page is full.
    assert_eq!(first(KeyCode::PageDown), "26");
    assert_eq!(first(KeyCode::PageUp), "22");
}

#[test]
fn plain_screen_has_no_colours() {
    let state = after(&[], &[]);
    let colors = |palette| {
        let terminal = screen(&state, 80, 20, palette);
        let buffer = terminal.backend().buffer();
        let cells = buffer.content().iter();
        cells.filter(|cell| cell.fg != Color::Reset).count()
    };
    assert_eq!(colors(Palette::Plain), 0);
    assert_eq!(
        colors(Palette::Colored),
        "serving".len() + "no findings".len()
    );
}

#[test]
fn interval_has_a_minimum() {
    assert_eq!(poll_interval("500ms"), Ok(Duration::from_millis(500)));
    assert!(poll_interval("499ms").is_err());
    assert!(poll_interval("2").is_err());
}

/// A panic in a terminal that script(1) makes.
#[cfg(feature = "peers")]
mod live {
    use std::{
        env,
        process::{Command, Stdio},
    };

    use super::super::{terminal::LiveTerminal, view::Palette};

    /// The variable that makes [`panic_on_a_terminal`] panic.
    const PANIC: &str = "TLS_SESSIOND_TEST_PANIC";

    /// Panics in a process of its own, which the next test starts.
    #[test]
    fn panic_on_a_terminal() {
        if env::var_os(PANIC).is_some() {
            let _terminal = LiveTerminal::enter(Palette::Plain).unwrap();
            panic!("on purpose");
        }
    }

    /// Runs a test of this binary in a terminal that script(1) makes.
    #[test]
    fn panic_leaves_the_terminal_before_its_message() {
        let this = env::current_exe().unwrap();
        let test = format!(
            "{} --exact cli::remote::top::tests::live::panic_on_a_terminal --nocapture; stty -a",
            this.display()
        );
        let output = Command::new("script")
            .args(["-qc", &test, "/dev/null"])
            .env(PANIC, "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let place = |wanted: &str| {
            let found = text.find(wanted);
            found.unwrap_or_else(|| panic!("{wanted:?} is missing: {text:?}"))
        };
        let (entered, left) = (place("\x1b[?1049h"), place("\x1b[?1049l"));
        let (cursor, message) = (place("\x1b[?25h"), place("on purpose"));
        assert!(
            entered < left && left < cursor && cursor < message,
            "{text:?}"
        );
        assert!(place(" icanon") > message, "{text:?}");
    }
}
