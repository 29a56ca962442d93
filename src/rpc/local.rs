//! The API without sockets: calls are answered in this process, past the same edge as those that come over a socket.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use hyper::service::Service as _;
use tonic::{body::Body, codegen::Service};

use super::{
    edge::{Answer, Edge},
    http::Services,
    listen::Peer,
};

/// What a client of the contract calls in place of a channel.
#[derive(Clone)]
pub struct Local(Edge);

impl Local {
    pub(super) fn new(services: Services, owner: &str) -> Self {
        Self(Edge { services, peer: Peer { owner: Arc::from(owner) } })
    }
}

impl Service<Request<Body>> for Local {
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
