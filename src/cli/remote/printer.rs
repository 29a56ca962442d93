//! Prints answers on stdout, as a table, as JSON or as YAML, and notes on stderr.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use serde_json::Value;

use super::{
    failure::Failure,
    message::{Described, Mapping},
    screen::Screen,
    text::{escaped, escaped_json},
    yaml,
};
use crate::cli::say;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// Columns for a person. They may change with any version.
    Table,
    /// The proto3 JSON mapping of the contract, for scripts.
    Json,
    /// The same values as YAML.
    Yaml,
}

/// When state words are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl ColorWhen {
    /// Returns whether stdout gets colours (<https://no-color.org>).
    fn applies(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                io::stdout().is_terminal()
                    && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

/// Prints the answers of one command.
pub(super) struct Printer {
    format: OutputFormat,
    colored: bool,
    mapping: Mapping,
}

impl Printer {
    /// # Errors
    /// As [`Mapping::read`].
    pub(super) fn new(format: OutputFormat, color: ColorWhen) -> Result<Self, Failure> {
        Ok(Self {
            format,
            colored: format == OutputFormat::Table && color.applies(),
            mapping: Mapping::read()?,
        })
    }

    /// Returns whether words for states are coloured.
    pub(super) fn is_colored(&self) -> bool {
        self.colored
    }

    /// Prints one message. `table` writes it for a person.
    ///
    /// # Errors
    /// The message cannot be mapped, or stdout cannot be written.
    pub(super) fn message<M: Described>(
        &self,
        message: &M,
        table: impl FnOnce(&mut Screen),
    ) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Table => self.screen(table),
            _ => self.document(&self.mapping.value(message)?),
        }
    }

    /// Prints an object with one field of a message.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub(super) fn field<M: Described>(
        &self,
        message: &M,
        name: &str,
        table: impl FnOnce(&mut Screen),
    ) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Table => self.screen(table),
            _ => self.document(&self.mapping.field(message, name)?),
        }
    }

    /// Prints a list as one object with the list as its field `name`.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub(super) fn list<M: Described>(
        &self,
        name: &str,
        items: &[M],
        table: impl FnOnce(&mut Screen),
    ) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Table => self.screen(table),
            _ => self.document(&self.mapping.list(name, items)?),
        }
    }

    /// Prints a value that is no message of the contract.
    ///
    /// # Errors
    /// Stdout cannot be written.
    pub(super) fn value(
        &self,
        value: &Value,
        table: impl FnOnce(&mut Screen),
    ) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Table => self.screen(table),
            _ => self.document(value),
        }
    }

    /// Prints one message of a stream: a line of JSON, or a YAML document.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub(super) fn event<M: Described>(
        &self,
        message: &M,
        table: impl FnOnce(&mut Screen),
    ) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Table => self.screen(table),
            OutputFormat::Json => {
                let json = self.mapping.value(message)?.to_string();
                write(&(escaped_json(&json) + "\n"))
            }
            OutputFormat::Yaml => {
                let document = yaml::document(&self.mapping.value(message)?);
                write(&format!("---\n{document}"))
            }
        }
    }

    fn screen(&self, table: impl FnOnce(&mut Screen)) -> Result<(), Failure> {
        let mut screen = Screen::new(self.colored);
        table(&mut screen);
        write(&screen.into_text())
    }

    fn document(&self, value: &Value) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Yaml => write(&yaml::document(value)),
            _ => write(&(escaped_json(&format!("{value:#}")) + "\n")),
        }
    }
}

fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(Failure::Stdout)
}

/// Writes a note for a person to stderr. An answer on stdout stays complete without it.
pub(super) fn note(text: &str) {
    say(io::stderr(), &format!("tls-sessiond: {}\n", escaped(text)));
}
