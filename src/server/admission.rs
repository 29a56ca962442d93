//! Admission of every call: checks rights and limits, enforces the deadline, and adds details to
//! errors that tonic creates itself.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderName},
};
use tls_sessiond_core::state::CoreState;
use tokio::time::{Instant, Sleep, sleep};
use tonic::{Code, Status, body::Body, codegen::BoxFuture};

use super::{
    listen::Beyond,
    message::{Expects, Whole},
    router::{Incoming, Services},
};
use crate::api::{
    access::Caller,
    call::{Deadline, Place},
    durations::{CallDurations, TimedCall},
    error::{ACCEPT_ENCODING, Refusal, described},
    quota::Held,
};

const DRIVE: &str = "/tls.sessiond.v1.ConnectionService/Drive";
const ATTACH: &str = "/tls.sessiond.v1.WorkerService/Attach";
const KEYS: &str = "/tls.sessiond.v1.TicketKeyService/WatchTicketKeys";
const SECRETS: [&str; 2] = [
    "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
    "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
];
const WATCH: &str = "/tls.sessiond.v1.SessionService/WatchSessions";
const REFLECTION: &str = "/grpc.reflection.";

/// Returns whether the method of this path makes its caller a member of a ring, for as long as the stream
/// lasts.
fn is_member(path: &str) -> bool {
    path == KEYS || SECRETS.contains(&path)
}

/// Returns how many messages the method of this path reads.
fn expects(path: &str) -> Expects {
    match is_member(path) || path == DRIVE || path == ATTACH || path.starts_with(REFLECTION) {
        true => Expects::Any,
        false => Expects::One,
    }
}

/// How long a call may take until it has arrived completely and is answered. It counts as in flight
/// during that time. The limit also bounds how long a list waits for other lists of its caller.
const ARRIVAL: Duration = Duration::from_secs(20);

/// Admits the calls of one HTTP/2 connection to the services.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) services: Services,
    pub(crate) caller: Arc<Caller>,
    pub(crate) state: Arc<CoreState>,
    /// Set if the connection is beyond the limit of sockets.
    pub(crate) beyond: Option<Beyond>,
    pub(crate) durations: Arc<CallDurations>,
}

/// Path prefix of health and reflection. Every caller may call these, over any connection. Tools
/// need reflection to call health.
const OPEN: &str = "/grpc.";

impl Admission {
    fn admit(&self, path: &str) -> Result<Held, Refusal> {
        if let Some(beyond) = self.beyond.filter(|_| !path.starts_with(OPEN)) {
            return Err(Refusal::SocketLimit(beyond.sockets_max));
        }
        self.caller.may_call(path, &self.state)?;
        if path.starts_with(OPEN) {
            return self.caller.holder().open_call();
        }
        self.caller.holder().has_room_for_bytes()?;
        self.caller.holder().call()
    }
}

impl Admission {
    pub(crate) fn call(&self, mut request: Request<impl Incoming>) -> Answer {
        if let Some(status) = not_grpc(request.method(), request.headers()) {
            return Answer::by_http(status);
        }
        keep_few(request.headers_mut());
        let arrived = Instant::now();
        let mut timed = self.durations.begin(request.uri().path(), arrived);
        let admitted = match self.admit(request.uri().path()) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.caller.audit(&refusal, Some(request.uri().path()));
                self.durations.refuse(refusal.reason());
                return Answer::refused(refusal, timed);
            }
        };
        if let Some(deadline) =
            timeout(request.headers()).and_then(|timeout| arrived.checked_add(timeout))
        {
            // Do not start a call that cannot be answered in time. tonic would run it and answer
            // CANCELLED.
            if deadline <= Instant::now() {
                return Answer::refused(Refusal::DeadlineExceeded, timed);
            }
            request.extensions_mut().insert(Deadline(deadline));
        }
        timed.trace(request.headers());
        request.extensions_mut().insert(Arc::clone(&self.caller));
        let admitted = match request.uri().path() {
            DRIVE => {
                request.extensions_mut().insert(Place::new(admitted));
                None
            }
            _ => Some(admitted),
        };
        let path = request.uri().path();
        let (expects, message_max) = (expects(path), self.services.message_max(path));
        let kept = path != ATTACH && path != WATCH && !is_member(path);
        let request = request
            .map(|body| Whole::new(body, expects, message_max, Arc::clone(self.caller.holder())));
        Answer {
            answer: self.services.call(request),
            late: None,
            admitted,
            kept,
            timed: Some(timed),
        }
    }
}

/// The answer of a service, with details if it is a refusal. It counts as a call in flight until it
/// has been sent. An Attach or WatchSessions counts only until its answer begins, because these
/// streams have limits of their own.
pub struct Answer {
    answer: BoxFuture<Response<Body>, Infallible>,
    /// The timer of [`ARRIVAL`]. `None` until the call has to wait for the first time.
    late: Option<Pin<Box<Sleep>>>,
    admitted: Option<Held>,
    /// Whether the place is kept until the answer has been sent.
    kept: bool,
    /// `None`: the request is not a call.
    timed: Option<TimedCall>,
}

impl Answer {
    /// Takes the place of this call, if the call counts until its answer has been sent.
    pub(crate) fn kept_place(&mut self) -> Option<Held> {
        self.admitted.take().filter(|_| self.kept)
    }

    /// Takes the timer of this call, to end it with the answer.
    pub(crate) fn timed(&mut self) -> Option<TimedCall> {
        self.timed.take()
    }

    fn refused(refusal: Refusal, timed: TimedCall) -> Self {
        let answer = Box::pin(async { Ok(Status::from(refusal).into_http()) });
        Self {
            answer,
            late: None,
            admitted: None,
            kept: false,
            timed: Some(timed),
        }
    }

    fn by_http(status: StatusCode) -> Self {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("POST"));
        }
        Self {
            answer: Box::pin(async { Ok(response) }),
            late: None,
            admitted: None,
            kept: false,
            timed: None,
        }
    }
}

/// The headers that later code reads. With many other headers, a waiting call would hold 50 KiB.
const READ: [&str; 6] = [
    "content-type",
    "grpc-encoding",
    "grpc-accept-encoding",
    "grpc-timeout",
    "traceparent",
    "tracestate",
];
/// Headers up to this number are all kept. A call of an ordinary client has fewer.
const FEW: usize = 16;

fn keep_few(headers: &mut HeaderMap) {
    if headers.len() > FEW {
        let read = |name| Some((HeaderName::from_static(name), headers.get(name)?.clone()));
        *headers = READ.into_iter().filter_map(read).collect();
    }
}

/// Returns the HTTP status for a request that is not a gRPC call, because its method is not POST or
/// its content type is neither `application/grpc` nor `application/grpc+proto`, with or without
/// parameters. The sender of such a request does not read a gRPC status.
fn not_grpc(method: &Method, headers: &HeaderMap) -> Option<StatusCode> {
    if method != Method::POST {
        return Some(StatusCode::METHOD_NOT_ALLOWED);
    }
    let content_type = headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let rest = content_type.strip_prefix(b"application/grpc");
    match rest.map(|rest| rest.strip_prefix(b"+proto").unwrap_or(rest)) {
        Some([] | [b';', ..]) => None,
        _ => Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { answer, timed, .. } = &mut *self;
        let polled = match timed {
            Some(timed) => timed.scope().run(|| answer.as_mut().poll(cx)),
            None => answer.as_mut().poll(cx),
        };
        if let Poll::Ready(Ok(answer)) = polled {
            let answer = explained(answer);
            if let Some(timed) = &mut self.timed {
                // Without a status in the headers, it follows the messages.
                timed.ends_with(status_of(answer.headers()).unwrap_or(Code::Ok));
            }
            return Poll::Ready(Ok(answer));
        }
        ready!(
            self.late
                .get_or_insert_with(|| Box::pin(sleep(ARRIVAL)))
                .as_mut()
                .poll(cx)
        );
        if let Some(timed) = &mut self.timed {
            timed.ends_with(Code::DeadlineExceeded);
        }
        Poll::Ready(Ok(Status::from(Refusal::DeadlineExceeded).into_http()))
    }
}

/// Returns the gRPC status that headers or trailers have.
pub(crate) fn status_of(headers: &HeaderMap) -> Option<Code> {
    let status = headers.get("grpc-status")?;
    Some(Code::from_bytes(status.as_bytes()))
}

/// Adds an ErrorInfo to a refusal without details. Such a refusal has its status in the headers,
/// because tonic created no body.
fn explained(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    if !headers.contains_key("grpc-status") || headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    match Status::from_header_map(headers) {
        Some(status) if status.code() != tonic::Code::Ok => {
            let encodings = headers.get(ACCEPT_ENCODING).cloned();
            let mut described = described(&status).into_http();
            if let Some(encodings) = encodings {
                described.headers_mut().insert(ACCEPT_ENCODING, encodings);
            }
            described
        }
        _ => response,
    }
}

/// Reads the header `grpc-timeout`: at most eight digits and a unit. A malformed value is ignored,
/// as tonic ignores it.
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
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn methods_read_as_many_messages_as_the_contract_says() {
        let sets = [
            tls_sessiond_proto::FILE_DESCRIPTOR_SET,
            tls_sessiond_proto::envoy::FILE_DESCRIPTOR_SET,
        ];
        let all = sets.map(|set| FileDescriptorSet::decode(set).unwrap());
        let mut count = 0;
        for file in all.iter().flat_map(|set| &set.file) {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let any = expects(&path) == Expects::Any;
                    assert_eq!(any, method.client_streaming(), "{path}");
                    count += 1;
                }
            }
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(read("1n"), Some(Duration::from_nanos(1)));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for malformed in ["", "S", "5", "5s", "123456789S", "-1S", "5 S"] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }
}
