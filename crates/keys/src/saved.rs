//! A ring on disk, sealed under a key that only the configuration's credential file has.
//!
//! ```text
//! version (1 byte) ‖ nonce (12) ‖ AES-256-GCM(state) ‖ tag (16)
//! ```
//!
//! The key is HKDF-SHA256 of the credential. The associated data is the name of the ring, so a file of
//! another ring does not open.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand,
};
use zeroize::Zeroizing;

use crate::{
    epoch::{NoRandomness, SECRET_BYTES},
    ring::{MEMBERS_MAX, NAME_MAX, Reader, Ring, Settings, Window},
};

/// The version of the sealed form.
const VERSION: u8 = 1;
/// Fewest bytes of a credential.
pub const CREDENTIAL_MIN: usize = 32;
/// Most bytes of a sealed ring.
pub const SAVED_MAX: usize = 64 + 3 * (8 + SECRET_BYTES) + MEMBERS_MAX * (2 + NAME_MAX);

/// Why a saved ring is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRestored {
    /// The bytes have another form.
    #[error("the file is not a saved ring of this version")]
    Malformed,
    /// The credential is another one, the file is of another ring, or it was changed.
    #[error("the file does not open: another credential, another ring, or it was changed")]
    Unopened,
    /// The system has no random numbers.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// The key of saved rings.
pub struct SavingKey(LessSafeKey);

impl std::fmt::Debug for SavingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SavingKey(…)")
    }
}

impl SavingKey {
    /// Returns the key that a credential makes. `None`: it has fewer than [`CREDENTIAL_MIN`] bytes.
    pub fn of(credential: &[u8]) -> Option<Self> {
        if credential.len() < CREDENTIAL_MIN {
            return None;
        }
        let prk = Salt::new(HKDF_SHA256, b"tls.sessiond.v1 saved ring").extract(credential);
        let key = prk.expand(&[b"key"], &AES_256_GCM).ok()?;
        Some(Self(LessSafeKey::new(UnboundKey::from(key))))
    }

    /// Seals a ring: its epochs, the age of the current one, and the names of its counted members.
    /// `wall`: the time now, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn save(&self, ring: &Ring, now: Duration, wall: u64) -> Result<Vec<u8>, NoRandomness> {
        let mut state = Zeroizing::new(Vec::with_capacity(SAVED_MAX));
        let age = u64::try_from(ring.view(now).age.as_millis()).unwrap_or(u64::MAX);
        state.extend(wall.saturating_sub(age).to_be_bytes());
        let Window {
            before,
            current,
            next,
        } = ring.window();
        for epoch in [before, current, next] {
            state.extend(epoch.number.to_be_bytes());
            state.extend(epoch.secret.bytes());
        }
        for name in ring.counted() {
            // A name has at most 256 bytes.
            state.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes());
            state.extend(name.as_bytes());
        }
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| NoRandomness)?;
        let mut sealed = vec![VERSION];
        sealed.extend(nonce);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(ring.name().as_bytes()), &mut state)
            .map_err(|_| NoRandomness)?;
        sealed.extend(&*state);
        sealed.extend(tag.as_ref());
        Ok(sealed)
    }

    /// Opens a saved ring, and goes on with it.
    ///
    /// # Errors
    /// See [`NotRestored`].
    pub fn restore(
        &self,
        name: &str,
        settings: Settings,
        saved: &[u8],
        now: Duration,
        wall: u64,
    ) -> Result<Ring, NotRestored> {
        let rest = match saved.split_first() {
            Some((&VERSION, rest)) if saved.len() <= SAVED_MAX => rest,
            _ => return Err(NotRestored::Malformed),
        };
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(NotRestored::Malformed)?;
        let mut state = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self
            .0
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut state)
            .map_err(|_| NotRestored::Unopened)?;
        let mut reader = Reader::new(opened);
        let activated = reader.number().ok_or(NotRestored::Malformed)?;
        let epochs = (reader.epoch(), reader.epoch(), reader.epoch());
        let (Some(before), Some(current), Some(next)) = epochs else {
            return Err(NotRestored::Malformed);
        };
        let members = names(&mut reader).ok_or(NotRestored::Malformed)?;
        let window = Window {
            before,
            current,
            next,
        };
        let age = Duration::from_millis(wall.saturating_sub(activated));
        Ok(Ring::restored(name, settings, window, age, members, now)?)
    }
}

/// Reads the names of members up to the end. `None`: the bytes have another form.
fn names(reader: &mut Reader<'_>) -> Option<Vec<Arc<str>>> {
    let mut names = Vec::new();
    while !reader.is_empty() {
        names.push(reader.text()?);
    }
    (names.len() <= MEMBERS_MAX).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        epoch::Layout,
        ring::{Attachment, Style},
    };

    const SECOND: Duration = Duration::from_secs(1);
    const SETTINGS: Settings = Settings {
        rotate: Duration::from_secs(10),
        lifetime: Duration::from_secs(10),
        max_key_age: Duration::from_secs(60),
        members_wait: SECOND,
    };

    fn saved() -> (SavingKey, Ring, Vec<u8>) {
        let key = SavingKey::of(&[7; 32]).unwrap();
        let mut ring = Ring::new("web", SETTINGS, Duration::ZERO).unwrap();
        let lease = ring
            .join("one", Style::List, &Attachment::default(), Duration::ZERO)
            .unwrap();
        ring.acknowledge(lease, 1, Duration::ZERO).unwrap();
        ring.join(
            "silent",
            Style::List,
            &Attachment::default(),
            Duration::ZERO,
        )
        .unwrap();
        let saved = key.save(&ring, 5 * SECOND, 1_000_000).unwrap();
        (key, ring, saved)
    }

    #[test]
    fn restored_ring_has_its_epochs_and_waits_for_its_members() {
        let (key, ring, saved) = saved();
        let restored = key.restore("web", SETTINGS, &saved, 100 * SECOND, 1_002_000);
        let mut restored = restored.unwrap();
        for epoch in 0..3 {
            let one = ring.key(epoch, Layout::Bytes80).unwrap();
            let two = restored.key(epoch, Layout::Bytes80).unwrap();
            assert_eq!(one.bytes(), two.bytes());
        }
        let view = restored.view(100 * SECOND);
        assert_eq!(view.age, 7 * SECOND);
        let members: Vec<_> = view.members.iter().map(|member| &*member.name).collect();
        assert_eq!(members, ["one"]);
        // Not before the member is back.
        restored.tick(130 * SECOND).unwrap();
        assert_eq!(restored.view(130 * SECOND).epoch, 1);
        let lease = restored
            .join("one", Style::List, &Attachment::default(), 130 * SECOND)
            .unwrap();
        let told = restored.instruction(lease).unwrap().sequence;
        restored.acknowledge(lease, told, 130 * SECOND).unwrap();
        restored.tick(140 * SECOND).unwrap();
        let phase = restored.view(140 * SECOND).phase;
        assert_eq!(phase, crate::ring::Phase::Prepare);
    }

    #[test]
    fn nothing_but_the_same_ring_and_credential_opens() {
        let (key, _, saved) = saved();
        let restore = |key: &SavingKey, name: &str, saved: &[u8]| {
            key.restore(name, SETTINGS, saved, SECOND, 1_000_000).err()
        };
        assert_eq!(restore(&key, "web", &saved), None);
        assert_eq!(restore(&key, "other", &saved), Some(NotRestored::Unopened));
        let other = SavingKey::of(&[8; 32]).unwrap();
        assert_eq!(restore(&other, "web", &saved), Some(NotRestored::Unopened));
        assert_eq!(restore(&key, "web", b""), Some(NotRestored::Malformed));
        for at in 0..saved.len() {
            let mut changed = saved.clone();
            changed[at] ^= 1;
            assert!(restore(&key, "web", &changed).is_some(), "{at}");
            assert!(restore(&key, "web", &saved[..at]).is_some(), "{at}");
        }
        assert!(SavingKey::of(&[0; 31]).is_none());
    }

    #[test]
    fn saved_ring_has_no_key_in_the_clear() {
        let (_, ring, saved) = saved();
        for epoch in ring.epochs() {
            let secret = epoch.secret.bytes();
            assert!(!saved.windows(8).any(|part| part == &secret[..8]));
        }
    }
}
