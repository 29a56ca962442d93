//! The API: gRPC in, calls on the table, the caches and the contexts out. Errors turn into statuses here and nowhere else.
//!
//! * [`listen`]: sockets, who calls, and when a connection must end
//! * [`status`]: the table of refusals
//! * `edge`: what every call passes
//! * `connections`, `sessions`, `contexts`, `workers`: one file for each service
//! * `drive`, `attach`: one for each stream
//! * `convert`, `page`, `request_ids`: messages, lists, repeated requests

use std::{sync::Arc, time::Duration};

use tonic::transport::{Server, server::Router};
use tonic_health::server::HealthReporter;

use crate::{
    config::Limits,
    connection::{Error, Table},
    proto::{
        self, connection_service_server::ConnectionServiceServer,
        context_service_server::ContextServiceServer, session_service_server::SessionServiceServer,
        worker_service_server::WorkerServiceServer,
    },
};

mod attach;
mod connections;
mod contexts;
mod convert;
mod drive;
mod edge;
pub mod listen;
mod page;
mod request_ids;
mod sessions;
pub mod status;
mod workers;

use connections::{Connections, Opener};
use contexts::Contexts;
use edge::Edge;
use listen::{Listeners, Signals};
use page::Pages;
use request_ids::RequestIds;
use sessions::Sessions;
use workers::Workers;

/// How often an idle HTTP/2 connection is asked whether it lives, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest header block of a call.
const HEADERS_MAX: u32 = 16 << 10;
/// Streams that a peer reset before they were handled (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 64;

/// The services that health speaks of; `""` is the daemon as a whole.
const HEALTH_NAMES: [&str; 5] = [
    "",
    "tls.sessiond.v1.ConnectionService",
    "tls.sessiond.v1.SessionService",
    "tls.sessiond.v1.ContextService",
    "tls.sessiond.v1.WorkerService",
];

/// All services, ready to be served.
pub struct Api {
    router: Router<tower::layer::util::Stack<Edge, tower::layer::util::Identity>>,
    health: Health,
}

/// Tells orchestrators whether to send work.
#[derive(Clone)]
pub struct Health(HealthReporter);

impl Health {
    /// grpc.health.v1: for the daemon and for each service.
    pub async fn set(&self, serving: Serving) {
        let status = match serving {
            Serving::Yes => tonic_health::ServingStatus::Serving,
            Serving::No => tonic_health::ServingStatus::NotServing,
        };
        for name in HEALTH_NAMES {
            self.0.set_service_status(name, status).await;
        }
    }
}

/// Whether the daemon wants work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// SERVING.
    Yes,
    /// NOT_SERVING: it starts or stops.
    No,
}

impl Api {
    /// Puts the services together.
    ///
    /// # Errors
    /// The system has no random numbers.
    ///
    /// # Panics
    /// Never: the descriptors are built in, and a test reads them.
    pub fn new(table: Arc<Table>, limits: &Limits, signals: &Signals) -> Result<Self, Error> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let pages = Arc::new(Pages::new()?);
        let request_ids = RequestIds::new(limits.connections);
        let connections = Arc::new(Connections {
            opener: Arc::new(Opener { table: Arc::clone(&table), request_ids }),
            pages: Arc::clone(&pages),
            draining: signals.draining.clone(),
            plaintext_buffer: limits.plaintext_buffer,
        });
        let sessions = Arc::new(Sessions { table: Arc::clone(&table), pages });
        let workers = Workers {
            connections: Arc::clone(&connections),
            sessions: Arc::clone(&sessions),
            draining: signals.draining.clone(),
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let router = Server::builder()
            .max_concurrent_streams(limits.streams)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(HEADERS_MAX)
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
            .layer(Edge)
            .add_service(
                ConnectionServiceServer::from_arc(connections).max_decoding_message_size(limits.message),
            )
            .add_service(SessionServiceServer::from_arc(sessions).max_decoding_message_size(limits.message))
            .add_service(
                ContextServiceServer::new(Contexts { started: table.now(), table })
                    .max_decoding_message_size(limits.message),
            )
            .add_service(WorkerServiceServer::new(workers).max_decoding_message_size(limits.message))
            .add_service(health)
            .add_service(reflection().build_v1().expect("the descriptors are valid"))
            .add_service(reflection().build_v1alpha().expect("the descriptors are valid"));
        Ok(Self { router, health: Health(reporter) })
    }

    /// What tells whether the daemon serves.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Serves until `signals.draining` is cancelled and the last call has ended, or `signals.kill` is.
    ///
    /// # Errors
    /// Those of the transport.
    pub async fn serve(self, listeners: Listeners, signals: &Signals) -> Result<(), tonic::transport::Error> {
        self.router.serve_with_incoming_shutdown(listeners, signals.draining.clone().cancelled_owned()).await
    }
}
