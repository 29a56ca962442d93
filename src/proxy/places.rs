//! The places of the connections of a proxy.
//!
//! A peer that is slow with its handshake must not stop others. So when all places are taken, the
//! connection whose handshake began first gives its place up. Connections that are established keep
//! theirs.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The places of all connections of a proxy.
#[derive(Debug, Default)]
pub(super) struct ConnectionPlaces(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    taken: usize,
    next: u64,
    /// The connections that are in their handshake, the earliest first. At most as many as places.
    handshaking: BTreeMap<u64, CancellationToken>,
}

/// The place of one connection. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct ConnectionPlace {
    places: Arc<ConnectionPlaces>,
    number: u64,
    ends: CancellationToken,
}

impl ConnectionPlaces {
    /// Takes a place, of `most`. `None`: all are taken by connections that are established.
    pub(super) fn take(self: &Arc<Self>, most: usize) -> Option<ConnectionPlace> {
        let mut held = self.0.lock();
        if held.taken >= most {
            let (_, ends) = held.handshaking.pop_first()?;
            ends.cancel();
        }
        let (number, ends) = (held.next, CancellationToken::new());
        held.next += 1;
        held.taken += 1;
        held.handshaking.insert(number, ends.clone());
        drop(held);
        Some(ConnectionPlace {
            places: Arc::clone(self),
            number,
            ends,
        })
    }
}

impl ConnectionPlace {
    /// Returns a token that is cancelled when the connection must give its place up.
    pub(super) fn ends(&self) -> &CancellationToken {
        &self.ends
    }

    /// Keeps the place until the connection ends.
    pub(super) fn establish(&self) {
        self.places.0.lock().handshaking.remove(&self.number);
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut held = self.places.0.lock();
        held.handshaking.remove(&self.number);
        held.taken -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_handshake_makes_room_and_established_connections_do_not() {
        let places = Arc::new(ConnectionPlaces::default());
        let first = places.take(2).unwrap();
        let second = places.take(2).unwrap();
        first.establish();
        let third = places.take(2).unwrap();
        assert!(second.ends().is_cancelled() && !first.ends().is_cancelled());
        drop(second);
        third.establish();
        assert!(places.take(2).is_none());
        drop(first);
        assert!(places.take(2).is_some());
        drop(third);
        assert_eq!(places.0.lock().taken, 0);
    }
}
