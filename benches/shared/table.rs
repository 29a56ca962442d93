//! Medians, goals, and the table.

/// The goal of a row.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    None,
    AtMost(f64),
    AtLeast(f64),
}

/// One round: the seconds that this project and the other side used for the same work.
pub(crate) struct Round {
    pub(crate) ours: f64,
    pub(crate) plain: f64,
}

/// How a row shows the two sides.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// CPU time of one handshake; a round has this many. The ratio is our time divided by the
    /// other's.
    Time(usize),
    /// CPU time of one handshake; a round has this many. The ratio compares handshakes per CPU
    /// second.
    Rate(usize),
    /// Throughput; a round has this many MiB. The ratio compares MiB per CPU second.
    Throughput(f64),
    /// CPU time of a GiB; a round has this many. The ratio is our time divided by the other's.
    PerGib(f64),
    /// Operations in a second; a round has the seconds of one. The ratio compares operations in a
    /// second.
    PerSecond,
}

/// The rows that were measured.
pub(crate) struct Table {
    /// The name of the other side.
    other: &'static str,
    lines: Vec<String>,
    filters: Vec<String>,
}

impl Table {
    /// Makes a table from the arguments of the command line. Only rows whose names contain one of
    /// them are measured; without arguments all rows are.
    pub(crate) fn wanted(other: &'static str, arguments: impl Iterator<Item = String>) -> Self {
        // cargo adds --bench.
        let filters = arguments.filter(|word| !word.starts_with("--")).collect();
        Self {
            other,
            lines: Vec::new(),
            filters,
        }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty()
            || self
                .filters
                .iter()
                .any(|filter| name.contains(filter.as_str()))
    }

    pub(crate) fn section(&mut self, title: &str) {
        let head = format!(
            "{:40} {:>6} {:>13} {:>10} {:>10}  {}",
            "", "ratio", "quartiles", "ours", self.other, "goal"
        );
        self.lines.extend([String::new(), title.to_owned(), head]);
    }

    /// Adds a row. Its ratio is the median of the rounds' ratios.
    pub(crate) fn row(&mut self, name: &str, unit: Unit, goal: Goal, rounds: &[Round]) {
        let quartile = |of: &dyn Fn(&Round) -> f64, place: usize| {
            let mut all: Vec<f64> = rounds.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[(all.len() - 1) * place / 4]
        };
        let ratio = |round: &Round| match unit {
            Unit::Time(_) | Unit::PerGib(_) => round.ours / round.plain,
            Unit::Rate(_) | Unit::Throughput(_) | Unit::PerSecond => round.plain / round.ours,
        };
        let shown = |seconds: f64| match unit {
            Unit::Time(count) | Unit::Rate(count) => {
                format!("{:.1} µs", seconds / count as f64 * 1e6)
            }
            Unit::Throughput(mib) => format!("{:.0} MiB/s", mib / seconds),
            Unit::PerGib(gib) => format!("{:.0} ms", seconds / gib * 1e3),
            Unit::PerSecond => format!("{:.0}/s", 1.0 / seconds),
        };
        let median = quartile(&ratio, 2);
        let goal = match goal {
            Goal::None => String::new(),
            Goal::AtMost(most) => format!(
                "<= {most:.2} {}",
                if median <= most { "met" } else { "missed" }
            ),
            Goal::AtLeast(least) => {
                format!(
                    ">= {least:.2} {}",
                    if median >= least { "met" } else { "missed" }
                )
            }
        };
        let row = format!(
            "{name:40} {median:>6.2} {:>13} {:>10} {:>10}  {goal}",
            format!("{:.2} .. {:.2}", quartile(&ratio, 1), quartile(&ratio, 3)),
            shown(quartile(&|round| round.ours, 2)),
            shown(quartile(&|round| round.plain, 2)),
        );
        eprintln!("{row}");
        self.lines.push(row);
    }

    pub(crate) fn print(&self) {
        self.lines
            .iter()
            .for_each(|row| println!("{}", row.trim_end()));
    }
}
