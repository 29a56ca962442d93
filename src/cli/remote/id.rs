//! Ids as a person writes them: upper case, with colons, or only the first digits.

use std::str::FromStr;

use super::{failure::Failure, text::escaped};

/// The largest number of digits of an id: a session id of 64 bytes.
const DIGITS_MAX: usize = 128;
/// How many candidates an error lists.
const CANDIDATES_MAX: usize = 10;

/// An id or its first digits, in lower case and without colons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct IdPrefix(String);

impl FromStr for IdPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text
            .chars()
            .filter(|&c| c != ':')
            .map(|c| c.to_ascii_lowercase())
            .collect();
        let is_hex = digits.chars().all(|c| c.is_ascii_hexdigit());
        if digits.is_empty() || digits.len() > DIGITS_MAX || !is_hex {
            return Err(format!(
                "expected an id or its first digits: 1 to {DIGITS_MAX} hex digits, with or without colons"
            ));
        }
        Ok(Self(digits))
    }
}

impl IdPrefix {
    /// Returns the digits.
    pub(super) fn digits(&self) -> &str {
        &self.0
    }

    /// Returns whether an id begins with these digits.
    pub(super) fn fits(&self, id: &str) -> bool {
        id.starts_with(&self.0)
    }

    /// Returns whether the digits are whole bytes, so that they can be an id.
    pub(super) fn is_whole_bytes(&self) -> bool {
        self.0.len().is_multiple_of(2)
    }

    /// Returns the one item that these digits name: the one with exactly this id, or else the one
    /// whose id begins with it. `None`: there is none. `line` describes an item, its id first.
    ///
    /// # Errors
    /// [`Failure::No`]: there are several. The message lists them.
    pub(super) fn only<T>(
        &self,
        kind: &str,
        found: Vec<T>,
        id: impl Fn(&T) -> &str,
        line: impl Fn(&T) -> String,
    ) -> Result<Option<T>, Failure> {
        let digits = &self.0;
        let (mut exact, longer): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|item| id(item) == digits);
        if exact.is_empty() {
            exact = longer;
        }
        let total = exact.len();
        if total > 1 {
            let mut lines: Vec<_> = exact
                .iter()
                .take(CANDIDATES_MAX)
                .map(|item| escaped(&line(item)))
                .collect();
            if total > CANDIDATES_MAX {
                lines.push(format!("and {} more", total - CANDIDATES_MAX));
            }
            return Err(Failure::No(format!(
                "`{digits}` names {total} {kind}s:\n  {}",
                lines.join("\n  ")
            )));
        }
        Ok(exact.pop())
    }

    /// Returns the failure of a search that found no item.
    pub(super) fn missing(&self, kind: &str) -> Failure {
        Failure::No(format!("no {kind} has the id `{}`", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(digits: &str, found: &[&str]) -> Result<Option<String>, String> {
        let found = found.iter().map(|&id| id.to_owned()).collect();
        digits
            .parse::<IdPrefix>()?
            .only("session", found, |id: &String| id, String::clone)
            .map_err(|err| err.to_string())
    }

    #[test]
    fn ids_are_named_by_their_first_digits() {
        assert_eq!(only("AB:C", &["abc1"]), Ok(Some("abc1".into())));
        assert_eq!(only("ab", &["ab", "ab01"]), Ok(Some("ab".into())));
        assert_eq!(only("ab", &[]), Ok(None));
        let err = only("a", &["a1", "a2"]).unwrap_err();
        assert_eq!(err, "`a` names 2 sessions:\n  a1\n  a2");
        let err = only("3", &["30"; 25]).unwrap_err();
        assert!(err.ends_with("  30\n  and 15 more"), "{err}");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", ":", "xyz", "ab cd", "é", &"a".repeat(129)] {
            assert!(text.parse::<IdPrefix>().is_err(), "{text}");
        }
    }
}
