//! Medians, ratios to our time, and goals.

use crate::{
    CONTENDERS, SIZES,
    turns::{Section, Work},
};

/// The rows that were measured.
pub(crate) struct Table {
    filters: Vec<String>,
    lines: Vec<String>,
    /// Median times of gets on one thread, by size: ours, DashMap's, the array's and the chain's.
    gets: Vec<(usize, [f64; 4])>,
}

const DASHMAP: usize = 2;
const MOKA: usize = 3;
const ARRAY: usize = 5;
const CHAIN: usize = 6;

impl Table {
    /// Makes a table from the arguments of the command line. Only rows whose names contain one of
    /// them are measured; without arguments all rows are.
    pub(crate) fn wanted(words: Vec<String>) -> Self {
        // cargo adds --bench.
        let filters = words
            .into_iter()
            .filter(|word| !word.starts_with("--"))
            .collect();
        Self {
            filters,
            lines: Vec::new(),
            gets: Vec::new(),
        }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty()
            || self
                .filters
                .iter()
                .any(|filter| name.contains(filter.as_str()))
    }

    /// Adds a row. `rounds` has the nanoseconds of each round for each contender, and none for a
    /// contender that took no part.
    pub(crate) fn row(&mut self, section: &Section, rounds: Vec<Vec<f64>>) {
        let ours = &rounds[0];
        let ratio =
            |other: &[f64]| median(other.iter().zip(ours).map(|(other, ours)| other / ours));
        let mut row = format!(
            "{:28} {:>6.0}",
            section.to_string(),
            median(ours.iter().copied())
        );
        for other in &rounds[1..] {
            row += &match other.is_empty() {
                true => format!("{:>14}", ""),
                false => format!(
                    "{:>8.0} {:5.2}",
                    median(other.iter().copied()),
                    ratio(other)
                ),
            };
        }
        let goal = match section.work {
            Work::Get => Some((ratio(&rounds[DASHMAP]), 0.8, "of DashMap")),
            Work::Put => Some((ratio(&rounds[MOKA]), 1.0, "of moka")),
            Work::Take | Work::Mixed => None,
        };
        if let Some((ratio, least, whose)) = goal {
            let met = if ratio >= least { "met" } else { "missed" };
            row += &format!("  >= {least:.1} {whose} {met}");
        }
        eprintln!("{row}");
        self.lines.push(row);
        if section.work == Work::Get && section.threads == 1 {
            let medians =
                [0, DASHMAP, ARRAY, CHAIN].map(|place| median(rounds[place].iter().copied()));
            self.gets.push((section.size, medians));
        }
    }

    pub(crate) fn print(&self) {
        if self.lines.is_empty() {
            return;
        }
        println!(
            "\nnanoseconds of one operation, and time of the other divided by our time (more is better)"
        );
        let names = CONTENDERS[1..]
            .iter()
            .map(|(name, _)| format!("{name:>14}"));
        println!(
            "{:28} {:>6}{}  goal",
            "",
            CONTENDERS[0].0,
            names.collect::<String>()
        );
        self.lines
            .iter()
            .for_each(|row| println!("{}", row.trim_end()));
        let of = |size| self.gets.iter().find(|(held, _)| *held == size);
        if let (Some((least, few)), Some((most, many))) = (of(SIZES[0]), of(SIZES[SIZES.len() - 1]))
        {
            let [ours, raw, array, chain] = [0, 1, 2, 3].map(|place| many[place] / few[place]);
            println!(
                "\ntime of a get of {most} divided by that of {least}: ours {ours:.1}, DashMap {raw:.1}, the array {array:.1}, \
                 the chain {chain:.1}"
            );
            let [ours, raw, array, chain] = [0, 1, 2, 3].map(|place| many[place] - few[place]);
            let met = if ours <= chain { "met" } else { "missed" };
            println!(
                "added nanoseconds: ours {ours:.0}, DashMap {raw:.0}, the array {array:.0}, the chain \
                 {chain:.0}; goal: at most the chain's, which is memory alone: {met}"
            );
        }
    }
}

fn median(all: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<_> = all.collect();
    all.sort_by(f64::total_cmp);
    all[(all.len() - 1) / 2]
}
