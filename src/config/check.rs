//! Checks of single values.

use std::time::Duration;

use super::{ConfigError, InvalidValue, origin::Origin, units};

/// Checks values. Every error names the key.
pub(super) struct Check<'a> {
    pub(super) origin: &'a Origin,
}

impl Check<'_> {
    pub(super) fn refuse(&self, key: &str, message: String) -> ConfigError {
        ConfigError::of_key(self.origin.locate(key), key, &message)
    }

    pub(super) fn key<T>(
        &self,
        key: &str,
        value: Result<T, InvalidValue>,
    ) -> Result<T, ConfigError> {
        value.map_err(|invalid| self.refuse(key, invalid.to_string()))
    }

    pub(super) fn duration(&self, key: &str, text: &str) -> Result<Duration, ConfigError> {
        self.key(key, units::duration(text))
    }

    pub(super) fn duration_within(
        &self,
        key: &str,
        text: &str,
        max: Duration,
    ) -> Result<Duration, ConfigError> {
        let duration = self.duration(key, text)?;
        if duration < Duration::from_secs(1) || duration > max {
            return Err(self.refuse(
                key,
                format!("`{text}` is not between 1s and {}", units::shown(max)),
            ));
        }
        Ok(duration)
    }

    pub(super) fn size(&self, key: &str, text: &str) -> Result<usize, ConfigError> {
        let size = self.key(key, units::size(text))?;
        self.at_least_one(key, size)
    }

    pub(super) fn at_least_one<N: PartialEq + From<u8>>(
        &self,
        key: &str,
        number: N,
    ) -> Result<N, ConfigError> {
        if number == N::from(0) {
            return Err(self.refuse(
                key,
                "must be more than zero: a limit cannot be switched off".into(),
            ));
        }
        Ok(number)
    }

    /// Returns the value of one of the given words.
    pub(super) fn word<T: Copy>(
        &self,
        key: &str,
        text: &str,
        words: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let known: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                self.refuse(
                    key,
                    format!("`{text}` is not known; it may be {}", known.join(", ")),
                )
            })
    }
}
