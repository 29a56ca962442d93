//! The services, and the choice of one for a call.

use std::convert::Infallible;

use http::{Request, Response};
use tls_sessiond_proto::{
    admin_service_server::{self, AdminServiceServer},
    connection_service_server::{self, ConnectionServiceServer},
    context_service_server::{self, ContextServiceServer},
    envoy::secret_discovery_service_server::{self, SecretDiscoveryServiceServer},
    session_service_server::{self, SessionServiceServer},
    ticket_key_service_server::{self, TicketKeyServiceServer},
    worker_service_server::{self, WorkerServiceServer},
};
use tonic::{
    body::Body,
    codegen::{BoxFuture, Bytes, Service, StdError},
    service::Routes,
};

use crate::api::{
    admin::Admin, connections::Connections, contexts::Contexts, sessions::Sessions,
    ticket_keys::TicketKeys, workers::Workers,
};

/// The body of a request, from a socket or from an in-process client.
pub(crate) trait Incoming:
    http_body::Body<Data = Bytes, Error: Into<StdError> + Send> + Unpin + Send + 'static
{
}

impl<B: http_body::Body<Data = Bytes, Error: Into<StdError> + Send> + Unpin + Send + 'static>
    Incoming for B
{
}

/// All services.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) connections: ConnectionServiceServer<Connections>,
    pub(crate) sessions: SessionServiceServer<Sessions>,
    pub(crate) contexts: ContextServiceServer<Contexts>,
    pub(crate) workers: WorkerServiceServer<Workers>,
    pub(crate) admin: AdminServiceServer<Admin>,
    pub(crate) ticket_keys: TicketKeyServiceServer<TicketKeys>,
    pub(crate) secrets: SecretDiscoveryServiceServer<TicketKeys>,
    /// Health and reflection.
    pub(crate) others: Routes,
    pub(crate) messages: MessageLimits,
}

/// Largest message of each service, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct MessageLimits {
    pub(crate) connections: usize,
    pub(crate) sessions: usize,
    pub(crate) contexts: usize,
    pub(crate) workers: usize,
    pub(crate) admin: usize,
    pub(crate) ticket_keys: usize,
    pub(crate) others: usize,
}

/// Returns the service name in a method's path.
fn service(path: &str) -> Option<&str> {
    path.strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .map(|(service, _)| service)
}

impl Services {
    /// Returns the largest message that the service of this path reads, in bytes.
    pub(crate) fn message_max(&self, path: &str) -> usize {
        match service(path) {
            Some(connection_service_server::SERVICE_NAME) => self.messages.connections,
            Some(session_service_server::SERVICE_NAME) => self.messages.sessions,
            Some(context_service_server::SERVICE_NAME) => self.messages.contexts,
            Some(worker_service_server::SERVICE_NAME) => self.messages.workers,
            Some(admin_service_server::SERVICE_NAME) => self.messages.admin,
            Some(
                ticket_key_service_server::SERVICE_NAME
                | secret_discovery_service_server::SERVICE_NAME,
            ) => self.messages.ticket_keys,
            _ => self.messages.others,
        }
    }

    pub(crate) fn call(
        &self,
        request: Request<impl Incoming>,
    ) -> BoxFuture<Response<Body>, Infallible> {
        match service(request.uri().path()) {
            Some(connection_service_server::SERVICE_NAME) => self.connections.clone().call(request),
            Some(session_service_server::SERVICE_NAME) => self.sessions.clone().call(request),
            Some(context_service_server::SERVICE_NAME) => self.contexts.clone().call(request),
            Some(worker_service_server::SERVICE_NAME) => self.workers.clone().call(request),
            Some(admin_service_server::SERVICE_NAME) => self.admin.clone().call(request),
            Some(ticket_key_service_server::SERVICE_NAME) => self.ticket_keys.clone().call(request),
            Some(secret_discovery_service_server::SERVICE_NAME) => {
                self.secrets.clone().call(request)
            }
            _ => Box::pin(self.others.clone().call(request)),
        }
    }
}
