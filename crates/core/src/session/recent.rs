//! The latest lookups that missed and handshakes that failed, for operators.

use std::{collections::VecDeque, sync::Arc};

use tls_sessiond_types::{Role, alert::Alert, server_name::ServerName};

use super::events::MissEvent;
use crate::{
    clock::Timestamp,
    sync::{AtomicU64, Mutex, Ordering},
};

/// Maximum number of events that each list keeps.
pub const RECENT_MAX: usize = 256;
/// Maximum number of events of one second that a list keeps, so that a flood does not displace all
/// others. Threads that count at the same moment may keep one more each.
pub const RECENT_PER_SECOND: u64 = 100;
/// Maximum size of [`FailureEvent::reason`], in bytes.
pub const REASON_MAX: usize = 256;

/// A handshake that failed.
#[derive(Clone, Debug)]
pub struct FailureEvent {
    /// Time of the failure.
    pub at: Timestamp,
    /// The alert that ended the handshake, if one did.
    pub alert: Option<Alert>,
    /// The error, at most [`REASON_MAX`] bytes.
    pub reason: Box<str>,
    /// The name of the connection's context.
    pub context: Arc<str>,
    /// The role of the connection.
    pub role: Role,
    /// Whether the daemon's engine ran the handshake, and not the worker's.
    pub in_daemon: bool,
    /// A client's server, or the SNI that a server received, or none.
    pub server_name: ServerName<'static>,
    /// The identity that owns the connection.
    pub owner: Arc<str>,
    /// The address of the peer, as the worker gave it.
    pub peer_address: Box<str>,
}

/// The latest events of both kinds.
#[derive(Debug, Default)]
pub struct RecentEvents {
    /// Lookups that missed.
    pub misses: Recent<MissEvent>,
    /// Handshakes that failed.
    pub failures: Recent<FailureEvent>,
}

/// The latest events of one kind.
#[derive(Debug)]
pub struct Recent<T> {
    /// The second of the last event in the upper 48 bits, and the number of its events.
    window: AtomicU64,
    kept: Mutex<Kept<T>>,
}

#[derive(Debug)]
struct Kept<T> {
    events: VecDeque<T>,
    /// The number of events by context: few, for each is the name of a context of the configuration.
    counts: Vec<(Box<str>, usize)>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self {
            events: VecDeque::new(),
            counts: Vec::new(),
        }
    }
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self {
            window: AtomicU64::new(0),
            kept: Mutex::default(),
        }
    }
}

/// An event that [`Recent`] keeps.
pub trait RecentEvent: Clone {
    /// Returns the name of the context in which it was.
    fn context(&self) -> &str;
}

impl RecentEvent for MissEvent {
    fn context(&self) -> &str {
        &self.context
    }
}

impl RecentEvent for FailureEvent {
    fn context(&self) -> &str {
        &self.context
    }
}

impl<T: RecentEvent> Recent<T> {
    /// Keeps an event, unless its second has [`RECENT_PER_SECOND`] already. If there is no room, the
    /// oldest event of the context that has the most makes room.
    pub(crate) fn keep(&self, at: Timestamp, event: impl FnOnce() -> T) {
        if !self.has_room(at.as_secs()) {
            return;
        }
        let event = event();
        let mut kept = self.kept.lock();
        if kept.events.len() == RECENT_MAX {
            kept.remove_one();
        }
        kept.push(event);
    }

    fn has_room(&self, second: u64) -> bool {
        const COUNT: u64 = (1 << 16) - 1;
        let window = self.window.load(Ordering::Relaxed);
        if window >> 16 != second {
            self.window.store(second << 16 | 1, Ordering::Relaxed);
            return true;
        }
        let has_room = window & COUNT < RECENT_PER_SECOND;
        if has_room {
            self.window.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Returns up to `most` events that are wanted, newest first.
    pub fn newest(&self, most: usize, wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let kept = self.kept.lock();
        let wanted = kept.events.iter().rev().filter(|event| wanted(event));
        wanted.take(most).cloned().collect()
    }
}

impl<T: RecentEvent> Kept<T> {
    fn push(&mut self, event: T) {
        let known = self
            .counts
            .iter_mut()
            .find(|(context, _)| **context == *event.context());
        match known {
            Some((_, count)) => *count += 1,
            None => self.counts.push((event.context().into(), 1)),
        }
        self.events.push_back(event);
    }

    /// Removes the oldest event of the context that has the most.
    fn remove_one(&mut self) {
        let largest = self.counts.iter_mut().max_by_key(|(_, count)| *count);
        let Some((context, count)) = largest else {
            return;
        };
        let mut events = self.events.iter();
        if let Some(oldest) = events.position(|event| *event.context() == **context) {
            self.events.remove(oldest);
            *count -= 1;
        }
        // Contexts that reloads have removed do not stay.
        self.counts.retain(|(_, count)| *count > 0);
    }
}

/// Returns the beginning of a text, at most this many bytes.
pub fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    impl RecentEvent for u64 {
        fn context(&self) -> &str {
            if *self >= 10_000 { "quiet" } else { "loud" }
        }
    }

    #[test]
    fn loud_context_displaces_its_own_events_only() {
        let recent = Recent::default();
        recent.keep(Timestamp::from_millis(1), || 10_000);
        for number in 0..1000 {
            recent.keep(Timestamp::from_millis(number * 20), || number);
        }
        let newest = recent.newest(usize::MAX, |_| true);
        assert_eq!(
            (newest.len(), newest[0], newest[RECENT_MAX - 1]),
            (RECENT_MAX, 999, 10_000)
        );
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("", 3), "");
    }

    #[test]
    fn oldest_events_make_room() {
        let recent = Recent::default();
        for number in 0..1000 {
            recent.keep(Timestamp::from_millis(number * 20), || number);
        }
        let newest = recent.newest(usize::MAX, |_| true);
        assert_eq!(newest.len(), RECENT_MAX);
        assert_eq!(newest[..2], [999, 998]);
        assert_eq!(recent.newest(2, |number| number % 10 == 0), [990, 980]);
    }

    #[test]
    fn flood_of_one_second_leaves_room_for_others() {
        let recent = Recent::default();
        recent.keep(Timestamp::from_millis(500), || 0);
        for number in 1..=1000 {
            recent.keep(Timestamp::from_millis(1500), || number);
        }
        recent.keep(Timestamp::from_millis(2500), || 2000);
        let newest = recent.newest(usize::MAX, |_| true);
        assert_eq!(newest.len() as u64, RECENT_PER_SECOND + 2);
        assert_eq!((newest[0], newest[newest.len() - 1]), (2000, 0));
    }
}
