//! The keys of one instruction, as the agent holds them: overwritten when they are dropped.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost_types::Duration;
use tls_sessiond_proto::{self as pb, TicketKeyLayout, TicketKeyStyle};
use zeroize::Zeroizing;

use super::{super::super::words::Words, sink::NotRun};

/// What a server is to run.
pub(super) struct KeyOrder {
    /// The ring.
    pub(super) ring: String,
    /// The number of the instruction.
    pub(super) sequence: u64,
    /// The epoch that encrypts.
    pub(super) encrypt_epoch: u64,
    /// How long a ticket is accepted after it was made.
    pub(super) lifetime: Duration,
    /// The keys in the order in which the server takes them.
    pub(super) keys: Vec<EpochKey>,
}

/// The key of one epoch.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct EpochKey {
    pub(super) epoch: u64,
    pub(super) bytes: Zeroizing<Vec<u8>>,
}

impl EpochKey {
    /// Returns the key in base64.
    pub(super) fn base64(&self) -> Zeroizing<String> {
        // With its final capacity, so that no shorter copy is left behind.
        let mut text = Zeroizing::new(String::with_capacity(self.bytes.len() * 2));
        STANDARD.encode_string(&*self.bytes, &mut text);
        text
    }

    fn hex(&self) -> Zeroizing<String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = Zeroizing::new(String::with_capacity(self.bytes.len() * 2));
        for byte in &*self.bytes {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(DIGITS[usize::from(digit)]));
            }
        }
        text
    }
}

impl KeyOrder {
    /// Takes an instruction of the daemon.
    pub(super) fn of(ring: &str, told: pb::WatchTicketKeysResponse) -> Self {
        let keys = told.keys.into_iter().map(|key| EpochKey {
            epoch: key.epoch,
            bytes: Zeroizing::new(key.key.to_vec()),
        });
        Self {
            ring: ring.to_owned(),
            sequence: told.sequence,
            encrypt_epoch: told.encrypt_epoch,
            lifetime: told.ticket_lifetime.unwrap_or_default(),
            keys: keys.collect(),
        }
    }

    /// Checks that the instruction fits the form that the agent has joined with.
    ///
    /// # Errors
    /// It has too many or too few keys, or a key of another length.
    pub(super) fn check(
        &self,
        layout: TicketKeyLayout,
        style: TicketKeyStyle,
    ) -> Result<(), NotRun> {
        let counts = match style {
            TicketKeyStyle::Push => 3..=3,
            TicketKeyStyle::Single => 1..=1,
            TicketKeyStyle::List | TicketKeyStyle::Unspecified => 1..=2,
        };
        let count = self.keys.len();
        if !counts.contains(&count) {
            return Err(NotRun(format!(
                "the daemon has sent {count} keys: expected {} to {}",
                counts.start(),
                counts.end()
            )));
        }
        let wanted = layout.word();
        let wrong = |key: &&EpochKey| key.bytes.len().to_string() != wanted;
        match self.keys.iter().find(wrong) {
            None => Ok(()),
            Some(key) => Err(NotRun(format!(
                "the daemon has sent a key of {} bytes: expected {wanted}",
                key.bytes.len()
            ))),
        }
    }

    /// Returns the keys in base64.
    pub(super) fn base64(&self) -> Vec<Zeroizing<String>> {
        self.keys.iter().map(EpochKey::base64).collect()
    }

    /// Returns whether a text has a part of a key, in base64 or hex.
    pub(super) fn is_told_by(&self, text: &str) -> bool {
        let lower = Zeroizing::new(text.to_ascii_lowercase());
        let has = |text: &str, coded: &str, length: usize| {
            // Both codes are ASCII, so each byte begins a character.
            (0..=coded.len().saturating_sub(length)).any(|at| {
                coded
                    .get(at..at + length)
                    .is_some_and(|part| text.contains(part))
            })
        };
        self.keys
            .iter()
            .any(|key| has(text, &key.base64(), 16) || has(&lower, &key.hex(), 24))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(lengths: &[usize]) -> KeyOrder {
        let keys = lengths.iter().map(|&length| EpochKey {
            epoch: 1,
            bytes: Zeroizing::new((1..=u8::try_from(length).unwrap()).collect()),
        });
        KeyOrder {
            ring: "web".into(),
            sequence: 1,
            encrypt_epoch: 1,
            lifetime: Duration::default(),
            keys: keys.collect(),
        }
    }

    #[test]
    fn instructions_of_another_form_are_refused() {
        use TicketKeyLayout::{TicketKeyLayout32, TicketKeyLayout80};
        use TicketKeyStyle::{List, Push, Single};
        for (lengths, layout, style, said) in [
            (
                &[79][..],
                TicketKeyLayout80,
                List,
                "a key of 79 bytes: expected 80",
            ),
            (
                &[80, 0],
                TicketKeyLayout80,
                List,
                "a key of 0 bytes: expected 80",
            ),
            (&[], TicketKeyLayout80, List, "0 keys: expected 1 to 2"),
            (
                &[80, 80],
                TicketKeyLayout80,
                Push,
                "2 keys: expected 3 to 3",
            ),
            (
                &[32, 32],
                TicketKeyLayout32,
                Single,
                "2 keys: expected 1 to 1",
            ),
        ] {
            let NotRun(why) = order(lengths).check(layout, style).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
        assert!(order(&[80, 80]).check(TicketKeyLayout80, List).is_ok());
        assert!(order(&[80; 3]).check(TicketKeyLayout80, Push).is_ok());
    }

    #[test]
    fn parts_of_keys_are_found_in_words() {
        let order = order(&[80]);
        let key = &order.keys[0];
        assert!(key.base64().starts_with("AQIDBAUG"));
        assert!(order.is_told_by(&format!("bad key {}", &key.base64()[30..60])));
        assert!(order.is_told_by(&format!("bad key {}!", key.hex()[8..50].to_uppercase())));
        assert!(!order.is_told_by("bad key: expected 48 bytes AQIDBAUG"));
    }
}
