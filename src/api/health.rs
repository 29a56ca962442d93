//! Implements grpc.health.v1: whether the daemon accepts work, as a whole and for each of its
//! services.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tls_sessiond_proto::{
    admin_service_server, connection_service_server, context_service_server,
    envoy::secret_discovery_service_server, session_service_server, ticket_key_service_server,
    transport::wake::PollOnWake, worker_service_server,
};
use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::WatchStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health as HealthService,
};

use super::error::Refusal;

/// The services that have a health status. `""` is the daemon as a whole.
const NAMES: [&str; 8] = [
    "",
    admin_service_server::SERVICE_NAME,
    connection_service_server::SERVICE_NAME,
    session_service_server::SERVICE_NAME,
    ticket_key_service_server::SERVICE_NAME,
    secret_discovery_service_server::SERVICE_NAME,
    context_service_server::SERVICE_NAME,
    worker_service_server::SERVICE_NAME,
];

/// Whether the daemon accepts work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// NOT_SERVING, because it is starting.
    Starting,
    /// SERVING.
    Yes,
    /// NOT_SERVING, because it is stopping.
    Draining,
}

impl Serving {
    fn response(self) -> HealthCheckResponse {
        let status = match self {
            Self::Yes => ServingStatus::Serving,
            Self::Starting | Self::Draining => ServingStatus::NotServing,
        };
        HealthCheckResponse {
            status: status.into(),
        }
    }
}

/// Tells orchestrators whether to send work. The initial status is [`Serving::Starting`].
#[derive(Clone)]
pub struct Health {
    serving: Arc<watch::Sender<Serving>>,
    draining: CancellationToken,
}

impl Health {
    /// Returns the service with the status [`Serving::Starting`]. Its streams end once `draining` is
    /// cancelled, because they would delay the stop.
    pub(crate) fn new(draining: CancellationToken) -> Self {
        Self {
            serving: Arc::new(watch::Sender::new(Serving::Starting)),
            draining,
        }
    }

    /// Returns the status of the daemon.
    pub fn serving(&self) -> Serving {
        *self.serving.borrow()
    }

    /// Sets the status of the daemon and of each service.
    pub fn set(&self, serving: Serving) {
        self.serving.send_replace(serving);
    }
}

#[async_trait]
impl HealthService for Health {
    type WatchStream = HealthWatch;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !NAMES.contains(&service.as_str()) {
            return Err(Refusal::ServiceUnknown.into());
        }
        Ok(Response::new(self.serving.borrow().response()))
    }

    /// Watches the status of a service. The stream of an unknown service says SERVICE_UNKNOWN and
    /// stays open, because a later version may have that service.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthWatch>, Status> {
        let known = NAMES.contains(&request.into_inner().service.as_str());
        let about = match known {
            true => About::Known(WatchStream::new(self.serving.subscribe())),
            false => About::Unknown { told: false },
        };
        let draining = PollOnWake::new(Box::pin(self.draining.clone().cancelled_owned()));
        Ok(Response::new(HealthWatch { about, draining }))
    }
}

/// The stream of answers of one Watch.
pub struct HealthWatch {
    about: About,
    draining: PollOnWake<WaitForCancellationFutureOwned>,
}

enum About {
    /// A service of the daemon: one answer at once and one after every change.
    Known(WatchStream<Serving>),
    /// An unknown service: one answer in all.
    Unknown { told: bool },
}

impl Stream for HealthWatch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let next = match &mut this.about {
            About::Known(serving) => Pin::new(serving)
                .poll_next(cx)
                .map(|next| next.map(Serving::response)),
            About::Unknown { told: true } => Poll::Pending,
            About::Unknown { told } => {
                *told = true;
                let status = ServingStatus::ServiceUnknown.into();
                Poll::Ready(Some(HealthCheckResponse { status }))
            }
        };
        match next {
            Poll::Ready(next) => Poll::Ready(next.map(Ok)),
            Poll::Pending => Pin::new(&mut this.draining).poll(cx).map(|()| None),
        }
    }
}
