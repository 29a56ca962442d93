//! Why a configuration is refused.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::withhold;

/// The source of a key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of the configuration file, counted from 1.
    File {
        /// The path as it was given.
        path: PathBuf,
        /// The line of the key, or of the nearest parent that the file has.
        line: usize,
    },
    /// An environment variable, by its name.
    Variable(String),
    /// The key of a `--set`.
    Argument(String),
    /// No source: the key has its built-in default.
    Default,
}

impl Source {
    /// Returns the source without key material: an argument or a path may be a key that was pasted
    /// in the wrong place.
    fn withheld(self) -> Self {
        match self {
            Self::Argument(key) => Self::Argument(withhold::withhold(&key)),
            Self::Variable(name) => Self::Variable(withhold::withhold(&name)),
            Self::File { path, line } => Self::File {
                path: withhold::withhold(&path.to_string_lossy()).into(),
                line,
            },
            Self::Default => Self::Default,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Argument(key) => write!(f, "--set {key}"),
            Self::Default => f.write_str("built-in defaults"),
        }
    }
}

/// Why a value is not valid, without the key that has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl From<String> for InvalidValue {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<&str> for InvalidValue {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}

/// Why a configuration is refused. Displays as `SOURCE: key: message` on one line.
///
/// Every message passes through a filter, so none holds text that looks like key material. For the same reason no other room
/// can make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    origin: Option<Source>,
    key: Option<String>,
    message: String,
}

impl ConfigError {
    /// An error about the configuration as a whole.
    pub(super) fn whole(message: &str) -> Self {
        Self {
            origin: None,
            key: None,
            message: withhold::withhold(message),
        }
    }

    /// An error about a source that could not be read.
    pub(super) fn of_source(source: Source, message: &str) -> Self {
        let message = withhold::withhold(&format!("{source}: {message}"));
        Self {
            origin: Some(source.withheld()),
            key: None,
            message,
        }
    }

    /// An error about a key.
    pub(super) fn of_key(source: Source, key: &str, message: &str) -> Self {
        let message = withhold::withhold(&format!("{source}: {key}: {message}"));
        Self {
            origin: Some(source.withheld()),
            key: Some(withhold::withhold(key)),
            message,
        }
    }

    /// Returns the file and the line at fault, if the file has the key at fault.
    pub fn line(&self) -> Option<(&Path, usize)> {
        match &self.origin {
            Some(Source::File { path, line }) => Some((path, *line)),
            _ => None,
        }
    }

    /// Returns the source of the value at fault. `None`: the configuration as a whole is at fault.
    pub fn origin(&self) -> Option<&Source> {
        self.origin.as_ref()
    }

    /// Returns the key at fault, as `context[0].alpn[1]`.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}
