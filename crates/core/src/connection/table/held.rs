//! An entry of the table.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
};

use parking_lot::Mutex;

use crate::{
    clock::{Now, Timestamp, WallOffset, WallTime},
    connection::{Connection, ConnectionId, Removed},
};

/// A connection, and the properties of it that are read without its lock.
#[derive(Debug)]
pub(super) struct LiveConnection {
    pub(super) id: ConnectionId,
    /// How many connections were made before it.
    pub(super) number: u64,
    pub(super) context: Arc<str>,
    pub(super) owner: Arc<str>,
    /// When the connection lapses, as milliseconds of a [`Timestamp`].
    pub(super) expires: AtomicU64,
    /// `None` after the connection was freed.
    pub(super) connection: Mutex<Option<Connection>>,
    pub(super) driven: AtomicBool,
    /// Woken when the connection is freed.
    pub(super) driver: Mutex<Option<Waker>>,
}

impl LiveConnection {
    pub(super) fn expires(&self) -> Timestamp {
        Timestamp::from_millis(self.expires.load(Ordering::Acquire))
    }

    pub(super) fn touch(&self, connection: &Connection, now: Now) {
        self.expires
            .store(connection.lapses(now.at).as_millis(), Ordering::Release);
    }

    /// Frees the connection and returns the removed sessions. `None`: it was freed before.
    pub(super) fn free(&self, now: Timestamp) -> Option<Vec<Removed>> {
        let connection = self.connection.lock().take()?;
        connection.tell_time(now);
        if let Some(driver) = self.driver.lock().take() {
            driver.wake();
        }
        Some(connection.free())
    }
}

/// The time at which a connection lapses: it is freed as lost if no call uses it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lapse {
    /// The time.
    pub at: Timestamp,
    /// The offset of the wall clock now.
    pub offset: WallOffset,
}

impl Lapse {
    /// Returns the time at which a connection that is used now lapses.
    pub fn of(connection: &Connection, now: Now) -> Self {
        Self {
            at: connection.lapses(now.at),
            offset: now.offset,
        }
    }

    /// Returns the time that the wall clock will show then, unless it is set before.
    pub fn wall(self) -> WallTime {
        self.offset.wall(self.at)
    }
}
