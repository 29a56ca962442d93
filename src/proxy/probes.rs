//! The answers of the admin address of the proxies.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{ProxiesState, sight::Sight};
use crate::admin::{Routes, guarded, metrics::openmetrics};

/// Returns the answers for all visitors.
pub(super) fn routes(shared: Arc<ProxiesState>) -> Routes {
    Arc::new(move |visitor, place| {
        let sight = Sight {
            shared: Arc::clone(&shared),
            names: visitor.is_local(),
        };
        let routes = Router::new()
            .route("/metrics", get(answer_metrics))
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(answer_ready))
            .route("/startupz", get(async || "started\n"))
            .with_state(Arc::new(sight));
        guarded(routes, &visitor, place)
    })
}

async fn answer_metrics(State(sight): State<Arc<Sight>>) -> Response {
    match openmetrics::encode(sight) {
        Ok(text) => ([(header::CONTENT_TYPE, openmetrics::CONTENT_TYPE)], text).into_response(),
        Err(err) => (StatusCode::INTERNAL_SERVER_ERROR, err.to_string()).into_response(),
    }
}

/// A daemon that is away costs resumption and no connection, so the proxy is ready without it.
async fn answer_ready(State(sight): State<Arc<Sight>>) -> Response {
    if !sight.is_ready() {
        let why = "not ready: the proxy starts or drains\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
    let troubles: Vec<_> = sight
        .desks()
        .filter_map(|(name, desk)| {
            let why = desk.trouble()?;
            // The reason may name addresses.
            Some(match sight.names {
                true => format!("{name}: {why}"),
                false => name,
            })
        })
        .collect();
    match troubles.is_empty() {
        true => "ready\n".into_response(),
        false => format!(
            "ready; handshakes are full ones, because these sessions are away: {}\n",
            troubles.join("; ")
        )
        .into_response(),
    }
}
