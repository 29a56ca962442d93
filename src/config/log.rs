//! Settings of the log: `[log]`.

use super::InvalidValue;
use std::{fmt, path::PathBuf};

/// The settings of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The filter for events. Audit lines pass every filter.
    pub filter: Filter,
    /// The form of a line.
    pub format: LogFormat,
    /// The destination of audit lines.
    pub audit: Audit,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, fields of the journal if stderr is the journal, JSON otherwise.
    Auto,
    /// One event per line, for reading.
    Text,
    /// One JSON object per line.
    Json,
}

/// The destination of lines with the target `audit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audit {
    /// Stderr, together with all other lines.
    Stderr,
    /// A file, to which lines are appended. SIGHUP opens it again.
    File(PathBuf),
    /// Audit lines are not written.
    Off,
}

/// A level of the log. Each includes the levels above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// No lines.
    Off,
    /// The daemon cannot do what it should.
    Error,
    /// An operator should look.
    Warn,
    /// Changes of state.
    Info,
    /// Events of single connections.
    Debug,
    /// Everything.
    Trace,
}

/// Levels by target. Lines of other crates are off unless a directive names their target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The level of this daemon's own lines.
    pub own: Level,
    /// Targets with a level of their own, in the order of the text. The last entry for a target
    /// counts.
    pub targets: Vec<(String, Level)>,
}

const LEVELS: [(&str, Level); 6] = [
    ("off", Level::Off),
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];

impl Filter {
    /// Parses `LEVEL` and `TARGET=LEVEL`, separated by commas: the directives of `log.level` and of
    /// `RUST_LOG`.
    ///
    /// # Errors
    /// The error names the directive that is neither.
    pub fn read(text: &str) -> Result<Self, InvalidValue> {
        let mut filter = Self {
            own: Level::Info,
            targets: Vec::new(),
        };
        for directive in text.split(',').map(str::trim) {
            match directive.split_once('=') {
                None => filter.own = level(directive, directive)?,
                Some((target, name)) if is_target(target) => {
                    filter
                        .targets
                        .push((target.to_owned(), level(directive, name)?));
                }
                Some(_) => return Err(invalid(directive)),
            }
        }
        Ok(filter)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |wanted: Level| {
            LEVELS
                .iter()
                .find(|(_, level)| *level == wanted)
                .map_or("", |(name, _)| *name)
        };
        f.write_str(name(self.own))?;
        self.targets
            .iter()
            .try_for_each(|(target, level)| write!(f, ",{target}={}", name(*level)))
    }
}

fn level(directive: &str, name: &str) -> Result<Level, InvalidValue> {
    let found = LEVELS
        .iter()
        .find(|(level, _)| level.eq_ignore_ascii_case(name));
    found
        .map(|(_, level)| *level)
        .ok_or_else(|| invalid(directive))
}

fn is_target(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c))
}

fn invalid(directive: &str) -> InvalidValue {
    InvalidValue::from(format!(
        "invalid directive `{directive}`: expected off, error, warn, info, debug or trace, or TARGET=LEVEL as in \
         `info,h2=debug`"
    ))
}

/// Parses `stderr`, `off` or the path of a file, relative to `folder`.
pub(super) fn audit(text: &str, folder: &std::path::Path) -> Result<Audit, InvalidValue> {
    match text {
        "stderr" => Ok(Audit::Stderr),
        "off" => Ok(Audit::Off),
        "" => Err("must not be empty: expected `stderr`, `off` or the path of a file".into()),
        path => Ok(Audit::File(folder.join(path))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_levels_or_targets_with_levels() {
        let filter = Filter::read("warn, h2=debug ,tls_sessiond::server=TRACE").unwrap();
        assert_eq!(filter.own, Level::Warn);
        let targets = [
            ("h2".to_owned(), Level::Debug),
            ("tls_sessiond::server".to_owned(), Level::Trace),
        ];
        assert_eq!(filter.targets, targets);
        assert_eq!(
            Filter::read("h2=off").unwrap().own,
            Level::Info,
            "a target's level leaves the daemon's own level as it is"
        );
        for bad in [
            "",
            "inof",
            "debug,",
            "=debug",
            "a=b",
            "a=",
            "a b=info",
            "tls_sessiond",
            "a=info=debug",
            "[x]=info",
        ] {
            assert!(Filter::read(bad).is_err(), "{bad}");
        }
    }
}
