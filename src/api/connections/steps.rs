//! Steps of a connection that ask the shared store.

use tls_sessiond_core::{
    cache::Found,
    connection::{Connection, ConnectionId, Output, Step, table::Lapse},
    session::Miss,
    state::CoreState,
};
use tls_sessiond_proto as pb;

use super::open::{Opener, tell_failure};
use crate::api::{convert, error::Refusal};

/// A step, and the connection as it was after the step.
pub(super) struct Stepped {
    step: Step,
    connection: pb::Connection,
}

impl Stepped {
    pub(super) fn of(connection: &Connection, step: Step, lapse: Lapse) -> Self {
        tell_failure(connection);
        Self {
            step,
            connection: convert::connection(connection, lapse),
        }
    }
}

impl Opener {
    /// Asks the shared store whatever a step needs, and goes on with the step, until it is done.
    ///
    /// # Errors
    /// Those of the step, or the connection was freed meanwhile.
    pub(super) async fn finish(
        &self,
        id: ConnectionId,
        mut stepped: Stepped,
    ) -> Result<(Output, pb::Connection), Refusal> {
        loop {
            let Stepped { step, connection } = stepped;
            match (step, &self.store) {
                (Step::Done(mut output), Some(store)) if !output.puts.is_empty() => {
                    store.put_all(std::mem::take(&mut output.puts)).await;
                    let connection = self.state.connections().with(id, |connection, now| {
                        connection.puts_answered();
                        Ok(convert::connection(connection, Lapse::of(connection, now)))
                    })?;
                    return Ok((output, connection));
                }
                (Step::Done(output), _) => return Ok((output, connection)),
                (Step::Ask(ask), store) => {
                    let waiting = Waiting {
                        state: &self.state,
                        id,
                    };
                    let found = match store {
                        Some(store) => store.find(ask).await,
                        None => Err(Miss::StoreUnavailable),
                    };
                    stepped = waiting.given(found)?;
                }
            }
        }
    }
}

/// A connection that waits for the shared store. If the call that asks is cancelled, the connection
/// goes on without a session: it would wait forever.
struct Waiting<'s> {
    state: &'s CoreState,
    id: ConnectionId,
}

impl Waiting<'_> {
    fn given(self, found: Result<Found, Miss>) -> Result<Stepped, Refusal> {
        let stepped = self.state.connections().given(self.id, found, Stepped::of);
        std::mem::forget(self);
        Ok(stepped?)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // An error means that the connection was freed.
        let _ = self.state.connections().with(self.id, |connection, now| {
            connection.stop_asking(now);
            Ok(())
        });
    }
}
