//! Formats an event as a line.
//!
//! A peer may have made any value, so each value is cut and escaped. An event is one line of a
//! bounded length, and no control character of a value reaches a terminal.

use std::fmt::{self, Write};

use serde_json::Value;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Maximum length of a value in bytes; longer ones are cut.
const VALUE_MAX: usize = 1024;
/// Maximum number of values in an event; further ones are left out.
const VALUES_MAX: usize = 16;
/// The program's name in the journal.
const IDENTIFIER: &str = "tls-sessiond";
/// The names of an event's values in the journal begin with this, so that none is one of the journal's
/// own.
const FIELD: &str = "TLS_SESSIOND_";

/// The form of every line of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `TIME LEVEL target: message name=value ...`
    Text,
    /// `{"timestamp": ..., "level": ..., "fields": {"message": ..., ...}, "target": ...}`
    Json,
    /// `NAME=value` lines of the journal's own protocol.
    Journal,
}

/// Formats events as lines.
pub(super) struct Lines(pub(super) Form);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut values = Values::default();
        event.record(&mut values);
        let target = values.target.take();
        let target = target
            .as_deref()
            .unwrap_or_else(|| event.metadata().target());
        to.write_str(&values.line(self.0, *event.metadata().level(), target))
    }
}

/// Returns a line that the log itself writes, without the subscriber.
pub(super) fn notice(form: Form, message: &str, numbers: &[(&'static str, u64)]) -> Vec<u8> {
    let mut values = Values {
        message: message.to_owned(),
        ..Values::default()
    };
    numbers
        .iter()
        .for_each(|(name, number)| values.push(name, (*number).into()));
    values.line(form, Level::WARN, module_path!()).into_bytes()
}

/// The values of one event.
#[derive(Default)]
struct Values {
    message: String,
    fields: Vec<(&'static str, Value)>,
    /// The target of a record of the `log` facade, which has it in a field.
    target: Option<String>,
}

impl Values {
    fn push(&mut self, name: &'static str, value: Value) {
        if self.fields.len() < VALUES_MAX {
            self.fields.push((name, value));
        }
    }

    fn line(self, form: Form, level: Level, target: &str) -> String {
        let mut time = String::new();
        // Fails only for a time that cannot be formatted. The line is then without it.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        match form {
            Form::Json => {
                let quoted = |text: &str| Value::from(text).to_string();
                let mut line = format!(
                    "{{\"timestamp\":{},\"level\":\"{level}\",\"fields\":{{\"message\":{}",
                    quoted(&time),
                    quoted(&self.message)
                );
                for (name, value) in &self.fields {
                    // Writing to a String does not fail.
                    let _ = write!(line, ",\"{name}\":{value}");
                }
                escaped(&(line + "},\"target\":" + &quoted(target) + "}")) + "\n"
            }
            Form::Text => {
                format!("{time} {level:>5} {target}: {}\n", self.shown())
            }
            Form::Journal => {
                let mut fields = format!(
                    "PRIORITY={}\nSYSLOG_IDENTIFIER={IDENTIFIER}\nTARGET={}\nMESSAGE={}\n",
                    priority(level),
                    printable(target),
                    self.shown()
                );
                for (name, value) in &self.fields {
                    let value = match value {
                        Value::String(text) => printable(text),
                        other => other.to_string(),
                    };
                    let name = name.to_uppercase().replace('.', "_");
                    // Writing to a String does not fail.
                    let _ = writeln!(fields, "{FIELD}{name}={value}");
                }
                fields
            }
        }
    }

    /// Returns the message and all values, without control characters.
    fn shown(&self) -> String {
        let mut line = printable(&self.message);
        for (name, value) in &self.fields {
            let written = match value {
                Value::String(text) if plain(text) => write!(line, " {name}={text}"),
                Value::String(text) => write!(line, " {name}=\"{}\"", printable(text)),
                other => write!(line, " {name}={other}"),
            };
            // Writing to a String does not fail.
            let _ = written;
        }
        line
    }
}

/// The priority of syslog(3) for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl Visit for Values {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = BoundedText(String::new());
        // An error means that the text was cut.
        let _ = write!(text, "{value:?}");
        match field.name() {
            "message" => self.message = text.0,
            "log.target" => self.target = Some(text.0),
            name if name.starts_with("log.") => {}
            name => self.push(name, text.0.into()),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field.name(), value.into());
    }
}

/// A text of at most [`VALUE_MAX`] bytes. Formatting stops when it is full, however long the text
/// would become.
struct BoundedText(String);

impl Write for BoundedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = VALUE_MAX - self.0.len().min(VALUE_MAX);
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let end = (0..=room)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        self.0.push_str(&text[..end]);
        self.0.push('…');
        Err(fmt::Error)
    }
}

fn plain(text: &str) -> bool {
    let shown = |c: char| !c.is_whitespace() && !is_hidden(c) && c != '"' && c != '\\';
    !text.is_empty() && text.chars().all(shown)
}

/// Returns whether a character is a control character, has no width, breaks a line or changes its
/// direction.
fn is_hidden(c: char) -> bool {
    let marks = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    marks || c.is_control()
}

/// Escapes the hidden characters in a JSON text. They can occur only in its strings.
fn escaped(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        match u32::from(c) {
            code @ 0..=0xffff if is_hidden(c) => line += &format!("\\u{code:04x}"),
            _ => line.push(c),
        }
    }
    line
}

/// Escapes hidden characters and quotes.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        match matches!(c, '"' | '\\') || is_hidden(c) {
            true => printable.extend(c.escape_default()),
            false => printable.push(c),
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(fields: &[(&'static str, &str)]) -> Values {
        let mut values = Values {
            message: "it happened".into(),
            ..Values::default()
        };
        for (name, text) in fields {
            let mut cut = BoundedText(String::new());
            let _ = cut.write_str(text);
            values.push(name, cut.0.into());
        }
        values
    }

    #[test]
    fn event_is_one_line_whatever_its_values() {
        let evil = "a\nb\r\u{1b}[31m\u{202e}\u{0}\u{9b}\u{2028}\"";
        for form in [Form::Text, Form::Json] {
            // No blank and no quote, because the text form then writes no quotes around the value.
            let line = values(&[
                ("name", evil),
                ("turned", "a\u{202e}b"),
                ("plain", "10.0.0.7:1"),
            ])
            .line(form, Level::INFO, "audit");
            let (inside, end) = line.split_at(line.len() - 1);
            assert_eq!(end, "\n");
            assert!(!inside.contains(is_hidden), "{line:?}");
            assert!(
                inside.contains("10.0.0.7:1") && inside.contains("audit"),
                "{line:?}"
            );
        }
        let text = values(&[("name", evil)]).line(Form::Text, Level::INFO, "audit");
        assert!(
            !text.contains('\u{202e}') && text.contains("\\u{1b}[31m"),
            "{text}"
        );
        let json = values(&[("name", evil)]).line(Form::Json, Level::INFO, "audit");
        let parsed: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["fields"]["name"], evil);
        assert_eq!(
            (&parsed["level"], &parsed["target"]),
            (&"INFO".into(), &"audit".into())
        );
    }

    #[test]
    fn event_in_the_journal_has_no_field_that_a_peer_made() {
        let evil = "x\nPRIORITY=0\nMESSAGE=forged";
        let fields = values(&[("name", evil), ("error.type", "a b")]);
        let sent = fields.line(Form::Journal, Level::WARN, "audit");
        let lines: Vec<_> = sent.lines().collect();
        assert_eq!(
            lines,
            [
                "PRIORITY=4",
                "SYSLOG_IDENTIFIER=tls-sessiond",
                "TARGET=audit",
                "MESSAGE=it happened name=\"x\\nPRIORITY=0\\nMESSAGE=forged\" error.type=\"a b\"",
                "TLS_SESSIOND_NAME=x\\nPRIORITY=0\\nMESSAGE=forged",
                "TLS_SESSIOND_ERROR_TYPE=a b",
            ]
        );
    }

    #[test]
    fn values_are_cut_to_a_length_and_a_number() {
        let long = "ä".repeat(60_000);
        let many: Vec<_> = (0..100).map(|_| ("name", long.as_str())).collect();
        let line = values(&many).line(Form::Json, Level::INFO, "a");
        assert!(
            line.len() < VALUES_MAX * (VALUE_MAX + 32) + 256,
            "{}",
            line.len()
        );
        let parsed: Value = serde_json::from_str(&line).unwrap();
        let name = parsed["fields"]["name"].as_str().unwrap();
        assert!(
            name.len() <= VALUE_MAX + 3 && name.ends_with('…'),
            "{}",
            name.len()
        );
    }
}
