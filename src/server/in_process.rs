//! In-process calls of the API, without a socket. They pass the same admission as calls over a
//! socket.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{body::Body, codegen::Service};

use super::{
    admission::{Admission, Answer},
    http::Http,
};
use crate::api::access::Peer;

/// An in-process service that a generated client uses in place of a channel.
#[derive(Clone)]
pub struct InProcess(Admission);

impl InProcess {
    pub(crate) fn new(http: &Http) -> Self {
        Self(http.edge(Peer::local(), None))
    }
}

impl Service<Request<Body>> for InProcess {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        self.0.call(request)
    }
}
