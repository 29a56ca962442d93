//! The secret of an epoch, and the ticket keys that are made of it.

use std::fmt;

use aws_lc_rs::{
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
    rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use tls_sessiond_types::{hex, secret::wipe};
use zeroize::Zeroizing;

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;
/// Bytes of the name that begins every ticket of a key (`key_name` in RFC 5077 section 4).
pub const NAME_BYTES: usize = 16;

/// What HKDF-Expand binds the keys of a ring to.
const INFO: &[u8] = b"tls.sessiond.v1 ticket key";
const RATCHET: &[u8] = b"tls.sessiond.v1 next epoch";

/// The system has no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system has no random numbers")]
pub struct NoRandomness;

/// The form in which a server takes a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// 80 bytes: name (16), HMAC-SHA256 key (32), AES-256 key (32). HAProxy, nginx, Envoy.
    Bytes80,
    /// 48 bytes: name (16) and two keys of 16. HAProxy, nginx, Apache, Node.
    Bytes48,
    /// 32 bytes, of which the library makes its keys: Go's crypto/tls.
    Bytes32,
    /// The key with which the daemon seals tickets itself: name (16), AES-256-GCM key (32).
    Sealed,
}

impl Layout {
    /// Returns the number of bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bytes80 => 80,
            Self::Bytes48 | Self::Sealed => 48,
            Self::Bytes32 => 32,
        }
    }

    /// The word that separates the keys of a layout from those of the others.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Bytes80 => b"80",
            Self::Bytes48 => b"48",
            Self::Bytes32 => b"32",
            Self::Sealed => b"sealed",
        }
    }
}

impl KeyType for Layout {
    fn len(&self) -> usize {
        self.bytes()
    }
}

/// The secret of an epoch. It is overwritten when it is dropped.
pub struct EpochSecret(Zeroizing<[u8; SECRET_BYTES]>);

impl EpochSecret {
    /// Returns a new secret.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        rand::fill(&mut *secret).map_err(|_| NoRandomness)?;
        Ok(Self(secret))
    }

    /// Returns the secret with these bytes.
    pub fn of(bytes: &[u8; SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// Returns the secret of a later epoch: HKDF-Extract of new random bytes, with this secret as the
    /// salt. It is as strong as the stronger of both, and does not lead back to this secret.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn next(&self) -> Result<Self, NoRandomness> {
        let fresh = Self::random()?;
        let prk = Salt::new(HKDF_SHA256, &*self.0).extract(&*fresh.0);
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        fill(&prk, &[RATCHET], Length(SECRET_BYTES), &mut *secret);
        Ok(Self(secret))
    }

    /// Returns the key of this epoch for a ring and a layout.
    pub fn key(&self, ring: &str, layout: Layout) -> TicketKey {
        let mut key = vec![0; layout.bytes()];
        let prk = Prk::new_less_safe(HKDF_SHA256, &*self.0);
        let info = [INFO, b"\0", layout.label(), b"\0", ring.as_bytes()];
        fill(&prk, &info, layout, &mut key);
        TicketKey(key)
    }

    /// Returns the bytes, to be sealed.
    pub(crate) fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

impl Clone for EpochSecret {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl fmt::Debug for EpochSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochSecret(…)")
    }
}

#[derive(Clone, Copy)]
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Fills `key` by HKDF-Expand. Its length is far below the limit of 255 blocks, so nothing fails.
fn fill(prk: &Prk, info: &[&[u8]], length: impl KeyType, key: &mut [u8]) {
    let filled = prk
        .expand(info, length)
        .and_then(|expanded| expanded.fill(key));
    debug_assert!(filled.is_ok(), "the length is that of the key");
}

/// A ticket key. It is overwritten when it is dropped.
pub struct TicketKey(Vec<u8>);

impl TicketKey {
    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes with which a ticket of this key begins. Not for [`Layout::Bytes32`], where the
    /// library makes the name.
    pub fn name(&self) -> &[u8] {
        &self.0[..NAME_BYTES]
    }
}

/// Bytes of a key that a text may not show.
const SHOWN_BYTES: usize = 12;

impl TicketKey {
    /// Returns whether lower-case hex digits, or letters of Base64, show a part of the key.
    pub(crate) fn is_shown_in(&self, hex: &str, base64: &str) -> bool {
        let parts = self.0.chunks_exact(SHOWN_BYTES);
        let mut parts = parts.map(|part| Zeroizing::new(hex::string(part)));
        // Base64 has three bytes in four letters, so a part that begins at a third byte has letters of its
        // own.
        let mut letters = (0..3).flat_map(|from| {
            let parts = self.0[from..].chunks_exact(SHOWN_BYTES);
            parts.map(|part| Zeroizing::new(BASE64.encode(part)))
        });
        parts.any(|part| hex.contains(&**part)) || letters.any(|part| base64.contains(&**part))
    }
}

impl Drop for TicketKey {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers, computed with Python's `hmac`: HKDF-Expand (RFC 5869 section 2.3) by hand.
    #[test]
    fn keys_are_those_of_rfc_5869() {
        let secret = EpochSecret::of(&std::array::from_fn(|at| u8::try_from(at).unwrap()));
        let hex =
            |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        for (layout, known) in KNOWN {
            assert_eq!(hex(secret.key("web", layout).bytes()), known, "{layout:?}");
        }
    }

    const KNOWN: [(Layout, &str); 4] = [
        (
            Layout::Bytes80,
            "e268a07f569193187386d645412fc2187f4c832afb69ff94634e8da70dadddf3457ae0d0cf605124e14a15b25600e0d3f8ae630ab39411cb700fd539067e5299c6fceedcc907cb7c070e44a3b5389891",
        ),
        (
            Layout::Bytes48,
            "5f3dbbafa025240fc8e02e0ca0e671137025bdd18b65e42fb951589d9fe1454b6a7ca29f40735a7eac8333646faaa4ba",
        ),
        (
            Layout::Bytes32,
            "93e7505e862211789cb597587d6a13340ee7263129cc690e5e6213a7cafb97d8",
        ),
        (
            Layout::Sealed,
            "7e72e8a9a1e8caa767b883c398ac78940e48af45f73521d91e930789ae4ee6c87bc788678444df310ec490aacd06d731",
        ),
    ];

    #[test]
    fn keys_differ_by_ring_layout_and_epoch() {
        let one = EpochSecret::random().unwrap();
        let two = one.next().unwrap();
        let mut names = std::collections::HashSet::new();
        for secret in [&one, &two, &one.next().unwrap()] {
            for ring in ["a", "b"] {
                for layout in [
                    Layout::Bytes80,
                    Layout::Bytes48,
                    Layout::Bytes32,
                    Layout::Sealed,
                ] {
                    let key = secret.key(ring, layout);
                    assert_eq!(key.bytes().len(), layout.bytes());
                    assert!(names.insert(key.bytes()[..NAME_BYTES].to_vec()));
                }
            }
        }
    }

    #[test]
    fn no_debug_form_has_key_material() {
        let secret = EpochSecret::of(&[0x41; SECRET_BYTES]);
        let shown = format!("{secret:?} {:?}", secret.key("web", Layout::Bytes80));
        assert_eq!(shown, "EpochSecret(…) TicketKey(…)");
    }
}
