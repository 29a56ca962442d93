//! Tickets that the daemon seals itself, so that no key leaves it.
//!
//! ```text
//! name of the key (16 bytes) ‖ handle (16) ‖ nonce (12) ‖ AES-256-GCM(state) ‖ tag (16)
//! ```
//!
//! The handle is random. It identifies the ticket to a list of tickets that are no longer good.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use zeroize::Zeroizing;

use crate::{
    epoch::{Layout, NAME_BYTES, NoRandomness, TicketKey},
    ring::Ring,
};

/// Bytes of a handle.
pub const HANDLE_BYTES: usize = 16;
/// Bytes of a ticket besides its state.
pub const OVERHEAD: usize = NAME_BYTES + HANDLE_BYTES + NONCE_LEN + MAX_TAG_LEN;

/// Identifies a ticket.
pub type Handle = [u8; HANDLE_BYTES];

/// Why a ticket does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// The ring has no epoch with the key of this ticket: it has expired, or is of another ring.
    #[error("the ticket is of no epoch that the ring opens now")]
    Unknown,
    /// The ticket, or what it is bound to, is not what was sealed.
    #[error("the ticket is not what was sealed")]
    Changed,
}

/// A ticket that was opened.
pub struct OpenedTicket {
    /// Its handle.
    pub handle: Handle,
    /// The number of its epoch.
    pub epoch: u64,
    /// What was sealed.
    pub state: Zeroizing<Vec<u8>>,
}

fn aead(key: &TicketKey) -> Option<LessSafeKey> {
    let unbound = UnboundKey::new(&AES_256_GCM, &key.bytes()[NAME_BYTES..]).ok()?;
    Some(LessSafeKey::new(unbound))
}

impl Ring {
    /// Seals a state with the current epoch, under a random handle. It opens only with the same
    /// `bound`, and in the same run of the ring.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn seal(&self, state: &[u8], bound: &[u8]) -> Result<(Handle, Vec<u8>), NoRandomness> {
        let mut handle = [0; HANDLE_BYTES];
        rand::fill(&mut handle).map_err(|_| NoRandomness)?;
        let ticket = self.seal_as(&handle, state, bound)?;
        Ok((handle, ticket))
    }

    /// Does the same as [`Self::seal`], under this handle. Tickets with equal handles are one to a list
    /// of tickets that are no longer good.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn seal_as(
        &self,
        handle: &Handle,
        state: &[u8],
        bound: &[u8],
    ) -> Result<Vec<u8>, NoRandomness> {
        let key = self
            .window()
            .current
            .secret
            .key(self.name(), Layout::Sealed);
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| NoRandomness)?;
        let mut sealed = Zeroizing::new(state.to_vec());
        let tag = aead(&key)
            .ok_or(NoRandomness)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from([handle, self.run(), bound].concat()),
                &mut sealed,
            )
            .map_err(|_| NoRandomness)?;
        Ok([key.name(), handle, &nonce, &sealed, tag.as_ref()].concat())
    }

    /// Returns the handle that a ticket names, whether the ticket opens or not. `None`: it is too short
    /// for a ticket.
    pub fn named_handle(ticket: &[u8]) -> Option<Handle> {
        let rest = ticket
            .get(NAME_BYTES..)
            .filter(|_| ticket.len() >= OVERHEAD)?;
        rest.first_chunk().copied()
    }

    /// Opens a ticket of an epoch that the ring opens now.
    ///
    /// # Errors
    /// See [`NotOpened`].
    pub fn open(&self, ticket: &[u8], bound: &[u8]) -> Result<OpenedTicket, NotOpened> {
        let (name, rest) = ticket
            .split_first_chunk::<NAME_BYTES>()
            .ok_or(NotOpened::Unknown)?;
        let epochs = self.opened().into_iter().map(|epoch| {
            let key = epoch.secret.key(self.name(), Layout::Sealed);
            (epoch.number, key)
        });
        let mut known = epochs.filter(|(_, key)| key.name() == name);
        let (epoch, key) = known.next().ok_or(NotOpened::Unknown)?;
        let (handle, rest) = rest
            .split_first_chunk::<HANDLE_BYTES>()
            .ok_or(NotOpened::Changed)?;
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(NotOpened::Changed)?;
        let mut state = Zeroizing::new(sealed.to_vec());
        let opened = aead(&key).and_then(|aead| {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let bound = Aad::from([handle, self.run(), bound].concat());
            let opened = aead.open_in_place(nonce, bound, &mut state).ok()?;
            Some(opened.len())
        });
        let length = opened.ok_or(NotOpened::Changed)?;
        state.truncate(length);
        Ok(OpenedTicket {
            handle: *handle,
            epoch,
            state,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ring::Settings;

    const SECOND: Duration = Duration::from_secs(1);

    fn ring() -> Ring {
        let settings = Settings {
            rotate: 10 * SECOND,
            lifetime: 10 * SECOND,
            max_key_age: 60 * SECOND,
            members_wait: SECOND,
        };
        Ring::new("web", settings, Duration::ZERO).unwrap()
    }

    #[test]
    fn ticket_opens_for_a_lifetime_after_the_rotation() {
        let mut ring = ring();
        let (handle, ticket) = ring.seal(b"state", b"scope").unwrap();
        assert_eq!(ticket.len(), 5 + OVERHEAD);
        // Without members, the rotation goes on to Settle at once.
        ring.tick(10 * SECOND).unwrap();
        let opened = ring.open(&ticket, b"scope").unwrap();
        assert_eq!((opened.handle, &**opened.state), (handle, &b"state"[..]));
        assert_eq!(opened.epoch, 1);
        ring.tick(20 * SECOND).unwrap();
        assert_eq!(ring.open(&ticket, b"scope").err(), Some(NotOpened::Unknown));
    }

    #[test]
    fn renewed_ticket_keeps_its_handle() {
        let mut ring = ring();
        let (handle, _) = ring.seal(b"state", b"scope").unwrap();
        ring.rotate_at_once(SECOND).unwrap();
        let renewed = ring.seal_as(&handle, b"state", b"scope").unwrap();
        assert_eq!(ring.open(&renewed, b"scope").unwrap().handle, handle);
        assert_eq!(Ring::named_handle(&renewed), Some(handle));
        assert_eq!(Ring::named_handle(&renewed[..OVERHEAD - 1]), None);
    }

    #[test]
    fn changed_ticket_does_not_open() {
        let ring = ring();
        let (_, ticket) = ring.seal(b"state", b"scope").unwrap();
        assert_eq!(ring.open(&ticket, b"other").err(), Some(NotOpened::Changed));
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert!(ring.open(&changed, b"scope").is_err(), "{at}");
            assert!(ring.open(&ticket[..at], b"scope").is_err(), "{at}");
        }
    }
}
