//! A connection that one stream runs.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
};

use super::{Lapse, LiveConnection, Table};
use crate::{
    cache::Found,
    clock::Now,
    connection::{Connection, Error, Input, Step, close::ShutdownStatus},
    session::Miss,
};

/// Whether a connection is freed when the stream that ran it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is freed, because the stream made it.
    Free,
    /// It stays, because it existed before the stream.
    Keep,
}

/// A connection that one stream runs. Dropping the driver returns the connection or frees it, by
/// its [`Ending`].
#[derive(Debug)]
pub struct Driver {
    pub(super) table: Arc<Table>,
    pub(super) held: Arc<LiveConnection>,
    pub(super) ending: Ending,
}

impl Driver {
    /// Reads the connection. `see` also gets the time at which it lapses.
    ///
    /// # Errors
    /// [`Error::Freed`].
    pub fn inspect<R>(&self, see: impl FnOnce(&Connection, Lapse) -> R) -> Result<R, Error> {
        let connection = self.held.connection.lock();
        let connection = connection.as_ref().ok_or(Error::Freed)?;
        Ok(see(connection, self.table.lapse(&self.held)))
    }

    /// Runs one step of the connection.
    ///
    /// # Errors
    /// [`Error::Freed`], and those of [`Connection::exchange`].
    pub fn exchange(&self, input: Input<'_>) -> Result<Step, Error> {
        self.with(|connection, now| connection.exchange(input, now))
    }

    /// Goes on with the step that has asked the shared store for a session.
    ///
    /// # Errors
    /// [`Error::Freed`], and those of [`Connection::given`].
    pub fn given(&self, found: Result<Found, Miss>) -> Result<Step, Error> {
        self.with(|connection, now| connection.given(found, now))
    }

    /// Records that puts of the connection were answered.
    ///
    /// # Errors
    /// [`Error::Freed`].
    pub fn puts_answered(&self) -> Result<(), Error> {
        self.with(|connection, _| {
            connection.puts_answered();
            Ok(())
        })
    }

    /// Closes this side of the connection (SSL_shutdown(3)).
    ///
    /// # Errors
    /// [`Error::Freed`], and those of [`Connection::shutdown`].
    pub fn shutdown(&self, ciphertext: &mut Vec<u8>) -> Result<ShutdownStatus, Error> {
        self.with(|connection, _| connection.shutdown(ciphertext))
    }

    /// Returns whether another call freed the connection. If not, `waker` is woken when one does.
    pub fn freed(&self, waker: &Waker) -> bool {
        let connection = self.held.connection.lock();
        if connection.is_none() {
            return true;
        }
        let mut driver = self.held.driver.lock();
        if !driver.as_ref().is_some_and(|held| held.will_wake(waker)) {
            *driver = Some(waker.clone());
        }
        false
    }

    fn with<R>(
        &self,
        call: impl FnOnce(&mut Connection, Now) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.table
            .apply_held(&self.held, call)
            .map_err(|err| match err {
                Error::NotFound(_) => Error::Freed,
                err => err,
            })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.held.driver.lock().take();
        // A step that waits for the shared store is not left behind.
        if self.ending == Ending::Keep
            && let Some(connection) = self.held.connection.lock().as_mut()
        {
            connection.stop_asking(self.table.clock.now());
        }
        if self.ending == Ending::Free && self.held.free(self.table.clock.now().at).is_some() {
            self.table.forget(self.held.id);
        }
        self.held.driven.store(false, Ordering::Release);
    }
}
