//! Protection against a reload that loosens the configuration because keys are missing.
//!
//! A file that was cut while it was written, or is empty, is a valid configuration: every key is
//! optional, and a missing key has its default. Without access rules every local caller may do
//! everything, and without a context the built-in one is used. So a key that the running
//! configuration has may be missing in the next one only if its default equals the running value.
//!
//! [`check`] compares the keys themselves, so it covers every key, including those added later.
//!
//! * Contexts are matched by name. If a context is missing while others are there, it is removed:
//!   its users lose it. A context with a new name is taken as it is written.
//! * Proxies are matched by their place, because a reload changes neither their number nor their
//!   order. Their routes are matched by their place if there are as many as before.
//! * Access rules may be fewer. All of their keys are required, and the first match counts, so a
//!   file that ends early grants less. Removing a rule that stands before others is an edit: no
//!   omission looks like it.
//! * `access = []` and `context = []` say explicitly what a missing key means.

use toml::{Table, Value};

use super::{Config, ConfigError, check::Check};

/// Maximum length of a value in an error, in characters.
const VALUE_MAX: usize = 80;
/// Maximum number of keys that an error names.
const NAMED_MAX: usize = 5;

/// A key of the running configuration that is missing in the next one.
struct Missing<'r> {
    /// Its path in the running configuration: names, and indexes of lists.
    path: Vec<String>,
    /// The key in the next configuration.
    key: String,
    value: &'r Value,
}

/// Checks that no key returns to its default in `next` because it is missing there.
///
/// # Errors
/// Names the first such key, its value in `running`, and the text to write instead.
pub(super) fn check(next: &Config, running: &Config) -> Result<(), ConfigError> {
    let check = Check {
        origin: &next.origin,
    };
    let (old, new) = (running.origin.merged(), next.origin.merged());
    let mut missing = Vec::new();
    compare(old, new, &mut Vec::new(), "", &mut missing);
    if let (Some(old), Some(new)) = (contexts(old), contexts(new))
        && !new.is_empty()
    {
        for (place, context) in new.iter().enumerate() {
            let before = old.iter().position(|old| name(old) == name(context));
            // A context that was cut before its name would replace the default one, with fewer
            // settings.
            let named = |place: usize| old[place].get("name").is_some();
            if context.get("name").is_none() && before.is_none_or(named) {
                let message = "a context without a name takes the name `default`, but the running configuration has no \
                               unnamed context; write its name, or restart the daemon";
                return Err(check.refuse(&format!("context[{place}].name"), message.into()));
            }
            if let Some((before, old)) =
                before.and_then(|place| Some((place, old[place].as_table()?)))
            {
                let mut path = vec!["context".into(), before.to_string()];
                let new = context.as_table().unwrap_or(old);
                compare(
                    old,
                    new,
                    &mut path,
                    &format!("context[{place}]."),
                    &mut missing,
                );
            }
        }
    }
    compare_items(
        old,
        new,
        &["proxy", "route"],
        &mut Vec::new(),
        "",
        &mut missing,
    );
    for place in next.origin.overridden_contexts() {
        let at = |config: &Config| {
            config
                .contexts
                .get(place)
                .map(|context| context.name.clone())
        };
        if at(next) != at(running) {
            let message = "a key of this context is set outside the file, by its index, and another context has this index \
                           now; keep the order of the contexts, or restart the daemon";
            return Err(check.refuse(&format!("context[{place}].name"), message.into()));
        }
    }
    if let Some(refused) = returned(&missing, running) {
        let named: Vec<_> = refused
            .iter()
            .take(NAMED_MAX)
            .map(|missing| missing.key.as_str())
            .collect();
        let first = refused[0];
        let mut message = format!(
            "not set, and the running configuration has {}; {REFUSED}",
            shown(first)
        );
        message += match first.key.as_str() {
            "access" => "; write `access = []` to remove all rules, or restart the daemon",
            "context" => {
                "; write `context = []` to return to the built-in context, or restart the daemon"
            }
            _ => "; write the key with its value, or restart the daemon",
        };
        if refused.len() > 1 {
            message += &format!(" ({} keys are missing: {}", refused.len(), named.join(", "));
            message += if refused.len() > NAMED_MAX {
                ", ...)"
            } else {
                ")"
            };
        }
        return Err(check.refuse(&first.key, message));
    }
    // Overrides create a context if the file has none.
    let built_in = |config: &Config| config.contexts.iter().any(|context| context.self_made);
    if built_in(next) && !built_in(running) && !next.origin.asks_for_built_in_context() {
        let message = format!(
            "the file defines no context any more; {REFUSED}; write `context = []` to return to the built-in context, or \
             restart the daemon"
        );
        return Err(check.refuse("context", message));
    }
    Ok(())
}

const REFUSED: &str = "a reload returns no key to its default because it is missing";

/// Finds the keys of `old` that `new` does not have. Does not compare the items of lists.
fn compare<'r>(
    old: &'r Table,
    new: &Table,
    path: &mut Vec<String>,
    key: &str,
    missing: &mut Vec<Missing<'r>>,
) {
    let nothing = Table::new();
    for (name, value) in old {
        path.push(name.clone());
        match (value, new.get(name)) {
            (Value::Table(old), new) => {
                let new = new.and_then(Value::as_table).unwrap_or(&nothing);
                compare(old, new, path, &format!("{key}{name}."), missing);
            }
            (value, None) => missing.push(Missing {
                path: path.clone(),
                key: format!("{key}{name}"),
                value,
            }),
            (_, Some(_)) => {}
        }
        path.pop();
    }
}

/// Compares the items of two lists of tables by their place, and in each pair the lists of the further
/// names.
fn compare_items<'r>(
    old: &'r Table,
    new: &Table,
    lists: &[&str],
    path: &mut Vec<String>,
    key: &str,
    missing: &mut Vec<Missing<'r>>,
) {
    let Some((list, within)) = lists.split_first() else {
        return;
    };
    let (Some(Value::Array(old)), Some(Value::Array(new))) = (old.get(*list), new.get(*list))
    else {
        return;
    };
    // A list that has another length was edited. No item has to stand at its place then.
    if old.len() != new.len() {
        return;
    }
    for (place, (old, new)) in old.iter().zip(new).enumerate() {
        let (Value::Table(old), Value::Table(new)) = (old, new) else {
            continue;
        };
        let key = format!("{key}{list}[{place}].");
        path.extend([(*list).to_owned(), place.to_string()]);
        compare(old, new, path, &key, missing);
        compare_items(old, new, within, path, &key, missing);
        path.truncate(path.len() - 2);
    }
}

fn contexts(keys: &Table) -> Option<&Vec<Value>> {
    keys.get("context")?.as_array()
}

fn name(context: &Value) -> &str {
    context
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or("default")
}

/// Returns those missing keys whose absence would change the running configuration. Returns `None`
/// if their absence changes nothing.
fn returned<'m, 'r>(missing: &'m [Missing<'r>], running: &Config) -> Option<Vec<&'m Missing<'r>>> {
    let read = |keys: Table| Config::check(running.origin.clone(), keys).ok();
    // The daemon of a proxy runs with other values than those that were read.
    let whole = read(running.origin.merged().clone());
    let matters = |left_out: &[&Missing<'_>]| {
        let mut keys = running.origin.merged().clone();
        left_out
            .iter()
            .for_each(|missing| remove(&mut keys, &missing.path));
        let without = read(keys);
        without.is_none() || without != whole
    };
    let all: Vec<_> = missing.iter().collect();
    if all.is_empty() || !matters(&all) {
        return None;
    }
    let each: Vec<_> = all
        .iter()
        .copied()
        .filter(|missing| matters(&[missing]))
        .collect();
    // Some keys matter only together.
    Some(if each.is_empty() { all } else { each })
}

fn remove(keys: &mut Table, path: &[String]) {
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    let Some((first, parents)) = parents.split_first() else {
        keys.remove(last);
        return;
    };
    let mut here = keys.get_mut(first);
    for part in parents {
        here = match here {
            Some(Value::Table(table)) => table.get_mut(part),
            Some(Value::Array(list)) => part
                .parse::<usize>()
                .ok()
                .and_then(|place| list.get_mut(place)),
            _ => None,
        };
    }
    if let Some(Value::Table(table)) = here {
        table.remove(last);
    }
}

/// Returns the running value of a key for an error. No key has a secret as its value, and
/// [`ConfigError`] withholds text that looks like one.
fn shown(missing: &Missing<'_>) -> String {
    match (missing.key.as_str(), missing.value) {
        ("access", Value::Array(rules)) => format!("{} rules", rules.len()),
        ("context", Value::Array(contexts)) => {
            let names: Vec<_> = contexts
                .iter()
                .take(NAMED_MAX)
                .map(|context| format!("`{}`", name(context)))
                .collect();
            format!("the contexts {}", names.join(", "))
        }
        (_, value) => {
            let text = value.to_string();
            let cut: String = text.chars().take(VALUE_MAX).collect();
            format!("`{cut}{}`", if cut.len() < text.len() { "..." } else { "" })
        }
    }
}
