//! The source of each key, for errors: `--set`, then the environment, then the file.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use toml::{Spanned, Table, Value, de::DeTable, de::DeValue};

use super::{ConfigError, InvalidValue, Source};

/// Prefix of environment variables; `__` stands between the parts of a key.
pub(super) const ENV_PREFIX: &str = "TLS_SESSIOND__";

/// Overrides every `log.level`: it is set for one run, to find a fault.
pub(super) const RUST_LOG: &str = "RUST_LOG";

/// Maximum size of the configuration file, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// Maximum number of parts of a key that is set outside the file.
const DEPTH_MAX: usize = 8;

/// The keys that were given, merged, and the source of each.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    file: Option<(PathBuf, String)>,
    /// The keys of the file alone.
    own: Table,
    /// The keys of the file with the overrides applied.
    merged: Table,
    /// Dotted keys that were set outside the file, and how each was set.
    overrides: Vec<(String, Source)>,
}

/// Two origins are always equal, so that configurations compare by their values and not by the
/// lines of their keys.
impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Origin {
    /// Reads the file and applies the environment and the command line.
    pub(super) fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        set: &[String],
    ) -> Result<Self, ConfigError> {
        let mut origin = Self::default();
        if let Some(path) = file {
            let text = read(path).map_err(|err| {
                ConfigError::whole(&format!("cannot read {}: {err}", path.display()))
            })?;
            origin.own = text.parse().map_err(|err: toml::de::Error| {
                let line = err.span().map_or(1, |span| line_of(&text, span.start));
                ConfigError::of_source(
                    Source::File {
                        path: path.to_owned(),
                        line,
                    },
                    err.message(),
                )
            })?;
            origin.file = Some((path.to_owned(), text));
        }
        let mut rust_log = None;
        let mut given: Vec<_> = environment
            .filter_map(|(name, value)| {
                if name == RUST_LOG {
                    rust_log = Some(value).filter(|value| !value.is_empty());
                    return None;
                }
                let key = name
                    .strip_prefix(ENV_PREFIX)?
                    .to_lowercase()
                    .replace("__", ".");
                Some((key, value, Source::Variable(name)))
            })
            .collect();
        // By value too: two variables can name one key in different case.
        given.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
        for assignment in set {
            let (key, value) = assignment.split_once('=').ok_or_else(|| {
                ConfigError::of_source(
                    Source::Argument(assignment.clone()),
                    "write it as key=value",
                )
            })?;
            given.push((
                key.trim().to_owned(),
                value.to_owned(),
                Source::Argument(key.trim().to_owned()),
            ));
        }
        if let Some(directives) = rust_log {
            // Quoted, because it is a text even if it looks like another type.
            let quoted = Value::String(directives).to_string();
            given.push((
                "log.level".into(),
                quoted,
                Source::Variable(RUST_LOG.into()),
            ));
        }
        origin.merged = origin.own.clone();
        for (key, value, from) in given {
            assign(&mut origin.merged, &key, parse(&value))
                .map_err(|why| ConfigError::of_source(from.clone(), &why.to_string()))?;
            origin.overrides.push((key, from));
        }
        Ok(origin)
    }

    /// Returns the keys of the file, the environment and the command line, merged.
    pub(super) fn merged(&self) -> &Table {
        &self.merged
    }

    /// Returns the folder that relative paths start from.
    pub(super) fn folder(&self) -> &Path {
        self.file
            .as_ref()
            .and_then(|(path, _)| path.parent())
            .unwrap_or(Path::new(""))
    }

    /// Returns whether the file itself defines at least one context.
    pub(super) fn file_defines_contexts(&self) -> bool {
        self.own
            .get("context")
            .is_some_and(|contexts| !is_empty(contexts))
    }

    /// Returns whether `context = []` asks for the built-in context explicitly.
    pub(super) fn asks_for_built_in_context(&self) -> bool {
        match self.overrides.iter().any(|(key, _)| key == "context") {
            true => self.merged.get("context").is_some_and(is_empty),
            false => self.own.get("context").is_some_and(is_empty),
        }
    }

    /// Returns the indexes of the contexts that have keys set outside the file.
    pub(super) fn overridden_contexts(&self) -> BTreeSet<usize> {
        let places = self
            .overrides
            .iter()
            .filter_map(|(key, _)| key.strip_prefix("context.")?.split('.').next());
        places.filter_map(|place| place.parse().ok()).collect()
    }

    /// Returns whether the file, the environment or the command line sets this key.
    pub(super) fn sets(&self, key: &str) -> bool {
        has(&self.merged, &key.replace('[', ".").replace(']', ""))
    }

    /// Returns the source of a key, or that of the nearest parent that has one.
    ///
    /// A key that no file has comes from an override below it: `--set limitz.sockets=1` makes
    /// `limitz`.
    pub(super) fn locate(&self, key: &str) -> Source {
        let dotted = key.replace('[', ".").replace(']', "");
        let last = |holds: &dyn Fn(&str) -> bool| {
            self.overrides
                .iter()
                .rev()
                .find(|(set, _)| holds(set))
                .map(|(_, from)| from.clone())
        };
        let above = last(&|set| within(&dotted, set));
        let below = || last(&|set| within(set, &dotted)).filter(|_| !has(&self.own, &dotted));
        if let Some(from) = above.or_else(below) {
            return from;
        }
        let Some((path, text)) = &self.file else {
            return Source::Default;
        };
        let line = DeTable::parse(text)
            .ok()
            .map_or(1, |table| line_of(text, position(&table, key)));
        Source::File {
            path: path.clone(),
            line,
        }
    }
}

/// Returns whether a table has a dotted key.
fn has(table: &Table, dotted: &str) -> bool {
    let Some((first, rest)) = dotted.split_once('.') else {
        return table.contains_key(dotted);
    };
    let mut value = table.get(first);
    for part in rest.split('.') {
        value = value.and_then(|value| match value {
            Value::Table(table) => table.get(part),
            Value::Array(list) => list.get(part.parse::<usize>().ok()?),
            _ => None,
        });
    }
    value.is_some()
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

/// Reads a configuration file, which may be a pipe.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(FILE_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!(
            "the file is larger than {FILE_MAX} bytes"
        )));
    }
    Ok(text)
}

/// Returns whether `key` is `set` or is below it.
fn within(key: &str, set: &str) -> bool {
    key.strip_prefix(set)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Parses a value in TOML. Any other text is a string, so that `--set listen.api=...` needs no
/// quotes.
fn parse(text: &str) -> Value {
    format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Sets a dotted key. A number is an index of a list: `context.0.alpn`.
fn assign(table: &mut Table, key: &str, value: Value) -> Result<(), InvalidValue> {
    if key.split('.').count() > DEPTH_MAX {
        return Err(format!("a key has at most {DEPTH_MAX} parts").into());
    }
    let mut parts = key.split('.').peekable();
    let first = parts
        .next()
        .filter(|first| !first.is_empty())
        .ok_or("the key is empty")?;
    let empty = |next: Option<&&str>| match next {
        Some(&"0") => Value::Array(vec![Value::Table(Table::new())]),
        _ => Value::Table(Table::new()),
    };
    let mut place = match parts.peek() {
        None => {
            table.insert(first.to_owned(), value);
            return Ok(());
        }
        next => table.entry(first).or_insert_with(|| empty(next)),
    };
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        place = match place {
            Value::Table(table) if last => {
                table.insert(part.to_owned(), value);
                return Ok(());
            }
            Value::Table(table) => table.entry(part).or_insert_with(|| empty(parts.peek())),
            Value::Array(list) => {
                // An empty list is like a missing key: `context = []` means the built-in context.
                if list.is_empty() && part == "0" {
                    list.push(Value::Table(Table::new()));
                }
                part.parse::<usize>()
                    .ok()
                    .and_then(|place| list.get_mut(place))
                    .ok_or_else(|| format!("`{part}` in `{key}` is not an index of that list"))?
            }
            _ => {
                return Err(
                    format!("`{key}` is below a key that is neither a table nor a list").into(),
                );
            }
        };
        if last {
            *place = value;
            return Ok(());
        }
    }
    Ok(())
}

/// Returns the byte position of a key as serde_path_to_error writes it: `context[0].alpn[1]`. A
/// name in it may contain dots and brackets, because TOML has quoted keys.
fn position(table: &Spanned<DeTable<'_>>, key: &str) -> usize {
    let (mut at, mut rest) = (0, key);
    let mut here: Option<&DeValue<'_>> = None;
    loop {
        let next = match here {
            None => named(table.get_ref(), rest),
            Some(DeValue::Table(inner)) => named(inner, rest),
            Some(DeValue::Array(list)) => placed(list, rest),
            Some(_) => None,
        };
        let Some((start, value, left)) = next else {
            return at;
        };
        (at, here, rest) = (
            start,
            Some(value.get_ref()),
            left.strip_prefix('.').unwrap_or(left),
        );
    }
}

type Found<'t, 's, 'k> = (usize, &'t Spanned<DeValue<'s>>, &'k str);

/// Returns the entry with the longest name that a key begins with, and the rest of the key.
fn named<'t, 's, 'k>(table: &'t DeTable<'s>, key: &'k str) -> Option<Found<'t, 's, 'k>> {
    let begins = table.iter().filter_map(|(name, value)| {
        let rest = key.strip_prefix(name.get_ref().as_ref())?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then(|| (name.span().start, value, rest))
    });
    begins.min_by_key(|(_, _, rest)| rest.len())
}

/// Returns the list item whose index a key begins with, and the rest of the key.
fn placed<'t, 's, 'k>(list: &'t [Spanned<DeValue<'s>>], key: &'k str) -> Option<Found<'t, 's, 'k>> {
    let (place, rest) = key.strip_prefix('[')?.split_once(']')?;
    let item = list.get(place.parse::<usize>().ok()?)?;
    Some((item.span().start, item, rest))
}

fn line_of(text: &str, position: usize) -> usize {
    1 + text
        .bytes()
        .take(position)
        .filter(|&byte| byte == b'\n')
        .count()
}
