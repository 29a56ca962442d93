//! rustls' session storage for one handshake.

use std::fmt;

use parking_lot::Mutex;
use rustls::server::StoresServerSessions;
use zeroize::Zeroizing;

use crate::Found;

/// The session that a handshake may resume, looked up beforehand, and the sessions that it made.
pub(super) struct HandshakeStore(Mutex<Inner>);

/// A session that rustls wants to store. The data is overwritten when it is dropped.
pub(super) struct NewSession {
    pub(super) id: Vec<u8>,
    pub(super) data: Zeroizing<Vec<u8>>,
}

#[derive(Default)]
struct Inner {
    /// The id and the data of the session that was found.
    found: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    handed: bool,
    made: Vec<NewSession>,
}

impl HandshakeStore {
    pub(super) fn new(found: Option<&Found>) -> Self {
        let found = found.map(|found| {
            (
                found.session_id().to_vec(),
                Zeroizing::new(found.data().to_vec()),
            )
        });
        Self(Mutex::new(Inner {
            found,
            ..Inner::default()
        }))
    }

    /// Takes the sessions that rustls stored since the last call, oldest first.
    pub(super) fn take_made(&self) -> Vec<NewSession> {
        std::mem::take(&mut self.0.lock().made)
    }

    /// Returns whether rustls took the session that was found. rustls may still refuse to resume
    /// it.
    pub(super) fn handed(&self) -> bool {
        self.0.lock().handed
    }
}

impl fmt::Debug for HandshakeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resumption")
    }
}

impl StoresServerSessions for HandshakeStore {
    fn put(&self, id: Vec<u8>, data: Vec<u8>) -> bool {
        self.0.lock().made.push(NewSession {
            id,
            data: Zeroizing::new(data),
        });
        true
    }

    /// Moves the session out instead of copying it: a handshake resumes once.
    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        let mut inner = self.0.lock();
        let (_, mut data) = inner.found.take_if(|(found, _)| found == id)?;
        inner.handed = true;
        Some(std::mem::take(&mut *data))
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.get(id)
    }

    fn can_cache(&self) -> bool {
        true
    }
}
