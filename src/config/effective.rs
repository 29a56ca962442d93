//! The values that are in force, each with its origin.

use aws_lc_rs::digest::{SHA256, digest};
use tls_sessiond_types::hex;
use toml::{Table, Value};

use super::{Config, DEFAULT_ADDRESS, DEFAULT_SOCKET, Source, admin::DEFAULT_ADMIN, raw, withhold};

/// The value of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveValue {
    /// The key as errors name it: `limits.sockets`, `context[0].alpn`.
    pub key: String,
    /// The value in TOML. A text that could be a secret is `"<redacted>"`.
    pub value: String,
    /// Where the value comes from, as errors name it.
    pub origin: String,
}

/// How many hex digits of the SHA-256 a digest has.
const DIGEST_DIGITS: usize = 16;

impl Config {
    /// Returns the value of every key, sorted by key.
    pub fn values(&self) -> Vec<EffectiveValue> {
        let mut values = Vec::new();
        flatten("", &Value::Table(self.table()), &mut |key, value| {
            values.push(EffectiveValue {
                key: key.to_owned(),
                value: shown(value),
                origin: self.origin_of(key),
            });
        });
        values
    }

    /// Returns the first hex digits of the SHA-256 of all keys with their values. It does not depend
    /// on where the values come from.
    pub fn digest(&self) -> String {
        let mut text = String::new();
        flatten("", &Value::Table(self.table()), &mut |key, value| {
            text += &format!("{key} = {value}\n");
        });
        let mut digest = hex::string(digest(&SHA256, text.as_bytes()).as_ref());
        digest.truncate(DIGEST_DIGITS);
        digest
    }

    /// Returns the keys whose values differ from those of another configuration, sorted.
    pub fn changed_from(&self, before: &Self) -> Vec<String> {
        let all = |config: &Self| {
            let mut all = std::collections::BTreeMap::new();
            flatten("", &Value::Table(config.table()), &mut |key, value| {
                all.insert(key.to_owned(), value.clone());
            });
            all
        };
        let (old, new) = (all(before), all(self));
        let mut changed: Vec<_> = new
            .iter()
            .filter(|(key, value)| old.get(*key) != Some(value))
            .map(|(key, _)| key.clone())
            .collect();
        changed.extend(old.keys().filter(|key| !new.contains_key(*key)).cloned());
        changed.sort();
        changed
    }

    /// Returns all keys with their values.
    fn table(&self) -> Table {
        // The keys were read in the same way when the configuration was checked.
        let mut file: raw::RawFile = self.origin.merged().clone().try_into().unwrap_or_default();
        file.listen.api.get_or_insert_with(|| {
            vec![
                format!("tcp://{DEFAULT_ADDRESS}"),
                format!("unix://{DEFAULT_SOCKET}"),
            ]
        });
        file.listen
            .admin
            .get_or_insert_with(|| format!("tcp://{DEFAULT_ADMIN}"));
        file.access.get_or_insert_default();
        if file.context.as_ref().is_none_or(Vec::is_empty) {
            file.context = Some(vec![raw::RawContext::default()]);
        }
        Table::try_from(&file).unwrap_or_default()
    }

    fn origin_of(&self, key: &str) -> String {
        let source = match self.origin.sets(key) {
            true => self.origin.locate(key),
            false => Source::Default,
        };
        withhold::withhold(&source.to_string())
    }
}

/// Passes each key with its value on, in the order of the table. A list of tables has a key for each
/// of its values.
fn flatten(key: &str, value: &Value, to: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let key = match key {
                    "" => name.clone(),
                    key => format!("{key}.{name}"),
                };
                flatten(&key, value, to);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_table) => {
            for (place, value) in list.iter().enumerate() {
                flatten(&format!("{key}[{place}]"), value, to);
            }
        }
        value => to(key, value),
    }
}

/// Writes a value in TOML, unless it looks like a secret.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match withhold::holds_key(&text) {
        true => "\"<redacted>\"".into(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(set: &[&str], variables: &[(&str, &str)]) -> Config {
        let set: Vec<_> = set.iter().map(|&text| text.to_owned()).collect();
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(None, variables, &set).unwrap()
    }

    fn value(config: &Config, key: &str) -> (String, String) {
        let values = config.values();
        let found = values.into_iter().find(|value| value.key == key);
        let found = found.unwrap_or_else(|| panic!("no {key}"));
        (found.value, found.origin)
    }

    #[test]
    fn each_value_has_its_origin() {
        let config = load(
            &["limits.sockets=7"],
            &[("TLS_SESSIOND__DRAIN__DELAY", "3s")],
        );
        assert_eq!(
            value(&config, "limits.sockets"),
            ("7".into(), "--set limits.sockets".into())
        );
        assert_eq!(
            value(&config, "drain.delay").1,
            "environment variable TLS_SESSIOND__DRAIN__DELAY"
        );
        assert_eq!(
            value(&config, "drain.timeout"),
            ("\"30s\"".into(), "built-in defaults".into())
        );
        assert_eq!(value(&config, "context[0].name").0, "\"default\"");
    }

    #[test]
    fn digest_follows_values_and_not_their_origin() {
        let one = load(&["limits.sockets=7"], &[]);
        let same = load(&[], &[("TLS_SESSIOND__LIMITS__SOCKETS", "7")]);
        let other = load(&["limits.sockets=8"], &[]);
        assert_eq!(one.digest(), same.digest());
        assert_ne!(one.digest(), other.digest());
        assert_eq!(other.changed_from(&one), ["limits.sockets"]);
        assert_eq!(one.changed_from(&same), [""; 0]);
        assert_eq!(
            load(&["limits.sockets=10000"], &[]).digest(),
            load(&[], &[]).digest()
        );
    }
}
