//! The answers of the admin address.

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    feed::{self, Feed},
    metrics::{Everything, openmetrics},
    places::Place,
};
use crate::api::{access::Peer, admin::Admin, health::Serving};

/// A visitor of the admin address.
#[derive(Clone)]
pub(crate) struct Visitor {
    peer: Option<Arc<Peer>>,
    /// Whether the visitor came over a loopback address.
    is_local: bool,
}

impl Visitor {
    /// A visitor over loopback.
    pub(crate) fn local() -> Self {
        Self {
            peer: Some(Arc::new(Peer::local())),
            is_local: true,
        }
    }

    /// A visitor over the network without a proved identity.
    pub(crate) fn stranger() -> Self {
        Self {
            peer: None,
            is_local: false,
        }
    }

    /// A visitor over the network that has proved its identity by a certificate.
    pub(crate) fn proved(peer: Peer) -> Self {
        Self {
            peer: Some(Arc::new(peer)),
            is_local: false,
        }
    }

    /// Returns whether the visitor came over a loopback address.
    pub(crate) fn is_local(&self) -> bool {
        self.is_local
    }

    /// Returns the peer whose rights decide what is shown.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.peer.as_deref()
    }
}

/// The page allows nothing but its own files, and cannot be framed.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns the answers for one visitor.
pub(crate) fn router(
    admin: Arc<Admin>,
    feed: Arc<Feed>,
    visitor: Visitor,
    place: Arc<Place>,
) -> Router {
    let probes = Router::new()
        .route("/metrics", get(answer_metrics))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(answer_ready))
        .route("/startupz", get(answer_started));
    let is_local = visitor.is_local;
    let routes = match is_local {
        true => probes
            .route("/", get(async || file("text/html; charset=utf-8", PAGE)))
            .route(
                "/page.css",
                get(async || file("text/css; charset=utf-8", STYLE)),
            )
            .route(
                "/page.js",
                get(async || file("text/javascript; charset=utf-8", SCRIPT)),
            )
            .route("/events", get(feed::answer)),
        false => probes,
    };
    let routes = routes
        .with_state(admin)
        .layer(Extension(feed))
        .layer(Extension(Arc::clone(&place)))
        .layer(Extension(visitor.clone()));
    guarded(routes, &visitor, place)
}

/// Adds what holds for all answers: the check of the Host of local visitors, security headers, and the
/// record of use.
pub(crate) fn guarded(routes: Router, visitor: &Visitor, place: Arc<Place>) -> Router {
    let routes = match visitor.is_local {
        true => routes.layer(middleware::from_fn(check_host)),
        false => routes,
    };
    let touch = move |request: Request| {
        place.touch();
        std::future::ready(request)
    };
    routes
        .layer(middleware::map_request(touch))
        .layer(middleware::map_response(with_headers))
}

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

fn file(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, content_type)], text)
}

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses a request whose Host is not this machine: a page of another site must not read this one
/// after it has changed its name to a loopback address (DNS rebinding).
async fn check_host(request: Request, next: Next) -> Response {
    let mut headers = request.headers().get_all(header::HOST).iter();
    let host = match (request.uri().authority(), headers.next(), headers.next()) {
        (Some(authority), _, None) => Some(authority.host().to_owned()),
        (None, Some(host), None) => host.to_str().ok().map(without_port),
        // Two Hosts may mean two things to two readers.
        (_, _, Some(_)) | (None, None, None) => None,
    };
    let local = ["localhost", "127.0.0.1", "[::1]"];
    match host {
        Some(host) if local.iter().any(|name| host.eq_ignore_ascii_case(name)) => {
            next.run(request).await
        }
        _ => {
            let why = "Host must be localhost, 127.0.0.1 or [::1]\n";
            (StatusCode::MISDIRECTED_REQUEST, why).into_response()
        }
    }
}

/// Returns a Host without its port.
fn without_port(host: &str) -> String {
    let port = host.rsplit_once(':');
    match port {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name.to_owned(),
        _ => host.to_owned(),
    }
}

async fn answer_metrics(
    State(admin): State<Arc<Admin>>,
    Extension(visitor): Extension<Visitor>,
) -> Response {
    let snapshot = admin.snapshot(visitor.peer()).await;
    match openmetrics::encode(Everything::of(snapshot, &admin)) {
        Ok(text) => ([(header::CONTENT_TYPE, openmetrics::CONTENT_TYPE)], text).into_response(),
        Err(err) => (StatusCode::INTERNAL_SERVER_ERROR, err.to_string()).into_response(),
    }
}

async fn answer_ready(State(admin): State<Arc<Admin>>) -> Response {
    let not = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match admin.serving() {
        Serving::Yes => "ready\n".into_response(),
        Serving::Starting => not("not ready: the daemon starts, and waits for the shared store\n"),
        Serving::Draining => not("not ready: the daemon drains\n"),
    }
}

async fn answer_started(State(admin): State<Arc<Admin>>) -> Response {
    match admin.serving() {
        Serving::Yes | Serving::Draining => "started\n".into_response(),
        Serving::Starting => {
            let why = "not started: the daemon waits for the shared store\n";
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_of_a_host_is_left_out() {
        for (host, name) in [
            ("localhost", "localhost"),
            ("localhost:9551", "localhost"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("evil.test:localhost", "evil.test:localhost"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }
}
