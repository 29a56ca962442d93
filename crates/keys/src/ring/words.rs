//! The words of a member that does not run an instruction.

use super::{Lease, Refused, Ring};
use crate::epoch::Layout;

/// Most bytes of a member's words about a refusal that are kept.
const WORDS_MAX: usize = 256;

impl Ring {
    /// Takes a refusal: the member cannot run the instruction with this number.
    ///
    /// # Errors
    /// As [`Self::acknowledge`].
    pub fn refuse(&mut self, lease: Lease, sequence: u64, why: &str) -> Result<(), Refused> {
        let end = (0..=WORDS_MAX.min(why.len()))
            .rev()
            .find(|&at| why.is_char_boundary(at));
        let words = match self.shows_key(why) {
            true => "its words are withheld: they have a key".into(),
            false => why[..end.unwrap_or(0)].into(),
        };
        self.answering(lease, sequence)?.trouble = Some(words);
        Ok(())
    }

    /// Returns whether a text has a part of a key, as hex or as Base64.
    fn shows_key(&self, text: &str) -> bool {
        let letters = |keep: fn(&char) -> bool| text.chars().filter(keep).collect::<String>();
        let hex = letters(char::is_ascii_hexdigit).to_ascii_lowercase();
        let base64 = letters(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_'));
        let base64 = base64.replace('-', "+").replace('_', "/");
        let layouts = [
            Layout::Bytes80,
            Layout::Bytes48,
            Layout::Bytes32,
            Layout::Sealed,
        ];
        let epochs = self.epochs();
        let mut keys = epochs
            .iter()
            .flat_map(|epoch| layouts.map(|layout| epoch.secret.key(&self.name, layout)));
        keys.any(|key| key.is_shown_in(&hex, &base64))
    }
}
