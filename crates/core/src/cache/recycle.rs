//! The memory of a session that had to make room, for the one that it made room for, or the next; see [`crate::session::secret`].

use std::{cell::Cell, sync::Arc};

use crate::session::{Secret, Session};

thread_local! {
    /// Nobody else has it, and its secret is gone.
    static SHELL: Cell<Option<Arc<Session>>> = const { Cell::new(None) };
}

/// A session that several may have, where the last one lay that was [`leave`]d, if there is one.
pub(super) fn fill(session: Session) -> Arc<Session> {
    let Ok(Some(mut shell)) = SHELL.try_with(Cell::take) else { return Arc::new(session) };
    let Some(place) = Arc::get_mut(&mut shell) else { return Arc::new(session) };
    *place = session;
    shell
}

/// Keeps the memory of a session that left the cache, unless somebody still has the session. Its secret is overwritten now.
pub(super) fn leave(mut gone: Arc<Session>) {
    if let Some(session) = Arc::get_mut(&mut gone) {
        session.secret = Secret::bytes(Vec::new());
        // Where the thread ends nothing is kept.
        _ = SHELL.try_with(|shell| shell.set(Some(gone)));
    }
}
