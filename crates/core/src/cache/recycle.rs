//! Reuses the allocation of the last evicted session for the next insert on the same thread; see
//! [`super::secret`].

use std::{cell::Cell, sync::Arc};

use crate::session::{Secret, Session};

thread_local! {
    /// An allocation without other references. Its secret was overwritten.
    static SHELL: Cell<Option<Arc<Session>>> = const { Cell::new(None) };
}

/// Moves a session into the allocation that [`recycle`] kept last, or into a new one.
pub(super) fn reuse(session: Session) -> Arc<Session> {
    let Ok(Some(mut shell)) = SHELL.try_with(Cell::take) else {
        return Arc::new(session);
    };
    let Some(place) = Arc::get_mut(&mut shell) else {
        return Arc::new(session);
    };
    *place = session;
    shell
}

/// Keeps the allocation of an evicted session for [`reuse`], unless the session is still referenced.
/// Overwrites its secret at once.
pub(super) fn recycle(mut gone: Arc<Session>) {
    if let Some(session) = Arc::get_mut(&mut gone) {
        session.secret = Secret::bytes(Vec::new());
        // Keeps nothing if the thread is exiting.
        _ = SHELL.try_with(|shell| shell.set(Some(gone)));
    }
}
