//! Facts about one call that admission hands to the services.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{access::Caller, error::Refusal, quota::Held};

/// The deadline of a call. Stored as an extension of its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub(crate) Instant);

/// The place of a Drive among the calls in flight. Stored as an extension of its request. The Drive
/// keeps the place until its first message has named the connection.
#[derive(Clone)]
pub(crate) struct Place(#[allow(dead_code, reason = "dropping it gives the place back")] Arc<Held>);

impl Place {
    pub(crate) fn new(held: Held) -> Self {
        Self(Arc::new(held))
    }
}

/// The place of one long stream on its HTTP/2 connection. Dropping it releases the place.
pub(crate) struct StreamPlace(Arc<Caller>);

impl StreamPlace {
    pub(crate) fn hold(by: &Arc<Caller>) -> Self {
        by.streams().hold(by.owner());
        Self(Arc::clone(by))
    }

    /// Returns the caller that holds the place.
    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.0
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.streams().release();
    }
}

/// Returns the caller of a request, which admission has put into the request's extensions.
///
/// # Errors
/// [`Refusal::Unauthenticated`] for a request that did not pass admission.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Status> {
    request
        .extensions()
        .get::<Arc<Caller>>()
        .cloned()
        .ok_or_else(|| Refusal::Unauthenticated.into())
}

/// Converts the result of a call to the form that tonic expects.
pub(crate) fn answer<T>(result: Result<T, Refusal>) -> Result<Response<T>, Status> {
    match result {
        Ok(message) => Ok(Response::new(message)),
        Err(refusal) => Err(refusal.into()),
    }
}
