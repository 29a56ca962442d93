//! The text of a table: aligned columns, fields below each other, and colours of state words.

use super::text::escaped;

/// The colour of a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// That of the terminal.
    #[default]
    Plain,
    /// Green: as it should be.
    Good,
    /// Yellow: it will change by itself.
    Passing,
    /// Red: an operator may have to act.
    Bad,
}

impl Tone {
    /// Returns the sequence that begins the colour (ECMA-48, SGR).
    fn sequence(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Passing => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// One value of a table, escaped.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Returns a word in a colour.
    pub(super) fn toned(text: &str, tone: Tone) -> Self {
        Self {
            text: escaped(text),
            tone,
        }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn is_number(&self) -> bool {
        self.text.starts_with(|c: char| c.is_ascii_digit())
            && self.text.chars().all(|c| c.is_ascii_digit() || c == '.')
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::from(number.to_string())
    }
}

/// Rows below a row of headings.
pub(super) struct Table<const COLUMNS: usize> {
    headings: [&'static str; COLUMNS],
    rows: Vec<[Cell; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) fn new(headings: [&'static str; COLUMNS]) -> Self {
        Self {
            headings,
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: [Cell; COLUMNS]) {
        self.rows.push(cells);
    }
}

/// The text of an answer for a person.
pub(super) struct Screen {
    text: String,
    colored: bool,
}

impl Screen {
    pub(super) fn new(colored: bool) -> Self {
        Self {
            text: String::new(),
            colored,
        }
    }

    /// Returns the text.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Writes a line of one value.
    pub(super) fn line(&mut self, cell: impl Into<Cell>) {
        self.cell(&cell.into());
        self.end_line();
    }

    /// Writes an empty line and a heading.
    pub(super) fn heading(&mut self, text: &str) {
        self.end_line();
        self.line(text);
    }

    /// Writes a name and a value in each line, the values below each other.
    pub(super) fn fields<const COUNT: usize>(&mut self, fields: [(&str, Cell); COUNT]) {
        let widths = fields.iter().map(|(name, _)| name.len());
        let width = widths.max().unwrap_or_default();
        for (name, cell) in &fields {
            self.text += &format!("{name:width$}  ");
            self.cell(cell);
            self.end_line();
        }
    }

    /// Writes a table. A column of numbers is aligned to the right.
    pub(super) fn table<const COLUMNS: usize>(&mut self, table: &Table<COLUMNS>) {
        let headings = table.headings.map(Cell::from);
        for row in std::iter::once(&headings).chain(&table.rows) {
            for (place, cell) in row.iter().enumerate() {
                let cells = || table.rows.iter().map(|row| &row[place]);
                let widest = cells().map(Cell::width).max().unwrap_or_default();
                let padding = widest.max(headings[place].width()) - cell.width();
                let to_the_right = !table.rows.is_empty() && cells().all(Cell::is_number);
                if to_the_right {
                    self.pad(padding);
                }
                self.cell(cell);
                if place + 1 < COLUMNS {
                    self.pad(if to_the_right { 2 } else { padding + 2 });
                }
            }
            self.end_line();
        }
    }

    fn cell(&mut self, cell: &Cell) {
        let begin = cell.tone.sequence();
        if self.colored && !begin.is_empty() {
            self.text += &format!("{begin}{}\x1b[0m", cell.text);
        } else {
            self.text += &cell.text;
        }
    }

    fn pad(&mut self, count: usize) {
        self.text.extend(std::iter::repeat_n(' ', count));
    }

    fn end_line(&mut self) {
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(colored: bool) -> String {
        let mut table = Table::new(["NAME", "COUNT", "STATE"]);
        table.row([
            "a\x1b[2J".into(),
            9_u64.into(),
            Cell::toned("good", Tone::Good),
        ]);
        table.row(["b".into(), 1000_u64.into(), "-".into()]);
        let mut screen = Screen::new(colored);
        screen.fields([("one", "x".into()), ("three", 3_u64.into())]);
        screen.heading("ROWS");
        screen.table(&table);
        screen.into_text()
    }

    #[test]
    fn columns_are_aligned_and_escaped() {
        let wanted = "\
one    x
three  3

ROWS
NAME        COUNT  STATE
a\\u{1b}[2J      9  good
b            1000  -
";
        assert_eq!(text(false), wanted);
    }

    #[test]
    fn colours_surround_state_words_only() {
        let colored = text(true);
        assert_eq!(colored.matches('\x1b').count(), 2, "{colored}");
        assert!(colored.contains("\x1b[32mgood\x1b[0m\n"), "{colored}");
    }
}
