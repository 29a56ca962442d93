//! What every call passes: its deadline, and details for errors that tonic makes by itself.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use hyper::service::Service;
use tokio::time::Instant;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Bytes, StdError},
};

use super::{
    http::Services,
    listen::Peer,
    status::{Refusal, described},
};

/// When a call must be answered; an extension of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

/// The body of a request: off a socket, or made in this process.
pub(super) trait Incoming:
    hyper::body::Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static
{
}

impl<B: hyper::body::Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static> Incoming for B {}

/// Stands before the services of one HTTP/2 connection.
#[derive(Clone)]
pub(super) struct Edge {
    pub(super) services: Services,
    pub(super) peer: Peer,
}

impl<B: Incoming> Service<Request<B>> for Edge {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: Request<B>) -> Answer {
        let arrived = Instant::now();
        if let Some(deadline) = timeout(request.headers()).and_then(|timeout| arrived.checked_add(timeout)) {
            // A call that cannot be answered in time is not begun. tonic would let it run, and answer CANCELLED.
            if deadline <= Instant::now() {
                return Answer(Box::pin(async { Ok(Status::from(Refusal::DeadlineExceeded).into_http()) }));
            }
            request.extensions_mut().insert(Deadline(deadline));
        }
        request.extensions_mut().insert(self.peer.clone());
        Answer(self.services.call(request))
    }
}

/// The answer of a service, with details where it is a refusal.
pub struct Answer(BoxFuture<Response<Body>, Infallible>);

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map_ok(explained)
    }
}

/// Gives a refusal without details an ErrorInfo. It has its status in the header, for no body was made.
fn explained(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    if !headers.contains_key("grpc-status") || headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    match Status::from_header_map(headers) {
        Some(status) if status.code() != tonic::Code::Ok => {
            described(status.code(), status.message()).into_http()
        }
        _ => response,
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit. What is malformed counts as none, as it does for tonic.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(read("1n"), Some(Duration::from_nanos(1)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for malformed in ["", "S", "5", "5s", "123456789S", "-1S", "5 S"] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }
}
