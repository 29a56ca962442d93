//! The places of connections to the admin address.
//!
//! A probe must find a place, whatever others hold. So a new connection is always taken, and if there
//! are too many, the one that was used least recently ends.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Most connections at a time.
const PLACES: usize = 64;

/// The places of all connections.
#[derive(Debug, Default)]
pub(super) struct Places {
    held: Mutex<Vec<Arc<Place>>>,
    /// How often connections were used.
    uses: Arc<AtomicU64>,
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Place {
    /// The number of its last use: it was accepted, sent a request, or took an event of the status
    /// page.
    used: AtomicU64,
    uses: Arc<AtomicU64>,
    ended: CancellationToken,
}

/// A place that its connection holds. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct HeldPlace {
    places: Arc<Places>,
    place: Arc<Place>,
}

impl Places {
    /// Takes a place for a new connection. Ends the connection that was used least recently if there
    /// are too many.
    pub(super) fn take(self: &Arc<Self>) -> HeldPlace {
        let place = Arc::new(Place {
            used: AtomicU64::new(0),
            uses: Arc::clone(&self.uses),
            ended: CancellationToken::new(),
        });
        place.touch();
        let mut held = self.held.lock();
        if held.len() >= PLACES {
            let oldest = held
                .iter()
                .min_by_key(|place| place.used.load(Ordering::Relaxed));
            if let Some(oldest) = oldest.map(Arc::clone) {
                oldest.ended.cancel();
                held.retain(|place| !Arc::ptr_eq(place, &oldest));
            }
        }
        held.push(Arc::clone(&place));
        drop(held);
        HeldPlace {
            places: Arc::clone(self),
            place,
        }
    }
}

impl Place {
    /// Records that the connection is used.
    pub(super) fn touch(&self) {
        let number = self.uses.fetch_add(1, Ordering::Relaxed);
        self.used.store(number, Ordering::Relaxed);
    }
}

impl HeldPlace {
    /// Returns the place, to record its use.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Waits until another connection has taken the place.
    pub(super) async fn ended(&self) {
        self.place.ended.cancelled().await;
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        let mut held = self.places.held.lock();
        held.retain(|place| !Arc::ptr_eq(place, &self.place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn least_recently_used_connection_makes_room() {
        let places = Arc::new(Places::default());
        let mut held = Vec::new();
        for _ in 0..PLACES {
            held.push(places.take());
        }
        held[0].place().touch();
        let new = places.take();
        let ended = |held: &HeldPlace| held.place.ended.is_cancelled();
        assert!(ended(&held[1]) && !ended(&held[0]) && !ended(&held[2]) && !ended(&new));
        held.remove(1).ended().await;
        drop(held);
        assert_eq!(places.held.lock().len(), 1);
    }
}
